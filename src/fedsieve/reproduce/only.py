"""A part of a suite's plan: the groups, rows and columns that a user names."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches

from fedsieve.core.errors import ParameterError
from fedsieve.core.escaping import shown
from fedsieve.reproduce.measures import LOSSES, WRONGED
from fedsieve.reproduce.plan import Plan, Row, Suite

_LISTED = 12  # most labels of a kind in an error message
Labels = dict[str, list[str]]  # by kind: group, row, column


def only(suite: Suite, plan: Plan, texts: Sequence[str]) -> tuple[Plan, str]:
    """The cells that ``texts`` name, and those that they are compared with.

    A text stands for all groups, or all rows, or all columns whose label contains it, in upper or lower case: for those
    of the kind that has it as a whole label, or else of the first kind in which it is found. ``=text`` stands for the
    label that it is alone. Texts of one kind add up; groups, rows and columns narrow each other.

    Args:
        suite: The suite.
        plan: Its plan at one scale.
        texts: At least one.

    Returns:
        The plan with these rows and columns, and the rows that their losses are counted from in
        :attr:`fedsieve.reproduce.plan.Plan.beside`; and what it holds, in one line.

    Raises:
        ParameterError: If a text is in no label, or no cell is left.
    """
    labels: Labels = {
        "group": list(dict.fromkeys(row.group for row in plan.rows)),
        "row": list(dict.fromkeys(row.label for row in plan.rows)),
        "column": [c for c in plan.columns if any(c in plan.columns_of(row) for row in plan.rows)],
    }
    kept: dict[str, dict[str, None]] = {kind: {} for kind in labels}
    for text in texts:
        kind, found = _meant(suite, text, labels)
        kept[kind].update(dict.fromkeys(found))

    def keeps(kind: str, label: str) -> bool:
        return not kept[kind] or label in kept[kind]

    rows = []
    for row in plan.rows:
        columns = tuple(column for column in plan.columns_of(row) if keeps("column", column))
        if columns and keeps("group", row.group) and keeps("row", row.label):
            rows.append(replace(row, columns=columns))
    if not rows:
        raise ParameterError(_nothing_left(suite, plan, kept))
    aimed = any(plan.goals_for in plan.columns_of(row) for row in rows)
    part = replace(plan, rows=tuple(rows), goals_for=plan.goals_for if aimed else "")
    part = replace(part, beside=_compared_with(suite, plan, part))
    chosen = "; ".join(_in_words(kind, list(some)) for kind, some in kept.items() if some)
    shown_runs = sum(len(part.columns_of(row)) * len(part.seeds_of(row)) for row in rows)
    said = f"Only {chosen}: {shown_runs:,} of {plan.size:,} runs; the others are left out here."
    if more := part.size - shown_runs:
        said += f" {more:,} more, from which losses and goals are counted, are run and not shown."
    return part, said


def _meant(suite: Suite, text: str, labels: Labels) -> tuple[str, list[str]]:
    """The kind of labels that a text means, and these labels."""
    whole = text.startswith("=")
    wanted = text.removeprefix("=").casefold()
    if not wanted:
        raise ParameterError(
            f"--only {shown(text)} names nothing; it takes a part of a group's, row's or column's label"
        )
    equal = {kind: [label for label in some if label.casefold() == wanted] for kind, some in labels.items()}
    within = {kind: [label for label in some if wanted in label.casefold()] for kind, some in labels.items()}
    kind = next((kind for found in (equal, within) for kind in labels if found[kind]), None)
    found = equal if whole else within
    if kind is None or not found[kind]:
        every = [label for some in labels.values() for label in some]
        near = get_close_matches(text.removeprefix("="), every, n=3, cutoff=0.6)
        said = f"did you mean {' | '.join(near)}? " if near else ""
        there = ", ".join(f"{kind}s ({_listed(some)})" for kind, some in labels.items())
        what = "is the label of no" if whole else "is in no label of a"
        raise ParameterError(
            f"--only {shown(text)} {what} group, row or column of {suite.name}; {said}there are {there}"
        )
    return kind, found[kind]


def _nothing_left(suite: Suite, plan: Plan, kept: Mapping[str, Mapping[str, None]]) -> str:
    """Why no cell is left, with the columns or the rows there are."""
    chosen = " with ".join(_in_words(kind, list(some)) for kind, some in kept.items() if some)
    here = [row for row in plan.rows if not kept["group"] or row.group in kept["group"]]
    both = [row for row in here if not kept["row"] or row.label in kept["row"]]
    there = _unique(column for row in both for column in plan.columns_of(row))
    what = ("columns", there) if both else ("rows", _unique(row.label for row in here))
    return f"{suite.name} has no cell of {chosen}; the {what[0]} there are {_listed(what[1])}"


def _compared_with(suite: Suite, whole: Plan, part: Plan) -> tuple[Row, ...]:
    """Rows with the cells that those of ``part`` are compared with, as far as it does not have them."""
    wanted: dict[tuple[str, str], dict[str, None]] = {}
    for row in part.rows:
        label, column = whole.reference_of(row)
        goals = row.goals if part.goals_for in part.columns_of(row) else {}
        if goals or set(LOSSES) & set(suite.measures):
            wanted.setdefault((row.group, label), {})[column] = None
        if WRONGED in suite.measures and WRONGED in row.goals:  # against the same defense without attack
            wanted[row.group, label].update(dict.fromkeys(part.columns_of(row)))
    there = {(row.group, row.label): part.columns_of(row) for row in part.rows}
    found = []
    for row in whole.rows:
        name = row.group, row.label
        columns = [c for c in whole.columns_of(row) if c in wanted.get(name, ()) and c not in there.get(name, ())]
        if columns:
            found.append(replace(row, columns=tuple(columns)))
    return tuple(found)


def _in_words(kind: str, labels: Sequence[str]) -> str:
    return f"{kind}{'s' if len(labels) > 1 else ''} {' | '.join(labels)}"


def _listed(labels: Sequence[str]) -> str:
    more = len(labels) - _LISTED
    return " | ".join(labels[:_LISTED]) + (f" | and {more} more" if more > 0 else "")


def _unique(labels: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(labels))
