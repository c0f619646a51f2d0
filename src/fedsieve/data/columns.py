"""The columns of a table as features: numbers, or one feature for each word."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float32, Int

from fedsieve.core.errors import CorruptDataError, ParameterError
from fedsieve.core.escaping import printable
from fedsieve.data.cells import kind_of, text_of
from fedsieve.data.dataset import standardised
from fedsieve.data.table_file import Table

MAX_ONE_HOT = 100  # distinct values of a column that is one-hot encoded
_NAMED = 5  # columns that a summary names; more are counted

Fill = Literal["error", "mean"]


@dataclass(frozen=True)
class Feature:
    """A column as it was read.

    Attributes:
        name: Of the column.
        kind: ``empty`` for a column without any value, which has no features.
        x: Features of all rows, [N, k].
        constant: Whether the training rows all have one value.
        filled: Number of missing cells that were filled with the mean.
    """

    name: str
    kind: Literal["numeric", "one-hot", "empty"]
    x: Float32[np.ndarray, "N k"]
    constant: bool = False
    filled: int = 0


def feature(
    table: Table, name: str, train: Int[np.ndarray, " A"], missing: frozenset[str], fill: Fill, categorical: bool
) -> Feature:
    """One column as features.

    A column is what most of its cells are that are not missing: if more than half are numbers, or look like numbers,
    it is numeric and any other cell is an error. Numbers are standardised with the mean and the standard deviation of
    the training rows. All other columns are one-hot encoded in the order of their sorted values; a missing value is a
    value of its own, as it is written.

    Args:
        table: The table.
        name: Name of the column.
        train: Rows that decide mean and standard deviation.
        missing: Texts, in lower case, that mean a missing value beside the usual ones.
        fill: Whether a missing number is an error or becomes the mean of the training rows.
        categorical: Whether the column is one-hot encoded whatever its cells look like.

    Raises:
        CorruptDataError: If a cell of a column of numbers is not a finite number; names the line.
        ParameterError: If a column of other values has more than ``MAX_ONE_HOT`` distinct ones.
    """
    cells = table.columns[name]
    kinds = [kind_of(cell, missing) for cell in cells]
    present = len(kinds) - kinds.count("missing")
    if not present:
        return Feature(name, "empty", np.zeros((len(cells), 0), np.float32))
    numeric = kinds.count("number") + kinds.count("nearly")
    if categorical or 2 * numeric <= present:
        if not categorical:
            _check_words(table, name, kinds)
        return _one_hot(table, name, kinds, train, missing)
    numbers = np.empty(len(cells))
    for row, (cell, kind) in enumerate(zip(cells, kinds, strict=True)):
        numbers[row] = value = float(cell) if kind == "number" else math.nan
        if not math.isfinite(value) and not (kind == "missing" and fill == "mean"):
            raise CorruptDataError(_not_a_number(table, name, row, kind, kinds.count("number"), present))
    absent = np.isnan(numbers)
    if absent.any():
        known = numbers[train[~absent[train]]]
        with np.errstate(over="ignore"):
            numbers[absent] = known.mean() if len(known) else 0.0
    x = standardised(numbers, train, f"{table.path}: column {text_of(name)}")
    return Feature(name, "numeric", x, not x[train].any(), int(absent.sum()))


def _one_hot(
    table: Table, name: str, kinds: Sequence[str], train: Int[np.ndarray, " A"], missing: frozenset[str]
) -> Feature:
    cells = ["" if cell.lower() in missing else cell for cell in table.columns[name]]
    values = sorted(set(cells))
    if len(values) > MAX_ONE_HOT:
        row = next((row for row, kind in enumerate(kinds) if kind == "word"), 0)
        raise ParameterError(
            f"csv: column {text_of(name)} is not numeric ({text_of(cells[row])} on line {table.lines[row]}) and has "
            f"{len(values)} distinct values, more than {MAX_ONE_HOT}; drop it from the file, or set text to learn "
            "from it alone"
        )
    numbers = {value: k for k, value in enumerate(values)}
    codes = np.array([numbers[cell] for cell in cells])
    return Feature(name, "one-hot", np.eye(len(values), dtype=np.float32)[codes], len(set(codes[train].tolist())) == 1)


def _check_words(table: Table, name: str, kinds: Sequence[str]) -> None:
    """Refuse numbers beside one word: the word is likely to stand for a missing number."""
    cells = table.columns[name]
    words = {cell for cell, kind in zip(cells, kinds, strict=True) if kind == "word"}
    numbers = {cell for cell, kind in zip(cells, kinds, strict=True) if kind in ("number", "nearly")}
    if len(words) == 1 and len(numbers) > 2:
        row = kinds.index("word")
        raise CorruptDataError(
            f"{table.place(name, row)} in {kinds.count('word')} rows and one of {len(numbers)} numbers in others; "
            f"list {text_of(cells[row])} in dataset.missing if it means a missing number, or {text_of(name)} in "
            "dataset.categorical if the column holds categories"
        )


def _not_a_number(table: Table, name: str, row: int, kind: str, numbers: int, present: int) -> str:
    where = table.place(name, row)
    if kind == "missing":
        said = ", not a finite number: a value is missing" if table.columns[name][row] else ": a number is missing"
        return f"{where}{said}; correct it, remove the row, or put the column's mean there with dataset.fill=mean"
    write = "write numbers as 5400 or 5.4, with a point and without separators or units" if kind == "nearly" else ""
    choices = (
        "correct it" if kind != "nearly" else "",
        write,
        f"list {text_of(table.columns[name][row])} in dataset.missing if it means a missing number",
        f"list {text_of(name)} in dataset.categorical if the column holds categories",
    )
    most = f" as {numbers} of {present} cells are" if numbers and kind != "number" else ""
    return f"{where}, not a finite number{most}; " + ", or ".join(filter(None, choices))


def summary(found: Sequence[Feature], index: Sequence[str]) -> tuple[str, ...]:
    """How columns were read, in a few words each.

    Args:
        found: The columns.
        index: Names of columns that were left out because they have no name in the file.
    """
    numeric = [f.name for f in found if f.kind == "numeric"]
    words = [f"{f.name[:40]} with {f.x.shape[1]} values" for f in found if f.kind == "one-hot"]
    said = [f"{len(numeric)} numeric + {len(words)} one-hot columns{f' ({listed(words)})' if words else ''}"]
    if index:
        said.append(f"first column{'s' * (len(index) > 1)} without a name left out")
    if empty := [f.name for f in found if f.kind == "empty"]:
        said.append(f"left out as empty: {listed(empty)}")
    if constant := [f.name for f in found if f.constant]:
        said.append(f"constant: {listed(constant)}")
    if filled := [f"{f.filled} of {f.name}" for f in found if f.filled]:
        said.append(f"missing numbers filled with the mean: {listed(filled)}")
    return tuple(said)


def listed(names: Sequence[str]) -> str:
    """Some names, or the first of many.

    >>> listed(["a", "b", "c", "d", "e", "f", "g"])
    'a, b, c, d, e and 2 more'
    """
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(printable(name[:60]) for name in names[:_NAMED]) + more
