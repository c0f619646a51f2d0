"""A table of the user's: a file of comma- or tab-separated values."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from fedsieve.core.errors import ParameterError
from fedsieve.core.escaping import printable
from fedsieve.core.traits import Traits
from fedsieve.data.columns import Fill, feature, listed, summary
from fedsieve.data.dataset import Dataset, RemoteFile
from fedsieve.data.table_file import Table, read_table
from fedsieve.data.text import Vocabulary
from fedsieve.data.user_files import DEFAULTS, check_share, numbered, resolved, split


@dataclass(frozen=True)
class CSV:
    """A table in a file: comma-separated, or tab-separated without quotes (.tsv); gzipped (.gz) or not.

    A column is what most of its cells are. Numeric columns are standardised with the mean and standard deviation of the
    training rows; columns that are constant there become 0; a cell that is not a number is an error. All other columns
    are one-hot encoded, in the order of their sorted values. First columns without a name, which are numbers of the
    rows, and columns without any value are left out. Classes are the sorted values of the label, compared as text;
    numbers are sorted by size.

    With ``client``, an experiment has by default the partition ``natural`` and a client for each of its values.

    Attributes:
        file: Path, relative to the current directory.
        label: Name of the column with the classes; without a header its number, from 0.
        text: Name of a column of texts, which is then the only feature; "" for all columns.
        client: Name of the column that identifies the natural client of each row, compared as text; not a feature.
        header: Whether the first row names the columns.
        test: Share of the rows in the test set, which is drawn with the experiment's seed; every natural client keeps a
            row to train on.
        vocabulary: Number of token ids, with ``text``: the most frequent words of the training rows.
        length: Number of tokens read from a text.
        missing: Cells that mean a missing value, beside the usual ones (nothing, NA, NaN, null, ?, -, ...); in any
            case. A missing class or client is an error.
        fill: What becomes of a missing number: ``error``, or ``mean``, that of the column's training rows.
        categorical: Names of columns that are one-hot encoded even if they hold numbers.
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
    fill: Fill = "error"
    categorical: tuple[str, ...] = ()
    traits: ClassVar[Traits] = Traits(summary="Your own table: a file of comma- or tab-separated values")
    defaults: ClassVar[Mapping[str, Any]] = DEFAULTS

    def __post_init__(self) -> None:
        check_share("csv", self.test)
        if self.vocabulary < 3 or self.length < 1:
            raise ParameterError(
                f"csv: vocabulary must be at least 3 and length at least 1, got {self.vocabulary} and {self.length}"
            )
        if self.fill not in ("error", "mean"):
            raise ParameterError(f"csv: fill must be error or mean, got {self.fill!r}")
        if self.text and self.fill == "mean":
            raise ParameterError(f"csv: fill has no effect with text={self.text}, which makes texts the only feature")

    def files(self) -> tuple[RemoteFile, ...]:
        """None: the file is the user's."""
        return ()

    def verify(self, folder: Path) -> None:
        """Read the table; raises ParameterError, MissingDataError or CorruptDataError. ``folder`` is not used."""
        self._table()

    def fetch(self, folder: Path) -> None:
        """As :meth:`verify`: nothing can be fetched."""
        self._table()

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
        table, missing = self._table(), self._missing
        names = table.classes(self.label, missing)
        number = {name: k for k, name in enumerate(names)}
        y = torch.tensor([number[cell] for cell in table.columns[self.label]])
        owners = numbered(table.filled(self.client, missing)) if self.client else None
        train, test = split("csv", len(y), self.test, generator, owners)
        if self.text:
            texts = table.columns[self.text]
            vocabulary = Vocabulary.of([texts[k] for k in train.tolist()], self.vocabulary)
            encode = partial(vocabulary.encode, length=self.length)
            x, words = encode(texts), vocabulary.words
            said: tuple[str, ...] = (f"column {listed([self.text])}", f"{len(words)} words")
            said += (f"{empty} texts are empty",) if (empty := texts.count("")) else ()
        else:
            used = [name for name in table.columns if name not in (self.label, self.client, *table.index)]
            columns = [
                feature(table, name, train.numpy(), missing, self.fill, name in self.categorical) for name in used
            ]
            if not sum(column.x.shape[1] for column in columns):
                raise ParameterError(f"csv: {table.path} has no column to learn from besides {self.label!r}")
            x = torch.from_numpy(np.concatenate([column.x for column in columns], axis=1))
            encode, words = None, ()
            said = summary(columns, [name for name in table.index if name not in (self.label, self.client)])
        return Dataset(
            x[train],
            y[train],
            x[test],
            y[test],
            len(names),
            owners if owners is None else owners[train],
            encode,
            words,
            class_names=tuple(names),
            owned_by=self.client,
            details=said,
        )

    @property
    def _missing(self) -> frozenset[str]:
        return frozenset(text.strip().lower() for text in self.missing)

    def _table(self) -> Table:
        if not self.file:
            raise ParameterError("csv: file is not set; name one, e.g. --set dataset.file=table.csv")
        table = read_table(resolved(self.file), self.header)
        n = len(table.columns)
        there = ", ".join(printable(name[:60]) for name in table.columns) if n <= 20 else f"{n} columns"
        there += " (commas separate the columns of a .csv file, tabs those of a .tsv file)" if n == 1 else ""
        if not self.label:
            raise ParameterError(f"csv: label is not set; the columns are {there}")
        roles = [("label", self.label), ("text", self.text), ("client", self.client)]
        for role, name in [*roles, *(("categorical", name) for name in self.categorical)]:
            if name and name not in table.columns:
                raise ParameterError(f"csv: {role} column {name!r} is not in {table.path}; the columns are {there}")
        used = [name for _, name in roles if name]
        if len(set(used)) < len(used):
            raise ParameterError("csv: label, text and client must be different columns")
        if useless := [name for name in self.categorical if name in used or self.text]:
            raise ParameterError(f"csv: categorical has no effect on column {useless[0]!r}, which is not a feature")
        return table


@lru_cache(maxsize=64)
def _number_of_clients(loader: CSV, path: Path, stamp: tuple[int, int]) -> int:
    """Distinct values of the client column; read again when the file's time or size changes."""
    return len(set(loader._table().filled(loader.client, loader._missing)))
