"""Registered names to classes and instances, with their parameters checked.

A package adds an attack by declaring, in its own ``pyproject.toml``, ``[project.entry-points."fedsieve.attacks"]``
with ``my-attack = "my_package.my_module:MyAttack"``; likewise for every other kind. ``package.module:Class`` can stand
for a name. Several defenses form a chain: ``skymask,trimmed-mean``.
"""

import dataclasses
import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint
from typing import Any, Literal, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from fedsieve.aggregators.chain import Chain
from fedsieve.aggregators.mean import Mean
from fedsieve.config.installed import KINDS, MODEL_ARGUMENTS, registered
from fedsieve.core.defense import Aggregator, Detector, PreAggregator
from fedsieve.core.errors import ParameterError, UnknownNameError
from fedsieve.core.traits import Need, Traits

__all__ = ["KINDS", "build", "build_defense", "complete", "load", "names", "needs", "stage", "traits"]

# Methods that a class of each kind must have: one of each group.
_METHODS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "attacks": (("poison", "craft"),),
    "defenses": (("detect", "preaggregate", "__call__"),),
    "datasets": (("load",),),
    "models": (("forward",), ("named_parameters",)),
    "partitions": (("__call__",),),
}
_FORMER_PRESETS = "; the former preset anchored is the defense sieve, the former preset official is preset code"


def names(kind: str) -> tuple[str, ...]:
    """Every registered name of a kind, sorted."""
    return tuple(registered(kind))


def load(kind: str, name: str) -> type:
    """The class registered as ``name``, or found at ``package.module:Class``.

    Raises:
        UnknownNameError: If there is none; lists the nearest names.
    """
    if ":" in name:
        return _load_path(kind, name)
    entries = registered(kind)
    if name not in entries:
        near = get_close_matches(name, entries, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(entries)}"
        raise UnknownNameError(f"unknown {kind[:-1]} {name!r}; {hint}")
    return _loaded(kind, entries[name])


def _load_path(kind: str, path: str) -> type:
    module_name, _, attribute = path.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UnknownNameError(f"can't load {kind[:-1]} {path!r}: {error}") from error
    return _checked(kind, path, found)


def _checked(kind: str, name: str, found: Any) -> type:
    """``found`` if it is a class with the methods of its kind."""
    if not inspect.isclass(found):
        raise UnknownNameError(f"can't load {kind[:-1]} {name!r}: it is not a class")
    methods = dir(found)  # not hasattr: every class has the __call__ that makes instances
    for group in _METHODS[kind]:
        if not any(method in methods for method in group):
            raise UnknownNameError(f"can't load {kind[:-1]} {name!r}: it has no method {' or '.join(group)}")
    return found


def traits(kind: str, name: str) -> Traits:
    """What a registered class states about itself; empty traits for a class without."""
    return getattr(load(kind, name), "traits", None) or Traits(summary="")


StageKind = Literal["detector", "pre-aggregator", "aggregator"]


def stage(name: str) -> StageKind:
    """Kind of stage of a single defense."""
    cls = load("defenses", name)
    if issubclass(cls, Detector):
        return "detector"
    return "pre-aggregator" if issubclass(cls, PreAggregator) else "aggregator"


def needs(kind: str, name: str, parameters: Mapping[str, Any]) -> set[Need]:
    """What a component needs, together with the needs of the components that it is made of.

    Args:
        kind: One of ``KINDS``.
        name: A registered name or ``package.module:Class``.
        parameters: As returned by :func:`complete`.
    """
    found = set(traits(kind, name).needs)
    for field in getattr(load(kind, name), "parts", {}):
        parts = parameters[field]
        for part in parts if isinstance(parts, list | tuple) else [parts]:
            found |= needs(kind, part["name"], part)
    return found


