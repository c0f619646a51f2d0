"""What a suite is made of: rows and columns of settings, published numbers and goals; and its cells from records."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

from fedsieve.config.experiment import Experiment
from fedsieve.report.digest import Digest
from fedsieve.report.stored import Rounds, digest

Scale = Literal["smoke", "small", "paper"]
SCALES: tuple[Scale, ...] = ("smoke", "small", "paper")

# Measures of the tables and their keys in :func:`fedsieve.core.metrics.summarize`. The papers' rates are means over all
# rounds, and so are these; late rates are means over the second half.
MEASURES = {
    "accuracy": "late_test_accuracy",
    "success": "attack_success_rate_all",
    "fpr": "false_positive_rate",
    "fnr": "false_negative_rate",
    "late_fpr": "late_false_positive_rate",
    "late_fnr": "late_false_negative_rate",
}


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        group: Heading of its table: the data and how they are partitioned.
        label: Heading of the line, usually the attack.
        settings: Settings of its experiments; those of the column override them.
        published: Name of the data in ``published.csv``; "" where the paper has other data.
        paper_rounds: Rounds after which the published numbers were taken; None without published numbers.
        goals: The largest acceptable value of a measure in the column :attr:`Plan.goals_for`; for ``accuracy``, the
            largest acceptable loss.
        columns: Labels of the columns that are run; None for all.
        seeds: Seeds of its cells; None for the plan's.
    """

    group: str
    label: str
    settings: Mapping[str, Any]
    published: str = ""
    paper_rounds: int | None = None
    goals: Mapping[str, float] = field(default_factory=dict)
    columns: Sequence[str] | None = None
    seeds: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Plan:
    """A grid: every row with every column and every seed.

    Attributes:
        rows: In order.
        columns: Settings by label.
        seeds: Each cell is the mean over these, unless its row has seeds of its own.
        goals_for: Label of the column to which the rows' goals apply; "" for none.
        reference: Row and column label of the run from which a loss of accuracy is counted, in every group.
        note: What a reader has to know about this scale.
    """

    rows: tuple[Row, ...]
    columns: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...] = (0,)
    goals_for: str = ""
    reference: tuple[str, str] | None = None
    note: str = ""

    def columns_of(self, row: Row) -> Sequence[str]:
        """Labels of the columns that a row has."""
        return tuple(self.columns) if row.columns is None else row.columns

    def seeds_of(self, row: Row) -> tuple[int, ...]:
        """The seeds of each of its cells."""
        return row.seeds or self.seeds

    @property
    def size(self) -> int:
        """Number of experiments, counted without building them."""
        return sum(len(self.columns_of(row)) * len(self.seeds_of(row)) for row in self.rows)

    def cells(self) -> dict[tuple[str, str, str, int], Experiment]:
        """Every experiment, by group, row label, column label and seed."""
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
    """Columns: these defenses with their default parameters."""
    return {name: {"defense": name} for name in names}


Runs = Mapping[str, Rounds]  # by the experiment's key


@dataclass(frozen=True)
class Suite:
    """A published table or figure, or a set of goals.

    Attributes:
        name: On the command line.
        summary: One line.
        plan: The grid at a scale.
        measures: What is shown, of :data:`MEASURES`, in their order.
        table: Name of the table in ``published.csv``; "" if no numbers were published.
        draw: Draws its picture from plan, records and the picture's path; None for no picture.
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
        group: Heading of the table.
        row: Label of the line.
        column: Label of the column.
        measure: Of :data:`MEASURES`.
        ours: Mean over the finished seeds; None without any, or where it is undefined.
        deviation: Standard deviation over the seeds; None for one.
        seeds: Number of finished seeds.
        wanted: Number of planned seeds.
        rounds: Length of each of our runs.
        published: The paper's number; None without.
        paper_rounds: Length of the paper's run; None without a published number.
        rates_from: First round, counted from 1, in which the defense took a decision in every finished seed; None if it
            never did.
        goal: The largest acceptable value (of accuracy the smallest); None without a goal.
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
    rounds: int
    published: float | None
    paper_rounds: int | None
    rates_from: int | None
    goal: float | None
    error: str

    @property
    def short(self) -> bool:
        """Whether it misses its goal."""
        if self.goal is None or self.ours is None:
            return False
        return self.ours < self.goal - 1e-9 if self.measure == "accuracy" else self.ours > self.goal + 1e-9


def published() -> dict[tuple[str, str, str, str, str], float]:
    """Published numbers by table, data, row label, column label and measure."""
    with files("fedsieve.reproduce").joinpath("published.csv").open(encoding="utf-8") as file:
        keys = ("table", "data", "attack", "column", "measure")
        return {tuple(line[key] for key in keys): float(line["value"]) for line in csv.DictReader(file)}  # type: ignore[misc]


def compare(suite: Suite, plan: Plan, runs: Runs, errors: Mapping[str, str]) -> list[Compared]:
    """Every measure of every cell, with the published number where there is one.

    Args:
        suite: The suite.
        plan: Its plan at one scale.
        runs: Records of finished runs, by the experiment's key.
        errors: Why others are missing, by key.
    """
    theirs = published()
    cells = plan.cells()
    digests = {key: digest(records) for key, records in runs.items()}
    summaries = {key: found.summary for key, found in digests.items()}
    found = []
    for row in plan.rows:
        for column in plan.columns_of(row):
            experiments = [cells[row.group, row.label, column, seed] for seed in plan.seeds_of(row)]
            keys = [experiment.key for experiment in experiments]
            done = [summaries[key] for key in keys if key in summaries]
            missing = next((errors.get(key) or "not run" for key in keys if key not in summaries), "")
            rates_from = _rates_from([digests[key] for key in keys if key in digests])
            for measure in suite.measures:
                values = [s[MEASURES[measure]] for s in done if s[MEASURES[measure]] is not None]
                goal = row.goals.get(measure) if column == plan.goals_for else None
                if measure == "accuracy" and goal is not None:
                    base = _reference(plan, cells, summaries, row.group)
                    goal = None if base is None else base - goal
                number = theirs.get((suite.table, row.published, row.label, column, measure))
                found.append(
                    Compared(
                        group=row.group,
                        row=row.label,
                        column=column,
                        measure=measure,
                        ours=mean(values) if values else None,
                        deviation=stdev(values) if len(values) > 1 else None,
                        seeds=len(done),
                        wanted=len(keys),
                        rounds=experiments[0].rounds,
                        published=number,
                        paper_rounds=None if number is None else row.paper_rounds,
                        rates_from=rates_from,
                        goal=goal,
                        error=missing,
                    )
                )
    return found


def _rates_from(runs: Sequence[Digest]) -> int | None:
    """First round, counted from 1, from which all of these runs have detection rates; None if one never has."""
    known = [run.decided_from + 1 for run in runs if run.decided_from is not None]
    return max(known) if known and len(known) == len(runs) else None


def _reference(plan: Plan, cells: Mapping[Any, Experiment], summaries: Mapping[str, Any], group: str) -> float | None:
    """Mean accuracy of the group's reference runs."""
    if plan.reference is None:
        return None
    keys = [experiment.key for label, experiment in cells.items() if label[:3] == (group, *plan.reference)]
    values = [summaries[key]["late_test_accuracy"] for key in keys if key in summaries]
    return mean(values) if values else None
