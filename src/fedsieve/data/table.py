"""A table of the user's: a file of comma- or tab-separated values."""

import csv
import gzip
import io
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from fedsieve.core.errors import CorruptDataError, MissingDataError, ParameterError
from fedsieve.core.traits import Traits
from fedsieve.data.dataset import Dataset, RemoteFile, standardised
from fedsieve.data.text import Vocabulary
from fedsieve.data.user_files import DEFAULTS, check_share, label_classes, resolved, split

MAX_ONE_HOT = 100  # distinct values of a column that is one-hot encoded
ABSENT = frozenset({"", "?", "na", "n/a", "nan", "null", "none"})  # cells that stand for a missing number


@dataclass(frozen=True)
class CSV:
    """A table in a file: comma-separated, or tab-separated without quotes (.tsv); gzipped (.gz) or not.

    Numeric columns are standardised with the mean and standard deviation of the training rows; columns that are
    constant there become 0. All other columns are one-hot encoded, in the order of their sorted values. Classes are the
    sorted values of the label; numbers are sorted by size.

    Attributes:
        file: Path, relative to the current directory.
        label: Name of the column with the classes; without a header its number, from 0.
        text: Name of a column of texts, which is then the only feature; "" for all columns.
        client: Name of the column that identifies the natural client of each row; not a feature.
        header: Whether the first row names the columns.
        test: Share of the rows in the test set, which is drawn with the experiment's seed.
        vocabulary: Number of token ids, with ``text``: the most frequent words of the training rows.
        length: Number of tokens read from a text.
    """

    file: str = ""
    label: str = ""
    text: str = ""
    client: str = ""
    header: bool = True
    test: float = 0.2
    vocabulary: int = 5000
    length: int = 32
    traits: ClassVar[Traits] = Traits(summary="Your own table: a file of comma- or tab-separated values")
    defaults: ClassVar[Mapping[str, Any]] = DEFAULTS

    def __post_init__(self) -> None:
        check_share("csv", self.test)
        if self.vocabulary < 3 or self.length < 1:
            raise ParameterError(
                f"csv: vocabulary must be at least 3 and length at least 1, got {self.vocabulary} and {self.length}"
            )

    def files(self) -> tuple[RemoteFile, ...]:
        """None: the file is the user's."""
        return ()

    def verify(self, folder: Path) -> None:
        """Read the table; raises ParameterError, MissingDataError or CorruptDataError. ``folder`` is not used."""
        self._table()

    def fetch(self, folder: Path) -> None:
        """As :meth:`verify`: nothing can be fetched."""
        self._table()

    def load(self, folder: Path, generator: torch.Generator) -> Dataset:
        """Read the table; ``generator`` draws the test set, ``folder`` is not used."""
        table = self._table()
        y, n_classes = classes(table, self.label)
        train, test = split("csv", len(y), self.test, generator)
        owners = None
        if self.client:
            clients = table.filled(self.client)
            owners = torch.from_numpy(np.unique([clients[k] for k in train.tolist()], return_inverse=True)[1])
        if self.text:
            texts = table.columns[self.text]
            vocabulary = Vocabulary.of([texts[k] for k in train.tolist()], self.vocabulary)
            encode = partial(vocabulary.encode, length=self.length)
            x = encode(texts)
            return Dataset(x[train], y[train], x[test], y[test], n_classes, owners, encode, vocabulary.words)
        names = [name for name in table.columns if name not in (self.label, self.client)]
        if not names:
            raise ParameterError(f"csv: {table.path} has no column to learn from besides {self.label!r}")
        x = torch.from_numpy(np.concatenate([features(table, name, train) for name in names], axis=1))
        return Dataset(x[train], y[train], x[test], y[test], n_classes, owners)

    def _table(self) -> "Table":
        if not self.file:
            raise ParameterError("csv: file is not set; name one, e.g. --set dataset.file=table.csv")
        table = read_table(resolved(self.file), self.header)
        there = ", ".join(table.columns) if len(table.columns) <= 20 else f"{len(table.columns)} columns"
        if not self.label:
            raise ParameterError(f"csv: label is not set; the columns are {there}")
        for role, name in (("label", self.label), ("text", self.text), ("client", self.client)):
            if name and name not in table.columns:
                raise ParameterError(f"csv: {role} column {name!r} is not in {table.path}; the columns are {there}")
        if len({self.label, self.text, self.client} - {""}) < sum(map(bool, (self.label, self.text, self.client))):
            raise ParameterError("csv: label, text and client must be different columns")
        return table


