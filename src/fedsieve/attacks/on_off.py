"""On-off: malicious clients attack in some rounds of every period and behave well in the others.

No publication in federated learning; against systems of trust it is known as the on-off attack (Sun, Han, Yu, Liu.
Attacks on Trust Evaluation in Distributed Networks. CISS 2006).

Variant: a period is ``period`` rounds of the federation, the first one from round 0 on. In its last ``duty`` rounds the
malicious clients run the other attack; before, they send their honest updates, trained on their clean data even where
the other attack poisons data (``off``: or zeros, or honest updates that are almost zero). The other attack is asked
only in rounds in which it attacks and remembers what it did in the last of them; its new client ids don't pause.
Departs: Sun et al. attack a system of trust between the nodes of a network, without a model.
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
class OnOff:
    """Another attack, in the last rounds of every period.

    Attributes:
        attack: The attack.
        period: Rounds of a period.
        duty: Rounds of a period in which it attacks, the last ones; all of them attack always.
        off: What the malicious clients send in the others: ``honest`` updates, ``zeros``, or ``shrunken`` honest ones.
        shrink: Factor on the honest updates where these are shrunken, between 0 and 1.
    """

    attack: Attack = field(default_factory=Scaling)
    period: int = 5
    duty: int = 1
    off: Off = "honest"
    shrink: float = 1e-3
    parts: ClassVar[Mapping[str, Any]] = {"attack": "scaling"}
    traits: ClassVar[Traits] = Traits(
        summary="Another attack, in the last rounds of every period; in the others, honest updates or zeros",
    )

    def __post_init__(self) -> None:
        if not 1 <= self.duty <= self.period:
            raise ParameterError(f"on-off: duty must be 1 to period = {self.period} rounds, got {self.duty}")
        check_off("on-off", self.off, self.shrink, OnOff.shrink)

    def poison(self, x: Tensor, y: Tensor, view: PoisonView, /) -> tuple[Tensor, Tensor]:
        """See :class:`fedsieve.core.attack.DataAttack`."""
        return poison(self.attack, x, y, view)

    def craft(self, view: AttackView, /) -> Crafted:
        """See :class:`fedsieve.core.attack.UpdateAttack`; the memory is the inner attack's."""
        if view.round % self.period < self.period - self.duty:
            return Crafted(off_updates(self.attack, view, self.off, self.shrink), view.memory)
        return craft(self.attack, view, f"on-off: {type(self.attack).__name__}")

    def identity(self, member: int, round: int, /) -> int:
        """See :class:`fedsieve.core.attack.Identities`; that of the inner attack."""
        return identity(self.attack, member, round)

    def triggered(self, x: Tensor, y: Int[Tensor, " k"], task: Task, /) -> Triggered | None:
        """See :class:`fedsieve.core.attack.Backdoor`; samples of the inner attack."""
        return triggered(self.attack, x, y, task)
