"""Settings as users write them: short forms expanded, overrides merged, errors in one line."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from fedsieve.config.settings import Component, Frozen, Local, Odd, RootData, ServerSide, as_component
from fedsieve.core.errors import ParameterError
from fedsieve.core.escaping import printable, shown
from fedsieve.core.nearest import hint, nearest


def named(setting: str, value: Any, default: str) -> dict[str, Any]:
    """A component as a mapping with a name.

    Parameters without a name belong to ``default``. The path of a data file, or of a folder with a slash in it, becomes
    the dataset that reads it.

    >>> named("dataset", "a/table.tsv", "digits"), named("dataset", "scans/", "digits")
    ({'name': 'csv', 'file': 'a/table.tsv'}, {'name': 'images', 'file': 'scans/'})

    Raises:
        ParameterError: If ``value`` is neither a name nor a mapping; names ``setting``.
    """
    if isinstance(value, Component):
        value = value.model_dump()
    if setting == "defense" or not isinstance(value, list):  # only defenses form chains
        value = as_component(value)
    if not isinstance(value, Mapping) or not isinstance(value.get("name", default), str):
        raise ParameterError(
            f"{setting}: a name, or a mapping with a name and parameters, was expected, got {shown(value)}"
        )
    named = {"name": default, **value}
    if setting == "dataset" and (loader := _loader(named["name"])):
        named = {**named, "name": loader, "file": named["name"]}
    return named


def _loader(path: str) -> str:
    """The dataset that reads this path; "" for a name."""
    if re.search(r"\.(csv|tsv|tab|txt)(\.gz)?$|\.(xlsx|xlsm|parquet|pq)$", path, re.IGNORECASE):
        return "csv"
    if re.search(r"\.npz(\.gz)?$", path, re.IGNORECASE):
        return "npz"
    # a name is never a folder, even where there is one of this name
    return "images" if path.endswith(("/", "\\")) or ("/" in path and _is_folder(path)) else ""


def _is_folder(path: str) -> bool:
    """Whether this is the path of a folder."""
    try:
        return Path(path).expanduser().is_dir()
    except (OSError, ValueError, RuntimeError):
        return False


_SECTIONS: Mapping[str, type[Frozen]] = {"local": Local, "server": ServerSide, "root": RootData, "odd": Odd}
_INTEGER = TypeAdapter(Annotated[int, Field(ge=-(2**63), lt=2**63)])
_MAX_LEVELS = 50


def whole(value: Any) -> int | None:
    """The integer of 64 bits that pydantic reads from ``value``, None if it refuses it."""
    try:
        return _INTEGER.validate_python(value)
    except ValidationError:
        return None


def override(settings: dict[str, Any], key: str, value: Any) -> None:
    """Set ``key`` (``a.b`` for b in a) in nested settings, in place.

    >>> settings = {"attack": "scaling"}
    >>> override(settings, "attack.factor", 5)
    >>> settings
    {'attack': {'name': 'scaling', 'factor': 5}}

    Raises:
        ParameterError: If ``a`` is neither a mapping nor a name, or the key has too many levels.
    """
    *parents, last = key.split(".")
    if len(parents) >= _MAX_LEVELS:
        raise ParameterError(f"can't set {shown(key)}: more than {_MAX_LEVELS} levels")
    for parent in parents:
        below = settings.get(parent, {})
        if isinstance(below, str):
            below = {"name": below}
        if not isinstance(below, dict):
            raise ParameterError(f"can't set {key}: {parent} is {shown(below)}")
        settings[parent] = settings = dict(below)
    settings[last] = value


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` over ``below``, key by key; parameters below are dropped where ``above`` names another component.

    >>> merged({"attack": {"name": "scaling", "factor": 5}}, {"attack": {"size": 2}})
    {'attack': {'name': 'scaling', 'factor': 5, 'size': 2}}
    >>> merged({"attack": {"name": "scaling", "factor": 5}}, {"attack": "min-max"})
    {'attack': 'min-max'}
    """
    result = dict(below)
    for key, new in above.items():
        old = result.get(key)
        if isinstance(old, Mapping) or isinstance(new, Mapping):
            lower, upper = as_component(old), as_component(new)
            if (
                isinstance(lower, Mapping)
                and isinstance(upper, Mapping)
                and upper.get("name", lower.get("name")) == lower.get("name")
            ):
                result[key] = merged(lower, upper)
                continue
        result[key] = new
    return result


def refuse_unknown(given: Mapping[str, Any], known: Mapping[str, Any], prefix: str) -> None:
    """Raise :class:`ParameterError` for the first key that is not ``known``; it lists the nearest ones."""
    for key in given:
        if key not in known:
            below = [
                f"{section}.{key}"
                for section in sorted(_SECTIONS.keys() & known.keys())
                if key in _SECTIONS[section].model_fields
            ]
            said = f"did you mean {' or '.join(below)}?" if below else hint(key, known)
            raise ParameterError(f"unknown setting {prefix}{printable(str(key)):.100}; {said}")


def in_words(error: Any) -> str:
    """One line for one of pydantic's errors."""
    where = printable(".".join(str(part) for part in error["loc"]))[:100]
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        known = ", ".join(_SECTIONS[str(error["loc"][0])].model_fields)
        near = nearest(error["loc"][-1], known.split(", "), cutoff=0.4)
        meant = f"did you mean {' or '.join(near)}? There" if near else "there"
        return f"unknown setting {where}; {meant} are {known}"
    if not where:
        return str(message)
    return f"{where}: {message}" + (
        "" if error["type"] in ("missing", "value_error") else f", got {shown(error['input'])}"
    )
