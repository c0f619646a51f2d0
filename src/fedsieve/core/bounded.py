"""Reading files that may be anything: what is unpacked is measured while it is read, never trusted."""

import errno
import io
import math
import os
import stat
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

from fedsieve.core.errors import CorruptDataError, MissingDataError, ParameterError

GIB = 1 << 30
MAX_LINE = 1 << 24  # characters
CHUNK = 1 << 20  # bytes
LIMIT_VARIABLE = "FEDSIEVE_MAX_GIB"


def memory_limit() -> int:
    """Most bytes of memory that one file of the user's may fill: ``$FEDSIEVE_MAX_GIB``, 4 GiB by default."""
    given = os.environ.get(LIMIT_VARIABLE, "").strip() or "4"
    try:
        found = float(given)
    except ValueError:
        found = math.nan
    if not 0 < found < 2**30:
        raise ParameterError(f"{LIMIT_VARIABLE} must be a number of GiB above 0, got {given!r:.40}")
    return int(found * GIB)


class Meter:
    """Adds up the memory that a file fills. Mutable.

    Attributes:
        path: The file, for the error message.
        used: Bytes so far.
        limit: Most bytes.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.used, self.limit = path, 0, memory_limit()

    def add(self, size: int) -> None:
        """Count ``size`` more bytes; raises CorruptDataError beyond the limit."""
        self.used += size
        if self.used > self.limit:
            raise CorruptDataError(
                f"{self.path} unpacks to at least {self.used / GIB:.3g} GiB in memory, more than the limit of "
                f"{self.limit / GIB:.3g}; set the environment variable {LIMIT_VARIABLE} to more if the file is right"
            )


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read its bytes; raises MissingDataError if it can't be read, or is a folder, pipe or device."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # reading a pipe may wait forever, reading a device may never end
            reason = os.strerror(errno.EISDIR) if stat.S_ISDIR(mode) else "it is a pipe or a device, not a file"
            raise MissingDataError(f"{path} cannot be read: {reason}")
        return path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise MissingDataError(f"{path} cannot be read: {getattr(error, 'strerror', '') or error}") from None


def read_at_most(stream: io.BufferedIOBase | IO[bytes], most: int, what: str) -> bytes:
    """All that is left of a stream, in chunks.

    Args:
        stream: The stream.
        most: Most bytes.
        what: Name of the content for the error message.

    Raises:
        CorruptDataError: If there are more than ``most`` bytes; no more than a chunk of them is read.
    """
    parts, size = [], 0
    while part := stream.read(min(CHUNK, most + 1 - size)):
        parts.append(part)
        size += len(part)
        if size > most:
            raise CorruptDataError(f"{what} unpacks to more than the {most} bytes that were expected at most")
    return b"".join(parts)


def read_member(archive: zipfile.ZipFile, name: str, most: int, what: str) -> bytes:
    """Content of a member of a zip file, checked against its declared size; arguments as in :func:`read_at_most`.

    Raises:
        CorruptDataError: If the member declares or has more than ``most`` bytes, or is compressed by another method
            than deflate.
        Exception: Whatever ``zipfile`` raises for a damaged file.
    """
    info = archive.getinfo(name)
    _check_method(info, what)
    if info.file_size > most:
        raise CorruptDataError(f"{what} unpacks to {info.file_size} bytes, at most {most} were expected")
    with archive.open(info) as stream:
        return read_at_most(stream, most, what)


def _check_method(info: zipfile.ZipInfo, what: str) -> None:
    # zipfile unpacks members of other methods in one piece, whatever their size
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise CorruptDataError(f"{what} is compressed by method {info.compress_type}; only deflate, 8, is read")


def read_lines(text: io.TextIOBase, path: Path) -> Iterator[str]:
    """The lines of a text with their ends; raises CorruptDataError for one that is too long or has a NUL character."""
    number = 0
    while line := text.readline(MAX_LINE):
        number += 1
        if len(line) == MAX_LINE and line[-1] not in "\r\n":
            raise CorruptDataError(f"{path}, line {number}: more than {MAX_LINE} characters, so it is no table")
        if "\0" in line:
            raise CorruptDataError(f"{path}, line {number}: a NUL character; save the table as text in UTF-8")
        yield line


def read_npz(
    path: Path, names: Sequence[str], width: int, expected: str = "a whole .npz file without pickles"
) -> dict[str, np.ndarray]:
    """Some arrays of an ``.npz`` file, those of ``names`` that are there.

    Args:
        path: The file.
        names: Names of arrays.
        width: Bytes that a value will take, if that is more than in the file; decides how much memory is counted.
        expected: What the file should be, for the error message.

    Raises:
        MissingDataError: If the file can't be read.
        CorruptDataError: If it is no whole ``.npz`` file, has Python objects or fills too much memory.
    """
    meter = Meter(path)
    with open_regular(path) as raw:
        try:
            with zipfile.ZipFile(raw) as archive:
                there = [name for name in names if f"{name}.npy" in archive.namelist()]
                return {name: _array(archive, name, width, meter) for name in there}
        except CorruptDataError:
            raise
        except Exception as error:  # zipfile and numpy document only some of the errors of a damaged file
            reason = f"{error or type(error).__name__}".replace("\n", " ")
            raise CorruptDataError(f"{path} is not {expected}: {reason}") from None


def _array(archive: zipfile.ZipFile, name: str, width: int, meter: Meter) -> np.ndarray:
    info = archive.getinfo(f"{name}.npy")
    _check_method(info, f"{name} in {meter.path}")
    meter.add(info.file_size)
    with archive.open(info) as stream:
        shape, dtype = _header(stream)
    count = math.prod(shape)
    if not dtype.hasobject and count * dtype.itemsize > info.file_size:
        raise ValueError(f"{name} is said to have shape {list(shape)} but takes {info.file_size} bytes")
    meter.add(count * max(width - dtype.itemsize, 0))
    with archive.open(info) as stream:
        found: np.ndarray = np.lib.format.read_array(stream, allow_pickle=False)
        if stream.read(1):
            raise ValueError(f"{name} has more bytes than its shape {list(shape)} takes")
    return found


def _header(stream: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"arrays of format {version[0]}.{version[1]} are not read, only 1.0 and 2.0")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype
