"""Fresh identity: malicious clients leave and come back under new client ids, without a past.

Friedman, Resnick. The Social Cost of Cheap Pseudonyms. Journal of Economics & Management Strategy 10(2), 2001: where a
new name costs nothing, a bad reputation is left behind with the old one. No publication on federated learning.

Variant: another attack decides what is sent; each malicious client takes a new id every ``every`` rounds, all of them
in the same rounds, whether they were drawn for these or not. The data and, with personal BatchNorm layers, their values
stay the client's. Where the other attack changes ids too, whichever has used up more of them by that round decides.
Departs: the paper's players choose when to change their names.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jaxtyping import Int
from torch import Tensor

from fedsieve.attacks.sign_flip import SignFlip
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
class FreshIdentity:
    """Another attack by clients that come back under new ids.

    Attributes:
        attack: What the malicious clients do.
        every: Rounds for which an id is used; at least 1.
    """

    attack: Attack = field(default_factory=SignFlip)
    every: int = 1
    parts: ClassVar[Mapping[str, Any]] = {"attack": "sign-flip"}
    traits: ClassVar[Traits] = Traits(
        summary="Another attack by clients that come back under new client ids",
        paper="Friedman and Resnick, The Social Cost of Cheap Pseudonyms, 2001",
    )

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ParameterError(f"fresh-identity: every must be at least 1, got {self.every}")

    def poison(self, x: Tensor, y: Tensor, view: PoisonView, /) -> tuple[Tensor, Tensor]:
        """See :class:`fedsieve.core.attack.DataAttack`."""
        return poison(self.attack, x, y, view)

    def craft(self, view: AttackView, /) -> Crafted:
        """See :class:`fedsieve.core.attack.UpdateAttack`; the memory is the inner attack's."""
        return craft(self.attack, view, f"fresh-identity: {type(self.attack).__name__}")

    def identity(self, member: int, round: int, /) -> int:
        """See :class:`fedsieve.core.attack.Identities`."""
        return max(round // self.every, identity(self.attack, member, round))

    def triggered(self, x: Tensor, y: Int[Tensor, " k"], task: Task, /) -> Triggered | None:
        """See :class:`fedsieve.core.attack.Backdoor`; samples of the inner attack."""
        return triggered(self.attack, x, y, task)
