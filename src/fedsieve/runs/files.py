"""Files that a crash never leaves half written: each is replaced whole, and is on disk when the function returns."""

# ruff: noqa: PTH103, PTH105, PTH108 (all calls go through os, where tests make them fail one by one)

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from fedsieve.core.errors import FedSieveError, StorageError

# What a wrong path gives. Anything else is the machine's: a full disk, missing rights, a folder that has vanished.
_WRONG_PATH = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}
# File systems that can't sync a folder say so with one of these.
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}
_PLAIN = getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


@contextmanager
def one_line(doing: str) -> Iterator[None]:
    """Turn an OSError of the block into one line.

    Args:
        doing: What the block does, after "can't".

    Raises:
        FedSieveError: If the path is wrong.
        StorageError: For every other reason, such as a full disk.
    """
    try:
        yield
    except OSError as error:
        reason = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror or str(error)
        kind = FedSieveError if error.errno in _WRONG_PATH else StorageError
        raise kind(f"can't {doing}: {reason}") from error


def write(path: Path, content: bytes, last: Path | None = None) -> None:
    """Replace a file, or make it.

    Args:
        path: The file.
        content: All its bytes.
        last: Where its old content goes; by default it is lost.
    """
    new = path.with_name(f"{path.name}.new")
    _remove(new)
    try:
        file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _PLAIN, 0o666)
        try:
            _write_all(file, content)
            os.fsync(file)
        finally:
            os.close(file)
        if last is not None:
            rename(path, last)
        os.replace(new, path)
    except OSError:
        with suppress(OSError):  # so that it takes no room on a full disk
            _remove(new)
        raise
    sync_folder(path.parent)


def append(path: Path, content: bytes) -> None:
    """Add to the end of a file that exists. Not synced: :func:`sync` does that for many at once."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | _PLAIN)
    try:
        _write_all(file, content)
    finally:
        os.close(file)


def sync(path: Path) -> None:
    """Return once the content of a file is on disk."""
    file = os.open(path, os.O_RDWR | _PLAIN)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def cut(path: Path, size: int) -> None:
    """Shorten a file to its first ``size`` bytes."""
    file = os.open(path, os.O_RDWR | _PLAIN)
    try:
        if os.fstat(file).st_size > size:
            os.ftruncate(file, size)
            os.fsync(file)
    finally:
        os.close(file)


def rename(path: Path, target: Path) -> None:
    """Rename a file, if there is one, in place of ``target``."""
    with suppress(FileNotFoundError):
        os.replace(path, target)


def remove(*paths: Path) -> None:
    """Remove files, in this order, if they are there."""
    for path in paths:
        if _remove(path):
            sync_folder(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder and those above it."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    os.makedirs(path, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)


def sync_folder(path: Path) -> None:
    """Return once the names in a folder are on disk, where the system can do that."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows
        return
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(folder)


def read(path: Path) -> BinaryIO:
    """Open a file to read.

    Raises:
        OSError: If it is missing, or is no file: opening a pipe would wait for ever.
    """
    file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if stat.S_ISREG(os.fstat(file).st_mode):
        return os.fdopen(file, "rb")
    os.close(file)
    raise OSError(errno.EISDIR, "it is not a file")


def _remove(path: Path) -> bool:
    """Remove a file; whether there was one."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def _write_all(file: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(file, rest) :]
