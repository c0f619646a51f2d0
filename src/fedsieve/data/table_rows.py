"""The rows of a table in a file, as text: separated values in any usual encoding, Excel sheets, Parquet files."""

import csv
import gzip
import io
import math
import re
import warnings
import zipfile
import zlib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, time
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from fedsieve.core.bounded import Meter, open_regular, read_lines
from fedsieve.core.errors import CorruptDataError, MissingDataError, ParameterError
from fedsieve.core.escaping import printable
from fedsieve.data.cells import text_of

SEPARATORS = {"tab": "\t", "\t": "\t", ";": ";", ",": ",", "|": "|"}  # the first ones win where several divide a file
_LOOKED_AT = 100  # lines that decide the separator
_NAMES = {"utf-8-sig": "UTF-8", "utf-16": "UTF-16", "cp1252": "Windows-1252", "latin-1": "Latin-1"}


@dataclass(frozen=True)
class Written:
    """What the user says about how a table is written; "" for what is to be found out.

    Attributes:
        separator: Of a text: one of ``SEPARATORS``.
        encoding: Of a text: a codec of Python's.
        sheet: Of an Excel file: the name of the sheet.
    """

    separator: str = ""
    encoding: str = ""
    sheet: str = ""

    def __post_init__(self) -> None:
        if self.separator and self.separator not in SEPARATORS:
            raise ParameterError(f"csv: separator must be one of , ; | tab, got {text_of(self.separator)}")
        if self.encoding:
            try:
                io.TextIOWrapper(io.BytesIO(), self.encoding)
            except (LookupError, ValueError) as error:
                raise ParameterError(f"csv: encoding {text_of(self.encoding)}: {error}") from None


@dataclass(frozen=True)
class Rows:
    """Rows that are about to be read.

    Attributes:
        rows: Number of each row's last line, and its cells.
        details: How they are read, where that is not the usual way.
        line: What the numbers count: ``line`` or ``row``.
        decimal_commas: Whether 5,4 can be a number.
    """

    rows: Iterator[tuple[int, list[str]]]
    details: tuple[str, ...] = ()
    line: str = "line"
    decimal_commas: bool = False


def encodings(path: Path, layout: Written) -> tuple[str, ...]:
    """Encodings to try in turn; the last reads anything, unless the file or the user says what it is."""
    if layout.encoding:
        return (layout.encoding,)
    with _opened(path) as raw:
        marked = raw.read(2) in (BOM_UTF16_LE, BOM_UTF16_BE)
    return ("utf-16",) if marked else ("utf-8-sig", "cp1252", "latin-1")


def encoding_name(encoding: str) -> str:
    """The name of a codec as people write it."""
    return _NAMES.get(encoding, encoding)


@contextmanager
def text_rows(path: Path, encoding: str, layout: Written) -> Iterator[Rows]:
    """The rows of separated values, by the separator that divides the first lines best; between tabs, quotes are text.

    Raises:
        UnicodeDecodeError: Also while they are read, if they are written in another encoding.
        MissingDataError: If the file cannot be read.
        CorruptDataError: Also while they are read, if it is damaged or has an open quote; names the line.
    """
    if layout.sheet:
        raise ParameterError(f"csv: sheet has no effect on {path}, which is no Excel file")
    tabs = path.name.lower().removesuffix(".gz").endswith((".tsv", ".tab"))
    with _opened(path) as raw, io.TextIOWrapper(raw, encoding, newline="") as text:
        lines = read_lines(text, path)
        with _readable(path, encoding):
            head = list(islice(lines, _LOOKED_AT))
        head[:1] = [line.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}") for line in head[:1]]  # a byte order mark
        told = re.fullmatch(r'"?sep=([,;|\t])"?[\r\n]*', head[0]) if head else None  # what Excel reads and writes
        separator = SEPARATORS.get(layout.separator) or (told and told[1]) or ("\t" if tabs else _separator(head))
        details = [f"read as {encoding_name(encoding)}"] if encoding != "utf-8-sig" else []
        if separator != ("\t" if tabs else ","):
            details.append(f"separated by {'tabs' if separator == chr(9) else separator}")
        of_lines = chain(head[bool(told) :], lines)
        dialect: dict[str, Any] = {"quoting": csv.QUOTE_NONE} if tabs else {"strict": True, "skipinitialspace": True}
        reader = csv.reader(of_lines, delimiter=separator, **dialect)

        def rows() -> Iterator[tuple[int, list[str]]]:
            with _readable(path, encoding, lambda: f", near line {reader.line_num + bool(told)}"):
                for row in reader:
                    yield reader.line_num + bool(told), row

        yield Rows(rows(), tuple(details), decimal_commas=separator != ",")


