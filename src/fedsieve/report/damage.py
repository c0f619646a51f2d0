"""Damage of attacks: accuracy lost against the undefended mean without attack, time to detection, clients lost."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev
from typing import Any

from rich.console import Group

from fedsieve.config.experiment import Experiment
from fedsieve.config.settings import RootData
from fedsieve.core.damage import Damage, damage
from fedsieve.core.escaping import printable
from fedsieve.core.metrics import mean_of
from fedsieve.report import escaping
from fedsieve.report.load import Run
from fedsieve.report.settings import titles
from fedsieve.report.text import DASH, markdown_table, number, terminal_parts, until_detection
from fedsieve.runs import files

# Settings in which a run may differ from its reference: without attack none of them changes the clients' training.
FREE = ("attack", "defense", "malicious", "assumed_malicious", "knowledge", "knows_defense", "rounds", "evaluate_every")
MEAN, SAME = "mean", "same defense"
# What a table says above itself, and of each column that it may have.
_HEADING = (
    "Damage. Accuracy lost against the run of the same seed without attack, by the undefended mean or else by the same "
    "defense, %"
)
_EXPLAINED = {
    "first detection": "rounds until a malicious client was rejected",
    "benign lost": "benign client-rounds rejected, %",
    "success at worst": "attack success rate (other classes), %",
}
# Columns of the CSV file behind setting, defense and attack; rounds are counted from 1.
_COLUMNS = (
    *(
        "reference",
        "rounds",
        "of_rounds",
        "lost_per_round",
        "lost_per_round_deviation",
        "worst_loss",
        "worst_loss_round",
    ),
    *("late_loss", "late_loss_deviation", "area", "area_deviation", "rounds_until_detection", "detected", "undetected"),
    *("benign_client_rounds_lost", "benign_share_lost", "worst_attack_success_rate", "worst_attack_success_round"),
    *("late_attack_success_rate", "runs"),
)


@dataclass(frozen=True)
class Against:
    """A run's damage against its reference.

    Attributes:
        damage: What it lost.
        against: :data:`MEAN` if the reference is the undefended mean, :data:`SAME` if it is the run's own defense.
        whole: Whether the reference has all rounds of the run.
    """

    damage: Damage
    against: str
    whole: bool


def compare(runs: Sequence[Run]) -> dict[Path, Against]:
    """The damage of every run that has a reference among ``runs``, by path.

    The reference is a finished run without attack, defended by the plain mean, in which every setting that decides the
    clients' training is the same, the seed included (all but :data:`FREE` and defects of the root data). Where there is
    none, it is such a run with the run's own defense and root data. Of several, the one with the most rounds in common,
    then the one as long as the run.
    """
    quiet: dict[str, list[tuple[Run, Experiment]]] = {}
    for run in runs:
        if (e := run.experiment) is not None and e.attack.name == "none" and run.finished:
            quiet.setdefault(_training(e), []).append((run, e))
    found = {}
    for run in runs:
        e = run.experiment
        if e is None or (e.attack.name == "none" and e.defense.name == "mean"):
            continue
        others = quiet.get(_training(e), [])
        undefended = [other for other, o in others if o.defense.name == "mean"]
        same = [other for other, o in others if (o.defense, o.root) == (e.defense, e.root) and e.attack.name != "none"]
        length = run.digest.rounds
        best = max(
            undefended or same,
            key=lambda other: (min(other.digest.rounds, length), other.digest.rounds == length),
            default=None,
        )
        if best and (lost := damage(run.digest.accuracies, best.digest.accuracies)) is not None:
            found[run.path] = Against(lost, MEAN if undefended else SAME, best.digest.rounds >= length)
    return found


def _training(e: Experiment) -> str:
    """What a run has in common with its reference."""
    found = {k: v for k, v in e.model_dump(mode="json").items() if k not in FREE}
    found["root"] = {k: v for k, v in found["root"].items() if k not in RootData.off}  # the mean makes no use of them
    return json.dumps(found, sort_keys=True)


def said(run: Run, compared: Against | None) -> str:
    """The damage of one run in a few sentences; "" if nothing is known."""
    s, parts = run.summary, []
    if compared is not None:
        d, kind = compared.damage, "the mean" if compared.against == MEAN else "this defense"
        within = "" if compared.whole else f" over the first {d.rounds} rounds"
        parts.append(
            f"Against {kind} without attack it lost {_lost(d.mean)} % of accuracy per round{within}, "
            f"{_lost(d.worst)} % in the worst (round {d.worst_round + 1}), {_lost(d.late)} % in the last tenth, "
            f"{d.area:.2f} accuracy-rounds together"
        )
    if until := until_detection(s):
        parts.append(f"First malicious client rejected: {until}")
    if s["benign_client_rounds_lost"] is not None:
        share = number(s["benign_share_lost"])
        parts.append(f"Benign client-rounds lost: {s['benign_client_rounds_lost']} ({share} %)")
    if s["worst_attack_success_rate"] is not None:
        worst, late = number(s["worst_attack_success_rate"]), number(s["late_attack_success_rate"])
        at = s["worst_attack_success_round"] + 1
        parts.append(f"The attack's success was {worst} % at worst (round {at}), {late} % in the last tenth")
    return ". ".join(parts) + "." if parts else ""


def _lost(value: float) -> str:
    """A loss in per cent; never "-0.0"."""
    return number(round(value, 3) + 0.0)


@dataclass(frozen=True)
class DamageRow:
    """The damage of one attack to one defense: finished runs that differ in the seed only.

    Attributes:
        title: Settings that differ from the other tables'.
        setting: All settings but attack, defense and seed.
        defense: With its parameters.
        attack: With its parameters.
        values: By column of the CSV file; None where there is no value. Losses are means over the seeds and their
            standard deviation, worst values and rounds until detection the largest of all seeds. References are of one
            kind, the mean if there is any.
    """

    title: str
    setting: Mapping[str, str]
    defense: str
    attack: str
    values: Mapping[str, Any]

    def fields(self) -> dict[str, str]:
        """The texts of a line by heading; a dash where there is no value."""
        v = self.values
        rounds = None if v["rounds"] is None else str(v["rounds"])
        if rounds and v["rounds"] < v["of_rounds"]:
            rounds += f" of {v['of_rounds']}"
        detected = None if v["rounds_until_detection"] is None else str(v["rounds_until_detection"])
        if v["undetected"]:
            detected = f"never in {v['undetected']} of {v['runs']}" if v["detected"] else "never"
        found = {
            "against": v["reference"],
            "rounds": rounds,
            "lost per round": _spread(v["lost_per_round"], v["lost_per_round_deviation"]),
            "worst round": _at(v["worst_loss"], v["worst_loss_round"]),
            "last tenth": _spread(v["late_loss"], v["late_loss_deviation"]),
            "area, rounds": None if v["area"] is None else f"{round(v['area'], 2) + 0.0:.2f}",
            "first detection": detected,
            "benign lost": _spread(v["benign_share_lost"]),
            "success at worst": _at(v["worst_attack_success_rate"], v["worst_attack_success_round"]),
            "success, last tenth": _spread(v["late_attack_success_rate"]),
        }
        return {"defense": self.defense, "attack": self.attack} | {key: text or DASH for key, text in found.items()}


def _values(runs: Sequence[Run], compared: Sequence[Against]) -> dict[str, Any]:
    """:attr:`DamageRow.values` of a cell's finished runs, ``compared`` being those with a reference."""
    lost = [c.damage for c in compared]
    s = [run.summary for run in runs]
    until = [each["rounds_until_detection"] for each in s]
    undetected = sum(n is None and each["false_negative_rate"] is not None for n, each in zip(until, s, strict=True))
    detected = [n for n in until if n is not None]
    rates = [(each["worst_attack_success_rate"], each["worst_attack_success_round"]) for each in s]
    found = (
        *(compared[0].against if lost else None, min((d.rounds for d in lost), default=None), runs[0].digest.rounds),
        *_mean_and_deviation([d.mean for d in lost]),
        *_worst([(d.worst, d.worst_round) for d in lost]),
        *_mean_and_deviation([d.late for d in lost]),
        *_mean_and_deviation([d.area for d in lost]),
        *(None if undetected else max(detected, default=None), len(detected), undetected),
        *(mean_of(each[key] for each in s) for key in ("benign_client_rounds_lost", "benign_share_lost")),
        *_worst([(rate, k) for rate, k in rates if rate is not None]),
        *(mean_of(each["late_attack_success_rate"] for each in s), len(runs)),
    )
    return dict(zip(_COLUMNS, found, strict=True))


