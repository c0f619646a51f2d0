"""The cells of a table in a file: comma-separated, or tab-separated without quotes; gzipped or not."""

import csv
import gzip
import io
import re
import zlib
from array import array
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, cast

from fedsieve.core.bounded import Meter, open_regular, read_lines
from fedsieve.core.errors import CorruptDataError, MissingDataError, ParameterError
from fedsieve.data.cells import NUMBER, kind_of, text_of
from fedsieve.data.user_files import check_number_of_classes

CELL = 64  # bytes that a cell takes in memory beside its text
MAX_FRACTIONS = 20  # distinct labels with fractions; more are a quantity
_UNNAMED = re.compile(r"Unnamed: [0-9]+(\.[0-9]+)*")  # what pandas calls a column without a name


@dataclass(frozen=True)
class Table:
    """The cells of a table, as text without outer spaces.

    Attributes:
        path: The file.
        columns: Cells of each row, by column name.
        lines: Line of the file on which each row ends, from 1.
        index: Names of the first columns that have none in the file: numbers of the rows, as pandas writes them.
    """

    path: Path
    columns: Mapping[str, list[str]]
    lines: Sequence[int]
    index: tuple[str, ...] = ()

    def place(self, name: str, row: int) -> str:
        """Where a cell is and what it holds, for an error message."""
        cell = self.columns[name][row]
        said = f"is {text_of(cell)}" if cell else "is empty"
        return f"{self.path}, line {self.lines[row]}: column {text_of(name)} {said}"

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
            ParameterError: If there are too few or too many.
        """
        first: dict[str, int] = {}
        for row, cell in enumerate(self.filled(name, missing)):
            first.setdefault(cell, row)
        check_number_of_classes("csv", f"label {text_of(name)}", len(first))
        if not all(NUMBER.fullmatch(text) for text in first):
            return sorted(first)
        values = {}
        for text, row in first.items():
            try:
                values[text] = Decimal(text)
            except InvalidOperation:
                raise CorruptDataError(f"{self.place(name, row)}, too large a number for a class") from None
        ordered = sorted(first, key=lambda text: values[text])
        for one, other in pairwise(ordered):
            if values[one] == values[other]:
                raise CorruptDataError(
                    f"{self.place(name, first[other])}, but {text_of(one)} on line {self.lines[first[one]]}: "
                    "is it one class? write it in one way"
                )
        fractions = [text for text in ordered if values[text] != values[text].to_integral_value()]
        if fractions and len(ordered) > min(MAX_FRACTIONS, len(self.lines) // 2):
            raise ParameterError(
                f"csv: label {text_of(name)} has {len(ordered)} different numbers, with fractions such as "
                f"{text_of(fractions[0])}: a quantity, but classes are learnt; name another column, or write classes"
            )
        return ordered


def read_table(path: Path, header: bool) -> Table:
    """All cells of a file, without blank lines.

    Args:
        path: The file.
        header: Whether the first row names the columns; without, they are named 0, 1, ...

    Raises:
        MissingDataError: If the file cannot be read.
        CorruptDataError: If it is not a table, or fills too much memory; names the line.
    """
    name, gzipped = path.name.lower().removesuffix(".gz"), path.name.lower().endswith(".gz")
    columns: list[list[str]] = []
    lines, meter = array("Q"), Meter(path)
    with ExitStack() as stack:
        raw: BinaryIO = stack.enter_context(open_regular(path))
        try:
            if gzipped:
                raw = cast(BinaryIO, stack.enter_context(gzip.GzipFile(fileobj=raw)))
            text = stack.enter_context(io.TextIOWrapper(raw, encoding="utf-8-sig", newline=""))
            tabs = name.endswith((".tsv", ".tab"))
            rows = read_lines(text, path)
            reader = csv.reader(rows, "excel-tab", quoting=csv.QUOTE_NONE) if tabs else csv.reader(rows, strict=True)
            for row in reader:
                if not row:
                    continue
                columns = columns or [[] for _ in row]
                if len(row) != len(columns):
                    raise CorruptDataError(
                        f"{path}, line {reader.line_num}: {len(row)} columns, but the first row has {len(columns)}"
                    )
                meter.add(sum(map(len, row)) + CELL * len(row))
                for column, cell in zip(columns, row, strict=True):
                    column.append(cell.strip())
                lines.append(reader.line_num)
        except csv.Error as error:
            raise CorruptDataError(
                f"{path} is not a whole table in UTF-8: {error}, near line {reader.line_num}"
            ) from None
        except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
            raise CorruptDataError(f"{path} is not a whole table in UTF-8: {error}") from None
        except OSError as error:
            raise MissingDataError(f"{path} cannot be read: {error.strerror or error}") from None
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
    return Table(path, cells, lines[len(lines) - n :], tuple(names[:leading]))
