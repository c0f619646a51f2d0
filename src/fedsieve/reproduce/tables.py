"""A suite's cells as Markdown, CSV and in a terminal."""

import csv
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group

from fedsieve.core.escaping import printable
from fedsieve.report import escaping
from fedsieve.report.text import DASH, markdown_table, number, terminal_parts
from fedsieve.reproduce import development
from fedsieve.reproduce.comparison import Compared
from fedsieve.reproduce.measures import LOSSES, WORST_SUCCESS, WRONGED
from fedsieve.reproduce.plan import Plan, Suite

_SHORT = "✗"
_RATES = ("fpr", "fnr", "late_fpr", "late_fnr")
_SPREAD = ("accuracy", "success")  # with their deviations where two stand in one field, too; others are in the CSV
_HEADINGS = {
    ("fpr", "fnr"): "Benign clients rejected / malicious clients missed, all {rounds}, %",
    ("late_fpr", "late_fnr"): "Benign clients rejected / malicious clients missed, second half of {rounds}, %",
    (
        "accuracy",
        "success",
    ): "Test accuracy, last tenth of {rounds} (/ attack success rate (all samples) at the end), %",
    ("late_loss", "worst_loss"): "Accuracy lost: last tenth of {rounds} / worst round, %",
    ("area",): "Accuracy lost, added up over {rounds}, accuracy-rounds",
    ("late_success", "worst_success"): "Attack success rate (other classes): last tenth of {rounds} / worst round, %",
    ("benign_lost",): "Benign client-rounds rejected, {rounds}, %",
    ("wronged",): "A benign client rejected more often than without attack: the largest increase, {rounds}, %",
}
_WHAT = {
    "late_loss": "Accuracy lost: to the undefended mean of the same data and seed without attack; below 0 where it is "
    "better. The worst round is the worst of all seeds, all other numbers are means over the seeds.",
    WORST_SUCCESS: "Attack success in the worst round: the highest after the first tenth of the rounds, in which an "
    "untrained model may read everything as one class.",
}
_HEAD = (
    "group",
    "row",
    "column",
    "measure",
    "ours",
    "deviation",
    "seeds",
    "rounds",
    "paper",
    "paper_rounds",
    "difference",
    "goal",
    "short",
    "error",
)


def _text(cells: Sequence[Compared]) -> str:
    """One field of a table: our numbers, the paper's in brackets, a mark for a missed goal, or why there is nothing.

    Where the paper's runs have another length than ours, both lengths are given.
    """
    error = next((cell.error for cell in cells if cell.error), "")
    if error and all(cell.ours is None for cell in cells):
        return escaping.shortened(error.splitlines()[-1], 60)
    known = [cell for cell in cells if cell.ours is not None or cell.published is not None]
    if not known:
        return DASH
    spread = len(known) == 1 or known[0].measure in _SPREAD
    ours, theirs = " / ".join(_ours(cell, spread) for cell in known), ""
    beside = [cell for cell in known if cell.published is not None]
    if beside:
        theirs = " / ".join(number(cell.published) for cell in known)
        if (paper := beside[0].paper_rounds) != beside[0].rounds:
            ours += f" after {beside[0].rounds:,} rounds"
            theirs += "" if paper is None else f" after {paper:,}"
        theirs = f" ({theirs})"
    mark = f" {_SHORT}" if any(cell.short for cell in known) else ""
    few = f" [{cells[0].seeds} of {cells[0].wanted} seeds]" if 0 < cells[0].seeds < cells[0].wanted else ""
    return ours + theirs + mark + few


def _ours(cell: Compared, spread: bool) -> str:
    """Our number, with its deviation over the seeds if there is one and ``spread``."""
    own = _number(cell.measure, cell.ours)
    return f"{own} ± {_number(cell.measure, cell.deviation)}" if spread and cell.deviation is not None else own


def _number(measure: str, value: float | None) -> str:
    """In per cent, or in accuracy-rounds; a loss is never "-0.0"."""
    if measure == "area" and value is not None:
        return f"{round(value, 2) + 0.0:.2f}"
    return number(value if value is None or measure not in (*LOSSES, WRONGED) else round(value, 3) + 0.0)


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
            lengths = {c.rounds for c in here}
            rounds = f"{lengths.pop():,} rounds" if len(lengths) == 1 else "rounds"
            found.append((group, heading.format(rounds=rounds), [[line[k] for k in shown] for line in lines]))
    return found


def _goal(cells: Sequence[Compared]) -> str:
    """The goals of a line, in the order of its measures; a dash for a measure that has none."""
    column = next((c.column for c in cells if c.goal is not None and c.ours is not None), None)
    shown = [c for c in cells if c.column == column and c.ours is not None]
    signs = {c.measure: "≥" if c.measure == "accuracy" else "≤" for c in shown}
    return ", ".join(DASH if c.goal is None else f"{signs[c.measure]} {number(c.goal)}" for c in shown)


