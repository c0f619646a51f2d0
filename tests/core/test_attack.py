"""Data attacks and update attacks: an attack has only the methods that it needs."""

from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from fedsieve.core.attack import AttackView, Crafted, DataAttack, PoisonView, Task, UpdateAttack, craft, poison
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


def test_one_row_for_each_malicious_client(doubles: ModuleType) -> None:
    view = doubles.attack_view(torch.ones(2, 3), None)
    with pytest.raises(FedSieveError) as error:
        craft(Crafts(rows=1), view, "short")
    assert (
        str(error.value)
        == "attack short returned float32 of shape [1, 3] instead of float32 of shape [2, 3]: one row per malicious client"  # noqa: E501
    )
