"""What ``sieve`` was designed on, and what a suite reports: other data, or other seeds."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from fedsieve.config.experiment import Experiment
from fedsieve.config.settings import Component, as_component
from fedsieve.reproduce.plan import Plan


@dataclass(frozen=True)
class Used:
    """Settings that were used, each sorted.

    Attributes:
        data: Names of datasets and the seeds that were used with each.
        models: Names.
        partitions: Names and parameters, as text.
        training: Numbers of local steps and epochs, as text.
        clients: Numbers of clients.
        seen: What was seen on datasets on which nothing was chosen, by name.
    """

    data: dict[str, tuple[int, ...]]
    models: tuple[str, ...]
    partitions: tuple[str, ...]
    training: tuple[str, ...]
    clients: tuple[int, ...]
    seen: dict[str, str] = field(default_factory=dict)

    @property
    def pairs(self) -> set[tuple[str, int]]:
        """Every dataset with each of its seeds."""
        return {(name, seed) for name, seeds in self.data.items() for seed in seeds}


@cache
def development() -> Used:
    """What was used while designing ``sieve``: ``development.yaml``."""
    found: dict[str, Any] = yaml.safe_load(files("fedsieve.reproduce").joinpath("development.yaml").read_text("utf-8"))
    partitions = [Component.model_validate(as_component(value)) for value in found["partitions"]]
    return Used(
        data={name: tuple(used["seeds"]) for name, used in sorted(found["data"].items())},
        models=tuple(sorted(found["models"])),
        partitions=tuple(sorted({_partition(value) for value in partitions})),
        training=_training(found["steps"], found["epochs"]),
        clients=tuple(sorted(found["clients"])),
        seen=found["seen"],
    )


def reported(experiments: Iterable[Experiment]) -> Used:
    """What experiments use."""
    found = list(experiments)
    names = sorted({e.dataset.name for e in found})
    return Used(
        data={name: tuple(sorted({e.seed for e in found if e.dataset.name == name})) for name in names},
        models=tuple(sorted({e.model.name for e in found})),
        partitions=tuple(sorted({_partition(e.partition) for e in found})),
        training=_training(
            {e.local.steps for e in found if e.local.steps}, {e.local.epochs for e in found if e.local.epochs}
        ),
        clients=tuple(sorted({e.clients for e in found})),
    )


def _partition(value: Component) -> str:
    """As text; the fewest samples of a client tell little about how unlike the clients are."""
    said = ", ".join(f"{key}={v}" for key, v in value.parameters.items() if key != "min_samples")
    return f"{value.name} ({said})" if said else value.name


def _training(steps: Iterable[int], epochs: Iterable[int]) -> tuple[str, ...]:
    numbers = [(n, "step") for n in sorted(steps)] + [(n, "epoch") for n in sorted(epochs)]
    return tuple(f"{n} {unit}{'' if n == 1 else 's'}" for n, unit in numbers)


def table(plan: Plan, column: str) -> tuple[list[list[str]], str]:
    """Development and reported settings side by side.

    Args:
        plan: A suite's plan.
        column: Label of the column of ``sieve``.

    Returns:
        Lines of fields, the first line the head; and which of the reported data were never used for the design, as a
        sentence, or "".
    """
    there = development()
    here = reported(e for label, e in plan.cells().items() if label[2] == column)
    lines = [["", "while designing `sieve`", "reported here"]]
    for name in ("data", "models", "partitions", "training", "clients"):
        label = {"data": "data (seeds)", "training": "local training"}.get(name, name)
        lines.append([label, *(", ".join(_texts(getattr(used, name))) for used in (there, here))])
    new = [name for name in here.data if name not in there.data]
    said = "; ".join(f"{name} ({there.seen[name]})" if name in there.seen else name for name in new)
    return lines, f"Nothing was chosen on: {said}." if new else ""


def _texts(values: Any) -> list[str]:
    if isinstance(values, dict):
        return [f"{name} ({', '.join(map(str, seeds))})" for name, seeds in values.items()]
    return [str(value) for value in values]
