"""Registered names to classes and instances, with their parameters checked.

A package adds an attack by declaring, in its own ``pyproject.toml``, ``[project.entry-points."fedsieve.attacks"]``
with ``my-attack = "my_package.my_module:MyAttack"``; likewise for every other kind. ``package.module:Class`` can stand
for a name. Several defenses form a chain: ``skymask,trimmed-mean``.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import EntryPoint
from typing import Any, Literal, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from fedsieve.aggregators.chain import Chain
from fedsieve.aggregators.mean import Mean
from fedsieve.config.imports import imported, load_path
from fedsieve.config.installed import KINDS, MODEL_ARGUMENTS, registered
from fedsieve.config.protocols import checked
from fedsieve.config.settings import refuse_unwritable
from fedsieve.core.defense import Aggregator, Detector, PreAggregator
from fedsieve.core.errors import FedSieveError, ParameterError, UnknownNameError
from fedsieve.core.escaping import printable, shown
from fedsieve.core.nearest import hint
from fedsieve.core.traits import Need, Traits

__all__ = ["KINDS", "build", "build_defense", "complete", "load", "names", "needs", "stage", "traits"]

_FORMER_PRESETS = "; the former preset anchored is the defense sieve, the former preset official is preset code"


def names(kind: str) -> tuple[str, ...]:
    """Every registered name of a kind, sorted."""
    return tuple(registered(kind))


def load(kind: str, name: str) -> type:
    """The class registered as ``name``, or found at ``package.module:Class``.

    Raises:
        UnknownNameError: If there is none (lists the nearest names), or it is no class of this kind.
        ParameterError: If only a file names the path, and imports from files are not allowed.
    """
    if ":" in name:
        return checked(kind, name, load_path(kind, name))
    entries = registered(kind)
    if name not in entries:
        module, _, last = name.rpartition(".")
        if module and last[:1].isupper() and all(part.isidentifier() for part in name.split(".")):
            said = f"a class of your own has a colon before its name: {module}:{last}"
        else:
            said = hint(name, entries)
        raise UnknownNameError(f"unknown {kind[:-1]} {shown(name)}; {said}")
    return _loaded(kind, entries[name])


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
    for field in _parts(load(kind, name)):
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
        refuse_unwritable(f"{kind[:-1]} {name}: {parameter}", value)
    signature, open_ended = _signature(kind, cls)
    if not open_ended:
        _refuse_unknown(kind, name, parameters, signature)
    specs = {
        field: _each(parameters.get(field, default), lambda part: _completed_part(kind, name, part, usual))
        for field, default in _parts(cls).items()
    }
    missing = [k for k, p in signature.items() if p.default is p.empty and k not in {**parameters, **specs}]
    if missing:
        raise ParameterError(f"{kind[:-1]} {name}: parameter {missing[0]} has no default; set it")
    found = {
        k: _converted(f"{kind[:-1]} {name}", cls, k, parameters[k]) if k in parameters else _default(cls, p)
        for k, p in signature.items()
        if k not in specs
    }
    extra = {k: value for k, value in parameters.items() if k not in signature}
    result = {k: specs.get(k, found.get(k)) for k in signature} | extra
    if dataclasses.is_dataclass(cls):  # its __post_init__ checks ranges
        _made(kind, name, result)
    return result


def build(kind: str, name: str, parameters: Mapping[str, Any]) -> Any:
    """An instance of any kind but models, which :func:`fedsieve.models.flat.build_module` builds."""
    return _made(kind, name, complete(kind, name, parameters))


def _made(kind: str, name: str, parameters: Mapping[str, Any]) -> Any:
    """An instance from parameters that :func:`complete` returned; its parts likewise, each built once."""

    def part(spec: Mapping[str, Any]) -> Any:
        return _made(kind, spec["name"], {key: value for key, value in spec.items() if key != "name"})

    cls, given = load(kind, name), dict(parameters)
    for field in _parts(cls):
        given[field] = tuple(map(part, spec)) if isinstance(spec := given[field], list) else part(spec)
    try:
        return cls(**given)
    except FedSieveError:
        raise
    except Exception as error:  # a constructor may be anybody's
        said = str(error) if isinstance(error, ValueError | TypeError) else repr(error)
        raise ParameterError(f"{kind[:-1]} {name}: {printable(said)}") from error


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
                f"chain {shown(name)}: {stage_name} is an aggregator, so it must come last; "
                "only detectors and pre-aggregators may precede it"
            )
    if not isinstance(last, Aggregator):
        return Chain(tuple(built), Mean())
    return Chain(tuple(before), last) if before else last


def _stages(kind: str, name: str) -> list[str]:
    """Names of the stages of a chain; empty for a single component."""
    if kind != "defenses" or "," not in name:
        return []
    stages = [stage.strip() for stage in name.split(",")]
    if "" in stages or len(set(stages)) < len(stages):
        raise ParameterError(f"chain {shown(name)}: every stage is named once, as in skymask,trimmed-mean")
    return stages


def _mapping(chain: str, stage: str, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    found = parameters.get(stage, {})
    if not isinstance(found, Mapping):
        raise ParameterError(f"chain {shown(chain)}: parameters of {stage} were expected, got {shown(found)}")
    return found


def _parts(cls: type) -> Mapping[str, Any]:
    """Parameters of a class that are other components, and their defaults."""
    return getattr(cls, "parts", None) or {}


def _each(value: Any, use: Callable[[Any], Any]) -> Any:
    """``use(value)``, or a list of it for every item of a list."""
    return [use(item) for item in value] if isinstance(value, list | tuple) else use(value)


def _completed_part(kind: str, owner: str, part: Any, usual: Mapping[str, Mapping[str, Any]] | None) -> dict[str, Any]:
    spec = {"name": part} if isinstance(part, str) else part
    if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
        raise ParameterError(f"{kind[:-1]} {owner}: a name, or a mapping with a name, was expected, got {shown(part)}")
    rest = {key: value for key, value in spec.items() if key != "name"}
    return {"name": spec["name"], **complete(kind, spec["name"], rest, usual)}


def _refuse_unknown(kind: str, name: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for parameter in given:
        if parameter not in known:
            said = hint(parameter, known, "it has")
            raise ParameterError(f"{kind[:-1]} {name} has no parameter {shown(parameter)}; {said}")


def _converted(what: str, cls: type, parameter: str, value: Any) -> Any:
    try:
        return _converter(cls, parameter)(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in (parameter, *first["loc"]))
        hint = _FORMER_PRESETS if parameter == "preset" and value in ("anchored", "official") else ""
        raise ParameterError(f"{what}: {where}: {first['msg']}, got {shown(first['input'])}{hint}") from error


# A grid has thousands of components of a few classes; inspecting the classes would take most of its time.


@cache
def _loaded(kind: str, entry: EntryPoint) -> type:
    return checked(kind, entry.name, imported(kind, entry.name, entry.module, entry.attr))


@cache
def _signature(kind: str, cls: type) -> tuple[Mapping[str, inspect.Parameter], bool]:
    """Parameters that a user may set, and whether the class takes any others too."""
    given = MODEL_ARGUMENTS if kind == "models" else ()
    try:
        found = inspect.signature(cls).parameters
    except (TypeError, ValueError) as error:
        raise UnknownNameError(f"can't use {kind[:-1]} {cls.__qualname__}: its parameters are not known") from error
    kinds = {p.kind for p in found.values()}
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        k: p for k, p in found.items() if k not in given and p.kind in named
    }, inspect.Parameter.VAR_KEYWORD in kinds


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
