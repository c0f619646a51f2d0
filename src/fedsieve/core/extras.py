"""Packages that only some commands need, and that come with an extra."""

from collections.abc import Iterator
from contextlib import contextmanager

from fedsieve.core.errors import MissingPackageError


@contextmanager
def extra(name: str, what: str) -> Iterator[None]:
    """Within this context, a package that is not installed is an error of one line that names the extra.

    Args:
        name: The extra.
        what: What needs it, to begin the message.

    Raises:
        MissingPackageError: If a package of others can't be found.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "fedsieve"):
            raise
        raise MissingPackageError(f"{what} needs {package}: pip install 'fedsieve[{name}]'") from error
