"""One self-contained HTML file to browse runs; it needs no network and no server.

The data are JSON, which is written run by run; the scripts in ``html/`` make tables and charts of them.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedsieve.core.records import RoundRecord, client_behind
from fedsieve.report import damage, flags
from fedsieve.report.digest import Curve, spaced, thin
from fedsieve.report.document import document, part
from fedsieve.report.escaping import json_in_html, shortened
from fedsieve.report.explained import EXPLAINED
from fedsieve.report.load import Run
from fedsieve.report.settings import differing, title
from fedsieve.report.stored import Rounds, Stored
from fedsieve.report.tables import problems
from fedsieve.report.text import as_command

# Maps and scatter plots: at most so many characters of the page each, and so many rounds of a run.
_MAP_BUDGET = _SCATTER_BUDGET = 12_000_000
_SCATTER_ROUNDS = 60
_MAP_CLIENTS = 8000  # of more clients no map is made
_POINTS = 200
_REASON, _NAME = 200, 60  # characters of a reason and of a client's name
_DATA = "/*DATA*/"
_SCRIPTS = ("overview.js", "compare.js", "run.js")
_SHORT = {
    "accuracy": "late_test_accuracy",
    "success": "attack_success_rate",
    "fpr": "false_positive_rate",
    "fnr": "false_negative_rate",
    "worst_success": "worst_attack_success_rate",
    "until": "rounds_until_detection",
    "rejected": "share_rejected",
}
_CURVES = {
    "accuracy": "test_accuracy",
    "success": "attack_success_rate",
    "fpr": "false_positive_rate",
    "fnr": "false_negative_rate",
}


def write_page(runs: Sequence[Run], path: Path) -> None:
    """Write everything about these runs to one HTML file; it replaces an older one only once it is complete.

    Raises:
        FedSieveError: If the package with the charts' library is not installed.
    """
    before, after = template().split(_DATA)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    try:
        with new.open("w", encoding="utf-8", newline="\n") as file:
            file.write(before)
            file.writelines(_data(runs))
            file.write(after)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def template() -> str:
    """The page with ``/*DATA*/`` where the data belong."""
    return document("FedSieve report", part("page.html").strip(), _SCRIPTS, _DATA)


def _data(runs: Sequence[Run]) -> Iterator[str]:
    """The page's JSON in parts, one for each run."""
    known = sorted((run for run in runs if run.experiment is not None), key=_seed)
    compared = damage.compare(runs)
    raised = flags.flags(runs, compared)
    settings = _Settings(known)
    names = list(dict.fromkeys(run.names for run in known if run.names))
    content = {
        "version": version("fedsieve"),
        "settings": settings.content(),
        "start": settings.start(),
        "defenses": sorted({run.defense for run in known}),
        "problems": problems(runs),
        "flags": [flag.as_json() for flag in raised],
        "explained": EXPLAINED,
        "damage": [{"in": settings.at(row.setting), "fields": row.fields()} for row in damage.rows(runs, compared)],
        "names": [[shortened(name, _NAME) for name in each] for each in names],
    }
    concerned: dict[str, list[int]] = {}
    for k, flag in enumerate(raised):
        for path in flag.runs:
            concerned.setdefault(path, []).append(k)
    mapped = max(1, sum(run.digest.decided_from is not None for run in known))
    drawn = max(1, sum(len(run.digest.diagnosed) > 0 for run in known))
    yield json_in_html(content).removesuffix("}") + ',"runs":['
    for k, run in enumerate(known):
        found = _run(run, _MAP_BUDGET // mapped, _SCATTER_BUDGET // drawn)
        more = {
            "in": settings.at(run.setting),
            "flags": concerned.get(str(run.path), []),
            "names": names.index(run.names) if run.names else None,
            "damage": _damage(run, compared.get(run.path)),
        }
        found |= {key: json_in_html(value) for key, value in more.items()}
        yield ("," if k else "") + "{" + ",".join(f'"{key}":{value}' for key, value in found.items()) + "}"
    yield "]}"


class _Settings:
    """The settings that there are runs of: all but attack, defense and seed."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = runs
        self._keys = differing([run.setting for run in runs])
        found = {tuple(run.setting.items()): run.setting for run in runs}
        self._settings = sorted(found.values(), key=lambda each: title(each, self._keys))
        self._few = list(self._keys)  # as few as tell the settings apart, and the dataset
        for key in reversed(self._keys):
            fewer = [other for other in self._few if other != key or key == "dataset"]
            if len({title(each, fewer) for each in self._settings}) == len(self._settings):
                self._few = fewer
        self._places = {tuple(each.items()): k for k, each in enumerate(self._settings)}

    def at(self, setting: Mapping[str, str]) -> int:
        """The place of a setting."""
        return self._places[tuple(setting.items())]

    def content(self) -> list[dict[str, Any]]:
        """Of each a short title, the one that flags have, all of it as text, and its number of runs."""
        counts = Counter(self.at(run.setting) for run in self._runs)
        return [
            {
                "title": title(each, self._few),
                "whole": title(each, self._keys),
                "text": ", ".join(f"{key} {value}" for key, value in each.items()),
                "runs": counts[k],
            }
            for k, each in enumerate(self._settings)
        ]

    def start(self) -> int:
        """The setting with the most finished runs, the first of several."""
        counts = Counter(self.at(run.setting) for run in self._runs if run.finished)
        return max(range(len(self._settings)), key=lambda k: counts[k], default=0)


def _seed(run: Run) -> int:
    return run.experiment.seed if run.experiment else 0


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
        "clients": e.clients,
        "truth": run.truth,
        "undetected": run.summary["rounds_until_detection"] is None and run.summary["false_negative_rate"] is not None,
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
        "rounds": [record.round for record in shown],
        "malicious": sorted({client for record in shown for client in behind(record.malicious or ())}),
        "rejected": [None if record.rejected is None else behind(record.rejected) for record in shown],
        "present": None if everyone else [behind(record.clients) for record in shown],
    }


def _round(record: RoundRecord) -> dict[str, Any]:
    seen = record.diagnosis
    assert seen is not None
    return {
        "round": record.round,
        "clients": list(record.clients),
        "malicious": list(record.malicious or ()),
        "rejected": list(record.rejected or ()),
        "points": _points(seen.coordinates),
        "updates": _points(seen.updates or ()),
        "root": None if seen.root is None else list(seen.root),
        "reasons": [shortened(reason, _REASON) for reason in seen.reasons],
    }


def _points(coordinates: Sequence[tuple[float | None, float | None]]) -> list[list[float] | None]:
    return [None if x is None or y is None else [x, y] for x, y in coordinates]


def _rounded(value: float | int | None) -> float | int | None:
    return None if value is None else round(value, 4)
