"""What ``sieve``, this project's own detector, promises: goals by attack, data and share of malicious clients."""

from dataclasses import replace
from typing import Any

from fedsieve.reproduce.plan import Plan, Row, Scale, Suite, defenses
from fedsieve.reproduce.skymask_setup import (
    ATTACKS,
    DETECTORS,
    DETECTORS_NOTE,
    GROUPS,
    PRESET_CODE,
    PRESET_CODE_NOTE,
    Data,
    data,
    note,
    seeds,
)

# Goals: rates over all rounds, and the accuracy lost to the mean without attack.
_GOALS = {"fpr": 0.01, "fnr": 0.01, "accuracy": 0.01}
_LABEL_FLIP = {"fpr": 0.05, "fnr": 0.05, "accuracy": 0.01}
_CIFAR = {"late_fpr": 0.05, "late_fnr": 0.03}
_HARD = {"late_fpr": 0.05, "late_fnr": 0.05}
_HARD_ATTACKS: dict[str, Any] = {
    "two attacks mixed": {"name": "mixture", "attacks": ["min-max", "label-flip"]},
    "three attacks mixed": {"name": "mixture", "attacks": ["min-max", "label-flip", "scaling"]},
    "split-layers": "split-layers",
}
_ROUNDS = {"fashion-mnist": 16, "har": 80}
_BOTH = ("sieve", "skymask")
_COLUMNS = {**defenses(*_BOTH), **PRESET_CODE, **defenses("fltrust"), **DETECTORS, **defenses("mean")}
_GOALS_NOTE = (
    "Goals are those of `sieve`: its rates over all rounds (over the second half under mixtures of attacks and on "
    "CIFAR-10), and its accuracy compared with the mean without attack."
)


def _detection(scale: Scale) -> Plan:
    names = (*GROUPS[:2], GROUPS[-1], *((GROUPS[2],) if scale == "paper" else ()))
    found: list[Row] = []
    for source in data(scale, names, _ROUNDS):
        if scale == "small" and source.name != "har":  # evaluations would take half of the time
            source = replace(source, settings={**source.settings, "evaluate_every": 8})
        part = _paper_attacks(scale, source)
        if source.name in (GROUPS[0], "har"):
            part += _hard_attacks(source)
        if source.name == "har" and scale != "smoke":  # fast enough for three seeds
            part = [replace(row, seeds=(0, 1, 2)) for row in part]
        found += part
    found += [] if scale == "smoke" else _many_malicious(scale)
    said = note(scale, "one seed (three on HAR with 20 % malicious)")
    said += f" {_GOALS_NOTE} {PRESET_CODE_NOTE} {DETECTORS_NOTE}"
    return Plan(tuple(found), _COLUMNS, seeds(scale), "sieve", note=said)


def _goals(attack: str) -> dict[str, float]:
    return _LABEL_FLIP if attack == "label-flip" else _GOALS


def _paper_attacks(scale: Scale, source: Data) -> list[Row]:
    """No attack and SkyMask's six, against every detector."""
    shown = _BOTH if (scale, source.name) == ("small", GROUPS[1]) else tuple(c for c in _COLUMNS if c != "mean")
    return [
        Row(
            source.heading,
            label,
            {**source.settings, "attack": attack},
            source.published,
            source.paper_rounds,
            _CIFAR if source.settings["dataset"] == "cifar10" else _goals(label),
            (*shown, "mean") if label == "none" else shown,
        )
        for label, attack in ATTACKS.items()
    ]


def _hard_attacks(source: Data) -> list[Row]:
    """Attacks that SkyMask's paper does not have."""
    return [
        Row(source.heading, label, {**source.settings, "attack": attack}, goals=_HARD, columns=_BOTH)
        for label, attack in _HARD_ATTACKS.items()
    ]


def _many_malicious(scale: Scale) -> list[Row]:
    """40, 60 and 80 % malicious clients; at the small scale, on images, three of the attacks."""
    found = []
    for source in data(scale, (GROUPS[0], GROUPS[-1]), _ROUNDS):
        settings, attacks = {**source.settings}, tuple(ATTACKS)[1:]
        if scale == "small" and source.name != "har":
            settings["evaluate_every"], attacks = 8, ("label-flip", "min-sum", "scaling")
        for fraction in (0.4, 0.6, 0.8):
            heading = f"{source.heading}, {fraction:.0%} malicious"
            found.append(Row(heading, "none", {**settings, "attack": "none"}, columns=("mean",)))
            for attack in attacks:
                more = {**settings, "attack": ATTACKS[attack], "malicious": fraction}
                found.append(Row(heading, attack, more, goals=_goals(attack), columns=_BOTH))
    return found


DETECTION = Suite(
    "detection",
    "What sieve promises: goals by attack, data and share of malicious clients, beside skymask and other detectors",
    _detection,
    ("accuracy", "success", "fpr", "fnr", "late_fpr", "late_fnr"),
    "table2",
)
