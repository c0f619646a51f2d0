"""Jitter: another attack, with noise of its own on each malicious client's update, so that no two are equal.

No publication; it is for attacks whose clients all send the same, which a search for near-duplicates finds.

Variant: each row that the other attack crafts gets independent Gaussian noise in its parameters, scaled to exactly
``share`` of the length of the row's parameters. Running statistics are sent as the other attack crafts them.
Departs: nothing, since nothing is published.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jaxtyping import Int
from torch import Tensor

from fedsieve.attacks.min_max import MinMax
from fedsieve.attacks.noise import parameter_coordinates, with_noise
from fedsieve.core.attack import (
    Attack,
    AttackView,
    Crafted,
    PoisonView,
    Task,
    Triggered,
    craft,
    identity,
    poison,
    triggered,
)
from fedsieve.core.errors import ParameterError
from fedsieve.core.linalg import check_fits_float32
from fedsieve.core.traits import Traits


@dataclass(frozen=True)
class Jitter:
    """Another attack, with noise on each update.

    Attributes:
        attack: Crafts the updates.
        share: Length of the noise, as a share of the update's.
    """

    attack: Attack = field(default_factory=MinMax)
    share: float = 0.05
    parts: ClassVar[Mapping[str, Any]] = {"attack": "min-max"}
    traits: ClassVar[Traits] = Traits(
        summary="Another attack, with noise on each update so that no two are equal",
    )

    def __post_init__(self) -> None:
        if not 0 < self.share < math.inf:
            raise ParameterError(f"jitter: share must be positive and finite, got {self.share}")
        check_fits_float32("jitter", share=self.share)

    def poison(self, x: Tensor, y: Tensor, view: PoisonView, /) -> tuple[Tensor, Tensor]:
        """See :class:`fedsieve.core.attack.DataAttack`."""
        return poison(self.attack, x, y, view)

    def craft(self, view: AttackView, /) -> Crafted:
        """See :class:`fedsieve.core.attack.UpdateAttack`; the memory is the inner attack's."""
        crafted = craft(self.attack, view, f"jitter: {type(self.attack).__name__}")
        where = parameter_coordinates(view.layout)
        return Crafted(with_noise(crafted.updates, self.share, where, view.generator), crafted.memory)

    def identity(self, member: int, round: int, /) -> int:
        """See :class:`fedsieve.core.attack.Identities`; that of the inner attack."""
        return identity(self.attack, member, round)

    def triggered(self, x: Tensor, y: Int[Tensor, " k"], task: Task, /) -> Triggered | None:
        """See :class:`fedsieve.core.attack.Backdoor`; samples of the inner attack."""
        return triggered(self.attack, x, y, task)
