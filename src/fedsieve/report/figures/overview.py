"""All figures of a report."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TypeVar

from fedsieve.core.escaping import printable
from fedsieve.report.figures.curves import accuracy_against_share, accuracy_over_rounds, rates_over_rounds
from fedsieve.report.figures.heat_map import heat_map
from fedsieve.report.figures.panels import Styles
from fedsieve.report.load import Run
from fedsieve.report.settings import differing, title
from fedsieve.report.tables import MEASURES, Grid

_PANELS = 12  # of one figure
_T = TypeVar("_T")


def draw_all(runs: Sequence[Run], grids: Sequence[Grid], folder: Path) -> int:
    """Accuracy and rates over rounds, accuracy against the share of malicious clients, and a heat map per table.

    Args:
        runs: All runs; curves are those of the first seed, and a defense looks alike in all pictures.
        grids: Their tables.
        folder: Where the pictures are written.

    Returns:
        The number of pictures.
    """
    settings: dict[str, dict[str, dict[str, Run]]] = {}
    shares: dict[str, dict[str, dict[str, dict[str, Run]]]] = {}
    known = [(run, run.experiment) for run in runs if run.experiment is not None and run.records]
    keys = differing([run.setting for run, _ in known])
    for run, e in sorted(
        known, key=lambda pair: (pair[0].attack != "none", pair[0].attack, pair[0].defense, pair[1].seed)
    ):
        settings.setdefault(title(run.setting, keys), {}).setdefault(run.attack, {}).setdefault(run.defense, run)
        if e.n_malicious:
            rest = title(run.setting, [key for key in keys if key != "malicious"])
            share = f"{e.n_malicious / e.clients:.3g}"
            shares.setdefault(rest, {}).setdefault(run.attack, {}).setdefault(run.defense, {}).setdefault(share, run)
    styles = Styles.of(run.defense for run, _ in known)  # the same in every figure of this report
    file = _Files(folder)
    for name, attacks in settings.items():
        for part in _parts(attacks):
            lines = {a: {d: run.records for d, run in defenses.items()} for a, defenses in part.items()}
            accuracy_over_rounds(lines, file("accuracy", name), styles=styles)
            if any(run.digest.curves["false_positive_rate"][0] for line in part.values() for run in line.values()):
                rates_over_rounds(lines, file("rates", name), styles)
    for name, by_attack in shares.items():
        several = {a: d for a, d in by_attack.items() if any(len(by_share) > 1 for by_share in d.values())}
        for some in _parts(several):
            accuracy_against_share(some, file("malicious", name), styles)
    for grid in grids:
        cells = {
            (d, a): None if (c := grid.cells.get((d, a))) is None else c.mean
            for d in grid.defenses
            for a in grid.attacks
        }
        more_is_better = MEASURES[grid.measure][1]
        path = file(grid.measure, grid.title)
        heat_map(cells, path, f"{printable(grid.title)}\n{grid.heading}", low_is_good=not more_is_better)
    return len(file.made)


def _parts(panels: Mapping[str, _T]) -> Iterator[dict[str, _T]]:
    """The panels in groups of at most :data:`_PANELS`, each for a figure of its own."""
    names = list(panels)
    for start in range(0, len(names), _PANELS):
        yield {name: panels[name] for name in names[start : start + _PANELS]}


class _Files:
    """Paths of pictures in a folder, named after kind and title; no two alike."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: set[str] = set()

    def __call__(self, kind: str, title: str) -> Path:
        stem = re.sub(r"[^a-z0-9.]+", "-", f"{kind}-{title}".lower()).strip("-")[:120]
        name = next(n for k in count(1) if (n := stem if k == 1 else f"{stem}-{k}") not in self.made)
        self.made.add(name)
        return self.folder / f"{name}.png"
