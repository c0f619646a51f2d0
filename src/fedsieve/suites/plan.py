"""What a suite is made of: rows and columns of settings, published numbers, goals; and what it makes of records."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

from fedsieve.experiment import Experiment
from fedsieve.metrics import summarize
from fedsieve.types import RoundRecord

Scale = Literal["smoke", "small", "paper"]
SCALES: tuple[Scale, ...] = ("smoke", "small", "paper")

# What the tables show, by the names that summaries have; rates over the second half, accuracy over the last tenth.
MEASURES = {
    "accuracy": "late_test_accuracy",
    "success": "attack_success_rate_all",
    "fpr": "late_false_positive_rate",
    "fnr": "late_false_negative_rate",
}


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        group: The table: what data, and how it is dealt.
        label: The line.
        settings: Of its experiments, the columns' on top.
        published: Where to look for published numbers: the name of the data in ``published.csv``.
        goals: The largest value that a measure may have in the first column; of ``accuracy``, the largest loss.
        columns: The columns that are run; None is all.
        seeds: Of its cells; None is the plan's.
    """

    group: str
    label: str
    settings: Mapping[str, Any]
    published: str = ""
    goals: Mapping[str, float] = field(default_factory=dict)
    columns: Sequence[str] | None = None
    seeds: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Plan:
    """A grid: every row with every column and every seed.

    Attributes:
        rows: In order.
        columns: Settings by label; goals are the first one's.
        seeds: Each cell is the mean over these, if its row does not say otherwise.
        reference: Row and column labels of the run that losses of accuracy are counted from, in every group.
        note: What to know of this scale.
    """

    rows: tuple[Row, ...]
    columns: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...] = (0,)
    reference: tuple[str, str] | None = None
    note: str = ""

    def columns_of(self, row: Row) -> Sequence[str]:
        """The columns that a row has."""
        return tuple(self.columns) if row.columns is None else row.columns

    def seeds_of(self, row: Row) -> tuple[int, ...]:
        """The seeds of each of its cells."""
        return row.seeds or self.seeds

    @property
    def size(self) -> int:
        """How many experiments there are, without making them."""
        return sum(len(self.columns_of(row)) * len(self.seeds_of(row)) for row in self.rows)

    def cells(self) -> dict[tuple[str, str, str, int], Experiment]:
        """Every experiment, by group, row, column and seed."""
        return self._cells

    @cached_property
    def _cells(self) -> dict[tuple[str, str, str, int], Experiment]:  # hundreds take a second or two to check
        return {
            (row.group, row.label, column, seed): Experiment.of({**row.settings, **self.columns[column], "seed": seed})
            for row in self.rows
            for column in self.columns_of(row)
            for seed in self.seeds_of(row)
        }


def defenses(*names: str) -> dict[str, dict[str, Any]]:
    """Columns: these defenses as they are."""
    return {name: {"defense": name} for name in names}


Runs = Mapping[str, Sequence[RoundRecord]]  # by key


@dataclass(frozen=True)
class Suite:
    """A published table or figure.

    Attributes:
        name: On the command line.
        summary: In one line.
        plan: The grid at a scale.
        measures: What is shown, in the order of :data:`MEASURES`.
        table: Its name in ``published.csv``, if numbers were published.
        draw: Makes a picture of it: from plan, records and the picture's path.
    """

    name: str
    summary: str
    plan: Callable[[Scale], Plan]
    measures: tuple[str, ...]
    table: str = ""
    draw: Callable[[Plan, Runs, Path], None] | None = None


@dataclass(frozen=True)
class Compared:
    """One measure of one cell of a table.

    Attributes:
        group: The table.
        row: The line.
        column: The column.
        measure: Of :data:`MEASURES`.
        ours: Mean over the seeds that are finished; None without any, or where it has no meaning.
        deviation: Over the seeds; None for one.
        seeds: That are finished.
        wanted: That there should be.
        published: The paper's number, if there is one.
        goal: The largest (of accuracy the smallest) value that will do, if there is one.
        error: Why a seed is missing, or "".
    """

    group: str
    row: str
    column: str
    measure: str
    ours: float | None
    deviation: float | None
    seeds: int
    wanted: int
    published: float | None
    goal: float | None
    error: str

    @property
    def short(self) -> bool:
        """Whether it falls short of its goal."""
        if self.goal is None or self.ours is None:
            return False
        return self.ours < self.goal - 1e-9 if self.measure == "accuracy" else self.ours > self.goal + 1e-9


def published() -> dict[tuple[str, str, str, str, str], float]:
    """Published numbers by table, data, attack, column and measure."""
    with files("fedsieve.suites").joinpath("published.csv").open(encoding="utf-8") as file:
        keys = ("table", "data", "attack", "column", "measure")
        return {tuple(line[key] for key in keys): float(line["value"]) for line in csv.DictReader(file)}  # type: ignore[misc]


def compare(suite: Suite, plan: Plan, runs: Runs, errors: Mapping[str, str]) -> list[Compared]:
    """Every measure of every cell, ours beside theirs.

    Args:
        suite: Which.
        plan: At which scale.
        runs: Records of finished runs, by the experiment's key.
        errors: Why others are missing, by key.
    """
    theirs = published()
    cells = plan.cells()
    summaries = {key: summarize(records) for key, records in runs.items()}
    found = []
    for row in plan.rows:
        for column in plan.columns_of(row):
            keys = [cells[row.group, row.label, column, seed].key for seed in plan.seeds_of(row)]
            done = [summaries[key] for key in keys if key in summaries]
            missing = next((errors.get(key) or "not run" for key in keys if key not in summaries), "")
            for measure in suite.measures:
                values = [s[MEASURES[measure]] for s in done if s[MEASURES[measure]] is not None]
                goal = row.goals.get(measure) if column == next(iter(plan.columns)) else None
                if measure == "accuracy" and goal is not None:
                    base = _reference(plan, cells, summaries, row.group)
                    goal = None if base is None else base - goal
                found.append(
                    Compared(
                        row.group,
                        row.label,
                        column,
                        measure,
                        mean(values) if values else None,
                        stdev(values) if len(values) > 1 else None,
                        len(done),
                        len(keys),
                        theirs.get((suite.table, row.published, row.label, column, measure)),
                        goal,
                        missing,
                    )
                )
    return found


def _reference(plan: Plan, cells: Mapping[Any, Experiment], summaries: Mapping[str, Any], group: str) -> float | None:
    """Mean accuracy of the group's reference runs."""
    if plan.reference is None:
        return None
    keys = [experiment.key for label, experiment in cells.items() if label[:3] == (group, *plan.reference)]
    values = [summaries[key]["late_test_accuracy"] for key in keys if key in summaries]
    return mean(values) if values else None
