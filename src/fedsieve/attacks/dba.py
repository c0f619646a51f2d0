"""DBA, the distributed backdoor attack: each malicious client trains on a piece of the trigger; together they plant it.

Xie, Huang, Chen, Li. DBA: Distributed Backdoor Attacks against Federated Learning. ICLR 2020.

Variant: the trigger is cut into ``pieces``, in reading order; malicious client ``member`` holds piece ``member`` modulo
``pieces``. Copies of a share of the local samples, with that piece and the target label, join the clean ones; the
update is multiplied by ``factor``, by default n / m, with which m colluding clients replace the mean. Success is
measured with the whole trigger, which nobody has trained on.
Departs: the trigger is that of ``scaling``, so that the two differ in nothing else: a square for images, and every
``stride``-th feature set to 0 for other data. The paper's triggers are four bars with gaps, and six features in three
pieces that get unusual values. The malicious clients attack in every round: with ``factor`` 1 this is the paper's
attack of many shots; in its attack of a single shot, each scales by 100 in a round of its own.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fedsieve.attacks.triggers import (
    check_effect,
    check_pattern,
    check_target,
    check_visible,
    mark,
    with_poisoned_copies,
)
from fedsieve.core.attack import AttackView, PoisonView, Task, Triggered
from fedsieve.core.errors import ParameterError
from fedsieve.core.linalg import check_fits_float32
from fedsieve.core.traits import Traits

USUAL_STRIDE = 20


def pieces_of(positions: Bool[Tensor, "*shape"], pieces: int) -> Int[Tensor, "*shape"]:
    """The piece to which each of ``positions`` belongs, in reading order and of about equal sizes; -1 elsewhere.

    >>> pieces_of(torch.tensor([[True, True, False], [True, True, False]]), pieces=2)
    tensor([[ 0,  0, -1],
            [ 1,  1, -1]])

    Args:
        positions: Where the trigger is; at least one.
        pieces: At most the number of positions.
    """
    rank = positions.flatten().cumsum(0).view(positions.shape) - 1
    return torch.where(positions, rank * pieces // positions.sum(), -1)


@dataclass(frozen=True)
class DBA:
    """Train pieces of a trigger at different clients and scale the updates.

    Attributes:
        target: Class that inputs with the trigger are to be classified as.
        share: Poisoned copies per clean sample, in (0, 1].
        pieces: Number of pieces of the trigger, at most its pixels or features.
        factor: What the update is multiplied by; None: clients of the round / malicious ones among them.
        size: Images only: side of the square trigger in the top left corner, in pixels.
        value: Images only: pixel value of the trigger, on the dataset's own scale; None: the largest in the training
            data.
        stride: Other data only: every ``stride``-th feature becomes 0; None: every 20th, or more if that would leave a
            piece without a feature.
    """

    target: int = 0
    share: float = 0.5
    pieces: int = 4
    factor: float | None = None
    size: int = 5
    value: float | None = None
    stride: int | None = None
    traits: ClassVar[Traits] = Traits(
        summary="Backdoor: each malicious client trains on a piece of the trigger, the update scaled up",
        paper="Xie et al., DBA: Distributed Backdoor Attacks against Federated Learning, ICLR 2020",
        breaks_at="fewer malicious clients than pieces: nobody trains on the rest of the trigger",
    )

    def __post_init__(self) -> None:
        stride = USUAL_STRIDE if self.stride is None else self.stride
        check_pattern("dba", self.share, self.size, stride, self.target, self.value)
        if self.pieces < 1:
            raise ParameterError(f"dba: pieces must be at least 1, got {self.pieces}")
        if self.factor is not None and not self.factor > 0:
            raise ParameterError(f"dba: factor must be positive, got {self.factor}")
        check_fits_float32("dba", factor=self.factor)

    def trigger(self, x: Tensor, largest: float = 1.0, piece: int | None = None) -> Tensor:
        """A copy of ``x`` with the trigger. Images are [k, channels, height, width]; the rest [k, features].

        Args:
            x: Samples.
            largest: Largest value in the training data, :attr:`fedsieve.core.attack.Task.largest`.
            piece: Number of the only piece that is put on the samples, from 0; None: the whole trigger.

        Raises:
            ParameterError: If the trigger has fewer pixels or features than pieces.
        """
        images = x.dim() == 4
        stride = min(USUAL_STRIDE, max(1, x.shape[1] // self.pieces)) if self.stride is None else self.stride
        marked = mark(x, self.size, largest if self.value is None else self.value, stride)
        # of one sample; the channels of a pixel belong together
        blank = torch.ones(1, *((1, *x.shape[2:]) if images else x.shape[1:]))
        positions = mark(blank, self.size, 0.0, stride)[0] == 0
        if self.pieces > (count := int(positions.sum())):
            remedy = "pieces or size" if images else "pieces" if self.stride is None else "pieces or stride"
            kind = ("pixel" if images else "feature") + "s" * (count != 1)
            raise ParameterError(
                f"dba: the trigger has {count} {kind} on samples of shape "
                f"{list(x.shape[1:])}, too few for {self.pieces} pieces; set {remedy}"
            )
        if piece is None:
            return marked
        return torch.where((pieces_of(positions, self.pieces) == piece).to(x.device), marked, x)

    def triggered(self, x: Tensor, y: Int[Tensor, " k"], task: Task, /) -> Triggered:
        """See :class:`fedsieve.core.attack.Backdoor`; the test data with the whole trigger."""
        for piece in range(self.pieces):
            check_visible(f"dba: piece {piece + 1} of {self.pieces}", x, self.trigger(x, task.largest, piece))
        return Triggered(self.trigger(x, task.largest), torch.full_like(y, self.target), y == self.target)

    def poison(self, x: Tensor, y: Tensor, view: PoisonView, /) -> tuple[Tensor, Tensor]:
        """See :class:`fedsieve.core.attack.DataAttack`."""
        check_target("dba", self.target, view.task.n_classes)
        check_effect("dba", self, x)
        trigger = partial(self.trigger, largest=view.task.largest, piece=view.member % self.pieces)
        return with_poisoned_copies(x, y, self.share, self.target, trigger, view.generator)

    def craft(self, view: AttackView, /) -> Float[Tensor, "m d"]:
        """See :class:`fedsieve.core.attack.UpdateAttack`."""
        factor = view.n_clients / len(view.malicious_updates) if self.factor is None else self.factor
        return factor * view.malicious_updates
