"""Views of one round and of one client's data, for all tests of attacks."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsieve.config.experiment import Experiment
from fedsieve.core.attack import AttackView, PoisonView, Task
from fedsieve.core.layout import Layout
from fedsieve.federation.simulation import Simulation

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Practice:
    """Training that moves halfway from the start to ``targets`` [m, d]; on poisoned data, to ``-targets``."""

    targets: Tensor

    def __call__(self, start: Tensor, /, *, poisoned: bool = True, proximal: float = 0.0) -> Tensor:
        return ((-self.targets if poisoned else self.targets) - start) / (2 + proximal)


@dataclass(frozen=True)
class Bowl:
    """Four samples of two classes; the loss is half the squared distance to ``target``."""

    target: Tensor

    def loss(self, flat: Tensor, /) -> Tensor:
        return 0.5 * (flat - self.target).square().sum()

    def gradient(self, flat: Tensor, loss: Any = "cross-entropy", /) -> tuple[Tensor, Tensor]:
        return self.loss(flat), flat - self.target

    def update(self) -> Tensor:
        return self.target

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        return torch.ones(4, 25), torch.arange(4) % 2

    @property
    def n_classes(self) -> int:
        return 2

    def train(self, datasets: Any, /) -> Tensor:
        return torch.stack([(1 + k) * self.target.roll(k) for k in range(len(datasets))])


def view(own: Any, others: Any = None, n_clients: int | None = None, seed: int = 0, **more: Any) -> AttackView:
    """What the attacker knows in a round with ``own`` as malicious updates and ``others`` as benign ones."""
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
        "on_samples": lambda x, y: Bowl(-params),
    }
    return AttackView(malicious_updates=own, benign_updates=others, **{**usual, **more})


def poison_view(
    n_classes: int = 4, seed: int = 0, member: int = 0, folder: Path = Path(), encode: Any = None
) -> PoisonView:
    """What a malicious client knows when it poisons its data, with ``encode`` for raw samples."""
    return PoisonView(Task(n_classes, folder, encode), member, torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session")
def make_view() -> Callable[..., AttackView]:
    """The function ``view``."""
    return view


@pytest.fixture(scope="session")
def make_poison_view() -> Callable[..., PoisonView]:
    """The function ``poison_view``."""
    return poison_view


@pytest.fixture
def samples() -> tuple[Tensor, Tensor]:
    """Twenty samples of 25 features, four classes."""
    return torch.randn(20, 25, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 4


@dataclass(frozen=True)
class Sent:
    """What the server of a simulation got in one round.

    Attributes:
        bad: The malicious clients' updates, [m, d].
        good: The others', [n - m, d].
        params: The global model before the round, [d].
        bad_ids: Client ids of ``bad``, as the server sees them.
    """

    bad: Tensor
    good: Tensor
    params: Tensor
    bad_ids: list[int]


@pytest.fixture
def play(doubles: ModuleType) -> Callable[..., list[Sent]]:
    """A function that runs a simulation on the digits under an attack, with the mean, and returns what was sent.

    Without an attack, the same clients are told apart: those that the same settings make malicious under one.
    """

    def play(attack: Any, rounds: int = 4, **more: Any) -> list[Sent]:
        doubles.seen.clear()
        settings = {"dataset": "digits", "clients": 8, "malicious": 3, "defense": "doubles:Watch", **more}
        experiment = Experiment.of({**settings, "attack": attack, "rounds": rounds, "evaluate_every": rounds})
        malicious = Simulation.of(Experiment.of({**settings, "attack": "ipm"}), Path(), CPU).holdings.malicious
        list(Simulation.of(experiment, Path(), CPU).rounds())
        found = []
        for updates, server in doubles.seen:
            x, ids = updates.matrix, updates.client_ids
            bad = torch.isin(ids % experiment.clients, torch.tensor(malicious))  # a new id is the first one, plus these
            found.append(Sent(x[bad], x[~bad], server.global_params, ids[bad].tolist()))
        return found

    return play