def notes(plan: Plan, cells: Sequence[Compared]) -> list[str]:
    """What a reader has to know about the numbers of a suite, and how many goals are met.

    Args:
        plan: The suite's plan at one scale.
        cells: From :func:`fedsieve.reproduce.plan.compare`.
    """
    said = [plan.note] if plan.note else []
    runs = {(c.group, c.row, c.column): (c.wanted - c.seeds, c.wanted) for c in cells}
    missing, wanted = (sum(counts) for counts in zip((0, 0), *runs.values(), strict=True))
    if missing:
        said.append(
            f"Missing: {missing:,} of {wanted:,} runs. Their fields say so; no shorter run stands in their place."
        )
    beside = [cell for cell in cells if cell.published is not None]
    if beside:
        said.append("In brackets: the paper's numbers.")
    if any(cell.measure == "accuracy" for cell in beside):
        said.append("Accuracy: ours is the mean over the last tenth of the rounds, the paper's is the final model's.")
    if any(cell.measure in _RATES for cell in beside):
        said.append("Rates: ours are means over all rounds, the paper's over every tenth round.")
    shown = {cell.measure for cell in cells if cell.ours is not None}
    said += [text for measure, text in _WHAT.items() if measure in shown]
    said += _late_deciders(cells)
    without = {c.column: None for c in cells if c.measure == "fpr" and c.seeds and c.rates_from is None}
    if without:
        said.append(f"Without rates: {', '.join(without)}. They reject no clients or could not decide in these rounds.")
    aimed = [cell for cell in cells if cell.goal is not None and cell.ours is not None]
    if aimed:
        met = sum(not cell.short for cell in aimed)
        said.append(f"{met} of {len(aimed)} goals are met; {_SHORT} marks the others.")
    return said


def _late_deciders(cells: Sequence[Compared]) -> list[str]:
    """One note for each column whose defense cannot decide in the first rounds."""
    said = []
    for column in dict.fromkeys(cell.column for cell in cells if cell.measure in _RATES):
        firsts = sorted({c.rates_from for c in cells if c.column == column and c.rates_from is not None})
        if firsts and firsts[-1] > 1:
            shown = f"round {firsts[0]}" if len(firsts) == 1 else f"rounds {firsts[0]} to {firsts[-1]}"
            said.append(f"{column}: rates from {shown} on; before that it cannot decide and accepts all clients.")
    return said


def markdown(suite: Suite, plan: Plan, cells: Sequence[Compared], how: str, part: str = "") -> str:
    """The page of a suite.

    Args:
        suite: The suite.
        plan: Its plan at one scale.
        cells: From :func:`fedsieve.reproduce.plan.compare`.
        how: Command, versions and date.
        part: Which part of the suite the plan is, in words; "" for all of it.
    """
    parts = [f"# {escaping.markdown(suite.summary)}", how, escaping.markdown(part), *notes(plan, cells)]
    last = None
    for group, heading, lines in _blocks(suite, cells):
        parts += [f"## {escaping.markdown(group)}"] if group != last else []
        last = group
        table = markdown_table([[escaping.markdown(text) for text in line] for line in lines])
        parts.append(f"**{heading}**\n\n{table}")
    if plan.goals_for:
        lines, new = development.table(plan, plan.goals_for)
        parts += ["## Development and reported settings", markdown_table(lines), new]
    return "\n\n".join(part for part in parts if part) + "\n"


def terminal(suite: Suite, cells: Sequence[Compared], width: int) -> list[Group]:
    """The same tables for a terminal of so many characters a line."""
    blocks = _blocks(suite, cells)
    return [terminal_parts(f"{printable(group)}\n{heading}", lines, 1, width) for group, heading, lines in blocks]


def write_csv(cells: Sequence[Compared], path: Path) -> None:
    """One line for each measure of each cell; ``rounds`` is the length of our runs, ``paper_rounds`` the paper's."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_HEAD)
        for c in cells:
            if c.ours is None and c.published is None and not c.error:
                continue
            difference = None if c.ours is None or c.published is None else c.ours - c.published
            ours, deviation, paper, difference, goal = (
                None if v is None else round(v, 5) for v in (c.ours, c.deviation, c.published, difference, c.goal)
            )
            labels = [escaping.cell(text) for text in (c.group, c.row, c.column, c.measure)]
            numbers = [ours, deviation, c.seeds, c.rounds, paper, c.paper_rounds, difference, goal]
            writer.writerow([*labels, *numbers, c.short or "", escaping.cell(c.error)])
