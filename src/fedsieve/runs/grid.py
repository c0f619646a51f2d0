"""Grids: settings of an experiment in which a list stands for several experiments."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import FedSieveError, ParameterError

# Sections in which no setting is a list itself, so that a list there is an axis of the grid.
_SECTIONS = ("local", "server", "root")


def expand(grid: Mapping[str, Any]) -> list[Experiment]:
    """Every combination of the lists in a grid of settings, each experiment once.

    Lists are axes at the top level and in ``local``, ``server`` and ``root``; elsewhere, as in
    ``{"name": "mlp", "hidden": [64, 32]}``, they are values. A chain of defenses is a list in a list.

    Raises:
        FedSieveError: For the first combination that is not a valid experiment, with its settings.

    >>> len(expand({"attack": ["none", "min-max"], "seed": [0, 1]}))
    4
    """
    axes: list[tuple[tuple[str, ...], Sequence[Any]]] = []
    for key, value in grid.items():
        if isinstance(value, list):
            axes.append(((key,), value))
        elif key in _SECTIONS and isinstance(value, Mapping):
            axes += [((key, name), inner) for name, inner in value.items() if isinstance(inner, list)]
    for path, values in axes:
        if not values:
            raise ParameterError(f"{'.'.join(path)} is an empty list: give it at least one value")
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
            said = ", ".join(f"{'.'.join(path)}={value}" for (path, _), value in zip(axes, choice, strict=True))
            raise ParameterError(f"{said}: {error}" if said else str(error)) from error
        found.setdefault(experiment.key, experiment)
    return list(found.values())
