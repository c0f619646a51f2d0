"""Stand-ins that experiments name as ``doubles:Class``, as a user names theirs; see the fixture ``doubles``."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedsieve.data.dataset import Dataset
from fedsieve.types import (
    Aggregate,
    Attack,
    AttackView,
    Layout,
    Objective,
    PoisonView,
    ServerView,
    Traits,
    Transformed,
    Updates,
    Verdict,
    Witnesses,
)

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


@dataclass(frozen=True)
class Nothing:
    """Root data of which nobody asks anything."""

    def loss(self, flat: Tensor, /) -> Tensor:
        return flat.sum()

    def gradient(self, flat: Tensor, objective: Objective = "cross-entropy", /) -> tuple[Tensor, Tensor]:
        return flat.sum(), torch.ones_like(flat)

    def update(self) -> Tensor:
        return torch.zeros(1)

    def witnesses(self) -> Witnesses:
        raise AssertionError("nothing here asks for witnesses")


def attack_view(own: Tensor, others: Tensor | None) -> AttackView:
    """The view of an attacker that needs no more than updates."""
    return AttackView(
        round=0,
        own=own,
        others=others,
        n_clients=len(own) + (0 if others is None else len(others)),
        global_params=torch.zeros_like(own[0]),
        generator=torch.Generator(),
        layout=Layout.of({"w": own[0]}),
        members=torch.arange(len(own)),
        train=lambda start, /, *, poisoned=True, proximal=0.0: own,
        root=Nothing(),
    )


# --- Attacks ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Honest:
    """Poisons nothing; the rest of an attack is up to the classes below."""

    def poison(self, x: Tensor, y: Tensor, view: PoisonView, /) -> tuple[Tensor, Tensor]:
        return x, y

    def craft(self, view: AttackView, /) -> Tensor:
        return view.own


@dataclass(frozen=True)
class Spy(Honest):
    """Keeps what it saw, and sends minus ``factor`` times the truth."""

    factor: float = 3.0

    def craft(self, view: AttackView, /) -> Tensor:
        seen.append(view)
        return -self.factor * view.own


@dataclass(frozen=True)
class Forger(Spy):
    """A spy that shifts its data as well."""

    def poison(self, x: Tensor, y: Tensor, view: PoisonView, /) -> tuple[Tensor, Tensor]:
        seen.append(view.member)
        return x + 1, y


@dataclass(frozen=True)
class Insider(Spy):
    """A spy that must know the defense."""

    traits: ClassVar[Traits] = Traits(summary="rehearses", needs=("updates", "defense"))


@dataclass(frozen=True)
class Pair(Honest):
    """Made of other attacks."""

    attacks: tuple[Attack, ...] = ()
    bonus: int = 0
    parts: ClassVar[Mapping[str, Any]] = {"attacks": ("none", "scaling")}


@dataclass(frozen=True)
class Vandal(Honest):
    """Scribbles over all that it is shown."""

    def craft(self, view: AttackView, /) -> Tensor:
        assert view.others is not None
        for tensor in (view.own, view.others, view.global_params):
            tensor.fill_(1e6)
        return torch.zeros_like(view.own)


@dataclass(frozen=True)
class Constant(Honest):
    """Sends ``value`` in every coordinate; None is NaN."""

    value: float | None = None

    def craft(self, view: AttackView, /) -> Tensor:
        return torch.full_like(view.own, torch.nan if self.value is None else self.value)


@dataclass(frozen=True)
class OneRow(Honest):
    """Sends one row, however many are due."""

    def craft(self, view: AttackView, /) -> Tensor:
        return view.own[0]


@dataclass(frozen=True)
class Noise(Honest):
    """Sends noise from the generator that it is given."""

    def craft(self, view: AttackView, /) -> Tensor:
        return torch.randn(view.own.shape, generator=view.generator, dtype=view.own.dtype)


# --- Defenses -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Watch:
    """The mean, and keeps what it saw."""

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
        n = len(updates.matrix)
        seen.append((updates, view))
        return Aggregate(updates.matrix.mean(dim=0), updates.matrix.new_full((n,), 1 / n))


@dataclass(frozen=True)
class Below:
    """Rejects the clients whose id is below ``id``; counts its rounds; suspects the low ones."""

    id: int = 2

    def judge(self, updates: Updates, view: ServerView, /) -> Verdict:
        assert view.state in (None, view.round)
        return Verdict(updates.client_ids >= self.id, -updates.client_ids.double(), state=view.round + 1)


@dataclass(frozen=True)
class Halve:
    """Halves every update; counts its rounds."""

    factor: float = 0.5

    def transform(self, updates: Updates, view: ServerView, /) -> Transformed:
        seen.append(("halve", view))
        halved = Updates(self.factor * updates.matrix, updates.client_ids, updates.layout)
        return Transformed(halved, state=(view.state or 0) + 1)


@dataclass(frozen=True)
class Momentum:
    """A rule with tensors in its state, and randomness: the mean of all rounds so far, and a little noise."""

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
        n, mean = len(updates.matrix), updates.matrix.mean(dim=0)
        state = view.state or {"mean": torch.zeros_like(mean), "seen": [0, (None, "text")]}
        total = state["mean"] * 0.5 + mean
        noise = torch.randn(len(mean), generator=view.generator, dtype=mean.dtype)
        kept = {"mean": total, "seen": [state["seen"][0] + 1, (None, "text")]}
        return Aggregate(total + 0.01 * noise, mean.new_full((n,), 1 / n), state=kept)
