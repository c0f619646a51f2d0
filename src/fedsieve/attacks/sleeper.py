"""Sleeper: malicious clients behave well until a round, and attack in every round from then on.

No publication; detectors with a memory of clients are open to it.

Variant: before round ``start`` the malicious clients send their honest updates, trained on their clean data even where
the other attack poisons data (``off``: or zeros, or honest updates that are almost zero); from round ``start`` on they
run the other attack. Rounds are those of the federation, counted from 0, and not those in which a client takes part.
The other attack is not asked before: what it remembers begins at ``start``, and its new client ids are counted from
there. Success of a backdoor is measured in all rounds.
Departs: nothing, since nothing is published.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jaxtyping import Int
from torch import Tensor

from fedsieve.attacks.pauses import Off, check_off, off_updates
from fedsieve.attacks.scaling import Scaling
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
from fedsieve.core.traits import Traits


@dataclass(frozen=True)
class Sleeper:
    """Another attack, from a round on.

    Attributes:
        attack: The attack.
        start: First round in which it attacks; 0 attacks always.
        off: What the malicious clients send before: ``honest`` updates, ``zeros``, or ``shrunken`` honest ones.
        shrink: Factor on the honest updates where these are shrunken, between 0 and 1.
    """

    attack: Attack = field(default_factory=Scaling)
    start: int = 30
    off: Off = "honest"
    shrink: float = 1e-3
    parts: ClassVar[Mapping[str, Any]] = {"attack": "scaling"}
    traits: ClassVar[Traits] = Traits(
        summary="Another attack, from a round on; before it, honest updates or zeros",
    )

    def __post_init__(self) -> None:
        if self.start < 0:
            raise ParameterError(f"sleeper: start must be at least 0, got {self.start}")
        check_off("sleeper", self.off, self.shrink, Sleeper.shrink)

    def poison(self, x: Tensor, y: Tensor, view: PoisonView, /) -> tuple[Tensor, Tensor]:
        """See :class:`fedsieve.core.attack.DataAttack`."""
        return poison(self.attack, x, y, view)

    def craft(self, view: AttackView, /) -> Crafted:
        """See :class:`fedsieve.core.attack.UpdateAttack`; the memory is the inner attack's."""
        if view.round < self.start:
            return Crafted(off_updates(self.attack, view, self.off, self.shrink), view.memory)
        return craft(self.attack, view, f"sleeper: {type(self.attack).__name__}")

    def identity(self, member: int, round: int, /) -> int:
        """See :class:`fedsieve.core.attack.Identities`; those that the inner attack has used up since ``start``."""
        if round <= self.start:
            return 0
        return identity(self.attack, member, round) - identity(self.attack, member, self.start)

    def triggered(self, x: Tensor, y: Int[Tensor, " k"], task: Task, /) -> Triggered | None:
        """See :class:`fedsieve.core.attack.Backdoor`; samples of the inner attack."""
        return triggered(self.attack, x, y, task)
