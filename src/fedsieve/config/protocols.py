"""What a class must have to be a component of its kind; checked before it is called for the first time."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from fedsieve.core.errors import UnknownNameError
from fedsieve.core.traits import Traits

# Of each kind, methods and their arguments; a class has at least one of them, and each that it has takes these.
_METHODS: Mapping[str, Mapping[str, str]] = {
    "attacks": {"poison": "x, y, view", "craft": "view"},
    "defenses": {"detect": "updates, view", "preaggregate": "updates, view", "__call__": "updates, view"},
    "datasets": {"load": "folder, generator"},
    "models": {"forward": "x"},
    "partitions": {"__call__": "y, owners, n_clients, n_classes, generator"},
}


def checked(kind: str, name: str, found: Any) -> type:
    """``found`` if it is a class of the kind: one that has the kind's methods itself or from a base other than object.

    Raises:
        UnknownNameError: If not; says what is missing.
    """

    def refused(why: str) -> UnknownNameError:
        return UnknownNameError(f"can't load {kind[:-1]} {name!r}: {why}")

    if not isinstance(found, type):
        raise refused("it is not a class")
    if issubclass(found, type) or getattr(found, "_is_protocol", False) or inspect.isabstract(found):
        raise refused("it is a class without instances")
    methods = {method: own for method in _METHODS[kind] if (own := _own(found, method)) is not None}
    if not methods:
        raise refused(f"it has no method {' or '.join(_METHODS[kind])}")
    for method, own in methods.items():
        wanted = _METHODS[kind][method]
        try:
            signature = inspect.signature(own)
            signature.bind(*["self"] * (not isinstance(own, staticmethod)), *wanted.split(", "))
        except (TypeError, ValueError) as error:
            raise refused(f"its method {method} does not take ({wanted})") from error
    if kind == "models" and not issubclass(found, nn.Module):
        raise refused("it is no torch.nn.Module")
    for attribute, type_ in (("parts", Mapping), ("defaults", Mapping), ("traits", Traits)):
        value = getattr(found, attribute, None)
        if value is not None and not isinstance(value, type_):
            raise refused(f"its {attribute} are a {type(value).__name__}, not a {type_.__name__}")
    return found


def _own(cls: type, method: str) -> Any:
    """A function or method of the class or a base, as it stands in the class; not those that every class has."""
    for base in cls.__mro__:
        if base not in (object, nn.Module) and method in vars(base):
            found = vars(base)[method]
            return found.__func__ if isinstance(found, classmethod) else found
    return None
