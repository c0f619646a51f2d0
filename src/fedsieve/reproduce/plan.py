"""What a suite is made of: rows and columns of settings, published numbers and goals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from fedsieve.config.experiment import Experiment
from fedsieve.report.stored import Rounds

Scale = Literal["smoke", "small", "paper"]
SCALES: tuple[Scale, ...] = ("smoke", "small", "paper")


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        group: Heading of its table: the data and how they are partitioned.
        label: Heading of the line, usually the attack.
        settings: Settings of its experiments; those of the column override them.
        published: Name of the data in ``published.csv``; "" where the paper has other data.
        paper_rounds: Rounds after which the published numbers were taken; None without published numbers.
        goals: The largest acceptable value of a measure in the column :attr:`Plan.goals_for`; for measures that are
            counted from the reference's, the largest acceptable loss or excess.
        columns: Labels of the columns that are run; None for all.
        seeds: Seeds of its cells; None for the plan's.
        reference: Label of the row of its group, with the same data and without attack, with which it is compared;
            "" for that of :attr:`Plan.reference`.
    """

    group: str
    label: str
    settings: Mapping[str, Any]
    published: str = ""
    paper_rounds: int | None = None
    goals: Mapping[str, float] = field(default_factory=dict)
    columns: Sequence[str] | None = None
    seeds: tuple[int, ...] | None = None
    reference: str = ""


@dataclass(frozen=True)
class Plan:
    """A grid: every row with every column and every seed.

    Attributes:
        rows: In order.
        columns: Settings by label.
        seeds: Each cell is the mean over these, unless its row has seeds of its own.
        goals_for: Label of the column to which the rows' goals apply; "" for none.
        reference: Row and column label of the runs with which the others of their group and seed are compared; the
            column is that of the undefended mean.
        note: What a reader has to know about this scale.
        beside: Rows that are run because others are compared with them, and not shown.
    """

    rows: tuple[Row, ...]
    columns: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...] = (0,)
    goals_for: str = ""
    reference: tuple[str, str] = ("none", "mean")
    note: str = ""
    beside: tuple[Row, ...] = ()

    def columns_of(self, row: Row) -> Sequence[str]:
        """Labels of the columns that a row has."""
        return tuple(self.columns) if row.columns is None else row.columns

    def seeds_of(self, row: Row) -> tuple[int, ...]:
        """The seeds of each of its cells."""
        return row.seeds or self.seeds

    def reference_of(self, row: Row) -> tuple[str, str]:
        """Labels of the row and column with which it is compared."""
        return row.reference or self.reference[0], self.reference[1]

    @property
    def size(self) -> int:
        """Number of experiments, counted without building them."""
        return sum(len(self.columns_of(row)) * len(self.seeds_of(row)) for row in (*self.rows, *self.beside))

    def cells(self) -> dict[tuple[str, str, str, int], Experiment]:
        """Every experiment, by group, row label, column label and seed."""
        return self._cells

    @cached_property
    def _cells(self) -> dict[tuple[str, str, str, int], Experiment]:
        found = {}
        for row in (*self.rows, *self.beside):
            for column in self.columns_of(row):
                first, *others = self.seeds_of(row)
                cell = Experiment.of({**row.settings, **self.columns[column], "seed": first})
                found[row.group, row.label, column, first] = cell
                for seed in others:  # no other setting follows from the seed, and checking thousands takes long
                    found[row.group, row.label, column, seed] = cell.model_copy(update={"seed": seed})
        return found


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
        measures: What is shown, of :data:`fedsieve.reproduce.measures.ALL`.
        table: Name of the table in ``published.csv``; "" if no numbers were published.
        draw: Draws its picture from plan, records and the picture's path; None for no picture.
    """

    name: str
    summary: str
    plan: Callable[[Scale], Plan]
    measures: tuple[str, ...]
    table: str = ""
    draw: Callable[[Plan, Runs, Path], None] | None = None