def complete(
    kind: str, name: str, parameters: Mapping[str, Any], usual: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """``parameters``, checked and converted, and the defaults of all others.

    A chain of defenses has one entry per stage: ``{"skymask": {...}, "trimmed-mean": {...}}``. The ``parts`` of a class
    are the parameters that are other components: names, or mappings with a name and parameters.

    Args:
        kind: One of ``KINDS``.
        name: A registered name, ``package.module:Class``, or a chain.
        parameters: Values that the user set.
        usual: The dataset's defaults by component name; they replace the class's own.

    Raises:
        ParameterError: If a parameter does not exist, has a wrong type or is out of range.
    """
    if stages := _stages(kind, name):
        _refuse_unknown(kind, name, parameters, dict.fromkeys(stages))
        return {stage: complete(kind, stage, _mapping(name, stage, parameters), usual) for stage in stages}
    cls = load(kind, name)
    parameters = {**(usual or {}).get(name, {}), **parameters}
    for parameter, value in parameters.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ParameterError(f"{kind[:-1]} {name}: {parameter} must be finite, got {value}")
    signature = _signature(kind, cls)
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
        k: _converted(f"{kind[:-1]} {name}", cls, k, parameters[k]) if k in parameters else _default(cls, p)
        for k, p in signature.items()
        if k not in specs
    }
    if dataclasses.is_dataclass(cls):  # its __post_init__ checks ranges
        try:
            cls(**found, **_built_parts(kind, specs))
        except (ValueError, TypeError) as error:
            raise ParameterError(f"{kind[:-1]} {name}: {error}") from error
    return {k: specs.get(k, found.get(k)) for k in signature}


def build(kind: str, name: str, parameters: Mapping[str, Any]) -> Any:
    """An instance of any kind but models, which :func:`fedsieve.models.flat.build_module` builds."""
    cls, complete_ = load(kind, name), complete(kind, name, parameters)
    specs = {field: complete_.pop(field) for field in getattr(cls, "parts", {})}
    return cls(**complete_, **_built_parts(kind, specs))


def build_defense(name: str, parameters: Mapping[str, Any]) -> Aggregator:
    """A defense, or a chain of them; the mean is added where no aggregator comes last.

    Raises:
        ParameterError: If an aggregator stands before the end of a chain.
    """
    stages = _stages("defenses", name)
    built = [build("defenses", s, _mapping(name, s, parameters) if stages else parameters) for s in stages or [name]]
    *before, last = built
    for part, stage_name in zip(before, stages, strict=False):
        if not isinstance(part, Detector | PreAggregator):
            raise ParameterError(
                f"chain {name!r}: {stage_name} is an aggregator, so it must come last; "
                "only detectors and pre-aggregators may precede it"
            )
    if isinstance(last, Detector | PreAggregator):
        return Chain(tuple(built), Mean())
    aggregator: Aggregator = last
    return Chain(tuple(before), aggregator) if before else aggregator


def _stages(kind: str, name: str) -> list[str]:
    """Names of the stages of a chain; empty for a single component."""
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
    """``use(value)``, or a list of it for every item of a list."""
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
        hint = _FORMER_PRESETS if parameter == "preset" and value in ("anchored", "official") else ""
        raise ParameterError(f"{what}: {where}: {first['msg']}, got {first['input']!r}{hint}") from error


# A grid has thousands of components of a few classes; inspecting the classes would take most of its time.


@cache
def _loaded(kind: str, entry: EntryPoint) -> type:
    return _checked(kind, entry.name, entry.load())


@cache
def _signature(kind: str, cls: type) -> Mapping[str, inspect.Parameter]:
    """Parameters that a user may set."""
    given = MODEL_ARGUMENTS if kind == "models" else ()
    return {k: p for k, p in inspect.signature(cls).parameters.items() if k not in given}


def _default(cls: type, parameter: inspect.Parameter) -> Any:
    """The default of a parameter; a dataclass states some as a function that makes it."""
    made = {f.name: f.default_factory for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else {}
    factory = made.get(parameter.name, dataclasses.MISSING)
    return parameter.default if factory is dataclasses.MISSING else factory()


@cache
def _converter(cls: type, parameter: str) -> Callable[[Any], Any]:
    try:
        hints = get_type_hints(cls if dataclasses.is_dataclass(cls) else inspect.getattr_static(cls, "__init__"))
    except (NameError, TypeError):  # a third party's annotations may not resolve; its constructor still checks
        hints = {}
    # the name of a table's column may be 0, which YAML reads as a number
    config = ConfigDict(arbitrary_types_allowed=True, coerce_numbers_to_str=True)
    return TypeAdapter(hints.get(parameter, Any), config=config).validate_python
