"""Mixture: several attacks in one round, each by some of the malicious clients.

No publication; SkyMask's authors leave it open (Yan et al., ECCV 2024, section V).

Variant: malicious client ``member`` runs attack number ``member`` modulo the number of attacks, in every round. The
attacks don't collude: each sees the updates of its own clients and trains on their data alone, as if they were all the
malicious clients of a round with the same number of clients (so that ``scaling`` replaces the mean with the update of
its own clients), numbered anew from 0. Each is granted what the threat model grants: the benign updates, the defense,
and the clean data of all malicious clients. Where clients are drawn anew every round, an attack may have no client in
some rounds. Success is measured for the first attack that is a backdoor.
Departs: nothing, since nothing is published.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from jaxtyping import Bool, Float, Int
from torch import Tensor

from fedsieve.attacks.label_flip import LabelFlip
from fedsieve.attacks.min_max import MinMax
from fedsieve.attacks.scaling import Scaling
from fedsieve.core.attack import (
    Attack,
    AttackView,
    Backdoor,
    Crafted,
    PoisonView,
    Task,
    Training,
    Triggered,
    craft,
    identity,
    poison,
)
from fedsieve.core.errors import ParameterError
from fedsieve.core.traits import Traits


@dataclass(frozen=True)
class Subset:
    """Local training, limited to some malicious clients. Implements :class:`fedsieve.core.attack.Training`.

    Attributes:
        train: Local training of all malicious clients of the round.
        rows: Which of their updates are returned, [m].
    """

    train: Training
    rows: Bool[Tensor, " m"]

    def __call__(
        self, start: Float[Tensor, " d"], /, *, poisoned: bool = True, proximal: float = 0.0
    ) -> Float[Tensor, "p d"]:
        """See :class:`fedsieve.core.attack.Training`."""
        return self.train(start, poisoned=poisoned, proximal=proximal)[self.rows]


def restricted(view: AttackView, rows: Bool[Tensor, " m"]) -> AttackView:
    """The view of an attacker that controls only the malicious clients of ``rows``."""
    return replace(
        view, malicious_updates=view.malicious_updates[rows], members=view.members[rows], train=Subset(view.train, rows)
    )


@dataclass(frozen=True)
class Mixture:
    """Several attacks, assigned to the malicious clients in turn.

    Attributes:
        attacks: At least one.
    """

    attacks: tuple[Attack, ...] = field(default_factory=lambda: (MinMax(), LabelFlip(), Scaling()))
    parts: ClassVar[Mapping[str, Any]] = {"attacks": ("min-max", "label-flip", "scaling")}
    traits: ClassVar[Traits] = Traits(
        summary="Several attacks in one round, each by some of the malicious clients",
    )

    def __post_init__(self) -> None:
        if not self.attacks:
            raise ParameterError("mixture: attacks must have at least one entry, got none")

    def poison(self, x: Tensor, y: Tensor, view: PoisonView, /) -> tuple[Tensor, Tensor]:
        """See :class:`fedsieve.core.attack.DataAttack`."""
        n = len(self.attacks)
        return poison(self.attacks[view.member % n], x, y, replace(view, member=view.member // n))

    def craft(self, view: AttackView, /) -> Crafted:
        """See :class:`fedsieve.core.attack.UpdateAttack`; the memory is one per attack."""
        n = len(self.attacks)
        sent, memories = view.malicious_updates.clone(), list(view.memory or [None] * n)
        for k, attack in enumerate(self.attacks):
            rows = view.members % n == k
            if not rows.any():
                continue
            own = replace(restricted(view, rows), members=view.members[rows] // n, memory=memories[k])
            crafted = craft(attack, own, f"mixture: {type(attack).__name__}")
            sent[rows], memories[k] = crafted.updates, crafted.memory
        return Crafted(sent, memories)

    def identity(self, member: int, round: int, /) -> int:
        """See :class:`fedsieve.core.attack.Identities`; that of the client's own attack."""
        n = len(self.attacks)
        return identity(self.attacks[member % n], member // n, round)

    def triggered(self, x: Tensor, y: Int[Tensor, " k"], task: Task, /) -> Triggered | None:
        """See :class:`fedsieve.core.attack.Backdoor`; samples of the first attack that is one."""
        backdoors = (attack for attack in self.attacks if isinstance(attack, Backdoor))
        return next((found for b in backdoors if (found := b.triggered(x, y, task)) is not None), None)
