"""A recurrent network for short texts: word vectors, LSTM layers, one linear layer.

Hochreiter, Schmidhuber. Long Short-Term Memory. Neural Computation 1997.
"""

from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fedsieve.core.errors import CorruptDataError, MissingDataError, ParameterError
from fedsieve.core.traits import Traits


class LSTM(nn.Module):
    """Word vectors, LSTM layers, and one linear layer on the LSTM's output at the last word of the text.

    Usual in the literature for tweets (two layers of 200 units on GloVe's 300-dimensional vectors): ``embedding=300,
    hidden=200, glove=glove.6B.300d.txt``, and ``freeze=true`` where the vectors are not trained.

    Args:
        n_classes: Outputs.
        vocabulary: Words by token id; id 0 is padding, at the end of texts.
        embedding: Size of a word's vector.
        hidden: Units of each LSTM layer.
        layers: Number of LSTM layers.
        glove: Path of a text file with the initial vectors of words, a word and its numbers per line; "" for random
            ones. Words that are not in it start with random vectors.
        freeze: Whether word vectors are not trained.
    """

    traits: ClassVar[Traits] = Traits(
        summary="Word vectors, two LSTM layers (64 units), one linear layer",
        paper="Hochreiter and Schmidhuber, Long Short-Term Memory, Neural Computation 1997",
        needs=("text",),
    )

    def __init__(
        self,
        n_classes: int,
        vocabulary: tuple[str, ...],
        embedding: int = 64,
        hidden: int = 64,
        layers: int = 2,
        glove: str = "",
        freeze: bool = False,
    ) -> None:
        super().__init__()
        if not vocabulary:
            raise ParameterError(
                "lstm needs text, and these data have no vocabulary; try mlp, cnn or logistic-regression"
            )
        if min(embedding, hidden, layers) < 1:
            raise ParameterError(
                f"lstm: embedding, hidden and layers must be at least 1, got {embedding}, {hidden} and {layers}"
            )
        self.embedding = nn.Embedding(len(vocabulary), embedding, padding_idx=0)
        if glove:
            with torch.no_grad():
                for row, vector in read_glove(Path(glove).expanduser().absolute(), vocabulary, embedding).items():
                    self.embedding.weight[row] = vector
        self.embedding.weight.requires_grad_(not freeze)
        self.lstm = nn.LSTM(embedding, hidden, layers, batch_first=True)
        self.fc = nn.Linear(hidden, n_classes)

    def forward(self, x: Int[Tensor, "k length"]) -> Float[Tensor, "k c"]:
        """Logits of texts, given as token ids; padding has no influence."""
        length = (x != 0).sum(dim=1).clamp(min=1)
        if x.device.type != "cpu" or not len(x):
            return self.fc(self._at_the_end(x, length))  # type: ignore[no-any-return]
        # short texts apart from long ones, so that few words of padding are computed; a GPU would wait for the lengths
        order = length.argsort(stable=True)
        parts = order.chunk(min(8, max(1, len(x) // 32)))
        ends = torch.cat([self._at_the_end(x[part, : int(length[part].max())], length[part]) for part in parts])
        return self.fc(ends[order.argsort()])  # type: ignore[no-any-return]

    def _at_the_end(self, x: Int[Tensor, "k length"], length: Int[Tensor, " k"]) -> Float[Tensor, "k hidden"]:
        """The last layer's output at the last word of each text."""
        outputs, _ = self.lstm(self.embedding(x))
        return outputs[torch.arange(len(x), device=x.device), length - 1]  # type: ignore[no-any-return]


def read_glove(path: Path, vocabulary: tuple[str, ...], size: int) -> dict[int, Float[Tensor, " size"]]:
    """Word vectors from a text file, by token id, of the vocabulary's words that are in it.

    Args:
        path: The file: a word and its numbers per line, separated by spaces.
        vocabulary: Words by token id; ids 0 and 1 are padding and unknown words, which get no vector.
        size: Size of a vector.

    Raises:
        MissingDataError: If the file can't be read.
        ParameterError: If its vectors have another size.
        CorruptDataError: If a line is not a word and its numbers; names the line.
    """
    ids = {word: k for k, word in enumerate(vocabulary) if k > 1}
    found = {}
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                word, *values = line.rstrip().rsplit(" ", size)  # a few published words contain spaces
                if number == 1 and len(line.split()) != size + 1:
                    raise ParameterError(
                        f"lstm: embedding is {size}, but the vectors of {path} have size {len(line.split()) - 1}"
                    )
                if word in ids:
                    found[ids[word]] = torch.tensor([float(value) for value in values])
                    if len(values) != size or not found[ids[word]].isfinite().all():
                        raise CorruptDataError(f"{path}, line {number}: {word!r} has no {size} finite numbers")
    except OSError as error:
        raise MissingDataError(f"lstm: {path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # also a wrong encoding
        raise CorruptDataError(f"{path} is not a file of words and numbers: {error}") from None
    return found
