"""Honest clients: unlike each other, beside root data as they are in life, and copied by others."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedsieve.reproduce.plan import Plan, Row, Scale, Suite
from fedsieve.reproduce.time import COLUMNS, GOALS, HONEST_GOALS, ROOT_ONLY, attacked

_ROOT_GOALS = {"late_loss": 0.03, "benign_lost": 0.02}
_ATTACKED_ROOT_GOALS = {"late_loss": 0.05, "benign_lost": 0.02}
_COPYCAT_GOALS = {**GOALS, "wronged": 0.0}
_SHOWN = ("sieve", "skymask", "fltrust", "multi-krum", "flame", "root-only", "mean")
_ROOTED = ("sieve", "skymask", "fltrust", "root-only", "mean")  # those with root data, and no defense
_FEW = ("sieve", "skymask", "root-only", "mean")  # where clients train for many steps, most of the time is theirs
MEASURES = ("late_loss", "worst_loss", "area", "late_success", "worst_success", "benign_lost", "wronged")


def _dirichlet(alpha: float) -> dict[str, Any]:
    """With few clients and classes, ten samples for everybody would seldom be drawn."""
    return {"partition": {"name": "dirichlet", "alpha": alpha, "min_samples": 2}}


def _groups(q: float) -> dict[str, Any]:
    return {"partition": {"name": "groups", "q": q}}


# What differs from the data's defaults; one step unless it says otherwise.
_DIGITS: Mapping[str, Mapping[str, Any]] = {
    "iid": {"partition": "iid"},
    "q = 0.5": _groups(0.5),
    "q = 1": _groups(1.0),
    "Dirichlet 0.05": _dirichlet(0.05),
    "Dirichlet 0.1": _dirichlet(0.1),
    "Dirichlet 1": _dirichlet(1.0),
    "q = 0.5, logistic regression": {**_groups(0.5), "model": "logistic-regression"},
    "three noisy clients": {"odd": {"kind": "noise"}},
    "three brighter clients": {"odd": {"kind": "brightness"}},
    "three clients of one class": {"odd": {"kind": "one-class"}},
}
_HAR: Mapping[str, Mapping[str, Any]] = {
    "30 people": {},
    "30 people, MLP": {"model": "mlp"},
    "q = 1": _groups(1.0),
    "Dirichlet 0.05": _dirichlet(0.05),
    "three noisy clients": {"odd": {"kind": "noise"}},
    "three clients of one class": {"odd": {"kind": "one-class"}},
}
_DIGITS_STEPS: Mapping[str, Mapping[str, Any]] = {
    "q = 0.5, five steps": {**_groups(0.5), "local": {"steps": 5}},
    "Dirichlet 0.05, three epochs": {**_dirichlet(0.05), "local": {"epochs": 3}},
    "Dirichlet 0.1, three epochs": {**_dirichlet(0.1), "local": {"epochs": 3}},
    "three clients with five times the data, one epoch": {"odd": {"kind": "more-data"}, "local": {"epochs": 1}},
    "three clients with five times the data, three epochs": {"odd": {"kind": "more-data"}, "local": {"epochs": 3}},
}
_HAR_STEPS: Mapping[str, Mapping[str, Any]] = {"30 people, five steps": {"local": {"steps": 5}}}
_DEFECTS: Mapping[str, Mapping[str, Any]] = {
    "shifted by one pixel": {"shift": 1},
    "20 samples": {"size": 20},
    "15 % of labels wrong": {"wrong_labels": 0.15},
    "95 % of one class": {"bias": 0.95},
}
_COPYCATS: Mapping[str, tuple[int, str]] = {
    "6 copy 6": (6, "distinct"),
    "10 copy 10": (10, "distinct"),
    "15 copy 15": (15, "distinct"),
    "15 copy one": (15, "one"),
}


def _none(group: str, label: str, settings: Mapping[str, Any], columns: Sequence[str]) -> Row:
    """A row without attack, compared with its own undefended mean."""
    return Row(
        group, label, {**settings, "attack": "none"}, goals=HONEST_GOALS, columns=tuple(columns), reference=label
    )


def _root(group: str, settings: Mapping[str, Any], defects: Sequence[str]) -> list[Row]:
    """Defects of the root data, without attack and with two."""
    found = []
    for label in defects:
        for attack in ("none", "scaling", "label-flip"):
            more = {**settings, "root": _DEFECTS[label], "attack": attack}
            goals = _ROOT_GOALS if attack == "none" else _ATTACKED_ROOT_GOALS
            name = label if attack == "none" else f"{label}, {attack}"
            columns = _ROOTED if attack == "none" else attacked(_ROOTED)
            found.append(Row(group, name, more, goals=goals, columns=columns, reference=label))
    return found


def _copycats(group: str, settings: Mapping[str, Any], labels: Sequence[str]) -> list[Row]:
    found = [_none(group, "none", settings, _SHOWN)]
    for label in labels:
        malicious, victims = _COPYCATS[label]
        more = {**settings, "malicious": malicious, "assumed_malicious": min(malicious, 10)}
        more["attack"] = {"name": "copycat", "victims": victims}
        found.append(Row(group, label, more, goals=_COPYCAT_GOALS, columns=attacked(_SHOWN)))
    return found


def _rows(scale: Scale) -> list[Row]:
    if scale == "smoke":
        digits = {"dataset": "digits", "clients": 30, "rounds": 20}
        return [
            _none("digits", "q = 1", {**digits, **_DIGITS["q = 1"]}, _FEW),
            _none("digits", "three noisy clients", {**digits, **_DIGITS["three noisy clients"]}, _FEW),
            *_root("digits, root data", digits, ("20 samples",))[:2],
            *_copycats("digits, copycats", digits, ("6 copy 6",)),
        ]
    rounds = 60 if scale == "small" else 200
    digits = {"dataset": "digits", "clients": 30, "rounds": rounds}
    har = {"dataset": "har", "clients": 30, "rounds": rounds}
    found = [
        _none(group, label, {**settings, "rounds": length, **more}, columns)
        for group, settings, length, rows, columns in (
            ("digits, no attack", digits, rounds, _DIGITS, _SHOWN),
            ("digits, no attack, more training", digits, rounds // 2, _DIGITS_STEPS, _FEW),
            ("har, no attack", har, rounds, _HAR, _SHOWN),
            ("har, no attack, more training", har, rounds // 2, _HAR_STEPS, _FEW),
        )
        for label, more in rows.items()
    ]
    found += _root("digits, root data", digits, tuple(_DEFECTS))
    found += _root("har, root data", har, tuple(_DEFECTS)[1:])  # there are no pixels to shift
    found += _copycats("digits, copycats", digits, tuple(_COPYCATS))
    found += _copycats("har, copycats", har, ("6 copy 6", "15 copy one"))
    images = {"dataset": "fashion-mnist", "clients": 100, "rounds": 20 if scale == "small" else 300}
    deep = {"dataset": "digits", "model": "resnet20", "clients": 30, "rounds": 20}
    if scale == "paper":
        deep = {**deep, "dataset": "cifar10", "clients": 20, "rounds": 100}
        found += _root("fashion-mnist, root data", images, tuple(_DEFECTS))
    slow = [
        _none(f"{settings['dataset']}, {what}, no attack", label, {**settings, **_DIGITS[label]}, ("sieve", "mean"))
        for settings, what, labels in (
            (images, "CNN", ("q = 1", "Dirichlet 0.1")),
            (deep, "ResNet20 with BatchNorm", ("q = 0.5",)),
        )
        for label in labels
    ]
    return found + [replace(row, seeds=(0,)) if scale == "small" else row for row in slow]


def _note(scale: Scale) -> str:
    if scale == "smoke":
        return "Smoke scale: one seed and 20 rounds on the digits. It shows that everything works, not how well."
    goals = (
        "Goals are those of `sieve`: accuracy in the last tenth against the undefended mean of the same data and seed "
        "without attack, and the benign client-rounds that it rejects. A copied client must not be rejected more often "
        "than without copycats: the number is that of the client with the largest increase, in per cent of its rounds. "
        f"{ROOT_ONLY}"
    )
    if scale == "paper":
        return f"Paper scale: 100 to 300 rounds, three seeds. {goals}"
    return (
        "Small scale: 60 rounds and three seeds; 30 rounds where clients train for several steps or epochs; 20 rounds "
        f"and one seed with the CNN and with ResNet20. {goals} Left out: CIFAR-10, root data with defects on "
        "Fashion-MNIST (`--scale paper`), and what suite `detection` has without attack."
    )


def _plan(scale: Scale) -> Plan:
    columns = {label: COLUMNS[label] for label in _SHOWN}
    return Plan(tuple(_rows(scale)), columns, (0,) if scale == "smoke" else (0, 1, 2), "sieve", note=_note(scale))


HONEST = Suite("honest", "Nobody lost: odd but honest clients, root data with defects, copycats", _plan, MEASURES)
