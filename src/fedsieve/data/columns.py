"""The columns of a table as features: numbers, or one feature for each word."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32, Int

from fedsieve.core.bounded import Meter
from fedsieve.core.errors import CorruptDataError, ParameterError
from fedsieve.core.escaping import printable
from fedsieve.data.cells import day_of, is_date, kind_of, text_of
from fedsieve.data.table_file import Table

MAX_ONE_HOT = 100  # features of a column that is one-hot encoded
_NAMED = 5  # columns that a summary names; more are counted
_FEW = 20  # distinct values that are never names of the rows
_LARGEST = 1e150  # the squares of larger numbers, which a standard deviation adds up, may be infinite
# names of columns whose numbers only name the rows: id, patient_id, PatientID, record no.
_NAMES_ROWS = re.compile(r"(?i:(?:.*[^a-z])?(?:id|ids|uuid|guid|mrn|ssn|nr|no|index|row|key)\.?)|[A-Za-z]+(?:ID|Id)")

Fill = Literal["mean", "indicator", "error"]
Kind = Literal["numeric", "one-hot", "empty", "dates", "identifiers"]


@dataclass(frozen=True)
class Column:
    """A column as it was read.

    Attributes:
        name: Of the column.
        kind: What its cells are; only numeric and one-hot columns have features.
        values: Numbers of all rows, not a number where one is missing; or words, "" where one is missing.
    """

    name: str
    kind: Kind
    values: Sequence[float] | Sequence[str] = ()

    @cached_property
    def missing(self) -> int:
        """Number of missing values."""
        return sum(value == "" or value != value for value in self.values)


def column(
    table: Table, name: str, missing: frozenset[str], fill: Fill, categorical: Collection[str], keep: Collection[str]
) -> Column:
    """What one column of a table is.

    A column is what most of its cells are that are not missing: if more than half are numbers, or look like numbers,
    it is numeric and any other cell is an error. Of the others, those of dates, and those with another value in more
    than half of the rows, are recognised; so are columns of integers that differ as much and have the name of an
    identifier. The rest is one-hot.

    Args:
        table: The table.
        name: Name of the column.
        missing: Texts, in lower case, that mean a missing value beside the usual ones.
        fill: Whether a missing number is an error.
        categorical: Names of columns that are one-hot whatever their cells look like.
        keep: Names of columns that are neither dates nor identifiers: dates become days since 1970.

    Raises:
        CorruptDataError: If a cell of a column of numbers is not a finite number; names the line.
    """
    cells = table.columns[name]
    kinds = [kind_of(cell, missing) for cell in cells]
    present = len(kinds) - kinds.count("missing")
    if not present:
        return Column(name, "empty")
    words = ["" if kind == "missing" else cell for cell, kind in zip(cells, kinds, strict=True)]
    if name in categorical:
        return Column(name, "one-hot", words)
    distinct = len({*words} - {""})
    names = distinct > _FEW and 2 * distinct > present and name not in keep
    if 2 * (kinds.count("number") + kinds.count("nearly")) > present:
        numbers = np.array(
            [float(cell) if kind == "number" else np.nan for cell, kind in zip(cells, kinds, strict=True)]
        )
        _check_numbers(table, name, numbers, kinds, fill)
        whole = names and _NAMES_ROWS.fullmatch(name.strip()) and not (numbers % 1 > 0).any()
        return Column(name, "identifiers") if whole else Column(name, "numeric", numbers.tolist())
    if 2 * sum(map(is_date, words)) > present:
        return Column(name, "numeric", _days(table, name, words)) if name in keep else Column(name, "dates")
    _check_words(table, name, kinds)
    return Column(name, "identifiers") if names else Column(name, "one-hot", words)


def _check_numbers(table: Table, name: str, numbers: Float[np.ndarray, " N"], kinds: Sequence[str], fill: Fill) -> None:
    wrong = ~np.isfinite(numbers)
    if fill != "error":
        wrong &= np.array(kinds) != "missing"
    if wrong.any():
        row, present = int(wrong.argmax()), len(kinds) - kinds.count("missing")
        raise CorruptDataError(_not_a_number(table, name, row, kinds[row], kinds.count("number"), present))
    if (np.abs(numbers) > _LARGEST).any():
        raise CorruptDataError(f"{table.path}: column {text_of(name)} has numbers too large to be standardised")


def _days(table: Table, name: str, words: Sequence[str]) -> list[float]:
    found = [day_of(word) for word in words]
    for row, (word, day) in enumerate(zip(words, found, strict=True)):
        if word and day != day:
            raise CorruptDataError(
                f"{table.place(name, row)}, not a date that is read: write dates as 2024-01-31, or leave the column out"
            )
    return found


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


def features(
    table: Table, columns: Sequence[Column], train: Int[np.ndarray, " A"], fill: Fill
) -> tuple[Float32[np.ndarray, "N k"], list[str]]:
    """Features of all rows, in the order of the columns, and the names of columns that are constant in training rows.

    Numbers: a missing one becomes the mean of the training rows, then all are standardised with the mean and standard
    deviation of these; columns that are constant there become 0. Words: one feature for each, in their order; where
    there are more than ``MAX_ONE_HOT``, the last feature is all those that are rarest in the training rows. A missing
    word is a word of its own. With ``fill`` ``indicator``, a column of numbers some of which are missing has a second
    feature, 1 where they are.

    Args:
        table: The table.
        columns: Numeric and one-hot columns.
        train: Rows that decide means, deviations and what is rare.
        fill: What becomes of a missing number.

    Raises:
        ParameterError: If there are no features.
        CorruptDataError: If numbers are too large to be standardised.
    """
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import MissingIndicator, SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    if not columns:
        raise ParameterError(f"csv: {table.path} has no column to learn from")
    raw = np.empty((len(table.lines), len(columns)), object)
    for k, found in enumerate(columns):
        raw[:, k] = found.values
    numeric = [k for k, found in enumerate(columns) if found.kind == "numeric"]
    words = [k for k, found in enumerate(columns) if found.kind == "one-hot"]
    absent = [k for k in numeric if columns[k].missing] if fill == "indicator" else []
    values = [sorted({*columns[k].values}) for k in words]
    encoder = OneHotEncoder(
        categories=[np.array(v, object) for v in values],
        max_categories=MAX_ONE_HOT,
        handle_unknown="infrequent_if_exist",
        sparse_output=False,
    )
    widths = [min(len(v), MAX_ONE_HOT) for v in values]
    # all features twice in double and once in single precision, while they are made
    Meter(table.path).add(20 * len(raw) * (len(numeric) + sum(widths) + len(absent)))
    transformer = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler()), numeric),
            ("words", encoder, words),
            ("absent", MissingIndicator(features="all"), absent),
        ],
        sparse_threshold=0,
    )
    x = transformer.fit(raw[train]).transform(raw).astype(np.float32)
    places = np.array([*numeric, *np.repeat(words, widths).tolist(), *absent])
    same = (x[train] == x[train[0]]).all(0)
    for k in numeric:
        if same[numeric.index(k)]:
            x[:, numeric.index(k)] = 0
    constant = [found.name for k, found in enumerate(columns) if same[places == k].all()]
    return x[:, np.argsort(places, kind="stable")], constant


def summary(
    columns: Sequence[Column], constant: Sequence[str], fill: Fill, index: Sequence[str], dropped: Sequence[str]
) -> tuple[str, ...]:
    """How columns were read, in a few words each.

    Args:
        columns: All columns that were looked at.
        constant: Names of columns that are constant in the training rows.
        fill: What becomes of a missing number.
        index: Names of columns that were left out because they have no name in the file.
        dropped: Names of columns that the user left out.
    """
    of: dict[str, list[Column]] = {}
    for found in columns:
        of.setdefault(found.kind, []).append(found)
    numeric, one_hot = of.get("numeric", []), of.get("one-hot", [])
    words = []
    for found in one_hot:
        n = len({*found.values})
        words.append(
            f"{found.name[:40]} with {n} values" + (f", {n - MAX_ONE_HOT + 1} rare ones as one" * (n > MAX_ONE_HOT))
        )
    said = [f"{len(numeric)} numeric + {len(words)} one-hot columns{f' ({listed(words)})' if words else ''}"]
    if index:
        said.append(f"first column{'s' * (len(index) > 1)} without a name left out")
    if empty := [found.name for found in of.get("empty", [])]:
        said.append(f"left out as empty: {listed(empty)}")
    left = {kind: [found.name for found in of.get(kind, [])] for kind in ("dates", "identifiers")}
    said += [f"left out as {kind}: {listed(there)}" for kind, there in left.items() if there]
    if dropped:
        said.append(f"dropped: {listed(dropped)}")
    if constant:
        said.append(f"constant: {listed(constant)}")
    if filled := [f"{found.missing} of {found.name}" for found in numeric if found.missing]:
        more = " and marked" if fill == "indicator" else ""
        said.append(f"missing numbers filled with the mean{more}: {listed(filled)}")
    if own := [f"{found.missing} of {found.name}" for found in one_hot if found.missing]:
        said.append(f"missing words as a value: {listed(own)}")
    return tuple(said)


def listed(names: Sequence[str]) -> str:
    """Some names, or the first of many.

    >>> listed(["a", "b", "c", "d", "e", "f", "g"])
    'a, b, c, d, e and 2 more'
    """
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(printable(name[:60]) for name in names[:_NAMED]) + more
