"""Fresh identities: how many ids are used up by which round, and that everything else is the inner attack's."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedsieve.attacks.fresh_identity import FreshIdentity
from fedsieve.attacks.label_flip import LabelFlip
from fedsieve.attacks.min_max import MinMax
from fedsieve.attacks.mixture import Mixture
from fedsieve.attacks.none import NoAttack
from fedsieve.attacks.scaling import Scaling
from fedsieve.attacks.sign_flip import SignFlip
from fedsieve.attacks.split_layers import SplitLayers
from fedsieve.config import registry
from fedsieve.core.attack import Attack, AttackView, Crafted, Identities, PoisonView, Task, identity
from fedsieve.core.errors import FedSieveError, ParameterError


def used(attack: Attack, member: int = 0, rounds: int = 8) -> list[int]:
    return [identity(attack, member, k) for k in range(rounds)]


class TestIds:
    @pytest.mark.parametrize(
        ("every", "expected"),
        [
            (1, [0, 1, 2, 3, 4, 5, 6, 7]),
            (2, [0, 0, 1, 1, 2, 2, 3, 3]),
            (3, [0, 0, 0, 1, 1, 1, 2, 2]),
            (8, [0] * 8),
            (10**9, [0] * 8),
        ],
    )
    def test_by_hand(self, every: int, expected: list[int]) -> None:
        attack = FreshIdentity(every=every)
        assert isinstance(attack, Identities)
        assert all(used(attack, member) == expected for member in (0, 1, 99))

    def test_the_faster_of_two_decides(self) -> None:
        inner, outer = FreshIdentity(every=4), FreshIdentity(every=2)
        assert used(replace(outer, attack=inner)) == used(replace(inner, attack=outer)) == used(outer)

    def test_made_of_attacks(self) -> None:
        """A mixture asks the attack of that client; split layers hand it on."""
        fresh = FreshIdentity(every=2)
        mixture = Mixture((MinMax(), fresh, FreshIdentity()))
        assert [used(mixture, member)[-1] for member in range(6)] == [0, 3, 7, 0, 3, 7]
        assert used(SplitLayers(fresh)) == used(fresh)
        assert used(FreshIdentity(mixture, every=4), 1) == used(fresh)
        assert used(FreshIdentity(mixture, every=4), 0) == used(FreshIdentity(every=4))
        assert used(SplitLayers(MinMax())) == used(Mixture()) == [0] * 8


@dataclass(frozen=True)
class Counts:
    """Adds 1 to every coordinate; its memory is the number of its rounds."""

    def craft(self, view: AttackView, /) -> Crafted:
        return Crafted(view.malicious_updates + 1, (view.memory or 0) + 1)


@dataclass(frozen=True)
class OneRow:
    def craft(self, view: AttackView, /) -> Tensor:
        return view.malicious_updates[0]


class TestDelegates:
    def test_craft(self, make_view: Callable[..., AttackView]) -> None:
        own, others = torch.randn(3, 20), torch.randn(5, 20)
        view = make_view(own, others, memory=4, round=7)
        sent = FreshIdentity(Counts(), every=3).craft(view)
        assert torch.equal(sent.updates, own + 1)
        assert sent.memory == 5
        assert torch.equal(FreshIdentity(MinMax()).craft(view).updates, MinMax().craft(view))
        assert torch.equal(FreshIdentity(LabelFlip()).craft(view).updates, own)

    def test_an_answer_of_the_wrong_shape(self, make_view: Callable[..., AttackView]) -> None:
        with pytest.raises(FedSieveError, match=r"^attack fresh-identity: OneRow returned float32 of shape \[20\]"):
            FreshIdentity(OneRow()).craft(make_view(torch.randn(3, 20)))

    def test_poison(self, samples: tuple[Tensor, Tensor], make_poison_view: Callable[..., PoisonView]) -> None:
        x, y = FreshIdentity(LabelFlip()).poison(*samples, make_poison_view())
        assert torch.equal(x, samples[0])
        assert torch.equal(y, 3 - samples[1])
        x, y = FreshIdentity(SignFlip()).poison(*samples, make_poison_view())
        assert torch.equal(x, samples[0])
        assert torch.equal(y, samples[1])

    def test_triggered(self) -> None:
        x, y, task = torch.randn(6, 30), torch.arange(6) % 3, Task(3, Path())
        found = FreshIdentity(Scaling(target=2)).triggered(x, y, task)
        assert found is not None
        assert torch.equal(found.x, Scaling(target=2).trigger(x))
        assert FreshIdentity(NoAttack()).triggered(x, y, task) is None


@pytest.mark.parametrize(
    "name", [name for name in registry.names("attacks") if getattr(registry.load("attacks", name), "parts", None)]
)
def test_every_attack_made_of_attacks_hands_ids_on(name: str) -> None:
    """Around clients with new ids every third round, they have these, at least once the wrapper is awake."""
    parts = registry.load("attacks", name).parts  # type: ignore[attr-defined]
    fresh = {"name": "fresh-identity", "every": 3}
    given = {part: [fresh] if isinstance(usual, tuple) else fresh for part, usual in parts.items()}
    found = used(registry.build("attacks", name, registry.complete("attacks", name, given)), rounds=200)
    assert found == sorted(found)
    assert found[-1] - found[-13] == (12 if name == "fresh-identity" else 4)


def test_default() -> None:
    assert registry.build("attacks", "fresh-identity", {}) == FreshIdentity() == FreshIdentity(SignFlip(), 1)


def test_what_the_inner_attack_needs_is_needed() -> None:
    for inner, needs in (("adaptive-skymask", {"defense"}), ("sign-flip", set())):
        parameters = registry.complete("attacks", "fresh-identity", {"attack": inner})
        assert registry.needs("attacks", "fresh-identity", parameters) == needs


@pytest.mark.parametrize("every", [0, -2])
def test_every(every: int) -> None:
    with pytest.raises(ParameterError) as error:
        FreshIdentity(every=every)
    assert str(error.value) == f"fresh-identity: every must be at least 1, got {every}"
