"""Names to classes, by entry point: ours and third parties' alike.

A package adds an attack by declaring, in its own ``pyproject.toml``, ``[project.entry-points."fedsieve.attacks"]``
with ``my-attack = "my_package.my_module:MyAttack"``; likewise for every other kind. ``package.module:Class`` works
wherever a name does. Defenses can be joined: ``skymask,trimmed-mean`` is a chain of two.
"""

import dataclasses
import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from fedsieve.defenses.chain import Chain
from fedsieve.defenses.mean import Mean
from fedsieve.types import Defense, Filter, ParameterError, Traits, Transform, UnknownNameError

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
_MODEL_ARGUMENTS = ("self", "input_shape", "n_classes", "vocabulary")


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
    return _loaded(entries[name])


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


def stage(name: str) -> str:
    """What a defense is in a chain: ``filter``, ``transform`` or, at its end, ``rule``."""
    cls = load("defenses", name)
    return "filter" if hasattr(cls, "judge") else "transform" if hasattr(cls, "transform") else "rule"


def needs(kind: str, name: str, parameters: Mapping[str, Any]) -> set[str]:
    """What a component says it needs, and what the components it is made of do; ``parameters`` are complete."""
    found = set(traits(kind, name).needs)
    for field in getattr(load(kind, name), "parts", {}):
        parts = parameters[field]
        for part in parts if isinstance(parts, list | tuple) else [parts]:
            found |= needs(kind, part["name"], part)
    return found


