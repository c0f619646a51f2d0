"""A lock on a run directory, so that only one process at a time runs its cell."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fedsieve.core.errors import FedSieveError


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Lock the run directory ``path`` for the duration of the block, without waiting.

    The operating system releases the lock when the process ends, even if it is killed.

    Yields:
        Whether this process holds the lock; False if another one does.

    Raises:
        FedSieveError: If the lock file, in ``.locks`` beside the run directory, can't be written or locked.
    """
    locks = path.parent / ".locks"
    lock = FileLock(locks / path.name)
    try:
        locks.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    except (OSError, NotImplementedError) as error:  # the latter where the file system has no locks
        reason = getattr(error, "strerror", None) or error
        raise FedSieveError(f"can't lock run directories in {locks}: {reason}") from error
    try:
        yield True
    finally:
        lock.release()
