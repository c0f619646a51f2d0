"""Short texts, such as tweets, to rows of token ids."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import unescape
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from fedsieve.core.errors import ParameterError

PADDING, UNKNOWN = "<pad>", "<unk>"
LINK, NAME = "<url>", "<user>"  # as in the GloVe vectors made from tweets

# links, @names, words with clitics split off as in the Penn Treebank (do n't, it 's), single other characters
_TOKENS = re.compile(
    r"(?P<link>(?:https?://|www\.)\S+)|(?P<name>@\w+)|\w+?(?=n't\b)|n't\b|'(?:s|m|d|re|ve|ll)\b|\w+|[^\w\s]"
)


def words(text: str) -> list[str]:
    """The tokens of a text: words in lower case, punctuation marks, one token for all links and one for all @names.

    >>> words("It's @ann's photo: https://x.org/1")
    ['it', "'s", '<user>', "'s", 'photo', ':', '<url>']
    """
    plain = unescape(text).lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return [LINK if m["link"] else NAME if m["name"] else m[0] for m in _TOKENS.finditer(plain)]


@dataclass(frozen=True)
class Vocabulary:
    """Words by token id; 0 is padding and 1 is any unknown word.

    Attributes:
        words: Padding, unknown, then the words.
    """

    words: tuple[str, ...]

    @classmethod
    def of(cls, texts: Sequence[str], size: int) -> "Vocabulary":
        """The most frequent words of ``texts``, ties in alphabetical order.

        Args:
            texts: Texts.
            size: Number of ids, padding and unknown words included; fewer if the texts have fewer words.

        Raises:
            ParameterError: If ``size`` is less than 3.

        >>> Vocabulary.of(["a b b", "b c"], 4).words
        ('<pad>', '<unk>', 'b', 'a')
        """
        if size < 3:
            raise ParameterError(f"vocabulary must have at least 3 words (two are padding and unknown), got {size}")
        counts = Counter(word for text in texts for word in words(text))
        frequent = sorted(counts, key=lambda word: (-counts[word], word))[: size - 2]
        return cls((PADDING, UNKNOWN, *frequent))

    def encode(self, texts: Any, length: int) -> Int[Tensor, "k length"]:
        """The ids of the first ``length`` tokens of each text, padded at the end; an empty text is one unknown word.

        Raises:
            ParameterError: If ``texts`` is not a list of strings.

        >>> Vocabulary.of(["a b b", "b c"], 4).encode(["b d a a", ""], 3).tolist()
        [[2, 1, 3], [1, 0, 0]]
        """
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
            raise ParameterError(f"texts must be a list of strings, got {_kind(texts)}")
        ids = {word: k for k, word in enumerate(self.words)}
        rows = torch.zeros(len(texts), length, dtype=torch.long)
        for row, text in zip(rows.numpy(), texts, strict=True):
            found = [ids.get(word, 1) for word in words(text)[:length]] or [1]
            row[: len(found)] = found
        return rows


def _kind(texts: Any) -> str:
    if not isinstance(texts, list | tuple):
        return type(texts).__name__
    return f"a list with {next(type(text).__name__ for text in texts if not isinstance(text, str))}"
