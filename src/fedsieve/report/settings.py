"""Recorded settings as text: what differs from the defaults.

Nothing that the settings name is imported or built, since they may be a stranger's: defaults are those of the
components that this package brings, read from their sources; of any other component, all parameters are shown.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from fedsieve.config import registry
from fedsieve.config.catalog import described
from fedsieve.config.experiment import Experiment, usual_assumed_malicious, usual_evaluate_every
from fedsieve.config.settings import Component, Frozen

# Columns, rows and cells of a table.
_OF_A_CELL = ("attack", "defense", "seed")
# Told whatever they are, in this order.
_ALWAYS = ("dataset", "model", "partition", "clients", "malicious", "rounds", "knowledge", "clients_per_round")


def component(kind: str, value: Component, dataset: str = "") -> str:
    """A component's name, and its parameters that differ from the defaults for this dataset."""
    kind = f"{kind}s"
    default, given = _defaults(kind, value.name, dataset), value.parameters.items()
    said = ", ".join(f"{k}={v}" for k, v in given if k not in default or not _same(kind, v, default[k], dataset))
    return f"{value.name} ({said})" if said else value.name


@cache
def _defaults(kind: str, name: str, dataset: str) -> Mapping[str, Any]:
    """Default parameters of a component, or by stage those of a chain; empty for one of another package."""
    if "," in name:
        return {stage: _defaults(kind, stage, dataset) for stage in map(str.strip, name.split(","))}
    entry = described(kind, name)
    if entry is None:
        return {}
    usual = _dataset_defaults(dataset).get(f"{kind[:-1]}_parameters", {}).get(name, {})
    return {**entry.parameters, **usual}


def _dataset_defaults(name: str) -> Mapping[str, Any]:
    """Settings that suit a dataset of this package; empty for any other."""
    if described("datasets", name) is None:
        return {}
    return getattr(registry.load("datasets", name), "defaults", {})


def _same(kind: str, value: Any, default: Any, dataset: str) -> bool:
    """Whether a recorded value is the default one, which states parts that are components by name alone."""
    if isinstance(value, Mapping) and isinstance(default, str):
        default = {"name": default, **_defaults(kind, default, dataset)}
    if isinstance(value, Mapping) and isinstance(default, Mapping):
        return value.keys() == default.keys() and all(_same(kind, value[k], default[k], dataset) for k in value)
    if isinstance(value, list | tuple) and isinstance(default, list | tuple):
        pairs = zip(value, default, strict=False)
        return len(value) == len(default) and all(_same(kind, v, d, dataset) for v, d in pairs)
    return bool(value == default)


def setting(experiment: Experiment) -> dict[str, str]:
    """All settings but attack, defense and seed, as text; but for the first few, only what is not the default.

    Some defaults follow from other settings: where the attack has to know the defense, ``knows_defense`` is no choice.
    """
    e = experiment
    usual = {
        "knows_defense": any(map(_needs_defense, names(e.attack.model_dump(mode="json")))),
        "assumed_malicious": usual_assumed_malicious(e.clients, e.malicious, e.clients_per_round),
        "evaluate_every": usual_evaluate_every(e.rounds),
    }
    found: dict[str, str] = {}
    for name in dict.fromkeys((*_ALWAYS, *Experiment.model_fields)):
        value, key = getattr(e, name), name.replace("_", " ")
        default = usual.get(name, Experiment.model_fields[name].default)
        if isinstance(value, Frozen):
            values, defaults = value.model_dump(), type(value)().model_dump()
            found |= {f"{key} {k}": str(v) for k, v in values.items() if v != defaults.get(k)}
        elif name not in _OF_A_CELL and (name in _ALWAYS or value != default):
            found[key] = component(name, value) if isinstance(value, Component) else str(value)
    return found


def names(value: Any) -> Iterator[str]:
    """Names of a component and of its parts, however they are nested, in settings as a file has them."""
    if isinstance(value, Mapping):
        if isinstance(name := value.get("name"), str):
            yield name
        value = list(value.values())
    for item in value if isinstance(value, list) else []:
        yield from names(item)


@cache
def _needs_defense(attack: str) -> bool:
    """Whether an attack of this package has to know the defense; False for any other."""
    entry = described("attacks", attack)
    return entry is not None and "defense" in entry.traits.needs


def title(found: Mapping[str, str], keys: Sequence[str]) -> str:
    """The values of these keys in one line."""
    return ", ".join(found[key] if key == "dataset" else f"{key} {found.get(key, 'default')}" for key in keys)


def differing(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """Keys whose values differ between settings; the dataset always."""
    keys = dict.fromkeys(key for found in settings for key in found)
    return [key for key in keys if key == "dataset" or len({found.get(key, "default") for found in settings}) > 1]


def titles(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """The title of each by what differs among the settings of its dataset: no two that differ have the same.

    >>> small, large = ({"dataset": "har", "model": name} for name in ("mlp", "cnn"))
    >>> titles([small, large, {"dataset": "digits", "model": "cnn"}])
    ['har, model mlp', 'har, model cnn', 'digits']
    """
    alike: dict[str, list[Mapping[str, str]]] = {}
    for found in settings:
        alike.setdefault(found["dataset"], []).append(found)
    keys = {dataset: differing(members) for dataset, members in alike.items()}
    return [title(found, keys[found["dataset"]]) for found in settings]


@cache
def default_settings(dataset: str, attack: str, defense: str) -> Mapping[str, Any]:
    """All settings of an experiment with these components; of another package's, nothing but the name is known."""
    names = {"dataset": {"name": dataset}, "attack": {"name": attack}, "defense": {"name": defense}}
    if described("datasets", dataset) is None:
        return names
    ours = {
        "attack": described("attacks", attack) is not None,
        "defense": all(described("defenses", stage.strip()) is not None for stage in defense.split(",")),
    }
    usual = {"dataset": dataset, "attack": "none", "defense": "mean"}
    chosen = {**usual, **{kind: names[kind]["name"] for kind, known in ours.items() if known}}
    default = Experiment.of({**chosen, "knows_defense": True}).model_dump(mode="json")
    return {**default, **{kind: names[kind] for kind, known in ours.items() if not known}, "knows_defense": False}
