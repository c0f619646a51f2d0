"""Stand-ins that experiments name as ``doubles:Class``, as a user names theirs; see the fixture ``doubles``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedsieve.core.attack import Attack, AttackView, Crafted, PoisonView
from fedsieve.core.defense import Aggregate, Detection, PreAggregated, ServerView, Updates
from fedsieve.core.layout import Layout
from fedsieve.core.traits import Traits
from fedsieve.data.dataset import Dataset

seen: list[Any] = []  # what the watchers below have seen; the fixture empties it


def reset() -> None:
    seen.clear()


@dataclass(frozen=True)
class Tiny:
    """Three Gaussian classes in four dimensions, in float64; ``n`` samples to train, and half as many to test."""

    n: int = 120
    traits: ClassVar[Traits] = Traits(summary="three Gaussian classes")
    defaults: ClassVar[Mapping[str, Any]] = {
        "model": "doubles:Linear",
        "partition": "iid",
        "clients": 6,
        "local": {"batch_size": 1000},
        "root": {"size": 6},
    }

    def files(self) -> tuple[Any, ...]:
        return ()

    def verify(self, folder: Path) -> None:
        pass

    def fetch(self, folder: Path) -> None:
        pass

    def load(self, folder: Path, generator: torch.Generator) -> Dataset:
        seen.append("loaded")
        y = torch.arange(self.n + self.n // 2) % 3
        centres = torch.tensor([[2, 0, 0, 1], [0, 2, 0, 1], [0, 0, 2, 1]], dtype=torch.float64)
        x = centres[y] + torch.randn(len(y), 4, generator=generator, dtype=torch.float64)
        return Dataset(x[: self.n], y[: self.n], x[self.n :], y[self.n :], n_classes=3)


class Linear(nn.Module):
    """Logistic regression in float64."""

    def __init__(self, input_shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(input_shape[0], n_classes, dtype=torch.float64)

    def forward(self, x: Tensor) -> Any:
        return self.linear(x)


class Normed(nn.Module):
    """With BatchNorm, so that the model has running statistics."""

    def __init__(self, input_shape: tuple[int, ...], n_classes: int, width: int = 5) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(input_shape[0], width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, n_classes)
        ).double()

    def forward(self, x: Tensor) -> Any:
        return self.layers(x)


class Scalar(nn.Module):
    """Returns one number for each sample instead of a logit for each class."""

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.linear = nn.Linear(input_shape[0], 1, dtype=torch.float64)

    def forward(self, x: Tensor) -> Any:
        return self.linear(x)


class Convolution(nn.Module):
    """Takes images only."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 3, 3)

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)


@dataclass(frozen=True)
class Nothing:
    """Root data of two samples for models of ``d`` parameters: the loss is their sum, and training lowers it by d."""

    d: int

    def loss(self, flat: Tensor, /) -> Tensor:
        return flat.sum()

    def gradient(self, flat: Tensor, loss: Any = "cross-entropy", /) -> tuple[Tensor, Tensor]:
        return flat.sum(), torch.ones_like(flat)

    def update(self) -> Tensor:
        return -torch.ones(self.d)

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        return torch.ones(2, 25), torch.arange(2)

    @property
    def n_classes(self) -> int:
        return 2

    def train(self, datasets: Any, /) -> Tensor:
        return -torch.ones(len(datasets), self.d)


def attack_view(own: Tensor, others: Tensor | None) -> AttackView:
    """The view of an attacker that needs no more than updates."""
    return AttackView(
        round=0,
        malicious_updates=own,
        benign_updates=others,
        n_clients=len(own) + (0 if others is None else len(others)),
        global_params=torch.zeros_like(own[0]),
        generator=torch.Generator(),
        layout=Layout.of({"w": own[0]}),
        members=torch.arange(len(own)),
        train=lambda start, /, *, poisoned=True, proximal=0.0: own,
        root=Nothing(own.shape[1]),
        on_samples=lambda x, y: Nothing(own.shape[1]),
    )


# --- Attacks ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Honest:
    """Sends the honest updates."""

    def craft(self, view: AttackView, /) -> Tensor:
        return view.malicious_updates


@dataclass(frozen=True)
class Spy(Honest):
    """Keeps the views it gets, and sends -``factor`` times the honest updates."""

    factor: float = 3.0

    def craft(self, view: AttackView, /) -> Tensor:
        seen.append(view)
        return -self.factor * view.malicious_updates


@dataclass(frozen=True)
class Forger(Spy):
    """A spy that poisons data, too: adds 1 to every sample."""

    def poison(self, x: Tensor, y: Tensor, view: PoisonView, /) -> tuple[Tensor, Tensor]:
        seen.append(view.member)
        return x + 1, y


