"""All figures of a report."""

import re
from collections.abc import Sequence
from pathlib import Path

from fedsieve.report.figures.curves import accuracy_against_share, accuracy_over_rounds, rates_over_rounds
from fedsieve.report.figures.heat_map import heat_map
from fedsieve.report.load import Run, differing, title
from fedsieve.report.tables import MEASURES, Grid


def draw_all(runs: Sequence[Run], grids: Sequence[Grid], folder: Path) -> int:
    """Accuracy and rates over rounds, accuracy against the share of malicious clients, and a heat map per table.

    Args:
        runs: All runs; curves are those of the first seed.
        grids: Their tables.
        folder: Where the pictures are written.

    Returns:
        The number of pictures.
    """
    drawn = 0
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
    for name, attacks in settings.items():
        lines = {a: {d: run.records for d, run in defenses.items()} for a, defenses in attacks.items()}
        accuracy_over_rounds(lines, folder / _file("accuracy", name))
        drawn += 1
        if any(r.false_positive_rate is not None for d in lines.values() for records in d.values() for r in records):
            rates_over_rounds(lines, folder / _file("rates", name))
            drawn += 1
    for name, by_attack in shares.items():
        several = {a: d for a, d in by_attack.items() if any(len(by_share) > 1 for by_share in d.values())}
        if several:
            accuracy_against_share(several, folder / _file("malicious", name))
            drawn += 1
    for grid in grids:
        cells = {
            (d, a): None if (c := grid.cells.get((d, a))) is None else c.mean
            for d in grid.defenses
            for a in grid.attacks
        }
        more_is_better = MEASURES[grid.measure][1]
        path = folder / _file(grid.measure, grid.title)
        heat_map(cells, path, f"{grid.title}\n{grid.heading}", low_is_good=not more_is_better)
        drawn += 1
    return drawn


def _file(kind: str, title: str) -> str:
    """The name of a picture's file."""
    return re.sub(r"[^a-z0-9.]+", "-", f"{kind}-{title}".lower()).strip("-")[:120] + ".png"
