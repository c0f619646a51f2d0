"""What every test of an attack needs: a view of one round."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsieve.types import AttackView, Layout, Objective, PoisonView, Task, Witnesses


@dataclass(frozen=True)
class Practice:
    """Training that goes half the way from the start to ``targets`` [m, d]; on poisoned data, to their opposites."""

    targets: Tensor

    def __call__(self, start: Tensor, /, *, poisoned: bool = True, proximal: float = 0.0) -> Tensor:
        return ((-self.targets if poisoned else self.targets) - start) / (2 + proximal)


@dataclass(frozen=True)
class Bowl:
    """Clean data whose loss is half the squared distance to ``target``."""

    target: Tensor

    def loss(self, flat: Tensor, /) -> Tensor:
        return 0.5 * (flat - self.target).square().sum()

    def gradient(self, flat: Tensor, objective: Objective = "cross-entropy", /) -> tuple[Tensor, Tensor]:
        return self.loss(flat), flat - self.target

    def update(self) -> Tensor:
        return self.target

    def witnesses(self) -> Witnesses:
        raise AssertionError("nothing here asks for witnesses")


def view(own: Any, others: Any = None, n_clients: int | None = None, seed: int = 0, **more: Any) -> AttackView:
    own = torch.as_tensor(own)
    others = None if others is None else torch.as_tensor(others)
    params = torch.linspace(-1, 1, own.shape[1]).to(own)
    usual: dict[str, Any] = {
        "round": 0,
        "n_clients": n_clients or len(own) + (0 if others is None else len(others)),
        "global_params": params,
        "generator": torch.Generator().manual_seed(seed),
        "layout": Layout.of({"w": own[0]}),
        "members": torch.arange(len(own)),
        "train": Practice(own + params),
        "root": Bowl(own.mean(dim=0) + params),
    }
    return AttackView(own=own, others=others, **{**usual, **more})


def poison_view(
    n_classes: int = 4, seed: int = 0, member: int = 0, folder: Path = Path(), encode: Any = None
) -> PoisonView:
    """What a malicious client knows when it poisons its data."""
    return PoisonView(Task(n_classes, folder, encode), member, torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session")
def make_view() -> Callable[..., AttackView]:
    """The helper above; a fixture, since test modules can't be imported from each other."""
    return view


@pytest.fixture(scope="session")
def make_poison_view() -> Callable[..., PoisonView]:
    """The other helper."""
    return poison_view


@pytest.fixture
def samples() -> tuple[Tensor, Tensor]:
    """Twenty samples of 25 features, four classes."""
    return torch.randn(20, 25, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 4
