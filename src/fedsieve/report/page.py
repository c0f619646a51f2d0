"""One self-contained HTML file to browse runs; it needs no network and no server.

The files in ``html/`` are joined: template, style, scripts, and the data as JSON.
"""

import json
from collections.abc import Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from fedsieve.core.records import RoundRecord
from fedsieve.report.load import Run, differing
from fedsieve.report.tables import problems
from fedsieve.report.text import as_command

# Scatter plots: at most so many characters of the page, and so many rounds of a run.
_SCATTER_BUDGET = 12_000_000
_SCATTER_ROUNDS = 60
_CURVE_POINTS = 200
_SCRIPTS = ("common.js", "overview.js", "run.js")
_SHORT = {
    "accuracy": "late_test_accuracy",
    "success": "attack_success_rate",
    "fpr": "false_positive_rate",
    "fnr": "false_negative_rate",
}
_CURVES = {
    "accuracy": "test_accuracy",
    "success": "attack_success_rate",
    "fpr": "false_positive_rate",
    "fnr": "false_negative_rate",
}


def write_page(runs: Sequence[Run], path: Path) -> None:
    """Write everything about these runs to one HTML file."""
    known = [run for run in runs if run.experiment is not None]
    drawn = sum(any(r.diagnosis for r in run.records) for run in known)
    budget = _SCATTER_BUDGET // max(1, drawn)
    content = {
        "version": version("fedsieve"),
        "filters": differing([run.setting for run in known]),
        "problems": problems(runs),
        "runs": [_run(run, budget) for run in sorted(known, key=_seed)],
    }
    text = json.dumps(content, allow_nan=False, separators=(",", ":")).replace("</", "<\\/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(template().replace("/*DATA*/", text), encoding="utf-8")


def template() -> str:
    """The page without data: ``/*DATA*/`` stands where they belong."""
    folder = files("fedsieve.report").joinpath("html")
    page, style, *scripts = (
        folder.joinpath(name).read_text(encoding="utf-8") for name in ("page.html", "style.css", *_SCRIPTS)
    )
    return page.replace("/*STYLE*/", style.strip()).replace("/*SCRIPT*/", "\n".join(scripts).strip())


def _seed(run: Run) -> int:
    return run.experiment.seed if run.experiment else 0


def _run(run: Run, budget: int) -> dict[str, Any]:
    e = run.experiment
    assert e is not None
    problem = run.problems[0] if run.problems else ""
    scatter, sampled = _scatter(run.records, budget)
    return {
        "attack": run.attack,
        "defense": run.defense,
        "seed": e.seed,
        "setting": run.setting,
        "done": run.finished,
        "state": "" if run.finished else problem.partition(":")[0] or "unfinished",
        "note": problem,
        "rounds": len(run.records),
        "summary": {name: _rounded(run.summary[full]) for name, full in _SHORT.items()},
        "curves": {name: curve for name, full in _CURVES.items() if (curve := _curve(run.records, full))},
        "map": _map(run.records),
        "scatter": scatter,
        "sampled": sampled,
        "command": as_command(e),
    }


def _curve(records: Sequence[RoundRecord], field: str) -> list[list[float]] | None:
    """Rounds and values, at most :data:`_CURVE_POINTS`, evenly spaced, the last one included."""
    points = [(r.round, _rounded(getattr(r, field))) for r in records if getattr(r, field) is not None]
    if not points:
        return None
    chosen = [points[k] for k in _spaced(len(points), _CURVE_POINTS)]
    return [[float(r) for r, _ in chosen], [v or 0.0 for _, v in chosen]]


def _map(records: Sequence[RoundRecord]) -> dict[str, Any] | None:
    """Rejected clients by round, None for a round without a decision; None as a whole if there is no decision."""
    shown = [records[k] for k in _spaced(len(records), _CURVE_POINTS)]
    if not any(record.rejected is not None for record in shown):
        return None
    clients = sorted({client for record in shown for client in record.clients})
    everyone = all(len(record.clients) == len(clients) for record in shown)
    return {
        "clients": clients,
        "malicious": sorted({client for record in shown for client in record.malicious}),
        "rejected": [None if record.rejected is None else list(record.rejected) for record in shown],
        "present": None if everyone else [list(record.clients) for record in shown],
    }


def _scatter(records: Sequence[RoundRecord], budget: int) -> tuple[list[dict[str, Any]], bool]:
    """Scatter plots of evenly spaced rounds, as many as fit in the budget; and whether some are left out."""
    seen = [record for record in records if record.diagnosis is not None]
    if not seen:
        return [], False
    size = len(json.dumps(_round(seen[-1]), separators=(",", ":")))
    chosen = _spaced(len(seen), min(_SCATTER_ROUNDS, max(1, budget // size)))
    return [_round(seen[k]) for k in chosen], len(chosen) < len(seen)


def _round(record: RoundRecord) -> dict[str, Any]:
    seen = record.diagnosis
    assert seen is not None
    return {
        "round": record.round,
        "clients": list(record.clients),
        "rejected": list(record.rejected or ()),
        "points": _points(seen.coordinates),
        "updates": _points(seen.updates or ()),
        "root": None if seen.root is None else list(seen.root),
        "reasons": list(seen.reasons),
    }


def _points(coordinates: Sequence[tuple[float | None, float | None]]) -> list[list[float] | None]:
    return [None if x is None or y is None else [x, y] for x, y in coordinates]


def _spaced(n: int, most: int) -> list[int]:
    """At most ``most`` of n positions, evenly spaced, the last one included."""
    if n <= most:
        return list(range(n))
    return sorted({n - 1 - round(k * (n - 1) / max(1, most - 1)) for k in range(most)}) if most > 1 else [n - 1]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