@dataclass(frozen=True)
class Insider(Spy):
    """A spy that must know the defense."""

    traits: ClassVar[Traits] = Traits(summary="simulates the defense", needs=("defense",))


@dataclass(frozen=True)
class Pair(Honest):
    """An attack made of other attacks."""

    attacks: tuple[Attack, ...] = ()
    bonus: int = 0
    parts: ClassVar[Mapping[str, Any]] = {"attacks": ("none", "scaling")}


@dataclass(frozen=True)
class Vandal(Honest):
    """Overwrites every tensor of its view."""

    def craft(self, view: AttackView, /) -> Tensor:
        assert view.benign_updates is not None
        for tensor in (view.malicious_updates, view.benign_updates, view.global_params):
            tensor.fill_(1e6)
        return torch.zeros_like(view.malicious_updates)


@dataclass(frozen=True)
class Constant(Honest):
    """Sends ``value`` in every coordinate; None is NaN."""

    value: float | None = None

    def craft(self, view: AttackView, /) -> Tensor:
        return torch.full_like(view.malicious_updates, torch.nan if self.value is None else self.value)


@dataclass(frozen=True)
class OneRow(Honest):
    """Sends one row in place of one per malicious client."""

    def craft(self, view: AttackView, /) -> Tensor:
        return view.malicious_updates[0]


@dataclass(frozen=True)
class Simulating(Honest):
    """Sends the reversed aggregate of its simulated defense, which depends on the state of that defense."""

    def craft(self, view: AttackView, /) -> Tensor:
        assert view.simulate_defense is not None
        return -view.simulate_defense(view.known_updates).update.expand_as(view.malicious_updates)


@dataclass(frozen=True)
class Renames(Honest):
    """Says that each client has used up ``used`` ids."""

    used: int = 1

    def identity(self, member: int, round: int, /) -> int:
        return self.used


@dataclass(frozen=True)
class Counts(Honest):
    """Sends minus the number of rounds in which it took part, times the updates; its memory has tensors, too."""

    def craft(self, view: AttackView, /) -> Crafted:
        rounds, _ = view.memory or (0, None)
        memory = (rounds + 1, view.malicious_updates.mean(dim=0))
        return Crafted(-(rounds + 1) * view.malicious_updates, memory)


@dataclass(frozen=True)
class Noise(Honest):
    """Sends noise from the view's generator."""

    def craft(self, view: AttackView, /) -> Tensor:
        return torch.randn(view.malicious_updates.shape, generator=view.generator, dtype=view.malicious_updates.dtype)


# --- Defenses -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Watch:
    """The mean; keeps what it saw."""

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
        n = len(updates.matrix)
        seen.append((updates, view))
        return Aggregate(updates.matrix.mean(dim=0), updates.matrix.new_full((n,), 1 / n))


@dataclass(frozen=True)
class Below:
    """Rejects the clients with ids below ``id``; counts rounds in its state; the score is minus the id."""

    id: int = 2

    def detect(self, updates: Updates, view: ServerView, /) -> Detection:
        assert view.state in (None, view.round)
        return Detection(updates.client_ids >= self.id, -updates.client_ids.double(), state=view.round + 1)


@dataclass(frozen=True)
class Halve:
    """Halves every update; counts rounds in its state."""

    factor: float = 0.5

    def preaggregate(self, updates: Updates, view: ServerView, /) -> PreAggregated:
        seen.append(("halve", view))
        halved = Updates(self.factor * updates.matrix, updates.client_ids, updates.layout)
        return PreAggregated(halved, state=(view.state or 0) + 1)


@dataclass(frozen=True)
class Momentum:
    """Has tensors in its state and draws: a decaying sum of the means of all rounds, plus noise."""

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
        n, mean = len(updates.matrix), updates.matrix.mean(dim=0)
        state = view.state or {"mean": torch.zeros_like(mean), "seen": [0, (None, "text")]}
        total = state["mean"] * 0.5 + mean
        noise = torch.randn(len(mean), generator=view.generator, dtype=mean.dtype)
        kept = {"mean": total, "seen": [state["seen"][0] + 1, (None, "text")]}
        return Aggregate(total + 0.01 * noise, mean.new_full((n,), 1 / n), state=kept)


@dataclass(frozen=True)
class Weighted:
    """A detector with a default that a function makes; accepts every client."""

    weights: list[float] = field(default_factory=lambda: [1.0, 2.0])

    def detect(self, updates: Updates, view: ServerView, /) -> Detection:
        return Detection(None)
