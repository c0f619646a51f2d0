"""Attack x defense tables: mean and standard deviation over seeds, worst case over attacks, best of each column."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from rich.table import Table

from fedsieve.core.escaping import printable
from fedsieve.report import escaping
from fedsieve.report.load import Run
from fedsieve.report.settings import differing, title
from fedsieve.report.text import DASH, markdown_table, number, terminal_table
from fedsieve.runs import files

# By key of a run's summary: heading, and whether more is better.
MEASURES = {
    "late_test_accuracy": ("Test accuracy, last tenth of the rounds", True),
    "attack_success_rate": ("Attack success rate, last round", False),
    "false_positive_rate": ("Benign clients rejected, all rounds", False),
    "false_negative_rate": ("Malicious clients missed, all rounds", False),
}
WORST = "worst"


@dataclass(frozen=True)
class Cell:
    """One measure over the seeds of an attack and a defense.

    Attributes:
        mean: Over the finished runs; None without one, or where the measure is undefined.
        deviation: Standard deviation over them; None for a single run.
        finished: Number of finished runs.
        runs: Number of runs, finished or not.
        problem: What is wrong with an unfinished one, or "".
        note: What a reader of the finished ones' numbers has to know, or "".
    """

    mean: float | None
    deviation: float | None
    finished: int
    runs: int
    problem: str
    note: str

    def text(self) -> str:
        """In per cent, or why there is no number."""
        if self.mean is None:
            return self.problem.partition(":")[0] if self.problem else DASH
        spread = f" ± {number(self.deviation)}" if self.deviation is not None else ""
        missing = f" [{self.finished} of {self.runs}]" if self.finished < self.runs else ""
        return f"{number(self.mean)}{spread}{missing}"


@dataclass(frozen=True)
class Grid:
    """One table of runs with the same settings, except attack, defense and seed.

    Attributes:
        title: Those settings that differ from the other tables'.
        measure: Of :data:`MEASURES`.
        defenses: Rows.
        attacks: Columns.
        cells: By (defense, attack), where there is a run.
        worst: Worst mean over the attacks, by defense; only where every attack has a number.
        best: The best defenses, by column.
    """

    title: str
    measure: str
    defenses: tuple[str, ...]
    attacks: tuple[str, ...]
    cells: dict[tuple[str, str], Cell]
    worst: dict[str, float]
    best: dict[str, frozenset[str]]

    @property
    def heading(self) -> str:
        """What the numbers are."""
        return f"{MEASURES[self.measure][0]}, %"


def grids(runs: Sequence[Run]) -> list[Grid]:
    """One table per setting and measure; measures without any number are left out."""
    known = [run for run in runs if run.experiment is not None]
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in known:
        groups.setdefault(tuple(run.setting.items()), []).append(run)
    keys = differing([run.setting for run in known])
    found = []
    for members in groups.values():
        name = title(members[0].setting, keys)
        found += [grid for measure in MEASURES if (grid := _grid(name, measure, members)) is not None]
    return found


def _grid(name: str, measure: str, runs: Sequence[Run]) -> Grid | None:
    by_cell: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        by_cell.setdefault((run.defense, run.attack), []).append(run)
    cells = {key: _cell(found, measure) for key, found in by_cell.items()}
    if measure != "late_test_accuracy" and all(cell.mean is None for cell in cells.values()):
        return None
    defenses = tuple(sorted(dict.fromkeys(d for d, _ in cells)))
    attacks = tuple(sorted(dict.fromkeys(a for _, a in cells), key=lambda a: (a != "none", a)))
    if measure != "late_test_accuracy":  # rates are undefined for some attacks and defenses
        attacks = tuple(a for a in attacks if any((c := cells.get((d, a))) and c.mean is not None for d in defenses))
        defenses = tuple(d for d in defenses if any((c := cells.get((d, a))) and c.mean is not None for a in attacks))
    more = MEASURES[measure][1]
    worst = {}
    for defense in defenses:
        row = [cells.get((defense, attack)) for attack in attacks]
        values = [cell.mean for cell in row if cell is not None and cell.mean is not None]
        if len(values) == len(attacks) > 1:
            worst[defense] = min(values) if more else max(values)
    columns = {a: {d: c.mean for d in defenses if (c := cells.get((d, a))) and c.mean is not None} for a in attacks}
    best = {a: _best(values, more) for a, values in (*columns.items(), (WORST, worst))}
    return Grid(name, measure, defenses, attacks, cells, worst, best)


def _cell(runs: Sequence[Run], measure: str) -> Cell:
    values = [v for run in runs if run.finished and (v := run.summary[measure]) is not None]
    done = sum(run.finished for run in runs)
    problem = next((run.problems[0] for run in runs if not run.finished and run.problems), "")
    note = "; ".join(dict.fromkeys(note for run in runs for note in run.notes))
    deviation = stdev(values) if len(values) > 1 else None
    return Cell(mean(values) if values else None, deviation, done, len(runs), problem, note)


def _best(values: dict[str, float], more: bool) -> frozenset[str]:
    """The defenses with the best number, to a tenth of a per cent; none if fewer than two have a number."""
    if len(values) < 2:
        return frozenset()
    top = (max if more else min)(round(value, 3) for value in values.values())
    return frozenset(d for d, value in values.items() if round(value, 3) == top)


def _lines(grid: Grid) -> list[list[tuple[str, bool]]]:
    """Lines of fields, the head first; each with whether it is the best of its column."""
    worst = [WORST] if grid.worst else []
    lines = [[(name, False) for name in ("", *grid.attacks, *worst)]]
    for defense in grid.defenses:
        fields = [(defense, False)]
        for attack in grid.attacks:
            cell = grid.cells.get((defense, attack))
            fields.append(("not run" if cell is None else cell.text(), defense in grid.best[attack]))
        if worst:
            fields.append((number(grid.worst.get(defense)), defense in grid.best[WORST]))
        lines.append(fields)
    return lines


def _marked(grid: Grid, escaped: Callable[[str], str], before: str, after: str) -> list[list[str]]:
    """:func:`_lines` escaped, the best fields between two marks."""

    def field(text: str, best: bool) -> str:
        return f"{before}{escaped(text)}{after}" if best else escaped(text)

    return [[field(*each) for each in line] for line in _lines(grid)]


def markdown(found: Sequence[Grid], runs: Sequence[Run]) -> str:
    """All tables as Markdown, and the problems of the runs."""
    parts, last = [], None
    for grid in found:
        parts += [f"## {escaping.markdown(grid.title)}"] if grid.title != last else []
        last = grid.title
        table = markdown_table(_marked(grid, escaping.markdown, "**", "**"))
        parts.append(f"{grid.heading}. The best of each column is bold.\n\n{table}")
    wrong = problems(runs)
    if wrong:
        parts.append("## Runs with problems\n\n" + "\n".join(f"- {escaping.markdown(line)}" for line in wrong))
    return "\n\n".join(parts) + "\n"


def latex(found: Sequence[Grid]) -> str:
    """All tables as LaTeX; the document that includes them needs the package booktabs."""
    parts = []
    for grid in found:
        lines = _marked(grid, escaping.latex, r"\textbf{", "}")
        rows = [" & ".join(line) + r" \\" for line in lines]
        columns = "l" + "r" * (len(lines[0]) - 1)
        parts.append(
            "\n".join(
                [
                    r"\begin{table}",
                    rf"\caption{{{escaping.latex(grid.title)}. {escaping.latex(grid.heading)}.}}",
                    rf"\begin{{tabular}}{{{columns}}}",
                    r"\toprule",
                    rows[0],
                    r"\midrule",
                    *rows[1:],
                    r"\bottomrule",
                    r"\end{tabular}",
                    r"\end{table}",
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


def terminal(found: Sequence[Grid]) -> list[Table]:
    """All tables for a terminal."""
    return [
        terminal_table(
            f"{printable(grid.title)}\n{grid.heading}",
            [[escaping.terminal(text, "bold" if best else "") for text, best in line] for line in _lines(grid)],
        )
        for grid in found
    ]


def write_csv(found: Sequence[Grid], path: Path) -> None:
    """One line for each cell of each table."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["setting", "defense", "attack", "measure", "mean", "deviation", "finished", "runs", "problem"])
    for grid in found:
        for (defense, attack), c in grid.cells.items():
            numbers = ["" if v is None else round(v, 5) for v in (c.mean, c.deviation)]
            names = [escaping.cell(name) for name in (grid.title, defense, attack, grid.measure)]
            writer.writerow([*names, *numbers, c.finished, c.runs, escaping.cell(c.problem or c.note)])
    files.write(path, text.getvalue().encode())


def problems(runs: Sequence[Run]) -> list[str]:
    """All problems of all runs, and what a reader of their numbers has to know, one line each."""
    return [f"{printable(str(run.path))}: {line}" for run in runs for line in (*run.problems, *run.notes)]