def _separator(head: Sequence[str]) -> str:
    """The separator that gives most lines as many cells as the first, and that at least two."""

    def share(separator: str) -> float:
        try:
            found = [len(row) for row in csv.reader(head, delimiter=separator, skipinitialspace=True) if row]
        except csv.Error:
            return 0.0
        return found.count(found[0]) / len(found) if found and found[0] > 1 else 0.0

    best = max(dict.fromkeys(SEPARATORS.values()), key=share)
    return best if share(best) else ","


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with open_regular(path) as raw:
        if not path.name.lower().endswith(".gz"):
            yield raw
            return
        with _readable(path, "utf-8-sig"), gzip.GzipFile(fileobj=raw) as unpacked:
            yield cast(BinaryIO, unpacked)


@contextmanager
def _readable(path: Path, encoding: str, where: Callable[[], str] = str) -> Iterator[None]:
    """Errors of a damaged file in one line."""
    try:
        yield
    except csv.Error as error:
        raise CorruptDataError(f"{path} is not a whole table in {encoding_name(encoding)}: {error}{where()}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CorruptDataError(f"{path} is not a whole table in {encoding_name(encoding)}: {error}") from None
    except OSError as error:
        raise MissingDataError(f"{path} cannot be read: {error.strerror or error}") from None


def binary_rows(path: Path, header: bool, layout: Written) -> Rows | None:
    """All rows of an Excel sheet or a Parquet file, each value as text; None for files of other names.

    Raises:
        MissingDataError: If the file cannot be read, or the package that reads it is not installed.
        CorruptDataError: If it is damaged, or fills too much memory.
        ParameterError: If the layout can't be that of such a file.
    """
    kind = path.suffix.lower()
    if kind in (".xls", ".xlsb", ".ods", ".sav", ".dta", ".sas7bdat", ".feather", ".zip"):
        raise ParameterError(f"csv: {path} is not read; save it as .csv, .xlsx or .parquet")
    if kind not in (".xlsx", ".xlsm", ".parquet", ".pq"):
        return None
    for name in ("separator", "encoding"):
        if getattr(layout, name):
            raise ParameterError(f"csv: {name} has no effect on {path}, which is no text")
    parquet = kind in (".parquet", ".pq")
    if parquet and (layout.sheet or not header):
        raise ParameterError(f"csv: {'sheet' if layout.sheet else 'header'} has no effect on {path}, a Parquet file")
    try:
        return _parquet(path) if parquet else _sheet(path, layout.sheet)
    except ModuleNotFoundError as error:
        raise MissingDataError(
            f"{path} takes the package {error.name} to read; pip install 'fedsieve[tables]'"
        ) from None
    except (CorruptDataError, MissingDataError, ParameterError):
        raise
    except Exception as error:  # the packages document only some of the errors of a damaged file
        reason = " ".join(f"{error or type(error).__name__}".split())[:200]
        raise CorruptDataError(f"{path} is not a whole {kind} file: {reason}") from None


def _sheet(path: Path, name: str) -> Rows:
    import openpyxl

    meter = Meter(path)
    with open_regular(path) as raw, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of styles and extensions that openpyxl does not know
        with zipfile.ZipFile(raw) as archive:
            meter.add(sum(member.file_size for member in archive.infolist()))
        book = openpyxl.load_workbook(raw, read_only=True, data_only=True)
        sheets = {sheet.title: sheet for sheet in book.worksheets}
        if name and name not in sheets:
            raise ParameterError(
                f"csv: sheet {text_of(name)} is not in {path}; there are {printable(', '.join(sheets))}"
            )
        sheet = sheets[name] if name else book.worksheets[0]
        found = []
        for number, values in enumerate(sheet.iter_rows(values_only=True), 1):
            cells = [_text(value) for value in values]
            while cells and not cells[-1]:
                cells.pop()
            meter.add(64 * len(values))
            if cells:
                found.append((number, cells))
        book.close()
    width = max((len(cells) for _, cells in found), default=0)
    rows = ((number, cells + [""] * (width - len(cells))) for number, cells in found)
    return Rows(rows, (f"sheet {printable(sheet.title)} of {len(sheets)}",) if len(sheets) > 1 else (), "row")


def _parquet(path: Path) -> Rows:
    import pyarrow
    from pyarrow import parquet

    with open_regular(path) as raw:
        file = parquet.ParquetFile(raw)
        Meter(path).add(64 * file.metadata.num_rows * file.metadata.num_columns)
        table = file.read()
    columns = []
    for column in table.columns:
        # nanoseconds and time zones have no exact form in Python
        dates = pyarrow.types.is_timestamp(column.type)
        columns.append(column.cast(pyarrow.string()) if dates else column)
    # pandas writes an index without a name as the last column
    order = sorted(range(len(columns)), key=lambda k: not table.column_names[k].startswith("__index_level_"))
    names = [table.column_names[k] for k in order]
    header = ["" if name.startswith("__index_level_") else name for name in names]
    values = zip(*(columns[k].to_pylist() for k in order), strict=True)
    rows = ((number, [_text(value) for value in row]) for number, row in enumerate(values, 1))
    return Rows(chain([(0, header)], rows), (), "row")


def _text(value: Any) -> str:
    """A value as it would stand in a text; missing ones are empty, whole floats are written as integers."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    if isinstance(value, datetime):
        return value.date().isoformat() if value.time() == time() else value.isoformat(" ")
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