def complete(
    kind: str, name: str, parameters: Mapping[str, Any], usual: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """``parameters`` checked and converted, with the defaults of all that are not given.

    A chain of defenses has one entry per stage, ``{"skymask": {...}, "trimmed-mean": {...}}``. Where a class has
    ``parts`` (other components it is made of), these are names or mappings with a name and parameters.

    Args:
        kind: One of ``KINDS``.
        name: A registered name, ``package.module:Class``, or a chain.
        parameters: What was asked for.
        usual: Defaults by name, below ``parameters`` and above the class's own.

    Raises:
        ParameterError: For one that does not exist (with the nearest ones), has a wrong type or is out of range.
    """
    if stages := _stages(kind, name):
        _refuse_unknown(kind, name, parameters, dict.fromkeys(stages))
        return {stage: complete(kind, stage, _mapping(name, stage, parameters), usual) for stage in stages}
    cls = load(kind, name)
    parameters = {**(usual or {}).get(name, {}), **parameters}
    for parameter, value in parameters.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ParameterError(f"{kind[:-1]} {name}: {parameter} must be finite, got {value}")
    signature = _signature(cls)
    if any(p.kind is p.VAR_KEYWORD for p in signature.values()):
        return dict(parameters)
    _refuse_unknown(kind, name, parameters, signature)
    specs = {
        field: _each(parameters.get(field, default), lambda part: _completed_part(kind, name, part, usual))
        for field, default in getattr(cls, "parts", {}).items()
    }
    missing = [k for k, p in signature.items() if p.default is p.empty and k not in {**parameters, **specs}]
    if missing:
        raise ParameterError(f"{kind[:-1]} {name}: parameter {missing[0]} has no default; set it")
    found = {
        k: _converted(f"{kind[:-1]} {name}", cls, k, parameters[k]) if k in parameters else p.default
        for k, p in signature.items()
        if k not in specs
    }
    if dataclasses.is_dataclass(cls):  # its __post_init__ checks what no type says
        try:
            cls(**found, **_built_parts(kind, specs))
        except (ValueError, TypeError) as error:
            raise ParameterError(f"{kind[:-1]} {name}: {error}") from error
    return {k: specs.get(k, found.get(k)) for k in signature}


def build(kind: str, name: str, parameters: Mapping[str, Any]) -> Any:
    """An instance with these parameters (models, which need the data's shape, are built elsewhere)."""
    cls, complete_ = load(kind, name), complete(kind, name, parameters)
    specs = {field: complete_.pop(field) for field in getattr(cls, "parts", {})}
    return cls(**complete_, **_built_parts(kind, specs))


def build_defense(name: str, parameters: Mapping[str, Any]) -> Defense:
    """A defense by name, or a chain of them; where no rule comes last, the mean does."""
    stages = _stages("defenses", name)
    built = [build("defenses", s, _mapping(name, s, parameters) if stages else parameters) for s in stages or [name]]
    for stage, stage_name in zip(built, stages or [name], strict=True):
        if not isinstance(stage, Filter | Transform | Defense):
            raise UnknownNameError(f"defense {stage_name!r} has none of judge, transform and __call__")
    *before, last = built
    for stage, stage_name in zip(before, stages, strict=False):
        if not isinstance(stage, Filter | Transform):
            raise ParameterError(
                f"chain {name!r}: {stage_name} aggregates, so it must come last; before it stand filters and transforms"
            )
    if isinstance(last, Filter | Transform):
        return Chain(tuple(built), Mean())
    return Chain(tuple(before), last) if before else last


def _stages(kind: str, name: str) -> list[str]:
    """The stages of a chain of defenses; none if it is a single one."""
    if kind != "defenses" or "," not in name:
        return []
    stages = [stage.strip() for stage in name.split(",")]
    twice = {stage for stage in stages if stages.count(stage) > 1 or not stage}
    if twice:
        raise ParameterError(f"chain {name!r}: every stage is named once, as in skymask,trimmed-mean")
    return stages


def _mapping(chain: str, stage: str, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    found = parameters.get(stage, {})
    if not isinstance(found, Mapping):
        raise ParameterError(f"chain {chain!r}: parameters of {stage} were expected, got {found!r}")
    return found


def _each(value: Any, use: Callable[[Any], Any]) -> Any:
    """``use`` of a value, or of every item of a list of them."""
    return [use(item) for item in value] if isinstance(value, list | tuple) else use(value)


def _completed_part(kind: str, owner: str, part: Any, usual: Mapping[str, Mapping[str, Any]] | None) -> dict[str, Any]:
    spec = {"name": part} if isinstance(part, str) else part
    if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
        raise ParameterError(f"{kind[:-1]} {owner}: a name, or a mapping with a name, was expected, got {part!r}")
    rest = {key: value for key, value in spec.items() if key != "name"}
    return {"name": spec["name"], **complete(kind, spec["name"], rest, usual)}


def _built_parts(kind: str, specs: Mapping[str, Any]) -> dict[str, Any]:
    def built(spec: Mapping[str, Any]) -> Any:
        return build(kind, spec["name"], {key: value for key, value in spec.items() if key != "name"})

    parts = {field: _each(spec, built) for field, spec in specs.items()}
    return {field: tuple(part) if isinstance(part, list) else part for field, part in parts.items()}


def _refuse_unknown(kind: str, name: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for parameter in given:
        if parameter not in known:
            near = get_close_matches(parameter, known, n=3, cutoff=0.5)
            have = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(known) or 'none'}"
            raise ParameterError(f"{kind[:-1]} {name} has no parameter {parameter!r}; {have}")


def _converted(what: str, cls: type, parameter: str, value: Any) -> Any:
    try:
        return _converter(cls, parameter)(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in (parameter, *first["loc"]))
        raise ParameterError(f"{what}: {where}: {first['msg']}, got {first['input']!r}") from error


# A grid has thousands of components of a few classes, and looking into a class takes longer than all the rest.


@cache
def _loaded(entry: EntryPoint) -> type:
    return entry.load()  # type: ignore[no-any-return]


@cache
def _signature(cls: type) -> Mapping[str, inspect.Parameter]:
    """Parameters that a user may set."""
    return {k: p for k, p in inspect.signature(cls).parameters.items() if k not in _MODEL_ARGUMENTS}


@cache
def _converter(cls: type, parameter: str) -> Callable[[Any], Any]:
    try:
        hints = get_type_hints(cls if dataclasses.is_dataclass(cls) else inspect.getattr_static(cls, "__init__"))
    except (NameError, TypeError):  # a third party's annotations need not resolve; its constructor still checks
        hints = {}
    # a column may be called 0, and YAML makes that a number
    config = ConfigDict(arbitrary_types_allowed=True, coerce_numbers_to_str=True)
    return TypeAdapter(hints.get(parameter, Any), config=config).validate_python
