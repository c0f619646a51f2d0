"""A suite's cells as Markdown, CSV and in a terminal."""

import csv
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from fedsieve.report.text import DASH, markdown_table, number, terminal_table
from fedsieve.suites.plan import Compared, Plan, Suite

_SHORT = "✗"
_HEADINGS = {
    ("fpr", "fnr"): "Benign clients rejected / malicious clients missed, %, second half of the rounds",
    ("accuracy", "success"): "Test accuracy, last tenth of the rounds (/ attack success rate), %",
}


def _text(cells: Sequence[Compared]) -> str:
    """One field of a table: ours, the paper's in brackets, a mark where a goal is missed, or why there is nothing."""
    error = next((cell.error for cell in cells if cell.error), "")
    if error and all(cell.ours is None for cell in cells):
        return error.splitlines()[-1][:60]
    known = [cell for cell in cells if cell.ours is not None or cell.published is not None]
    if not known:
        return DASH
    ours = " / ".join(number(cell.ours) for cell in known)
    if len(known) == 1 and known[0].deviation is not None:
        ours += f" ± {number(known[0].deviation)}"
    theirs = ""
    if any(cell.published is not None for cell in known):
        theirs = f" ({' / '.join(number(cell.published) for cell in known)})"
    mark = f" {_SHORT}" if any(cell.short for cell in known) else ""
    few = f" [{cells[0].seeds} of {cells[0].wanted} seeds]" if 0 < cells[0].seeds < cells[0].wanted else ""
    return ours + theirs + mark + few


def _blocks(suite: Suite, cells: Sequence[Compared]) -> list[tuple[str, str, list[list[str]]]]:
    """Tables as (group, what is shown, lines of fields), the first line the head."""
    found = []
    for group in dict.fromkeys(cell.group for cell in cells):
        for measures, heading in _HEADINGS.items():
            here = [c for c in cells if c.group == group and c.measure in measures and c.measure in suite.measures]
            if not any(c.ours is not None or c.published is not None or c.error for c in here):
                continue
            columns = list(dict.fromkeys(c.column for c in here))
            goals = {c.row: _goal([d for d in here if d.row == c.row]) for c in here}
            lines = [["", *columns, *(["goal"] if any(goals.values()) else [])]]
            for row in dict.fromkeys(c.row for c in here):
                fields = [[c for c in here if (c.row, c.column) == (row, column)] for column in columns]
                texts = [_text(some) if some else "" for some in fields]
                lines.append([row, *texts, *([goals[row]] if any(goals.values()) else [])])
            shown = [k for k in range(len(lines[0])) if k == 0 or any(line[k].strip(DASH) for line in lines[1:])]
            found.append((group, heading, [[line[k] for k in shown] for line in lines]))
    return found


def _goal(cells: Sequence[Compared]) -> str:
    goals = [c for c in cells if c.goal is not None and c.ours is not None]
    return ", ".join(f"{'≥' if c.measure == 'accuracy' else '≤'} {number(c.goal)}" for c in goals)


def verdict(cells: Sequence[Compared]) -> str:
    """In one line, how many goals are met."""
    judged = [cell for cell in cells if cell.goal is not None and cell.ours is not None]
    if not judged:
        return ""
    return f"{sum(not cell.short for cell in judged)} of {len(judged)} goals are met; {_SHORT} marks the others."


def markdown(suite: Suite, plan: Plan, cells: Sequence[Compared], how: str) -> str:
    """The page of a suite.

    Args:
        suite: Which.
        plan: At which scale.
        cells: From :func:`fedsieve.suites.plan.compare`.
        how: Command, versions and date.
    """
    parts = [f"# {suite.summary}", how, plan.note]
    if any(cell.published is not None for cell in cells):
        parts.append("In brackets: the paper's numbers.")
    parts += [verdict(cells)] if verdict(cells) else []
    last = None
    for group, heading, lines in _blocks(suite, cells):
        parts += [f"## {group}"] if group != last else []
        last = group
        parts.append(f"**{heading}**\n\n{markdown_table(lines)}")
    return "\n\n".join(part for part in parts if part) + "\n"


def terminal(suite: Suite, cells: Sequence[Compared]) -> list[Table]:
    """The same tables for a terminal."""
    return [
        terminal_table(f"{group}\n{heading}", [[escape(text) for text in line] for line in lines])
        for group, heading, lines in _blocks(suite, cells)
    ]


def write_csv(cells: Sequence[Compared], path: Path) -> None:
    """One line for each measure of each cell."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            [
                "group",
                "row",
                "column",
                "measure",
                "ours",
                "deviation",
                "seeds",
                "paper",
                "difference",
                "goal",
                "short",
                "error",
            ]
        )
        for c in cells:
            if c.ours is None and c.published is None and not c.error:
                continue
            difference = None if c.ours is None or c.published is None else c.ours - c.published
            numbers = [None if v is None else round(v, 5) for v in (c.ours, c.deviation)]
            last = [None if v is None else round(v, 5) for v in (c.published, difference, c.goal)]
            writer.writerow([c.group, c.row, c.column, c.measure, *numbers, c.seeds, *last, c.short or "", c.error])
