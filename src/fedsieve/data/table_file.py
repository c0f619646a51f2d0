"""The cells of a table in a file, as text: separated values, an Excel sheet or a Parquet file."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from itertools import pairwise
from pathlib import Path
from re import compile as regex

from fedsieve.core.bounded import Meter
from fedsieve.core.errors import CorruptDataError, ParameterError
from fedsieve.data.cells import DECIMAL_COMMA, NUMBER, kind_of, text_of
from fedsieve.data.table_rows import Rows, Written, binary_rows, encoding_name, encodings, text_rows
from fedsieve.data.user_files import check_number_of_classes

CELL = 64  # bytes that a cell takes in memory beside its text
MAX_FRACTIONS = 20  # distinct labels with fractions; more are a quantity
_UNNAMED = regex(r"Unnamed: [0-9]+(\.[0-9]+)*")  # what pandas calls a column without a name


@dataclass(frozen=True)
class Table:
    """The cells of a table, as text without outer spaces.

    Attributes:
        path: The file.
        columns: Cells of each row, by column name.
        lines: Line of the file on which each row ends, from 1; row of the sheet, or of the Parquet file.
        index: Names of the first columns that have none in the file: numbers of the rows, as pandas writes them.
        details: How the file was read where that is not the usual way, a few words each.
        line: What ``lines`` are: ``line`` or ``row``.
    """

    path: Path
    columns: Mapping[str, list[str]]
    lines: Sequence[int]
    index: tuple[str, ...] = ()
    details: tuple[str, ...] = ()
    line: str = "line"

    def place(self, name: str, row: int) -> str:
        """Where a cell is and what it holds, for an error message."""
        cell = self.columns[name][row]
        said = f"is {text_of(cell)}" if cell else "is empty"
        return f"{self.path}, {self.line} {self.lines[row]}: column {text_of(name)} {said}"

    def filled(self, name: str, missing: frozenset[str] = frozenset()) -> list[str]:
        """A column in which every row must have a value; raises CorruptDataError if one is missing."""
        cells = self.columns[name]
        for row, cell in enumerate(cells):
            if kind_of(cell, missing) == "missing":
                said = ", which stands for a missing value" if cell else ""
                raise CorruptDataError(
                    f"{self.place(name, row)}{said}; correct it or remove the row"
                    + (f", or write another name if {text_of(cell)} is one" if cell else "")
                )
        return cells

    def classes(self, name: str, missing: frozenset[str] = frozenset()) -> list[str]:
        """The distinct values of a column of labels: integers and decimals by value, all others as text.

        Values are compared as text; nothing is rounded. Two spellings of one number are an error.

        Raises:
            CorruptDataError: If a label is missing, or a number is spelled in two ways.
            ParameterError: If there are too few or too many, or they are a quantity or names of the rows.
        """
        first: dict[str, int] = {}
        for row, cell in enumerate(self.filled(name, missing)):
            first.setdefault(cell, row)
        n, rows, label = len(first), len(self.lines), f"label {text_of(name)}"
        if not all(NUMBER.fullmatch(text) for text in first):
            check_number_of_classes("csv", label, n)
            _refuse_names(label, n, rows, "values: names")
            return sorted(first)
        values = {}
        for text, row in first.items():
            try:
                values[text] = Decimal(text)
            except InvalidOperation:
                raise CorruptDataError(f"{self.place(name, row)}, too large a number for a class") from None
        ordered = sorted(first, key=lambda text: values[text])
        fractions = [text for text in ordered if values[text] != values[text].to_integral_value()]
        if fractions and n > min(MAX_FRACTIONS, rows // 2):
            raise ParameterError(
                f"csv: {label} has {n} different numbers, with fractions such as "
                f"{text_of(fractions[0])}: a quantity, but classes are learnt; name another column, or write classes"
            )
        for one, other in pairwise(ordered):
            if values[one] == values[other]:
                raise CorruptDataError(
                    f"{self.place(name, first[other])}, but {text_of(one)} on {self.line} {self.lines[first[one]]}: "
                    "is it one class? write it in one way"
                )
        check_number_of_classes("csv", label, n)
        _refuse_names(label, n, rows, "numbers: a quantity")
        return ordered


def _refuse_names(label: str, n: int, rows: int, what: str) -> None:
    if n > MAX_FRACTIONS and 2 * n > rows:
        raise ParameterError(
            f"csv: {label} has {n} different {what}, not classes, in {rows} rows; name another column, or write classes"
        )


def read_table(path: Path, header: bool, layout: Written) -> Table:
    """All cells of a file, without blank rows.

    Args:
        path: The file: .xlsx, .xlsm, .parquet, or else text, .gz or not.
        header: Whether the first row names the columns; without, they are named 0, 1, ...
        layout: What the user says about how it is written.

    Raises:
        MissingDataError: If the file cannot be read, or the package that reads it is not installed.
        CorruptDataError: If it is not a table, or fills too much memory; names the line.
        ParameterError: If the layout can't be that of such a file.
    """
    if rows := binary_rows(path, header, layout):
        return _table(path, header, rows)
    for encoding in (tried := encodings(path, layout)):
        try:
            with text_rows(path, encoding, layout) as rows:
                return _table(path, header, rows)
        except UnicodeDecodeError as error:
            reason = str(error)
    raise CorruptDataError(f"{path} is not a whole table in {encoding_name(tried[-1])}: {reason}")


def _table(path: Path, header: bool, rows: Rows) -> Table:
    columns, lines, blank = _columns(path, rows)
    n = len(lines) - header
    if n < 2:
        raise CorruptDataError(f"{path} has {max(0, n)} rows, at least 2 are needed")
    written = [column[0] for column in columns] if header else [str(k) for k in range(len(columns))]
    names = list(written)
    for k, name in enumerate(written):
        if not name:  # pandas writes a second index before one that it read as Unnamed: 0
            names[k] = f"Unnamed: {k}" if f"Unnamed: {k}" not in written else f"Unnamed: {k}.0"
    if twice := [name for k, name in enumerate(names) if name in set(names[:k])]:
        raise CorruptDataError(f"{path} has two columns named {text_of(twice[0])}; is its first row a header?")
    leading = next((k for k, name in enumerate(names) if not _UNNAMED.fullmatch(name)), len(names))
    for k in range(leading, len(names)):
        if not written[k] and any(columns[k][1:]):
            raise CorruptDataError(f"{path}: column {k + 1} of {len(names)} has values but no name; name it")
    cells = {name: column[len(column) - n :] for name, column in zip(names, columns, strict=True)}
    details = [*rows.details]
    if blank:
        details.append(f"{blank} {rows.line}s without any value left out")
    if rows.decimal_commas and (with_comma := sum([_with_points(column) for column in cells.values()])):
        details.append(f"decimal commas in {with_comma} columns")
    return Table(path, cells, lines[len(lines) - n :], tuple(names[:leading]), tuple(details), rows.line)


def _columns(path: Path, rows: Rows) -> tuple[list[list[str]], Sequence[int], int]:
    """The cells by column, the line of each row, and how many rows with separators had no value."""
    columns: list[list[str]] = []
    lines, meter, blank = array("Q"), Meter(path), 0
    for number, row in rows.rows:
        if not row:
            continue
        columns = columns or [[] for _ in row]
        if len(row) != len(columns):
            raise CorruptDataError(
                f"{path}, {rows.line} {number}: {len(row)} columns, but the first row has {len(columns)}"
            )
        cells = [cell.strip() for cell in row]
        if not any(cells) and len(cells) > 1:
            blank += 1
            continue
        meter.add(sum(map(len, row)) + CELL * len(row))
        for column, cell in zip(columns, cells, strict=True):
            column.append(cell)
        lines.append(number)
    return columns, lines, blank


def _with_points(cells: list[str]) -> bool:
    """Write the decimal commas of a column of numbers as points, in place, unless it has points too."""
    commas = [k for k, cell in enumerate(cells) if DECIMAL_COMMA.fullmatch(cell)]
    if not commas:
        return False
    kinds = [kind_of(cell) for cell in cells]
    present = len(kinds) - kinds.count("missing")
    points = any(kind == "number" and "." in cell for kind, cell in zip(kinds, cells, strict=True))
    if points or 2 * (kinds.count("number") + len(commas)) <= present:
        return False
    for k in commas:
        cells[k] = cells[k].replace(",", ".")
    return True
