"""Grids: settings of an experiment in which a list stands for several experiments."""

from collections.abc import Mapping, Sequence
from itertools import product
from math import prod
from typing import Any

from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import FedSieveError, ParameterError

# Sections in which no setting is a list itself, so that a list there is an axis of the grid.
_SECTIONS = ("local", "server", "root", "odd")
# A cell takes about a millisecond and some kilobytes before anything is run.
MOST_CELLS = 100_000


def expand(grid: Mapping[str, Any]) -> list[Experiment]:
    """Every combination of the lists in a grid of settings, each experiment once.

    Lists are axes at the top level and in ``local``, ``server``, ``root`` and ``odd``; elsewhere, as in
    ``{"name": "mlp", "hidden": [64, 32]}``, they are values. A chain of defenses is a list in a list.

    Raises:
        FedSieveError: If there are more than ``MOST_CELLS`` combinations; or for the first that is not a valid
            experiment, with its settings.

    >>> len(expand({"attack": ["none", "min-max"], "seed": [0, 1]}))
    4
    """
    axes: list[tuple[tuple[str, ...], Sequence[Any]]] = []
    for key, value in grid.items():
        if isinstance(value, list):
            axes.append(((key,), value))
        elif key in _SECTIONS and isinstance(value, Mapping):
            axes += [((key, name), inner) for name, inner in value.items() if isinstance(inner, list)]
    names = [".".join(map(str, path)) for path, _ in axes]
    for name, (_, values) in zip(names, axes, strict=True):
        if not values:
            raise ParameterError(f"{name} is an empty list: give it at least one value")
    if (size := prod(len(values) for _, values in axes)) > MOST_CELLS:
        lengths = sorted(((len(values), name) for name, (_, values) in zip(names, axes, strict=True)), reverse=True)
        raise ParameterError(
            f"the grid has {f'{size:,}' if size < 10**18 else 'over 10^18'} combinations "
            f"({', '.join(f'{length:,} of {name}' for length, name in lengths[:6])}), "
            f"a sweep takes {MOST_CELLS:,}: make several grids of it"
        )
    found: dict[str, Experiment] = {}
    for choice in product(*(values for _, values in axes)):
        settings: dict[str, Any] = {
            key: dict(value) if isinstance(value, Mapping) else value for key, value in grid.items()
        }
        for (path, _), value in zip(axes, choice, strict=True):
            below = settings if len(path) == 1 else settings[path[0]]
            below[path[-1]] = value
        try:
            experiment = Experiment.of(settings)
        except FedSieveError as error:
            said = ", ".join(f"{name}={_short(value)}" for name, value in zip(names, choice, strict=True))
            raise ParameterError(f"{said}: {error}" if said else str(error)) from error
        found.setdefault(experiment.key, experiment)
    return list(found.values())


def _short(value: Any) -> str:
    """A value in one line of an error message."""
    text = " ".join(str(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