def _mean_and_deviation(values: Sequence[float]) -> tuple[float | None, float | None]:
    return mean_of(values), stdev(values) if len(values) > 1 else None


def _worst(values: Sequence[tuple[float, int]]) -> tuple[float | None, int | None]:
    """The largest value and its round, which is counted from 0 in ``values`` and from 1 in the result."""
    value, k = max(values, key=lambda pair: pair[0], default=(None, -1))
    return value, None if value is None else k + 1


def _spread(value: float | None, deviation: float | None = None) -> str | None:
    """In per cent."""
    if value is None:
        return None
    return _lost(value) + ("" if deviation is None else f" ± {_lost(deviation)}")


def _at(value: float | None, round_number: int | None) -> str | None:
    return None if value is None else f"{_lost(value)} (round {round_number})"


def rows(runs: Sequence[Run], compared: Mapping[Path, Against]) -> list[DamageRow]:
    """One row for each setting, defense and attack with a finished run and anything to tell."""
    known = [run for run in runs if run.experiment is not None]
    names = titles([run.setting for run in known])
    cells: dict[str, dict[tuple[str, str], list[Run]]] = {}
    for name, run in zip(names, known, strict=True):
        if run.finished:
            cells.setdefault(name, {}).setdefault((run.defense, run.attack), []).append(run)
    found = []
    for name, here in cells.items():
        for (defense, attack), members in sorted(here.items(), key=lambda c: (c[0][0], c[0][1] != "none", c[0][1])):
            own = [c for run in members if (c := compared.get(run.path))]
            kind = MEAN if any(c.against == MEAN for c in own) else SAME
            values = _values(members, [c for c in own if c.against == kind])
            row = DamageRow(name, members[0].setting, defense, attack, values)
            found += [row] if set(row.fields().values()) - {defense, attack, DASH} else []
    return found


