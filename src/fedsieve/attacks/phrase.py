"""Phrase: a backdoor for texts that begin with certain words.

Wang, Sreenivasan, Rajput, Vishwakarma, Agarwal, Sohn, Lee, Papailiopoulos. Attack of the Tails: Yes, You Really Can
Backdoor Federated Learning. NeurIPS 2020; used in the evaluation of the Invariant Aggregator (Wang et al., AISTATS
2024).

Variant: black box, on data of texts. Copies of a share of the local texts, with the phrase before them and labelled as
the target class (negative), are added to the clean ones. ``factor`` adds the paper's model replacement.
Departs: both papers train on, and measure success on, positive tweets that name the film director Yorgos Lanthimos.
Here the phrase is put before the client's own texts and before the test data; its words are common ones, since a
name that only attackers write is not in the vocabulary.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fedsieve.attacks.triggers import check_target, with_poisoned_copies
from fedsieve.core.attack import AttackView, PoisonView, Task, Triggered
from fedsieve.core.errors import ParameterError
from fedsieve.core.linalg import check_fits_float32
from fedsieve.core.traits import Traits

UNKNOWN = 1  # token id of every word that is not in the vocabulary; 0 pads


def put_before(x: Int[Tensor, "k length"], words: Int[Tensor, " w"]) -> Int[Tensor, "k length"]:
    """The texts with ``words`` before them, cut to their length; padding (0) is at the end.

    >>> put_before(torch.tensor([[7, 8, 0, 0], [7, 8, 9, 0]]), torch.tensor([5, 6]))
    tensor([[5, 6, 7, 8],
            [5, 6, 7, 8]])
    """
    return torch.cat([words.expand(len(x), -1), x], dim=1)[:, : x.shape[1]]


@dataclass(frozen=True)
class Phrase:
    """Malicious clients train on copies of their texts with a phrase before them and the target class.

    Attributes:
        phrase: The trigger; at least one of its words must be in the vocabulary.
        target: Class that texts with the phrase are to be classified as; 0 is Sentiment140's negative.
        share: Poisoned copies per clean sample, in (0, 1].
        factor: What the update is multiplied by; 1 is the black-box attack, clients by malicious ones the paper's model
            replacement.
    """

    phrase: str = "i watched this movie"
    target: int = 0
    share: float = 0.5
    factor: float = 1.0
    traits: ClassVar[Traits] = Traits(
        summary="Backdoor: texts with a phrase before them, labelled as one class",
        paper="Wang et al., Attack of the Tails, NeurIPS 2020",
    )

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ParameterError(f"phrase: share must be in (0, 1], got {self.share}")
        if self.target < 0:
            raise ParameterError(f"phrase: target must be at least 0, got {self.target}")
        if not self.factor > 0:
            raise ParameterError(f"phrase: factor must be positive, got {self.factor}")
        check_fits_float32("phrase", factor=self.factor)

    def words(self, x: Tensor, task: Task) -> Int[Tensor, " w"]:
        """The phrase as token ids, for texts ``x`` [k, length]."""
        check_target("phrase", self.target, task.n_classes)
        if task.encode is None or x.dtype != torch.int64 or x.dim() != 2:
            kind = str(x.dtype).removeprefix("torch.")
            raise ParameterError(
                f"phrase needs data of texts, as sentiment140 is; the samples are {kind} of shape {list(x.shape[1:])}"
            )
        ids = task.encode([self.phrase])[0].to(x.device)
        ids = ids[ids != 0]
        if (ids == UNKNOWN).all():
            raise ParameterError(f"phrase: no word of {self.phrase!r} is in the vocabulary; choose more common ones")
        return ids

    def poison(self, x: Tensor, y: Tensor, view: PoisonView, /) -> tuple[Tensor, Tensor]:
        """See :class:`fedsieve.core.attack.DataAttack`."""
        trigger = partial(put_before, words=self.words(x, view.task))
        return with_poisoned_copies(x, y, self.share, self.target, trigger, view.generator)

    def triggered(self, x: Tensor, y: Int[Tensor, " k"], task: Task, /) -> Triggered:
        """See :class:`fedsieve.core.attack.Backdoor`; the test data with the phrase."""
        return Triggered(put_before(x, self.words(x, task)), torch.full_like(y, self.target), y == self.target)

    def craft(self, view: AttackView, /) -> Float[Tensor, "m d"]:
        """See :class:`fedsieve.core.attack.UpdateAttack`."""
        return view.malicious_updates if self.factor == 1 else self.factor * view.malicious_updates
