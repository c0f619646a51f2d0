"""Attack x defense tables as Markdown, LaTeX, CSV and in a terminal."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group

from fedsieve.core.escaping import printable
from fedsieve.report import escaping
from fedsieve.report.grid import BOLD, MEASURES, WORST, Cell, Grid, grids, problems, seeds
from fedsieve.report.load import Run
from fedsieve.report.names import ATTACKS, DEFENSES, distinct, ordered
from fedsieve.report.text import DASH, markdown_table, terminal_parts
from fedsieve.runs import files

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

__all__ = ["MEASURES", "WORST", "Cell", "Grid", "grids", "latex", "markdown", "problems", "terminal", "write_csv"]

_WIDE = 8  # columns of numbers in one table of a paper
# Shrinks a table that is wider than the text.
_FIT = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
_PREAMBLE = r"% Needs \usepackage{booktabs} and \usepackage{graphicx}."
_UNICODE = "% Some names have characters that pdfLaTeX lacks: use XeLaTeX or LuaLaTeX, with a font that has them."
_PLAIN = 0x250  # pdfLaTeX knows the letters below


@dataclass(frozen=True)
class _Table:
    """One table: a grid, or those of one measure under each other.

    Attributes:
        grids: Of one measure.
        columns: Attacks, and the worst case.
    """

    grids: tuple[Grid, ...]
    columns: tuple[str, ...]

    @property
    def rows(self) -> list[tuple[Grid, str]]:
        """Grid and defense of each row."""
        return [(grid, defense) for grid in self.grids for defense in grid.defenses]

    def text(self, row: tuple[Grid, str], column: str) -> str:
        """What stands in a field."""
        grid, defense = row
        return grid.text(defense, column) if column in grid.columns else DASH

    def bold(self, row: tuple[Grid, str], column: str) -> bool:
        """Whether a field is the best of its column, among those of its grid."""
        grid, defense = row
        return grid.best.get(column) == defense

    def groups(self, name: Callable[[Grid], str]) -> list[str]:
        """The name of each row's grid where it is the first row of several grids, else ""."""
        first = {id(grid): grid.defenses[0] for grid in self.grids if len(self.grids) > 1}
        return [name(grid) if first.get(id(grid)) == defense else "" for grid, defense in self.rows]


def _tables(found: Sequence[Grid], together: bool) -> list[_Table]:
    """A table of each grid, or one of each measure."""
    if not together:
        return [_Table((grid,), grid.columns) for grid in found]
    made = []
    for measure in MEASURES:
        here = tuple(grid for grid in found if grid.measure == measure)
        attacks = ordered((attack for grid in here for attack in grid.attacks), ATTACKS)
        worst = [WORST] if any(grid.worst for grid in here) else []
        made += [_Table(here, (*attacks, *worst))] if here else []
    return made


def _lines(table: _Table) -> list[list[tuple[str, bool]]]:
    """Lines of fields, the head first; each with whether it is bold."""
    several = len(table.grids) > 1
    lines = [[(name, False) for name in (*[""] * several, "", *table.columns)]]
    for group, row in zip(table.groups(lambda grid: grid.title), table.rows, strict=True):
        fields = [(table.text(row, column), table.bold(row, column)) for column in table.columns]
        lines.append([*([(group, False)] * several), (row[1], False), *fields])
    return lines


def _caption(table: _Table) -> str:
    """What the numbers are, over how many seeds, and what bold ones are."""
    n = seeds(table.grids)
    spread = f"; mean ± standard deviation over {n}" if n and n != "1 seed" else f"; {n}" if n else ""
    bold = f" Bold: {BOLD}." if any(grid.best for grid in table.grids) else ""
    return f"{table.grids[0].heading}{spread}.{bold}"


def markdown(found: Sequence[Grid], runs: Sequence[Run], together: bool = False) -> str:
    """All tables as Markdown, and the problems of the runs.

    Args:
        found: The tables.
        runs: Their runs.
        together: Whether those of one measure, such as one of each dataset, are one table.
    """
    parts, last = [], None
    for table in _tables(found, together):
        name = "All settings" if together else table.grids[0].title
        parts += [f"## {escaping.markdown(name)}"] if name != last else []
        last = name
        lines = [
            [f"**{escaping.markdown(t)}**" if b else escaping.markdown(t) for t, b in line] for line in _lines(table)
        ]
        parts.append(f"{_caption(table)}\n\n{markdown_table(lines)}")
    wrong = problems(runs)
    if wrong:
        parts.append("## Runs with problems\n\n" + "\n".join(f"- {escaping.markdown(line)}" for line in wrong))
    return "\n\n".join(parts) + "\n"


