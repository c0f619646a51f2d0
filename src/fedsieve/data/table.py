"""A table of the user's: separated values, an Excel sheet or a Parquet file."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

import torch

from fedsieve.core.errors import ParameterError
from fedsieve.core.escaping import printable
from fedsieve.core.traits import Traits
from fedsieve.data.cells import NUMBER
from fedsieve.data.columns import Fill, column, features, listed, summary
from fedsieve.data.dataset import Dataset, RemoteFile
from fedsieve.data.table_file import Table, read_table
from fedsieve.data.table_rows import Written
from fedsieve.data.text import Vocabulary
from fedsieve.data.user_files import DEFAULTS, check_share, numbered, parted, resolved, split


@dataclass(frozen=True)
class CSV:
    """A table in a file: separated values, an Excel sheet (.xlsx) or a Parquet file (.parquet).

    Values are separated by commas, semicolons, tabs or bars (.csv, .txt), or by tabs without quotes (.tsv), gzipped
    (.gz) or not.

    A column is what most of its cells are. Numeric columns are standardised with the mean and standard deviation of the
    training rows; columns that are constant there become 0; a cell that is not a number is an error, a missing one the
    mean. Columns of dates and of identifiers, first columns without a name, which are numbers of the rows, and columns
    without any value are left out. All other columns are one-hot encoded, in the order of their sorted values, where
    missing is a value too; of more than 100 values, those that are rarest in the training rows are one. Classes are the
    sorted values of the label, compared as text; numbers are sorted by size.

    With ``client``, an experiment has by default the partition ``natural`` and a client for each of its values.

    Attributes:
        file: Path, relative to the current directory.
        label: Name of the column with the classes; without a header its number, from 0.
        text: Name of a column of texts, which is then the only feature; "" for all columns.
        client: Name of the column that identifies the natural client of each row, compared as text; not a feature.
        header: Whether the first row names the columns.
        test: Share of the rows in the test set, which is drawn with the experiment's seed; every natural client keeps a
            row to train on and has its share of the test set.
        vocabulary: Number of token ids, with ``text``: the most frequent words of the training rows.
        length: Number of tokens read from a text.
        missing: Cells that mean a missing value, beside the usual ones (nothing, NA, NaN, null, ?, -, ...); in any
            case. A missing class or client is an error.
        fill: What becomes of a missing number: ``mean``, that of the column's training rows; ``indicator``, the mean
            and a second feature that marks it; or ``error``.
        categorical: Names of columns that are one-hot encoded even if they hold numbers.
        drop: Names of columns that are left out.
        keep: Names of columns that are not left out, though they look like dates, which become days since 1970, like
            identifiers or like numbers of the rows.
        separator: One of , ; | and tab; "" finds out.
        encoding: A codec of Python's; "" is UTF-8, UTF-16 where a byte order mark says so, or else Windows-1252.
        sheet: Name of the sheet of an Excel file; "" is the first.
    """

    file: str = ""
    label: str = ""
    text: str = ""
    client: str = ""
    header: bool = True
    test: float = 0.2
    vocabulary: int = 5000
    length: int = 32
    missing: tuple[str, ...] = ()
    fill: Fill = "mean"
    categorical: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    separator: str = ""
    encoding: str = ""
    sheet: str = ""
    traits: ClassVar[Traits] = Traits(summary="Your own table: separated values, an Excel sheet or a Parquet file")
    defaults: ClassVar[Mapping[str, Any]] = DEFAULTS

    def __post_init__(self) -> None:
        check_share("csv", self.test)
        if self.vocabulary < 3 or self.length < 1:
            raise ParameterError(
                f"csv: vocabulary must be at least 3 and length at least 1, got {self.vocabulary} and {self.length}"
            )
        if self.fill not in ("mean", "indicator", "error"):
            raise ParameterError(f"csv: fill must be mean, indicator or error, got {self.fill!r}")
        if self.text:
            useless = [key for key in ("categorical", "drop", "keep") if getattr(self, key)]
            for key in [*useless, *(["fill"] if self.fill != "mean" else [])]:
                raise ParameterError(
                    f"csv: {key} has no effect with text={self.text}, which makes texts the only feature"
                )
        elif (self.vocabulary, self.length) != (CSV.vocabulary, CSV.length):
            raise ParameterError("csv: vocabulary and length have no effect without text, a column of texts")
        Written(self.separator, self.encoding, self.sheet)  # refuses what can't be

    def files(self) -> tuple[RemoteFile, ...]:
        """None: the file is the user's."""
        return ()

    def verify(self, folder: Path) -> None:
        """Read the table; raises ParameterError, MissingDataError or CorruptDataError. ``folder`` is not used."""
        self.table()

    def fetch(self, folder: Path) -> None:
        """As :meth:`verify`: nothing can be fetched."""
        self.table()

    def implied_defaults(self) -> Mapping[str, Any]:
        """See :class:`fedsieve.data.dataset.Loader`: with a client column, one client for each of its values."""
        if not self.client or not self.file:
            return {}
        try:
            found = resolved(self.file).stat()
        except (OSError, ValueError):
            stamp = (0, 0)  # reading the table will say what is wrong
        else:
            stamp = (found.st_mtime_ns, found.st_size)
        return {"partition": "natural", "clients": _number_of_clients(self, resolved(self.file), stamp)}

    def load(self, folder: Path, generator: torch.Generator) -> Dataset:
        """Read the table; ``generator`` draws the test set, ``folder`` is not used."""
        return self.dataset(self.table(), generator)

    def dataset(self, table: Table, generator: torch.Generator) -> Dataset:
        """The dataset that is made of these cells; ``generator`` draws the test set."""
        missing = self._missing
        names = table.classes(self.label, missing)
        number = {name: k for k, name in enumerate(names)}
        y = torch.tensor([number[cell] for cell in table.columns[self.label]])
        owners, owner_names = numbered(table.filled(self.client, missing)) if self.client else (None, ())
        train, test = split("csv", len(y), self.test, generator, owners, y)
        if self.text:
            texts = table.columns[self.text]
            vocabulary = Vocabulary.of([texts[k] for k in train.tolist()], self.vocabulary)
            encode = partial(vocabulary.encode, length=self.length)
            x, words = encode(texts), vocabulary.words
            said: tuple[str, ...] = (f"column {listed([self.text])}", f"{len(words)} words")
            said += (f"{empty} texts are empty",) if (empty := texts.count("")) else ()
        else:
            index = [name for name in table.index if name not in (self.label, self.client, *self.keep, *self.drop)]
            out = (self.label, self.client, *index, *self.drop)
            fields = (missing, self.fill, self.categorical, self.keep)
            found = [column(table, name, *fields) for name in table.columns if name not in out]
            used = [one for one in found if one.kind in ("numeric", "one-hot")]
            left = summary(found, (), self.fill, index, self.drop)[1:]
            if not used:
                more = f" ({', '.join(left)}; keep names those to use)" if left else ""
                raise ParameterError(f"csv: {table.path} has no column to learn from besides {self.label!r}{more}")
            numbers, constant = features(table, used, train.numpy(), self.fill)
            x, encode, words = torch.from_numpy(numbers), None, ()
            said = summary(found, constant, self.fill, index, self.drop)
        return parted(
            x,
            y,
            (train, test),
            tuple(names),
            owners,
            encode=encode,
            vocabulary=words,
            owned_by=self.client,
            details=(*said, *table.details),
            owner_names=owner_names,
        )

    @property
    def _missing(self) -> frozenset[str]:
        return frozenset(text.strip().lower() for text in self.missing)

    def table(self) -> Table:
        """The cells as they are written; raises ParameterError, MissingDataError or CorruptDataError."""
        if not self.file:
            raise ParameterError("csv: file is not set; name one, e.g. --set dataset.file=table.csv")
        table = read_table(resolved(self.file), self.header, Written(self.separator, self.encoding, self.sheet))
        n = len(table.columns)
        there = ", ".join(printable(name[:60]) for name in table.columns) if n <= 20 else f"{n} columns"
        there += "; dataset.separator names what separates columns" if n == 1 else ""
        if self.header and any(NUMBER.fullmatch(name) for name in table.columns):
            there += "; if the first row holds no names, set dataset.header=false"
        if not self.label:
            raise ParameterError(f"csv: label is not set; the columns are {there}")
        roles = [("label", self.label), ("text", self.text), ("client", self.client)]
        more = [(role, name) for role in ("categorical", "drop", "keep") for name in getattr(self, role)]
        for role, name in [*roles, *more]:
            if name and name not in table.columns:
                raise ParameterError(f"csv: {role} column {name!r} is not in {table.path}; the columns are {there}")
        used = [name for _, name in roles if name]
        if len(set(used)) < len(used):
            raise ParameterError("csv: label, text and client must be different columns")
        for role, name in more:
            if name in used or (role != "drop" and name in self.drop):
                raise ParameterError(f"csv: {role} has no effect on column {name!r}, which is not a feature")
        return table


@lru_cache(maxsize=64)
def _number_of_clients(loader: CSV, path: Path, stamp: tuple[int, int]) -> int:
    """Distinct values of the client column; read again when the file's time or size changes."""
    return len(set(loader.table().filled(loader.client, loader._missing)))
