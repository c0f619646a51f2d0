"""Targeted label flipping: train on samples of one class as if they were of another.

Tolpegin, Truex, Gursoy, Liu. Data Poisoning Attacks Against Federated Learning Systems. ESORICS 2020; Fung, Yoon,
Beschastnikh. The Limitations of Federated Learning in Sybil Settings. RAID 2020.

Variant: every sample of class ``source`` in a malicious client's data becomes one of class ``target``, and the client
trains on them as any client does. Success is the share of the clean test samples of class ``source`` that the model
takes for ``target``. A client without samples of ``source`` is an honest client.
Departs: the pair of classes is that of the data in the papers (6 to 0, 1 to 3 and 4 to 6 in Fashion-MNIST, 0 to 2, 1 to
9 and 5 to 3 in CIFAR-10, 1 to 7 in MNIST). Here it is 0 to 1 by default, since every dataset has these two. Fung et al.
give the same poisoned data to all malicious clients; here each poisons its own.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from fedsieve.core.attack import PoisonView, Task, Triggered
from fedsieve.core.errors import ParameterError
from fedsieve.core.traits import Traits


def flip_class(y: Int[Tensor, " k"], source: int, target: int) -> Int[Tensor, " k"]:
    """Class ``target`` in place of ``source``; the others stay.

    >>> flip_class(torch.tensor([0, 1, 2, 0]), source=0, target=2)
    tensor([2, 1, 2, 2])
    """
    return torch.where(y == source, target, y)


@dataclass(frozen=True)
class TargetedFlip:
    """Malicious clients train on samples of one class as samples of another.

    Attributes:
        source: Class whose samples get the wrong label.
        target: The label they get.
    """

    source: int = 0
    target: int = 1
    traits: ClassVar[Traits] = Traits(
        summary="Malicious clients train on samples of one class labelled as another",
        paper="Tolpegin et al., Data Poisoning Attacks Against Federated Learning Systems, ESORICS 2020",
        breaks_at="malicious clients without samples of the source class, which are honest clients",
    )

    def __post_init__(self) -> None:
        if min(self.source, self.target) < 0 or self.source == self.target:
            raise ParameterError(
                "targeted-flip: source and target must be two different classes from 0 on, "
                f"got {self.source} and {self.target}"
            )

    def _check(self, n_classes: int) -> None:
        if max(self.source, self.target) >= n_classes:
            raise ParameterError(
                f"targeted-flip: source and target must be below the {n_classes} classes, "
                f"got {self.source} and {self.target}"
            )

    def poison(self, x: Tensor, y: Tensor, view: PoisonView, /) -> tuple[Tensor, Tensor]:
        """See :class:`fedsieve.core.attack.DataAttack`."""
        self._check(view.task.n_classes)
        return x, flip_class(y, self.source, self.target)

    def triggered(self, x: Tensor, y: Int[Tensor, " k"], task: Task, /) -> Triggered:
        """See :class:`fedsieve.core.attack.Backdoor`; the test samples of class ``source`` as they are."""
        self._check(task.n_classes)
        rows = y == self.source
        if not rows.any():
            raise ParameterError(
                f"targeted-flip: none of the {len(y)} test samples is of class {self.source}, so that success can't be "
                f"measured; set source to another class, such as {int(y.mode().values)}"
            )
        wanted = torch.full_like(y[rows], self.target)
        return Triggered(x[rows], wanted, torch.zeros_like(wanted, dtype=torch.bool))
