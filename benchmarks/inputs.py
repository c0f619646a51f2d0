"""What the benchmarks compute on: the real datasets where FEDSIEVE_DATA has them, else samples of the same shapes."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedsieve import Experiment, Simulation
from fedsieve.core.traits import Traits
from fedsieve.data.dataset import Dataset, RemoteFile
from fedsieve.data.store import data_folder


@dataclass(frozen=True)
class Samples:
    """Random samples that a model can learn: a pattern for each class, and as much noise. The same for every seed.

    Attributes:
        shape: Shape of one sample.
        classes: Number of classes.
        train: Number of training samples.
        test: Number of test samples.
        people: Natural clients; 0 for none.
    """

    shape: tuple[int, ...] = (1, 28, 28)
    classes: int = 10
    train: int = 60_000
    test: int = 10_000
    people: int = 0
    traits: ClassVar[Traits] = Traits(summary="Random samples for benchmarks")
    defaults: ClassVar[Mapping[str, Any]] = {}

    def files(self) -> tuple[RemoteFile, ...]:
        """None."""
        return ()

    def verify(self, folder: Path) -> None:
        """Nothing to check."""

    def fetch(self, folder: Path) -> None:
        """Nothing to fetch."""

    def load(self, folder: Path, generator: torch.Generator) -> Dataset:
        """Draw the samples; neither argument is used."""
        x, y = _drawn(tuple(self.shape), self.classes, self.train + self.test)
        owners = torch.arange(self.train) % self.people if self.people else None
        return Dataset(x[: self.train], y[: self.train], x[self.train :], y[self.train :], self.classes, owners)


@cache
def _drawn(shape: tuple[int, ...], classes: int, n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(classes, (n,), generator=generator)
    x = torch.randn(n, *shape, generator=generator)
    x += torch.randn(classes, *shape, generator=generator)[y]
    return x.mul_(0.3), y


_SETTINGS: dict[str, dict[str, Any]] = {
    "fashion-mnist": {"model": "cnn", "clients": 100},
    "cifar10": {"model": "resnet20", "clients": 100, "local": {"steps": 5}},
    "har": {"model": "logistic-regression", "clients": 30, "partition": "natural"},
}
_STAND_INS: dict[str, dict[str, Any]] = {
    "fashion-mnist": {"shape": [1, 28, 28]},
    "cifar10": {"shape": [3, 32, 32], "train": 50_000},
    "har": {"shape": [561], "classes": 6, "train": 8_200, "test": 2_000, "people": 30},
}


def real(name: str) -> bool:
    """Whether the real dataset lies in the folder that FEDSIEVE_DATA names."""
    return (Path(os.environ.get("FEDSIEVE_DATA", os.devnull)) / name).is_dir()


def experiment(name: str, *, defense: str, small: bool = False, **settings: Any) -> Experiment:
    """A setting of the SkyMask paper under label flipping by a fifth of the clients.

    Args:
        name: ``fashion-mnist``, ``cifar10`` or ``har``.
        defense: Name of the defense.
        small: Random samples, and few of them, whatever data there are.
        **settings: Replace the others.
    """
    stand_in = _STAND_INS[name] | ({"train": 600, "test": 100} if small else {})
    dataset = name if real(name) and not small else {"name": "inputs:Samples", **stand_in}
    spec: dict[str, Any] = {"name": defense}
    if name == "cifar10" and defense == "skymask":
        spec["mask_learning_rate"] = 1e8  # the paper's for CIFAR-10
    usual = {"dataset": dataset, "attack": "label-flip", "defense": spec, "rounds": 1_000_000, "evaluate_every": 1}
    return Experiment.of({**_SETTINGS[name], **usual, **settings})


def simulation(name: str, device: str = "cpu", **settings: Any) -> Simulation:
    """The simulation of :func:`experiment`."""
    return Simulation.of(experiment(name, **settings), data_folder(), torch.device(device))


class Rounds:
    """A simulation that goes on round by round. Mutable.

    Args:
        simulation: The simulation.

    Attributes:
        state: After the last round.
        phases: Seconds of the phases of each round played so far, by phase, as its record has them.
    """

    def __init__(self, simulation: Simulation) -> None:
        self.simulation, self.state = simulation, simulation.initial
        self.phases: dict[str, list[float]] = {}

    def play(self, rounds: int = 1) -> None:
        """Play more rounds."""
        for _ in range(rounds):
            self.state, record = self.simulation.run_round(self.state)
            for name, value in record.seconds.items():
                self.phases.setdefault(name, []).append(value)
