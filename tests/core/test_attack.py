"""Data attacks and update attacks: an attack has only the methods that it needs."""

from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from fedsieve.core.attack import (
    AttackView,
    Crafted,
    DataAttack,
    Identities,
    PoisonView,
    Task,
    UpdateAttack,
    craft,
    identity,
    poison,
)
from fedsieve.core.errors import FedSieveError


@dataclass(frozen=True)
class Poisons:
    def poison(self, x: Tensor, y: Tensor, view: PoisonView, /) -> tuple[Tensor, Tensor]:
        return x + 1, y + view.member


@dataclass(frozen=True)
class Crafts:
    rows: int | None = None

    def craft(self, view: AttackView, /) -> Tensor:
        return -view.malicious_updates[: self.rows].float()


@dataclass(frozen=True)
class Both(Poisons, Crafts):
    pass


VIEW = PoisonView(Task(3, Path()), 1, torch.Generator())
X, Y = torch.zeros(2, 4), torch.tensor([0, 1])


def test_kinds_follow_from_methods() -> None:
    kinds = {
        type(a).__name__: (isinstance(a, DataAttack), isinstance(a, UpdateAttack))
        for a in (Poisons(), Crafts(), Both())
    }
    assert kinds == {"Poisons": (True, False), "Crafts": (False, True), "Both": (True, True)}


def test_poison() -> None:
    for attack in (Poisons(), Both()):
        x, y = poison(attack, X, Y, VIEW)
        assert (x.tolist(), y.tolist()) == ([[1] * 4] * 2, [1, 2])
    x, y = poison(Crafts(), X, Y, VIEW)
    assert x is X
    assert y is Y


def test_craft(doubles: ModuleType) -> None:
    own = torch.ones(2, 3, dtype=torch.float64)
    view = doubles.attack_view(own, None)
    assert craft(Poisons(), view, "poisons").updates is own
    for attack in (Crafts(), Both()):
        sent = craft(attack, view, "crafts").updates
        assert sent.dtype == torch.float64
        assert torch.equal(sent, -own)


def test_an_attack_may_remember(doubles: ModuleType) -> None:
    @dataclass(frozen=True)
    class Counts:
        def craft(self, view: AttackView, /) -> Crafted:
            return Crafted(view.malicious_updates, (view.memory or 0) + 1)

    view = doubles.attack_view(torch.ones(2, 3), None)
    assert craft(Crafts(), view, "forgets").memory is None
    assert craft(Counts(), view, "counts").memory == 1
    assert craft(Counts(), replace(view, memory=4), "counts").memory == 5


def test_a_memory_can_be_kept_in_a_checkpoint(doubles: ModuleType) -> None:
    """What can't is told in the round in which it is returned, with the attack's name and the place."""

    @dataclass(frozen=True)
    class Keeps:
        memory: object

        def craft(self, view: AttackView, /) -> Crafted:
            return Crafted(view.malicious_updates, self.memory)

    view = doubles.attack_view(torch.ones(2, 3), None)
    good = {"a b": [1, 2.0, "x", None, True], 3: (torch.ones(2),)}
    assert craft(Keeps(good), view, "keeps").memory is good
    for memory, said in (
        ({1}, "attack keeps returned set in its memory; a memory is made of tensors, numbers, text, lists"),
        ({"a b": [{1}]}, "attack keeps returned set in its memory.a b.0; a memory is made of tensors"),
        ({frozenset({1}): 0}, "attack keeps returned frozenset in its a key of memory; a memory is made of tensors"),
        ([torch.ones(1, requires_grad=True)], "attack keeps returned a memory.0 that requires grad; detach it"),
    ):
        with pytest.raises(FedSieveError) as error:
            craft(Keeps(memory), view, "keeps")
        assert str(error.value).startswith(said)


@dataclass(frozen=True)
class Renames:
    """Says that ``used`` ids are used up."""

    used: object

    def identity(self, member: int, round: int, /) -> object:
        return self.used

    def craft(self, view: AttackView, /) -> Tensor:
        return view.malicious_updates


class TestIdentity:
    def test_of_an_attack_that_changes_none(self) -> None:
        assert not isinstance(Both(), Identities)
        assert [identity(attack, 3, 7) for attack in (Poisons(), Crafts(), Both())] == [0, 0, 0]

    def test_is_what_the_attack_says(self) -> None:
        class Counts(Crafts):
            def identity(self, member: int, round: int, /) -> int:
                return min(round, 10 * member)

        assert [identity(Counts(), *asked) for asked in ((0, 5), (1, 5), (1, 50))] == [0, 5, 10]

    @pytest.mark.parametrize("used", [0, 5])
    def test_at_most_one_id_a_round(self, used: int) -> None:
        assert identity(Renames(used), 1, 5) == used  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("used", "said"),
        [(6, "6"), (-1, "-1"), (2.0, "2.0"), (True, "True"), (None, "None"), ("1", "'1'")],
        ids=["more than rounds", "negative", "float", "bool", "none", "text"],
    )
    def test_anything_else_is_one_line(self, used: object, said: str) -> None:
        with pytest.raises(FedSieveError) as error:
            identity(Renames(used), 1, 5, "mine:Renames")  # type: ignore[arg-type]
        assert str(error.value) == (
            f"attack mine:Renames returned {said} as the number of ids that malicious client 1 has used up before "
            "round 5, expected an integer in 0 to 5"
        )
        with pytest.raises(FedSieveError, match=r"^attack Renames returned "):
            identity(Renames(used), 1, 5)  # type: ignore[arg-type]


def test_one_row_for_each_malicious_client(doubles: ModuleType) -> None:
    view = doubles.attack_view(torch.ones(2, 3), None)
    with pytest.raises(FedSieveError) as error:
        craft(Crafts(rows=1), view, "short")
    assert (
        str(error.value)
        == "attack short returned float32 of shape [1, 3] instead of float32 of shape [2, 3]: one row per malicious client"  # noqa: E501
    )