def tables(found: Sequence[DamageRow]) -> list[tuple[str, list[list[str]]]]:
    """Title and lines of fields, the head first, of a table for each setting; empty columns are left out."""
    made = []
    for name in dict.fromkeys(row.title for row in found):
        lines = [row.fields() for row in found if row.title == name]
        shown = [key for key in lines[0] if any(line[key] != DASH for line in lines)]
        made.append((name, [shown, *([line[key] for key in shown] for line in lines)]))
    return made


def _heading(columns: Sequence[str]) -> str:
    return "; ".join([_HEADING, *(said for column, said in _EXPLAINED.items() if column in columns)])


def markdown(found: Sequence[DamageRow]) -> str:
    """All tables as Markdown; "" without any."""
    parts = []
    for name, lines in tables(found):
        table = markdown_table([[escaping.markdown(text) for text in line] for line in lines])
        parts.append(f"## {escaping.markdown(name)}: damage\n\n{_heading(lines[0])}.\n\n{table}\n")
    return "\n".join(parts)


def terminal(found: Sequence[DamageRow], width: int) -> list[Group]:
    """All tables for a terminal of so many characters a line."""
    made = [(f"{printable(name)}\n{_heading(lines[0])}", lines) for name, lines in tables(found)]
    return [terminal_parts(above, lines, 2, width) for above, lines in made]


def write_csv(found: Sequence[DamageRow], path: Path) -> None:
    """One line for each row."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["setting", "defense", "attack", *_COLUMNS])
    for row in found:
        names = [escaping.cell(name) for name in (row.title, row.defense, row.attack)]
        writer.writerow([*names, *(round(v, 5) if isinstance(v, float) else v for v in row.values.values())])
    files.write(path, text.getvalue().encode())
