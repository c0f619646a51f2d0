"""The data frames of runs and rounds as CSV and Parquet files, written run by run: they need not fit in memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedsieve.core.extras import extra
from fedsieve.report import escaping
from fedsieve.report.frames import clients_frame, rounds_frame, runs_frame
from fedsieve.report.load import Run
from fedsieve.runs import files

if TYPE_CHECKING:
    from pandas import DataFrame


def write_csv(runs: Sequence[Run], folder: Path) -> None:
    """``runs.csv`` and ``rounds.csv``, see :mod:`fedsieve.report.frames`; no text in them is a formula."""
    files.write(folder / "runs.csv", _csv(runs_frame(runs), head=True))
    part = folder / "rounds.csv.part"
    files.write(part, _csv(rounds_frame([]), head=True))
    for run in runs:
        files.append(part, _csv(rounds_frame([run]), head=False))
    files.rename(part, folder / "rounds.csv")


def _csv(frame: "DataFrame", head: bool) -> bytes:
    texts = frame.select_dtypes(include=["str", "object"]).columns
    safe = frame.assign(**{name: frame[name].map(escaping.cell) for name in texts})
    text: str = safe.to_csv(index=False, header=head, lineterminator="\n")
    return text.encode()


def write_parquet(runs: Sequence[Run], folder: Path) -> None:
    """``runs.parquet``, ``rounds.parquet`` and ``clients.parquet``.

    Raises:
        MissingPackageError: Without pyarrow.
    """
    needs_parquet()
    from pyarrow import Schema, Table
    from pyarrow.parquet import ParquetWriter, write_table

    write_table(Table.from_pandas(runs_frame(runs), preserve_index=False), folder / "runs.parquet.part")
    files.rename(folder / "runs.parquet.part", folder / "runs.parquet")
    for name, made in (("rounds", rounds_frame), ("clients", clients_frame)):
        part = folder / f"{name}.parquet.part"
        schema = Schema.from_pandas(made([]), preserve_index=False)
        with ParquetWriter(part, schema) as file:
            for run in runs:
                file.write_table(Table.from_pandas(made([run]), schema, preserve_index=False))
        files.rename(part, folder / f"{name}.parquet")


def needs_parquet() -> None:
    """Raise the error of :func:`write_parquet` before any work is done."""
    with extra("parquet", "report --parquet"):
        import pyarrow  # noqa: F401
