"""Reads run directories, finished, unfinished, failed or broken; problems are listed, not raised."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fedsieve.config.experiment import Experiment
from fedsieve.config.registry import complete
from fedsieve.config.registry import load as load_class
from fedsieve.config.settings import Component
from fedsieve.core.errors import FedSieveError, ParameterError
from fedsieve.core.metrics import summarize
from fedsieve.core.records import RoundRecord
from fedsieve.runs.directory import RunDirectory

_NUMBERS = ("test_accuracy", "test_loss", "attack_success_rate", "attack_success_rate_all")
_RATES = ("false_positive_rate", "false_negative_rate")


@dataclass(frozen=True)
class Run:
    """One run directory.

    Attributes:
        path: The directory.
        experiment: Its settings; None if they can't be read.
        records: The rounds played so far; numbers that are not finite are replaced by None.
        problems: What is wrong with it, one line each; empty for a finished run without errors.
    """

    path: Path
    experiment: Experiment | None
    records: tuple[RoundRecord, ...]
    problems: tuple[str, ...]

    @property
    def finished(self) -> bool:
        """Whether all rounds have been played."""
        return self.experiment is not None and len(self.records) == self.experiment.rounds

    @cached_property
    def summary(self) -> dict[str, Any]:
        """:func:`fedsieve.core.metrics.summarize` of the records."""
        return summarize(self.records)

    @cached_property
    def attack(self) -> str:
        """Name of the attack, and its parameters that differ from the defaults; "" without settings."""
        e = self.experiment
        return "" if e is None else component("attack", e.attack, e.dataset.name)

    @cached_property
    def defense(self) -> str:
        """Name of the defense, and its parameters that differ from the defaults; "" without settings."""
        e = self.experiment
        return "" if e is None else component("defense", e.defense, e.dataset.name)

    @cached_property
    def setting(self) -> dict[str, str]:
        """All settings but attack, defense and seed, as text; empty without settings."""
        return {} if self.experiment is None else setting(self.experiment)


def load(paths: Sequence[Path]) -> list[Run]:
    """The runs in these directories, each a run directory, its records file, or a folder of run directories.

    Raises:
        ParameterError: If there is none.
    """
    found = sorted({folder for path in paths for folder in _folders(path)})
    if not found:
        raise ParameterError(
            f"no run in {', '.join(map(str, paths))}: a run directory holds experiment.yaml or records.jsonl"
        )
    return [_read(folder) for folder in found]


def _folders(path: Path) -> Iterator[Path]:
    if path.is_file():
        path = path.parent
    marks = ("experiment.yaml", "records.jsonl", "error.txt")
    if any((path / name).exists() for name in marks):
        yield path
        return
    for name in marks:
        yield from (file.parent for file in path.glob(f"*/{name}"))


def _read(folder: Path) -> Run:
    problems: list[str] = []
    experiment: Experiment | None = None
    records: tuple[RoundRecord, ...] = ()
    if (folder / "error.txt").exists():
        text = (folder / "error.txt").read_text(encoding="utf-8", errors="replace").strip()
        problems.append(f"failed: {text.splitlines()[-1] if text else 'no message'}")
    try:
        experiment = Experiment.read(folder / "experiment.yaml")
    except FedSieveError as error:
        problems.append(f"settings: {error}")
    try:
        records = tuple(RunDirectory(folder).records())
    except (FedSieveError, OSError, UnicodeDecodeError) as error:
        problems.append(f"records: {error}")
    whole = tuple(_finite(record) for record in records)
    bad = sum(a != b for a, b in zip(records, whole, strict=True))
    if bad:
        problems.append(f"{bad} of {len(records)} rounds have numbers that are not finite; these are left out")
    if experiment and not problems and len(records) < experiment.rounds:
        problems.append(f"unfinished: {len(records)} of {experiment.rounds} rounds")
    elif experiment and len(records) > experiment.rounds:
        problems.append(f"{len(records)} rounds, more than the {experiment.rounds} of the settings")
    return Run(folder, experiment, whole, tuple(problems))


def _finite(record: RoundRecord) -> RoundRecord:
    wrong = {
        name: None
        for name in (*_NUMBERS, *_RATES)
        if (value := getattr(record, name)) is not None and not math.isfinite(value)
    }
    return replace(record, **wrong) if wrong else record  # type: ignore[arg-type]


# --- Settings as text -------------------------------------------------------------------------------------


def component(kind: str, value: Component, dataset: str = "") -> str:
    """A component's name, and its parameters that differ from the defaults for this dataset."""
    given = getattr(load_class("datasets", dataset), "defaults", {}) if dataset else {}
    default = complete(f"{kind}s", value.name, {}, given.get(f"{kind}_parameters"))
    differing = {k: v for k, v in value.parameters.items() if k not in default or v != default[k]}
    said = ", ".join(f"{k}={v}" for k, v in differing.items())
    return f"{value.name} ({said})" if said else value.name


def setting(experiment: Experiment) -> dict[str, str]:
    """All settings but attack, defense and seed, as text; of the last three sections, what is not the default."""
    e = experiment
    found = {
        "dataset": component("dataset", e.dataset),
        "model": component("model", e.model),
        "partition": component("partition", e.partition),
        "clients": str(e.clients),
        "malicious": str(e.malicious),
        "rounds": str(e.rounds),
        "knowledge": e.knowledge,
        "clients per round": str(e.clients_per_round),
    }
    for section in ("local", "server", "root"):
        default = type(getattr(e, section))()
        values, defaults = getattr(e, section).model_dump(), default.model_dump()
        found |= {f"{section} {k}": str(v) for k, v in values.items() if v != defaults[k]}
    return found


def title(found: Mapping[str, str], keys: Sequence[str]) -> str:
    """The values of these keys in one line."""
    return ", ".join(found[key] if key == "dataset" else f"{key} {found.get(key, 'default')}" for key in keys)


def differing(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """Keys whose values differ between settings; the dataset always."""
    keys = dict.fromkeys(key for found in settings for key in found)
    return [key for key in keys if key == "dataset" or len({found.get(key, "default") for found in settings}) > 1]
