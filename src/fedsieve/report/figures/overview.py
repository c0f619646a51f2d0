"""All figures of a report."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TypeVar

from fedsieve.report.figures.curves import accuracy_against_share, over_rounds
from fedsieve.report.figures.heat_map import heat_map
from fedsieve.report.figures.panels import PANELS, Styles, Width
from fedsieve.report.grid import MEASURES, Grid, about, one_of_each_seed, printed
from fedsieve.report.load import Run
from fedsieve.report.names import ATTACKS, ordered
from fedsieve.report.settings import titles
from fedsieve.report.text import counted

_T = TypeVar("_T")
_FIELDS = {
    "accuracy": "test_accuracy",
    "success": "attack_success_rate",
    "benign-rejected": "false_positive_rate",
    "malicious-missed": "false_negative_rate",
}


def draw_all(runs: Sequence[Run], grids: Sequence[Grid], folder: Path, width: Width | None = None) -> int:
    """Accuracy and rates over rounds, accuracy against the share of malicious clients, and a heat map per table.

    Curves are means over seeds, of finished runs where there are any; a defense looks alike in all pictures. Where
    there are more defenses than styles, or more attacks than panels, there are several pictures.

    Args:
        runs: All runs.
        grids: Their tables.
        folder: Where the pictures are written.
        width: Of all pictures but heat maps; by default a column for one panel and a page for more.

    Returns:
        The number of pictures, each of them in three formats.
    """
    known = [run for run in runs if run.experiment is not None and run.records]
    styles = Styles.of(run.defense for run in known)
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in known:
        groups.setdefault(tuple(run.setting.items()), []).append(run)
    settings = [members[0].setting for members in groups.values()]
    file = _Files(folder)
    for name, setting, members in zip(titles(settings), settings, groups.values(), strict=True):
        above = f"{printed(setting, settings)}, {about(members)}"
        for names in styles.groups():
            cells = _cells([run for run in members if run.defense in names])
            for kind, field in _FIELDS.items():
                some = {
                    attack: {d: seeds for d, seeds in lines.items() if any(_has(run, field) for run in seeds)}
                    for attack, lines in cells.items()
                }
                for part in _parts({attack: lines for attack, lines in some.items() if lines}, width):
                    records = {a: {d: [r.records for r in s] for d, s in lines.items()} for a, lines in part.items()}
                    over_rounds(records, field, file(kind, name), styles, above, width)
    _against_shares(known, styles, file, width)
    for grid in grids:
        rates = {
            (d, a): None if (c := grid.cells.get((d, a))) is None else c.mean
            for d in grid.defenses
            for a in grid.attacks
        }
        if len(grid.defenses) > 1 and len(grid.attacks) > 1 and any(rate is not None for rate in rates.values()):
            above = f"{grid.printed}, {grid.about}. {grid.heading}"
            heat_map(rates, file(grid.measure, grid.title), above, low_is_good=not MEASURES[grid.measure][1])
    return len(file.made)


def _has(run: Run, field: str) -> bool:
    return len(run.digest.curves[field][0]) > 0


def _cells(runs: Sequence[Run]) -> dict[str, dict[str, list[Run]]]:
    """Runs that differ in attack, defense and seed, by attack and defense; without unfinished ones beside finished."""
    found: dict[str, dict[str, list[Run]]] = {}
    for attack in ordered((run.attack for run in runs), ATTACKS):
        here = [run for run in runs if run.attack == attack]
        for defense in Styles.of(run.defense for run in here).names:
            seeds = one_of_each_seed([run for run in here if run.defense == defense])
            found.setdefault(attack, {})[defense] = [run for run in seeds if run.finished] or seeds
    return found


def _against_shares(runs: Sequence[Run], styles: Styles, file: "_Files", width: Width | None) -> None:
    """Accuracy against the share of malicious clients, for settings that differ in nothing else."""
    shares: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        if run.experiment is not None and run.experiment.n_malicious and run.truth:
            shares.setdefault(tuple(item for item in run.setting.items() if item[0] != "malicious"), []).append(run)
    settings = [dict(rest) for rest in shares]
    for name, setting, members in zip(titles(settings), settings, shares.values(), strict=True):
        by_share: dict[float, list[Run]] = {}
        for run in members:
            if (e := run.experiment) is not None and run.finished:
                by_share.setdefault(e.n_malicious / e.clients, []).append(run)
        found: dict[str, dict[str, list[tuple[float, Run]]]] = {}
        for share, here in sorted(by_share.items()):
            for attack, lines in _cells(here).items():
                for defense, seeds in lines.items():
                    found.setdefault(attack, {}).setdefault(defense, []).extend((share, run) for run in seeds)
        several = {
            attack: {d: points for d, points in lines.items() if len({share for share, _ in points}) > 1}
            for attack, lines in found.items()
        }
        e = members[0].experiment
        size = f", {counted(e.clients, 'client')}, {counted(e.rounds, 'round')}" if e else ""
        for names in styles.groups():
            drawn = {a: {d: points for d, points in lines.items() if d in names} for a, lines in several.items()}
            for part in _parts({attack: lines for attack, lines in drawn.items() if lines}, width):
                accuracy_against_share(part, file("malicious", name), styles, printed(setting, settings) + size, width)


def _parts(panels: Mapping[str, _T], width: Width | None) -> Iterator[dict[str, _T]]:
    """The panels in groups, each for a figure of its own."""
    names, most = list(panels), PANELS[width or "page"]
    for start in range(0, len(names), most):
        yield {name: panels[name] for name in names[start : start + most]}


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
