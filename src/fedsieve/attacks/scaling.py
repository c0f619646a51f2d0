"""Scaling: a backdoor trained on poisoned copies of the local data, the update scaled up to replace the average.

Bagdasaryan, Veit, Hua, Estrin, Shmatikov. How To Backdoor Federated Learning. AISTATS 2020; with the data
augmentation of Cao et al., FLTrust, NDSS 2021.

Variant: copies of a share of the local samples, with the trigger and the target label, join the clean ones; the
update is multiplied by ``factor``, by default n / m, with which m colluding clients replace the mean.
Departs: Bagdasaryan et al. use one attacker and n / (server learning rate); FLTrust uses n. Set ``factor`` for these.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Float, Int
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


@dataclass(frozen=True)
class Scaling:
    """Train a backdoor and scale the update.

    Attributes:
        target: Class that inputs with the trigger are to be classified as.
        share: Poisoned copies per clean sample, in (0, 1].
        factor: What the update is multiplied by; None: clients of the round / malicious ones among them.
        size: Images only: side of the square trigger in the top left corner, in pixels.
        value: Images only: pixel value of the trigger, on the dataset's own scale; None: the largest in the training
            data.
        stride: Other data only: every ``stride``-th feature becomes 0.
    """

    target: int = 0
    share: float = 0.5
    factor: float | None = None
    size: int = 5
    value: float | None = None
    stride: int = 20
    traits: ClassVar[Traits] = Traits(
        summary="Backdoor: a trigger in poisoned copies of the data, the update scaled up",
        paper="Bagdasaryan et al., How To Backdoor Federated Learning, AISTATS 2020",
    )

    def __post_init__(self) -> None:
        check_pattern("scaling", self.share, self.size, self.stride, self.target, self.value)
        if self.factor is not None and not self.factor > 0:
            raise ParameterError(f"scaling: factor must be positive, got {self.factor}")
        check_fits_float32("scaling", factor=self.factor)

    def trigger(self, x: Tensor, largest: float = 1.0) -> Tensor:
        """A copy of ``x`` with the trigger. Images are [k, channels, height, width]; the rest [k, features].

        Args:
            x: Samples.
            largest: Largest value in the training data, :attr:`fedsieve.core.attack.Task.largest`.
        """
        return mark(x, self.size, largest if self.value is None else self.value, self.stride)

    def triggered(self, x: Tensor, y: Int[Tensor, " k"], task: Task, /) -> Triggered:
        """See :class:`fedsieve.core.attack.Backdoor`; the test data with the trigger."""
        marked = self.trigger(x, task.largest)
        check_visible("scaling", x, marked)
        return Triggered(marked, torch.full_like(y, self.target), y == self.target)

    def poison(self, x: Tensor, y: Tensor, view: PoisonView, /) -> tuple[Tensor, Tensor]:
        """See :class:`fedsieve.core.attack.DataAttack`."""
        check_target("scaling", self.target, view.task.n_classes)
        check_effect("scaling", self, x)
        trigger = partial(self.trigger, largest=view.task.largest)
        return with_poisoned_copies(x, y, self.share, self.target, trigger, view.generator)

    def craft(self, view: AttackView, /) -> Float[Tensor, "m d"]:
        """See :class:`fedsieve.core.attack.UpdateAttack`."""
        factor = view.n_clients / len(view.malicious_updates) if self.factor is None else self.factor
        return factor * view.malicious_updates
