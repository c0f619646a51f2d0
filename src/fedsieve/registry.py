"""Names to classes, by entry point: ours and third parties' alike.

A package adds an attack by declaring, in its own ``pyproject.toml``, ``[project.entry-points."fedsieve.attacks"]``
with ``my-attack = "my_package.my_module:MyAttack"``; likewise for every other kind. ``package.module:Class`` works
wherever a name does.
"""

import dataclasses
import importlib
import inspect
import math
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from fedsieve.defenses.chain import Chain
from fedsieve.defenses.mean import Mean
from fedsieve.types import Defense, Filter, ParameterError, Traits, UnknownNameError

KINDS = ("attacks", "defenses", "datasets", "models", "partitions")

# What a class of each kind must have; a defense is a rule (__call__) or a filter (judge), looked at when built.
_METHODS = {
    "attacks": ("poison", "craft"),
    "defenses": (),
    "datasets": ("load",),
    "models": ("forward", "named_parameters"),
    "partitions": ("__call__",),
}

# Arguments that we pass to a model; everything else in its signature is a parameter of the user's.
_MODEL_ARGUMENTS = ("self", "input_shape", "n_classes")


@cache
def _entries(kind: str) -> Mapping[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=f"fedsieve.{kind}"):
        other = found.get(entry.name)
        if other is not None and other.value != entry.value:
            raise UnknownNameError(
                f"two packages register {kind[:-1]} {entry.name!r}: {other.value} and {entry.value}; uninstall one"
            )
        found[entry.name] = entry
    return dict(sorted(found.items()))


def names(kind: str) -> tuple[str, ...]:
    """Every registered name of a kind, sorted."""
    return tuple(_entries(kind))


def load(kind: str, name: str) -> type:
    """The class of that name, or ``package.module:Class``.

    Raises:
        UnknownNameError: With the nearest names.
    """
    if ":" in name:
        return _load_path(kind, name)
    entries = _entries(kind)
    if name not in entries:
        near = get_close_matches(name, entries, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(entries)}"
        raise UnknownNameError(f"unknown {kind[:-1]} {name!r}; {hint}")
    return entries[name].load()  # type: ignore[no-any-return]


def _load_path(kind: str, path: str) -> type:
    module_name, _, attribute = path.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UnknownNameError(f"can't load {kind[:-1]} {path!r}: {error}") from error
    if not inspect.isclass(found):
        raise UnknownNameError(f"can't load {kind[:-1]} {path!r}: it is no class")
    missing = [method for method in _METHODS[kind] if not hasattr(found, method)]
    if missing:
        raise UnknownNameError(f"can't load {kind[:-1]} {path!r}: it has no {missing[0]}, so it is none")
    return found


def traits(kind: str, name: str) -> Traits:
    """What a registered class says of itself; a class without traits says nothing."""
    return getattr(load(kind, name), "traits", None) or Traits(summary="")


def complete(kind: str, name: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """``parameters`` checked and converted, with the defaults of all that are not given.

    Raises:
        ParameterError: For one that does not exist (with the nearest ones), has a wrong type or is out of range.
    """
    cls = load(kind, name)
    for parameter, value in parameters.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ParameterError(f"{kind[:-1]} {name}: {parameter} must be finite, got {value}")
    if dataclasses.is_dataclass(cls):
        known = {f.name: f for f in dataclasses.fields(cls) if f.init}
        _refuse_unknown(kind, name, parameters, known)
        built = _validated(kind, name, cls, parameters)
        return {field: getattr(built, field) for field in known}
    signature = {k: p for k, p in inspect.signature(cls).parameters.items() if k not in _MODEL_ARGUMENTS}
    if any(p.kind is p.VAR_KEYWORD for p in signature.values()):
        return dict(parameters)
    _refuse_unknown(kind, name, parameters, signature)
    missing = [k for k, p in signature.items() if p.default is p.empty and k not in parameters]
    if missing:
        raise ParameterError(f"{kind[:-1]} {name}: parameter {missing[0]} has no default; set it")
    return {
        k: _converted(kind, name, k, p, parameters[k]) if k in parameters else p.default for k, p in signature.items()
    }


def build(kind: str, name: str, parameters: Mapping[str, Any]) -> Any:
    """An instance with these parameters (models, which need the data's shape, are built elsewhere)."""
    return load(kind, name)(**complete(kind, name, parameters))


def build_defense(name: str, parameters: Mapping[str, Any]) -> Defense:
    """A defense by name; a bare filter is followed by the mean."""
    stage = build("defenses", name, parameters)
    if isinstance(stage, Filter):
        return Chain((stage,), Mean())
    if not isinstance(stage, Defense):
        raise UnknownNameError(f"defense {name!r} has neither __call__ nor judge")
    return stage


def _refuse_unknown(kind: str, name: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for parameter in given:
        if parameter not in known:
            near = get_close_matches(parameter, known, n=3, cutoff=0.5)
            have = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(known) or 'none'}"
            raise ParameterError(f"{kind[:-1]} {name} has no parameter {parameter!r}; {have}")


def _validated(kind: str, name: str, cls: type, parameters: Mapping[str, Any]) -> Any:
    try:
        return TypeAdapter(cls).validate_python(dict(parameters))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        said = f"{where}: {message}, got {first['input']!r}" if where else message
        raise ParameterError(f"{kind[:-1]} {name}: {said}") from error


def _converted(kind: str, name: str, parameter: str, signature: inspect.Parameter, value: Any) -> Any:
    if signature.annotation is signature.empty:
        return value
    try:
        return TypeAdapter(signature.annotation, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as error:
        raise ParameterError(f"{kind[:-1]} {name}: {parameter}: {error.errors()[0]['msg']}, got {value!r}") from error
