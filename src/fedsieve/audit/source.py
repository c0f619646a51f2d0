"""What is audited: a table, an array file, a folder of images or a dataset by name, as an experiment and its rows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from fedsieve.audit.audit import RawRows
from fedsieve.config import registry
from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import ParameterError
from fedsieve.core.seeding import stream
from fedsieve.data.columns import column
from fedsieve.data.dataset import Dataset
from fedsieve.data.table import CSV
from fedsieve.data.table_file import Table

# Settings of an audit that the user does not make; 40 rounds are enough for what is said here.
USUAL: Mapping[str, Any] = {"defense": "sieve", "rounds": 40, "partition": "natural"}
_REFERENCE = "(reference)"


@dataclass(frozen=True)
class Source:
    """What is audited.

    Attributes:
        experiment: The settings of a federation of all sites.
        load: The dataset, with the split of a seed.
        rows: The rows as they were written; None where the data are no table.
        reference: The file of trusted rows, or "".
    """

    experiment: Experiment
    load: Callable[[int], Dataset]
    rows: RawRows | None
    reference: str = ""

    @classmethod
    def of(cls, settings: Mapping[str, Any], folder: Path, reference: Path | None = None) -> "Source":
        """Read the settings and the data once.

        Args:
            settings: Of an experiment, without attack; what is not set is as in :data:`USUAL`.
            folder: Folder of the datasets.
            reference: A table of trusted rows with the same columns; the site column may be missing.

        Raises:
            FedSieveError: If the data can't be read, have no sites, or a setting has no place here.
        """
        refused = [name for name in ("attack", "malicious", "assumed_malicious", "odd", "root") if name in settings]
        if refused:
            raise ParameterError(f"{refused[0]} has no effect in an audit, which takes the sites as they are")
        experiment = Experiment.of({**USUAL, **settings})
        if experiment.partition.name != "natural":
            raise ParameterError(f"partition {experiment.partition.name} has no effect in an audit: sites are clients")
        loader = registry.build("datasets", experiment.dataset.name, experiment.dataset.parameters)
        if isinstance(loader, CSV) and not loader.client:
            raise ParameterError("an audit needs the column that says which site a row is from: --site COLUMN")
        if reference is not None and not isinstance(loader, CSV):
            raise ParameterError("a file of trusted rows goes with a table; name a trusted site instead")

        table = loader.table() if isinstance(loader, CSV) else None  # read once for all seeds
        rows = None if table is None else _rows(loader, table)
        if table is not None and reference is not None:
            table = _with_reference(loader, table, reference)

        def load(seed: int) -> Dataset:
            generator = stream(seed, "split")
            data: Dataset = loader.load(folder, generator) if table is None else loader.dataset(table, generator)
            return data if reference is None else _referred(data)

        return cls(experiment, load, rows, str(reference or ""))


def _with_reference(loader: CSV, own: Table, reference: Path) -> Table:
    """The table with the rows of a trusted file as one more site.

    Raises:
        FedSieveError: If that file can't be read, or lacks a column.
    """
    other = replace(loader, file=str(reference), client="").table()  # it may have no column of sites
    if missing := [name for name in own.columns if name not in other.columns and name != loader.client]:
        raise ParameterError(f"{other.path} lacks columns of {own.path}: {', '.join(missing[:5])}")
    if _REFERENCE in own.columns[loader.client]:
        raise ParameterError(f"a site is named {_REFERENCE}, which means the trusted rows here; rename it")
    trusted = dict(other.columns) | {loader.client: [_REFERENCE] * len(other.lines)}
    cells = {name: [*column, *trusted[name]] for name, column in own.columns.items()}
    return replace(own, columns=cells, lines=[*own.lines, *other.lines])


def _referred(data: Dataset) -> Dataset:
    """The dataset with the trusted rows as root rows, and as no site."""
    assert data.owners is not None
    assert data.test_owners is not None
    k = data.owner_names.index(_REFERENCE)
    last = len(data.owner_names) - 1

    def moved(owners: torch.Tensor) -> torch.Tensor:
        return torch.where(owners == k, last, owners - (owners > k).long())

    tested = data.test_owners != k
    return replace(
        data,
        owners=moved(data.owners),
        x_test=data.x_test[tested],
        y_test=data.y_test[tested],
        test_owners=moved(data.test_owners[tested]),
        owner_names=tuple(name for name in data.owner_names if name != _REFERENCE),
        root_rows=(data.owners == k).nonzero().squeeze(1),
    )


def _rows(loader: CSV, table: Table) -> RawRows | None:
    """The rows of a table; None of texts."""
    if loader.text:
        return None
    missing = frozenset(text.strip().lower() for text in loader.missing)
    cells, numbers = {}, {}
    for name in table.columns:
        if name in (loader.label, loader.client, *loader.drop, *table.index):
            continue
        found = column(table, name, missing, loader.fill, loader.categorical, loader.keep)
        if found.kind == "numeric":
            numbers[name] = found.values
        if found.kind in ("numeric", "one-hot"):
            cells[name] = [None if value == "" or value != value else value for value in found.values]
    return RawRows(
        pd.DataFrame(cells, dtype=object),
        pd.DataFrame(numbers),
        pd.Series(table.columns[loader.client]),
        pd.Series(table.columns[loader.label]),
    )
