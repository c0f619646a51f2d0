"""One self-contained HTML file to browse runs; it needs no network and no server.

The files in ``html/`` are joined: template, style, scripts, and the data as JSON, which are written run by run.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from fedsieve.core.records import RoundRecord, client_behind
from fedsieve.report import damage, flags
from fedsieve.report.digest import Curve, spaced, thin
from fedsieve.report.escaping import json_in_html, shortened
from fedsieve.report.load import Run
from fedsieve.report.settings import differing
from fedsieve.report.stored import Rounds, Stored
from fedsieve.report.tables import problems
from fedsieve.report.text import as_command

# Maps and scatter plots: at most so many characters of the page each, and so many rounds of a run.
_MAP_BUDGET = _SCATTER_BUDGET = 12_000_000
_SCATTER_ROUNDS = 60
_MAP_CLIENTS = 8000  # browsers draw no higher canvas than two pixels for each of these
_POINTS = 200
_REASON = 200  # characters of a reason
_SCRIPTS = ("common.js", "overview.js", "damage.js", "run.js")
_SHORT = {
    "accuracy": "late_test_accuracy",
    "success": "attack_success_rate",
    "fpr": "false_positive_rate",
    "fnr": "false_negative_rate",
    "worst_success": "worst_attack_success_rate",
}
_CURVES = {
    "accuracy": "test_accuracy",
    "success": "attack_success_rate",
    "fpr": "false_positive_rate",
    "fnr": "false_negative_rate",
}


def write_page(runs: Sequence[Run], path: Path) -> None:
    """Write everything about these runs to one HTML file; it replaces an older one only once it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    before, after = template().split("/*DATA*/")
    try:
        with new.open("w", encoding="utf-8") as file:
            file.write(before)
            file.writelines(_data(runs))
            file.write(after)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def template() -> str:
    """The page without data: ``/*DATA*/`` stands where they belong."""
    folder = files("fedsieve.report").joinpath("html")
    page, style, *scripts = (
        folder.joinpath(name).read_text(encoding="utf-8") for name in ("page.html", "style.css", *_SCRIPTS)
    )
    return page.replace("/*STYLE*/", style.strip()).replace("/*SCRIPT*/", "\n".join(scripts).strip())


