"""Flags: what makes numbers say less than they seem to, from settings and records; each has a page in docs/flags.

A flag is no error and changes no number. Thresholds are the constants here and in ``cell_flags``; the pages explain
them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsieve.config.catalog import described
from fedsieve.config.experiment import Experiment
from fedsieve.core.escaping import printable
from fedsieve.report import cell_flags, escaping
from fedsieve.report.damage import Against
from fedsieve.report.load import Run
from fedsieve.report.settings import differing, title
from fedsieve.report.text import counted, most_rejected, number, some

MISFIT = "root data don't fit the clients"  # what a defense says then
LOST = 0.01  # share of the benign clients that may be rejected without attack
DECIDED = 20  # rates need so many rounds with a decision, and half of all rounds
NAMES = (
    *("adaptive-weaker", "clients-lost", "equal-to-mean", "harmless-attack", "one-seed", "root-misfit"),
    *("truth-unknown", "undecided-rates"),
)


@dataclass(frozen=True)
class Flag:
    """One flag.

    Attributes:
        name: Of :data:`NAMES`.
        text: What was found, with the numbers, in one line.
        runs: Directories of the runs that it concerns.
    """

    name: str
    text: str
    runs: tuple[str, ...]

    @property
    def page(self) -> str:
        """Its page, in the project's folder."""
        return f"docs/flags/{self.name}.md"

    @property
    def line(self) -> str:
        """All of it in one line."""
        return f"{self.name}: {self.text} [{some(self.runs)}]; see {self.page}"

    def as_json(self) -> dict[str, Any]:
        """For ``--json`` and the page."""
        return {"name": self.name, "text": self.text, "page": self.page, "runs": list(self.runs)}


def of_run(
    experiment: Experiment | None, summary: Mapping[str, Any], rounds: int, path: str, names: Sequence[str] = ()
) -> list[Flag]:
    """The flags that a run raises without others to compare with.

    Args:
        experiment: Its settings; None if they are unknown.
        summary: :func:`fedsieve.core.metrics.summarize` of its records.
        rounds: Number of records.
        path: Its directory.
        names: Of its clients.
    """
    said = {
        "clients-lost": _clients_lost(experiment, summary, names),
        "root-misfit": _root_misfit(summary, rounds),
        "truth-unknown": _truth_unknown(experiment, summary, rounds),
        "undecided-rates": _undecided(experiment, summary, rounds),
    }
    return [Flag(name, text, (path,)) for name, text in said.items() if text]


def _clients_lost(e: Experiment | None, s: Mapping[str, Any], names: Sequence[str]) -> str:
    """Benign clients were rejected though there is no attack."""
    lost, rate = s["benign_client_rounds_lost"], s["false_positive_rate"] or 0.0
    if e is None or e.n_malicious or not lost or round(rate, 9) <= LOST:
        return ""
    who = f": {most_rejected(s, names)}" if names else ""
    times = counted(lost, "time")
    return f"without attack benign clients were rejected {times}, {number(rate)} % of them in a round{who}"


def _root_misfit(s: Mapping[str, Any], rounds: int) -> str:
    """The defense found that the server's root data are unlike the clients'."""
    found = s["notes"].get(MISFIT, 0)
    return (
        f"the defense found root data unlike the clients' in {found} of {rounds} rounds, and claims less"
        if found
        else ""
    )


def _truth_unknown(e: Experiment | None, s: Mapping[str, Any], rounds: int) -> str:
    """The records say that nobody is malicious, although somebody is, or may be; not where they say nothing."""
    if not rounds or s["malicious_client_rounds"] != 0 or (e is not None and not e.n_malicious):
        return ""
    who = f"any of the {e.n_malicious} malicious clients" if e else "a malicious client, and settings are unknown"
    return f"none of {rounds} records names {who}: rejections count as benign clients', and nobody as missed"


def _undecided(e: Experiment | None, s: Mapping[str, Any], rounds: int) -> str:
    """The rates are of few rounds, or there are none though the defense is a detector."""
    decided = s["rounds_decided"]
    if not rounds or decided >= max(DECIDED, rounds / 2):
        return ""
    if decided:
        return f"rates are of the {decided} of {rounds} rounds in which the defense took a decision"
    return f"the defense took no decision in {rounds} rounds and accepted everybody" if e and _detects(e) else ""


def _detects(e: Experiment) -> bool:
    """Whether a stage of the defense is a detector of this package."""
    entries = [described("defenses", stage.strip()) for stage in e.defense.name.split(",")]
    return any(entry.stage == "detector" for entry in entries if entry)


def flags(runs: Sequence[Run], compared: Mapping[Path, Against]) -> list[Flag]:
    """All flags of these runs, sorted by name.

    Args:
        runs: The runs. Only finished ones are compared with each other.
        compared: From :func:`fedsieve.report.damage.compare`.
    """
    keys = differing([run.setting for run in runs if run.experiment is not None])
    settings: dict[str, list[Run]] = {}
    alike: dict[tuple[str, str], list[tuple[Run, Flag]]] = {}  # flags of single runs, by name and cell
    for run in runs:
        name = title(run.setting, keys) if run.experiment else ""
        if run.experiment and run.finished:
            settings.setdefault(name, []).append(run)
        cell = f"{name}: {run.defense} against {run.attack}: " if run.experiment else ""
        for flag in of_run(run.experiment, run.summary, run.digest.rounds, str(run.path), run.names):
            alike.setdefault((flag.name, cell), []).append((run, flag))
    found = []
    for name, members in settings.items():
        for flag_name, text, concerned in cell_flags.found(members, compared):
            found.append(Flag(flag_name, f"{name}: {text}", _paths(concerned)))
    for (flag_name, cell), pairs in alike.items():
        texts = list(dict.fromkeys(flag.text for _, flag in pairs))
        found.append(Flag(flag_name, cell + some(texts, "; "), _paths([run for run, _ in pairs])))
    return sorted(found, key=lambda flag: flag.name)


def _paths(runs: Sequence[Run]) -> tuple[str, ...]:
    return tuple(str(run.path) for run in runs)


def markdown(found: Sequence[Flag]) -> str:
    """All flags as Markdown; "" without any."""
    lines = [f"- {escaping.markdown(flag.line)}" for flag in found]
    return "\n".join(["## Flags", "", *lines, ""]) if lines else ""


def lines(found: Sequence[Flag]) -> list[str]:
    """One line for each flag."""
    return [f"flag {printable(flag.line)}" for flag in found]