def terminal(found: Sequence[Grid], width: int, together: bool = False) -> list[Group]:
    """All tables for a terminal of ``width`` characters a line."""
    made = []
    for table in _tables(found, together):
        name = "all settings" if together else printable(table.grids[0].title)
        lines = [[escaping.terminal(text, "bold" if bold else "") for text, bold in line] for line in _lines(table)]
        first = len(lines[0]) - len(table.columns)
        made.append(terminal_parts(f"{name}\n{table.grids[0].heading}", lines, first, width))
    return made


def latex(found: Sequence[Grid], together: bool = False) -> str:
    """All tables as LaTeX, by the names that papers print.

    The document that includes them needs the packages booktabs and graphicx; a comment says so. A table with more
    columns than a page holds goes on in a second one; one that is wider than the text is shrunk.
    """
    parts, labels = [], set[str]()
    for whole in _tables(found, together):
        for k in range(0, len(whole.columns), _WIDE):
            table = _Table(whole.grids, whole.columns[k : k + _WIDE])
            stem = "all" if together else table.grids[0].printed
            slug = re.sub(r"[^a-z0-9]+", "-", f"{stem} {table.grids[0].measure}".lower()).strip("-")[:80]
            label = next(name for n in count(1) if (name := slug if n == 1 else f"{slug}-{n}") not in labels)
            labels.add(label)
            parts.append(_latex(table, f"tab:{label}", continued=k > 0))
    text = "\n".join(parts)
    return "\n".join([_PREAMBLE, *([_UNICODE] if any(ord(c) >= _PLAIN for c in text) else []), "", text])


def _latex(table: _Table, label: str, continued: bool) -> str:
    several = len(table.grids) > 1
    abouts = dict.fromkeys(grid.about for grid in table.grids)
    about = next(iter(abouts)) if len(abouts) == 1 else ""
    what = ", ".join(filter(None, ["" if several else table.grids[0].printed, about]))
    worst = " Worst: over the attacks." if WORST in table.columns else ""
    caption = f"{what + '. ' if what else ''}{_caption(table)}{worst}{' (continued)' if continued else ''}"
    text: str = _styled(table).to_latex(
        caption=escaping.latex(caption),
        label=label,
        position_float="centering",
        column_format="l" * (1 + several) + "r" * len(table.columns),
        hrules=True,
        multirow_align="naive",
        clines="skip-last;data" if several else None,
    )
    line = rf"\cline{{1-{2 + len(table.columns)}}}"
    text = text.replace(f"{line}\n\\bottomrule", r"\bottomrule").replace(line, r"\midrule")
    return text.replace(r"\begin{tabular}", f"{_FIT}\n" + r"\begin{tabular}").replace(
        r"\end{tabular}", "\\end{tabular}%\n}"
    )


def _styled(table: _Table) -> "Styler":
    """The table with positions for names, which the Styler replaces: names need not be different."""
    from pandas import DataFrame, MultiIndex

    rows, columns = table.rows, table.columns
    frame = DataFrame([[escaping.latex(table.text(row, column)) for column in columns] for row in rows])
    bold = DataFrame([["textbf:--rwrap" if table.bold(row, column) else "" for column in columns] for row in rows])
    attacks = distinct(columns, {**ATTACKS, WORST: "Worst"})
    defenses = distinct((defense for _, defense in rows), DEFENSES)
    printed = [grid.printed for grid in table.grids]
    groups = [p if printed.count(p) == 1 else f"{p}, {g.about}" for p, g in zip(printed, table.grids, strict=True)]
    if len(table.grids) > 1:
        places = [(table.grids.index(grid), k) for k, (grid, _) in enumerate(rows)]
        frame.index = bold.index = MultiIndex.from_tuples(places)
    named = frame.style.apply(lambda _: bold, axis=None)
    named = named.format_index(lambda k: escaping.latex(attacks[columns[k]]), axis="columns")
    last = len(table.grids) > 1
    named = named.format_index(lambda k: escaping.latex(defenses[rows[k][1]]), axis="index", level=int(last))
    return named.format_index(lambda k: escaping.latex(groups[k]), axis="index", level=0) if last else named


def write_csv(found: Sequence[Grid], path: Path) -> None:
    """One line for each cell of each table; means and deviations in [0, 1]."""
    from pandas import DataFrame

    heads = ("setting", "defense", "attack", "measure", "mean", "deviation", "seeds", "finished", "runs", "problem")
    rows = [
        (
            *map(escaping.cell, (grid.title, defense, attack, grid.measure)),
            *(c.mean, c.deviation, c.seeds, c.finished, c.runs, escaping.cell(c.problem or c.note)),
        )
        for grid in found
        for (defense, attack), c in grid.cells.items()
    ]
    frame = DataFrame.from_records(rows, columns=heads).astype({"mean": float, "deviation": float}).round(5)
    files.write(path, frame.to_csv(index=False, lineterminator="\n").encode())
