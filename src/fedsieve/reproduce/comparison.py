"""The cells of a suite's tables from records: our numbers, published ones, goals."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from fedsieve.report.digest import Digest
from fedsieve.report.stored import digest
from fedsieve.reproduce.measures import WRONGED, acceptable, measured, over_seeds, wronged
from fedsieve.reproduce.plan import Plan, Row, Runs, Suite


@dataclass(frozen=True)
class Compared:
    """One measure of one cell of a table.

    Attributes:
        group: Heading of the table.
        row: Label of the line.
        column: Label of the column.
        measure: Of :data:`fedsieve.reproduce.measures.ALL`.
        ours: Of the finished seeds, the mean or the largest (:func:`fedsieve.reproduce.measures.over_seeds`); None
            without any, or where it is undefined.
        deviation: Standard deviation over the seeds; None for one, and beside a largest value.
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

    Losses are those of a finished seed against the reference of the same seed; a seed whose reference is missing has
    none.

    Args:
        suite: The suite.
        plan: Its plan at one scale.
        runs: Records of finished runs, by the experiment's key.
        errors: Why others are missing, by key.
    """
    theirs = published()
    digests = {key: digest(records) for key, records in runs.items()}
    found = []
    for row in plan.rows:
        references = _keys(plan, row, *plan.reference_of(row))
        for column in plan.columns_of(row):
            cells = [plan.cells()[row.group, row.label, column, seed] for seed in plan.seeds_of(row)]
            done = {seed: e.key for seed, e in zip(plan.seeds_of(row), cells, strict=True) if e.key in runs}
            missing = next((errors.get(e.key) or "not run" for e in cells if e.key not in runs), "")
            ours = [digests[key] for key in done.values()]
            beside = [digests.get(references.get(seed, "")) for seed in done]
            for measure in suite.measures:
                goal = row.goals.get(measure) if column == plan.goals_for else None
                if measure != WRONGED:
                    values = [measured(measure, run, other) for run, other in zip(ours, beside, strict=True)]
                elif measure in row.goals:
                    quiet = _keys(plan, row, plan.reference_of(row)[0], column)
                    values = [wronged(runs[k], runs[quiet[s]]) for s, k in done.items() if quiet.get(s) in runs]
                else:
                    values = []
                value, deviation = over_seeds(measure, [v for v in values if v is not None])
                number = theirs.get((suite.table, row.published, row.label, column, measure))
                found.append(
                    Compared(
                        group=row.group,
                        row=row.label,
                        column=column,
                        measure=measure,
                        ours=value,
                        deviation=deviation,
                        seeds=len(done),
                        wanted=len(cells),
                        rounds=cells[0].rounds,
                        published=number,
                        paper_rounds=None if number is None else row.paper_rounds,
                        rates_from=_rates_from(ours),
                        goal=None if goal is None else acceptable(measure, goal, beside),
                        error=missing,
                    )
                )
    return found


def _keys(plan: Plan, row: Row, label: str, column: str) -> dict[int, str]:
    """Keys of another row of the same group, by seed; only those that are planned."""
    cells = {seed: plan.cells().get((row.group, label, column, seed)) for seed in plan.seeds_of(row)}
    return {seed: e.key for seed, e in cells.items() if e is not None}


def _rates_from(runs: Sequence[Digest]) -> int | None:
    """First round, counted from 1, from which all of these runs have detection rates; None if one never has."""
    known = [run.decided_from + 1 for run in runs if run.decided_from is not None]
    return max(known) if known and len(known) == len(runs) else None