def _data(runs: Sequence[Run]) -> Iterator[str]:
    """The page's JSON in parts, one for each run."""
    known = sorted((run for run in runs if run.experiment is not None), key=_seed)
    compared = damage.compare(runs)
    content = {
        "version": version("fedsieve"),
        "filters": differing([run.setting for run in known]),
        "problems": problems(runs),
        "flags": [flag.as_json() for flag in flags.flags(runs, compared)],
        "damage": [{"setting": row.setting, "fields": row.fields()} for row in damage.rows(runs, compared)],
        "styles": len(names := sorted({_name(run) for run in known})),
    }
    styles = {name: k for k, name in enumerate(names)}
    mapped = max(1, sum(run.digest.decided_from is not None for run in known))
    drawn = max(1, sum(len(run.digest.diagnosed) > 0 for run in known))
    yield json_in_html(content).removesuffix("}") + ',"runs":['
    for k, run in enumerate(known):
        found = {**_run(run, _MAP_BUDGET // mapped, _SCATTER_BUDGET // drawn), "style": str(styles[_name(run)])}
        found["damage"] = json_in_html(_damage(run, compared.get(run.path)))
        yield ("," if k else "") + "{" + ",".join(f'"{key}":{value}' for key, value in found.items()) + "}"
    yield "]}"


def _seed(run: Run) -> int:
    return run.experiment.seed if run.experiment else 0


def _name(run: Run) -> tuple[Any, ...]:
    """What a curve is named after, in any cell of the table: the run's settings and seed."""
    return (*sorted(run.setting.items()), _seed(run))


def _run(run: Run, map_budget: int, scatter_budget: int) -> dict[str, str]:
    """One run; each value is JSON, so that little is held in memory."""
    e = run.experiment
    assert e is not None
    problem = run.problems[0] if run.problems else ""
    in_map, in_scatter = _positions(run, e.clients, map_budget, scatter_budget)
    rows: list[RoundRecord] = []
    plots: list[str] = []
    for k, record in _at(run.records, {*in_map, *in_scatter}):
        if k in in_map:
            rows.append(replace(record, diagnosis=None))
        if k in in_scatter:
            plots.append(json_in_html(_round(record)))
    content = {
        "attack": run.attack,
        "defense": run.defense,
        "seed": e.seed,
        "setting": run.setting,
        "done": run.finished,
        "state": "" if run.finished else problem.partition(":")[0] or "unfinished",
        "note": "; ".join(filter(None, (problem, *run.notes))),
        "rounds": run.digest.rounds,
        "summary": {name: _rounded(run.summary[full]) for name, full in _SHORT.items()},
        "curves": {name: curve for name, full in _CURVES.items() if (curve := _curve(run.digest.curves[full]))},
        "map": _map(rows, e.clients),
        "sampled": len(plots) < run.digest.n_diagnosed,
        "command": as_command(e),
    }
    return {**{key: json_in_html(value) for key, value in content.items()}, "scatter": f"[{','.join(plots)}]"}


def _damage(run: Run, compared: damage.Against | None) -> dict[str, Any]:
    """A run's damage in words, and the two numbers of it that the overview shows."""
    lost = None if compared is None else compared.damage
    return {
        "text": damage.said(run, compared),
        "lost": None if lost is None else _rounded(lost.mean),
        "worst_lost": None if lost is None else _rounded(lost.worst),
    }


def _at(records: Rounds, positions: set[int]) -> Iterator[tuple[int, RoundRecord]]:
    """The records at these positions, in order, one at a time."""
    found = records.at(positions) if isinstance(records, Stored) else (records[k] for k in sorted(positions))
    return zip(sorted(positions), found, strict=False)


def _positions(run: Run, n_clients: int, map_budget: int, scatter_budget: int) -> tuple[set[int], set[int]]:
    """Rounds of the map and of the scatter plots: evenly spaced, as many as fit in the budgets at the last one's size.

    None of them if a single one is larger than the whole page should be.
    """
    rounds, seen = run.digest.rounds, run.digest.diagnosed

    def fitting(budget: int, most: int, last: dict[str, Any] | None) -> int:
        size = len(json_in_html(last))
        return min(most, max(1, budget // size)) if size < _SCATTER_BUDGET else 0

    in_map: set[int] = set()
    if rounds and run.digest.decided_from is not None:
        for _, record in _at(run.records, {rounds - 1}):
            if len(record.clients) <= _MAP_CLIENTS:
                in_map = set(spaced(rounds, fitting(map_budget, _POINTS, _map([record], n_clients))))
    in_scatter: set[int] = set()
    for _, record in _at(run.records, set(seen[-1:])):
        in_scatter = {seen[k] for k in spaced(len(seen), fitting(scatter_budget, _SCATTER_ROUNDS, _round(record)))}
    return in_map, in_scatter


def _curve(curve: Curve) -> list[list[float]] | None:
    """Rounds and values, at most :data:`_POINTS`, evenly spaced, the last one included."""
    rounds, values = (thin(part, _POINTS) for part in curve)
    return [[float(k) for k in rounds], [round(v, 4) for v in values]] if rounds else None


def _map(shown: Sequence[RoundRecord], n_clients: int) -> dict[str, Any] | None:
    """Rejected clients by round, None for a round without a decision.

    A client that takes new ids keeps the line of its first one. None as a whole if there is no decision, or if there
    are more clients than a canvas has room for.
    """
    if not any(record.rejected is not None for record in shown):
        return None

    def behind(ids: Sequence[int]) -> list[int]:
        return [client_behind(seen, n_clients) for seen in ids]

    clients = sorted({client for record in shown for client in behind(record.clients)})
    if len(clients) > _MAP_CLIENTS:  # where other clients are drawn every round
        return None
    everyone = all(len(record.clients) == len(clients) for record in shown)
    return {
        "clients": clients,
        "malicious": sorted({client for record in shown for client in behind(record.malicious)}),
        "rejected": [None if record.rejected is None else behind(record.rejected) for record in shown],
        "present": None if everyone else [behind(record.clients) for record in shown],
    }


def _round(record: RoundRecord) -> dict[str, Any]:
    seen = record.diagnosis
    assert seen is not None
    return {
        "round": record.round,
        "clients": list(record.clients),
        "malicious": list(record.malicious),
        "rejected": list(record.rejected or ()),
        "points": _points(seen.coordinates),
        "updates": _points(seen.updates or ()),
        "root": None if seen.root is None else list(seen.root),
        "reasons": [shortened(reason, _REASON) for reason in seen.reasons],
    }


def _points(coordinates: Sequence[tuple[float | None, float | None]]) -> list[list[float] | None]:
    return [None if x is None or y is None else [x, y] for x, y in coordinates]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
