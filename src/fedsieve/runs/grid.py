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


def axes(grid: Mapping[Any, Any]) -> dict[tuple[Any, ...], Sequence[Any]]:
    """The lists in a grid that stand for several experiments, by their path; see :func:`expand`.

    >>> axes({"attack": "none", "seed": [0, 1], "local": {"steps": [1, 5]}})
    {('seed',): [0, 1], ('local', 'steps'): [1, 5]}
    """
    found: dict[tuple[Any, ...], Sequence[Any]] = {}  # of a file, whose keys may be anything
    for key, value in grid.items():
        if isinstance(value, list):
            found[key,] = value
        elif key in _SECTIONS and isinstance(value, Mapping):
            found |= {(key, name): inner for name, inner in value.items() if isinstance(inner, list)}
    return found


def several(settings: Mapping[str, Any]) -> list[str]:
    """Names of the lists that make settings a grid, where one experiment is expected and so a list of defenses a chain.

    >>> several({"defense": ["skymask", "mean"]}), several({"seed": [0, 1]})
    ([], ['seed'])
    """
    return [
        ".".join(map(str, path))
        for path, values in axes(settings).items()
        if path != ("defense",) or any(isinstance(value, list) for value in values)
    ]


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
    lists = axes(grid)
    names = [".".join(map(str, path)) for path in lists]
    for name, values in zip(names, lists.values(), strict=True):
        if not values:
            raise ParameterError(f"{name} is an empty list: give it at least one value")
    if (size := prod(map(len, lists.values()))) > MOST_CELLS:
        lengths = sorted(
            ((len(values), name) for name, values in zip(names, lists.values(), strict=True)), reverse=True
        )
        raise ParameterError(
            f"the grid has {f'{size:,}' if size < 10**18 else 'over 10^18'} combinations "
            f"({', '.join(f'{length:,} of {name}' for length, name in lengths[:6])}), "
            f"a sweep takes {MOST_CELLS:,}: make several grids of it"
        )
    found: dict[str, Experiment] = {}
    for choice in product(*lists.values()):
        settings: dict[str, Any] = {
            key: dict(value) if isinstance(value, Mapping) else value for key, value in grid.items()
        }
        for path, value in zip(lists, choice, strict=True):
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
