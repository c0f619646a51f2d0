"""The entry points of all installed packages that register components."""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from fedsieve.core.errors import UnknownNameError

KINDS = ("attacks", "defenses", "datasets", "models", "partitions")
# Constructor arguments of a model that are taken from the dataset, not from the user.
MODEL_ARGUMENTS = ("input_shape", "n_classes", "vocabulary")


@cache
def registered(kind: str) -> Mapping[str, EntryPoint]:
    """The entry points of a kind by name, sorted.

    Raises:
        UnknownNameError: If two packages register different classes under one name.
    """
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=f"fedsieve.{kind}"):
        other = found.get(point.name)
        if other is not None and other.value != point.value:
            raise UnknownNameError(
                f"two packages register {kind[:-1]} {point.name!r}: {other.value} and {point.value}; uninstall one"
            )
        found[point.name] = point
    return dict(sorted(found.items()))
