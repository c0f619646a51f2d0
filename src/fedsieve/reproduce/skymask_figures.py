"""Figures 1 and 3 to 8 of Yan et al., SkyMask, ECCV 2024, with ``sieve`` beside ``skymask``."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedsieve.report import figures
from fedsieve.report.stored import Rounds
from fedsieve.reproduce.plan import Plan, Row, Runs, Scale, Suite, defenses
from fedsieve.reproduce.skymask_setup import (
    ATTACKS,
    DETECTORS,
    DETECTORS_NOTE,
    DETECTORS_SMOKE,
    GROUPS,
    note,
    rows,
    typical_attacks,
)

_BOTH = defenses("skymask", "sieve")


def _note(scale: Scale) -> str:
    """Figures show one seed at every scale."""
    return note(scale, papers="one seed")


def _figure1(scale: Scale) -> Plan:
    """Min-Sum after some rounds: principal components of the updates and of the masks."""
    return Plan(
        rows(scale, GROUPS[:1], {"fashion-mnist": 20}, ("none", "min-sum"), rounds=20), _BOTH, note=_note(scale)
    )


def _figure3(scale: Scale) -> Plan:
    """The share of each layer that masks keep, of malicious and of benign clients."""
    found = rows(scale, GROUPS[:1], {"fashion-mnist": 20}, ("label-flip", "scaling"), rounds=20)
    return Plan(found, _BOTH, note=_note(scale))


def _figure4(scale: Scale) -> Plan:
    attacks = tuple(ATTACKS)[1:] if scale != "small" else ("label-flip", "min-sum", "scaling")
    found: list[Row] = []
    for fraction in (0.4, 0.6, 0.8):
        # the bounds on malicious clients of the other aggregators do not hold beyond one half
        shown = None if fraction < 0.5 else ("skymask", "sieve", "fltrust", "mean")
        found += [
            replace(row, group=f"{fraction:.0%} malicious", columns=shown)
            for row in rows(scale, GROUPS[:1], {"fashion-mnist": 30}, attacks, malicious=fraction)
        ]
    columns = defenses("skymask", "sieve", "fltrust", "mean", "trimmed-mean", "krum")
    return Plan(tuple(found), columns, note=_note(scale))


def _figure5(scale: Scale) -> Plan:
    attacks = ("fang-krum", "min-sum", "label-flip")
    more = DETECTORS_SMOKE if scale == "smoke" else {}
    found = rows(scale, GROUPS[:1], {"fashion-mnist": 40}, attacks, evaluate_every=1, **more)
    return Plan(found, {**_BOTH, **DETECTORS}, note=f"{_note(scale)} {DETECTORS_NOTE}")


def _figure6(scale: Scale) -> Plan:
    names = GROUPS[:4] if scale == "paper" else GROUPS[:1]
    columns = {f"p = {p}": {"root": {"bias": p}} for p in (0.1, 0.2, 0.4, 0.6, 0.8, 0.95)}
    found = [
        replace(row, label=f"{row.label}, {defense}", settings={**row.settings, "defense": defense})
        for row in rows(scale, names, {"fashion-mnist": 24}, typical_attacks(scale))
        for defense in _BOTH
    ]
    return Plan(tuple(found), columns, note=_note(scale))


def _figure7(scale: Scale) -> Plan:
    plan = _figure6(scale)
    found = tuple(row for row in plan.rows if row.group == plan.rows[0].group)
    return Plan(found, {k: v for k, v in plan.columns.items() if k != "p = 0.95"}, note=plan.note)


def _figure8(scale: Scale) -> Plan:
    numbers = (2, 3, 5, 10, 15)
    columns = {f"skymask, d = {d}": {"defense": {"name": "skymask", "n_components": d}} for d in numbers}
    found = rows(scale, GROUPS[:1], {"fashion-mnist": 24}, typical_attacks(scale))
    said = f"{_note(scale)} `sieve` has no such parameter; its column is for comparison."
    return Plan(found, {**columns, **defenses("sieve")}, note=said)


# --- Pictures -----------------------------------------------------------------------------------------------


def _labelled(plan: Plan, runs: Runs) -> dict[str, dict[str, list[Rounds]]]:
    """Records of all seeds by row (with its group, if there are several) and column."""
    several = len({row.group for row in plan.rows}) > 1
    found: dict[str, dict[str, list[Rounds]]] = {}
    for (group, row, column, _), experiment in plan.cells().items():
        if experiment.key in runs:
            lines = found.setdefault(f"{row}, {group}" if several else row, {})
            lines.setdefault(column, []).append(runs[experiment.key])
    return found


def _over_rounds(plan: Plan, runs: Runs, path: Path) -> None:
    figures.accuracy_over_rounds(_labelled(plan, runs), path)


def _with_failures(plan: Plan, runs: Runs, path: Path) -> None:
    figures.accuracy_over_rounds(_labelled(plan, runs), path, failures=True)


def _against(plan: Plan, runs: Runs, path: Path) -> None:
    figures.rates_against({row: _numbered(lines) for row, lines in _labelled(plan, runs).items()}, path)


def _numbered(lines: Mapping[str, Any]) -> dict[str, Any]:
    """The columns with a number, without the name of the defense before it: ``skymask, d = 2`` as ``d = 2``."""
    return {column.rpartition(", ")[2]: records for column, records in lines.items() if "=" in column}


def _scatter(plan: Plan, runs: Runs, path: Path) -> None:
    found = {row: {column: seeds[0] for column, seeds in lines.items()} for row, lines in _labelled(plan, runs).items()}
    figures.mask_scatter(found, path)


def _layers(plan: Plan, runs: Runs, path: Path) -> None:
    found = {f"{row}, {column}": r[0] for row, lines in _labelled(plan, runs).items() for column, r in lines.items()}
    figures.layers_kept(found, path)


_ALL = ("accuracy", "success", "fpr", "fnr")
FIGURES = (
    Suite("figure1", "SkyMask's figure 1: updates and masks in two dimensions", _figure1, _ALL[2:], draw=_scatter),
    Suite("figure3", "SkyMask's figure 3: what masks keep of each layer", _figure3, _ALL[2:], draw=_layers),
    Suite("figure4", "SkyMask's figure 4: 40, 60 and 80 % malicious clients", _figure4, _ALL, draw=_over_rounds),
    Suite("figure5", "SkyMask's figure 5: accuracy and failed detection", _figure5, _ALL, draw=_with_failures),
    Suite("figure6", "SkyMask's figure 6: a biased root dataset", _figure6, _ALL, draw=_against),
    Suite("figure7", "SkyMask's figure 7: convergence with a biased root dataset", _figure7, _ALL, draw=_over_rounds),
    Suite("figure8", "SkyMask's figure 8: the number of principal components", _figure8, _ALL, draw=_against),
)
