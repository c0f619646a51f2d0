"""What is left to run of a plan or a grid, and about how long it takes and how much memory; nothing is written."""

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fedsieve.config import registry
from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import FedSieveError
from fedsieve.core.seeding import stream
from fedsieve.data.dataset import Dataset
from fedsieve.models.size import size_of
from fedsieve.report.settings import component, differing, setting, title
from fedsieve.reproduce.pace import Paces
from fedsieve.reproduce.plan import Plan
from fedsieve.runs.cell import finished
from fedsieve.runs.directory import RunDirectory

Label = tuple[str, str, str]  # group, row and column

PROCESS = 400_000_000  # bytes that Python with torch and scikit-learn takes


@dataclass(frozen=True)
class Outlook:
    """One cell of a table, with all its seeds.

    Attributes:
        group: Heading of the table.
        row: Label of the line.
        column: Label of the column.
        experiments: The cell's experiment with each seed.
        done: Number of rounds that each of them has; all of them only where it is finished.
        shown: Whether the table shows it; False where others are only compared with it.
        seconds: Of a round, about; None if not known, or if nothing is left.
        source: Where that comes from, or why it is not known.
        memory: Bytes that one run needs at least; None if not known, or if nothing is left.
    """

    group: str
    row: str
    column: str
    experiments: tuple[Experiment, ...]
    done: tuple[int, ...]
    shown: bool = True
    seconds: float | None = None
    source: str = ""
    memory: int | None = None

    @property
    def left(self) -> int:
        """Number of rounds that are left to run, over all seeds."""
        return sum(e.rounds - n for e, n in zip(self.experiments, self.done, strict=True))

    @property
    def state(self) -> str:
        """``finished``, ``round 120``, ``not begun``; several of them where seeds differ."""
        words = [
            "finished" if n == e.rounds else f"round {n:,}" if n else "not begun"
            for e, n in zip(self.experiments, self.done, strict=True)
        ]
        counts = {word: words.count(word) for word in words}
        return words[0] if len(counts) == 1 else ", ".join(f"{n} {word}" for word, n in counts.items())


def rounds_done(path: Path, experiment: Experiment) -> int:
    """Number of rounds of ``experiment`` in its run directory; all of them only if it is finished."""
    if finished(path, experiment):
        return experiment.rounds
    try:
        return min(RunDirectory(path).n_records(), experiment.rounds - 1)
    except FedSieveError:  # running it says what is wrong
        return 0


def forecast(
    plan: Plan, runs: Path, data: Path, device: torch.device, threads: int = 1, seconds: float = 60.0
) -> list[Outlook]:
    """Every cell of a plan, in order, and then those that others are only compared with; see :func:`forecast_cells`."""
    shown = {(row.group, row.label, column) for row in plan.rows for column in plan.columns_of(row)}
    return forecast_cells(plan.cells(), runs, data, device, threads, seconds, shown)


def as_cells(experiments: Sequence[Experiment]) -> dict[tuple[str, str, str, int], Experiment]:
    """Every experiment of a grid by what differs but attack, defense and seed; attack; defense; seed."""
    settings = [setting(e) for e in experiments]
    keys = differing(settings)
    found: dict[tuple[str, str, str, int], Experiment] = {}
    for e, own in zip(experiments, settings, strict=True):
        attack, defense = (component(kind, getattr(e, kind), e.dataset.name) for kind in ("attack", "defense"))
        label = title(own, keys), attack, defense, e.seed
        found[label if label not in found else (f"{label[0]}, {e.key}", *label[1:])] = e
    return found


def forecast_cells(
    cells: Mapping[tuple[str, str, str, int], Experiment],
    runs: Path,
    data: Path,
    device: torch.device,
    threads: int = 1,
    seconds: float = 60.0,
    shown: Container[Label] | None = None,
) -> list[Outlook]:
    """How things stand with each cell, in order.

    Args:
        cells: Every experiment by group, row, column and seed; those with different seeds are one cell.
        runs: Folder of the run directories.
        data: Folder of the datasets.
        device: Where the runs would compute.
        threads: Number of threads of each run.
        seconds: How long rounds may be run, all in all, to learn how long they take: see :class:`Paces`.
        shown: Cells that a table shows; None for all.
    """
    by_label: dict[Label, dict[int, Experiment]] = {}
    for (group, row, column, seed), experiment in cells.items():
        by_label.setdefault((group, row, column), {})[seed] = experiment
    found = [
        Outlook(
            *label,
            experiments=tuple(seeds.values()),
            done=tuple(rounds_done(runs / e.key, e) for e in seeds.values()),
            shown=shown is None or label in shown,
        )
        for label, seeds in by_label.items()
    ]
    paces, datasets = Paces(runs, data, device, threads, seconds), dict[str, Dataset | None]()
    # the fastest first, so that as many as possible are measured in that time
    for k in sorted(range(len(found)), key=lambda k: _work(found[k].experiments[0])):
        if found[k].left:
            e = found[k].experiments[0]
            pace, source = paces.of(e)
            found[k] = replace(found[k], seconds=pace, source=source, memory=_memory(e, data, datasets))
    return found


def _work(e: Experiment) -> int:
    """Samples that are trained on in a round, about."""
    return e.clients_per_round * (e.local.steps or 10 * (e.local.epochs or 1)) * e.local.batch_size


def _memory(e: Experiment, data: Path, datasets: dict[str, Dataset | None]) -> int | None:
    """Bytes that a run needs at least: Python and torch, the data twice, the model, and three matrices of updates.

    Args:
        e: The experiment.
        data: Folder of the datasets.
        datasets: Those that have been read, by their settings; None for one that can't be read.

    Returns:
        None if the data can't be read.
    """
    name = json.dumps(e.dataset.model_dump(mode="json"), sort_keys=True)
    if name not in datasets:
        try:
            loader = registry.build("datasets", e.dataset.name, e.dataset.parameters)
            loader.verify(data)  # so that nothing is downloaded
            datasets[name] = loader.load(data, stream(e.seed, "split"))
        except FedSieveError:
            datasets[name] = None
    if (there := datasets[name]) is None:
        return None
    given = {"input_shape": there.input_shape, "n_classes": there.n_classes, "vocabulary": there.vocabulary}
    size = size_of(registry.load("models", e.model.name), {**given, **e.model.parameters}, e.clients_per_round)
    held = sum(t.nbytes for t in (there.x_train, there.y_train, there.x_test, there.y_test))
    return PROCESS + 2 * held + (size[1] if size else 0)