@dataclass(frozen=True)
class Table:
    """The cells of a table, as text.

    Attributes:
        path: The file.
        columns: Cells of each row, by column name.
        lines: Line of the file on which each row ends, from 1.
    """

    path: Path
    columns: Mapping[str, list[str]]
    lines: Sequence[int]

    def filled(self, name: str) -> list[str]:
        """A column, its cells stripped of outer spaces; raises CorruptDataError if a cell is empty."""
        cells = [cell.strip() for cell in self.columns[name]]
        if "" in cells:
            raise CorruptDataError(f"{self.path}, line {self.lines[cells.index('')]}: column {name!r} is empty")
        return cells


def read_table(path: Path, header: bool) -> Table:
    """All cells of a file, without blank lines.

    Args:
        path: The file.
        header: Whether the first row names the columns; without, they are named 0, 1, ...

    Raises:
        MissingDataError: If the file cannot be read.
        CorruptDataError: If it is not a table; names the line.
    """
    name = path.name.lower().removesuffix(".gz")
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        opened = gzip.open if path.name.lower().endswith(".gz") else open
        with opened(path, "rb") as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
            tabs = name.endswith((".tsv", ".tab"))
            reader = csv.reader(text, "excel-tab", quoting=csv.QUOTE_NONE) if tabs else csv.reader(text, strict=True)
            for row in reader:
                if not row:
                    continue
                if rows and len(row) != len(rows[0]):
                    raise CorruptDataError(
                        f"{path}, line {reader.line_num}: {len(row)} columns, but the first row has {len(rows[0])}"
                    )
                rows.append(row)
                lines.append(reader.line_num)
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise CorruptDataError(f"{path} is not a whole table in UTF-8: {error}") from None
    except OSError as error:
        raise MissingDataError(f"{path} cannot be read: {error.strerror}") from None
    n = len(rows) - header
    if n < 2:
        raise CorruptDataError(f"{path} has {max(0, n)} rows, at least 2 are needed")
    names = [cell.strip() for cell in rows[0]] if header else [str(k) for k in range(len(rows[0]))]
    if twice := [name for k, name in enumerate(names) if name in names[:k]]:
        raise CorruptDataError(f"{path} has two columns named {twice[0]!r}; is its first row a header?")
    columns = map(list, zip(*rows[-n:], strict=True))
    return Table(path, dict(zip(names, columns, strict=True)), lines[-n:])


def classes(table: Table, label: str) -> tuple[Int[Tensor, " N"], int]:
    """The class of each row, and the number of classes.

    Raises:
        CorruptDataError: If a cell of the column is empty.
        ParameterError: If there are too few or too many classes.
    """
    cells: Sequence[Any] = table.filled(label)
    numbers = [_number(cell) for cell in cells]
    if all(math.isfinite(number) for number in numbers):
        cells = numbers
    return label_classes("csv", f"label {label!r}", cells)


def features(table: Table, name: str, train: Int[Tensor, " A"]) -> np.ndarray:
    """One column as float32 features [N, k]: standardised numbers (k = 1), or one feature per distinct value.

    Args:
        table: The table.
        name: Name of the column.
        train: Rows that decide mean and standard deviation.

    Raises:
        CorruptDataError: If a cell of a column of numbers is empty or not finite.
        ParameterError: If a column of other values has more than ``MAX_ONE_HOT`` distinct ones.
    """
    cells = [cell.strip() for cell in table.columns[name]]
    numbers = np.array([_number(cell) for cell in cells])
    absent = ~np.isfinite(numbers)
    words = [k for k in np.flatnonzero(absent).tolist() if cells[k].lower() not in ABSENT and math.isnan(numbers[k])]
    if not words and not absent.all():
        if absent.any():
            k = int(absent.argmax())
            said = f"is {cells[k]!r}, not a finite number" if cells[k] else "is empty"
            raise CorruptDataError(f"{table.path}, line {table.lines[k]}: column {name!r} {said}")
        return standardised(numbers, train.numpy(), f"{table.path}: column {name!r}")
    values, codes = np.unique(cells, return_inverse=True)
    if len(values) > MAX_ONE_HOT:
        k = words[0] if words else 0
        raise ParameterError(
            f"csv: column {name!r} is not numeric ({cells[k]!r:.40} on line {table.lines[k]}) and has {len(values)} "
            f"distinct values, more than {MAX_ONE_HOT}; drop it from the file, or set text to learn from it alone"
        )
    return np.eye(len(values), dtype=np.float32)[codes]


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan
