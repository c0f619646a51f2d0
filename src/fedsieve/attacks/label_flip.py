"""Label flipping: train on wrong labels.

Tolpegin, Truex, Gursoy, Liu. Data Poisoning Attacks Against Federated Learning Systems. ESORICS 2020.

Variant: every label k becomes C - k - 1, for C classes, as in Fang et al. (USENIX Security 2020) and SkyMask.
Departs: Tolpegin et al. flip one class into one other, as ``targeted-flip`` does.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from fedsieve.core.attack import PoisonView
from fedsieve.core.traits import Traits


def flip_labels(y: Int[Tensor, " k"], n_classes: int) -> Int[Tensor, " k"]:
    """Class C - k - 1 in place of every class k of C.

    >>> import torch
    >>> flip_labels(torch.tensor([0, 1, 9]), 10)
    tensor([9, 8, 0])
    """
    return n_classes - 1 - y


@dataclass(frozen=True)
class LabelFlip:
    """Malicious clients train on label C - k - 1 in place of k and send the resulting update."""

    traits: ClassVar[Traits] = Traits(
        summary="Malicious clients train on label C - k - 1 in place of k",
        paper="Tolpegin et al., Data Poisoning Attacks Against Federated Learning Systems, ESORICS 2020",
    )

    def poison(self, x: Tensor, y: Tensor, view: PoisonView, /) -> tuple[Tensor, Tensor]:
        """See :class:`fedsieve.core.attack.DataAttack`."""
        return x, flip_labels(y, view.task.n_classes)
