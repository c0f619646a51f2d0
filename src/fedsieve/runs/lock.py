"""A lock on a run directory, so that only one process at a time runs its experiment."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fedsieve.core.errors import BusyError
from fedsieve.runs.files import one_line

_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Lock the run directory ``path`` for the duration of the block, without waiting.

    The operating system releases the lock when the process ends, even if it is killed. The lock file lies beside the
    run directory, in ``.locks``, and stays there: removing it would let two processes lock two files of one name. Where
    only the run directory itself may be written, it is ``.lock`` in there.

    Yields:
        Whether this process holds the lock; False if another one does.

    Raises:
        FedSieveError: If the lock file can't be written or locked.
    """
    with one_line(f"lock run directories in {path.parent / '.locks'}"):
        try:
            whole = path.resolve()  # two names of one directory have one lock
        except RuntimeError as error:  # so Python 3.11 to 3.12 call a loop of links
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from error
        try:
            lock = _acquired(whole.parent / ".locks" / whole.name)
        except OSError as error:
            if error.errno not in _FORBIDDEN or not whole.is_dir():
                raise
            lock = _acquired(whole / ".lock")
    try:
        yield lock is not None
    finally:
        if lock is not None:
            lock.release()


@contextmanager
def held(path: Path) -> Iterator[None]:
    """:func:`claimed`, or an error.

    Raises:
        BusyError: If another process holds the lock.
        FedSieveError: If the lock file can't be written or locked.
    """
    with claimed(path) as mine:
        if not mine:
            raise BusyError(f"another process runs in {path}; wait for it, or choose another --out")
        yield


def _acquired(file: Path) -> FileLock | None:
    """Lock a file; None if another process has locked it.

    Raises:
        OSError: If it can't be locked.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return None
    except NotImplementedError as error:  # the file system has no locks
        raise OSError(str(error)) from error
    return lock
