"""The comparison and the ablation of Wang et al., Invariant Aggregator, AISTATS 2024, on the data that are here."""

from typing import Any

from fedsieve.suites.plan import Plan, Row, Scale, Suite, defenses

_RULES = defenses("invariant", "mean", "median", "trimmed-mean", "krum", "sign-majority")
_HALVES: dict[str, dict[str, Any]] = {
    **defenses("invariant"),
    "mask alone": {"defense": {"name": "invariant", "trim": False}},
    "trim alone": {"defense": {"name": "invariant", "mask": False}},
    "the code's values": {"defense": {"name": "invariant", "preset": "code"}},
}


def _rows(scale: Scale) -> tuple[Row, ...]:
    if scale == "smoke":
        settings = {"dataset": "digits", "attack": "scaling", "rounds": 40}
        return (Row("digits", "scaling", settings), Row("digits", "none", {**settings, "attack": "none"}))
    images = {
        "dataset": "fashion-mnist",
        "clients": 30,
        "malicious": 6,
        "partition": {"name": "groups", "q": 0.5},
        "rounds": 100 if scale == "small" else 400,
        "evaluate_every": 10,
    }
    planes = {
        "dataset": "cifar10",
        "model": "cnn",
        "clients": 20,
        "malicious": 4,
        "partition": {"name": "dirichlet", "alpha": 0.5},
        "local": {"steps": 5, "batch_size": 32, "learning_rate": 0.05, "momentum": 0.9},
        "server": {"learning_rate": 1.0},
        "rounds": 120 if scale == "small" else 400,
        "evaluate_every": 10,
    }
    attacked = (
        Row("cifar10, Dirichlet 0.5", "edge-case", {**planes, "attack": "edge-case"}, "cifar10, Dirichlet 0.5"),
        Row("fashion-mnist, q = 0.5", "scaling", {**images, "attack": "scaling"}),
    )
    if scale == "small":
        return attacked
    return (
        *attacked,
        Row("cifar10, Dirichlet 0.5", "none", {**planes, "attack": "none"}),
        Row("fashion-mnist, q = 0.5", "none", {**images, "attack": "none"}),
    )


def _note(scale: Scale) -> str:
    return {
        "smoke": "Smoke scale: the digits that ship with scikit-learn; it shows that everything works, not how well.",
        "small": "Small scale: 100 to 120 rounds, one seed.",
        "paper": "Paper scale: 400 rounds, three seeds.",
    }[scale]


def _comparison(scale: Scale) -> Plan:
    note = _note(scale) + " The paper's comparison is of larger, pretrained models; its numbers are not at hand."
    return Plan(_rows(scale), _RULES, (0, 1, 2) if scale == "paper" else (0,), note=note)


def _ablation(scale: Scale) -> Plan:
    note = _note(scale) + " The paper's numbers, as others quote them, are of a pretrained ResNet18 after 300 rounds."
    return Plan(_rows(scale), _HALVES, (0, 1, 2) if scale == "paper" else (0,), note=note)


INVARIANT = (
    Suite(
        "invariant",
        "The Invariant Aggregator against backdoors, beside other rules",
        _comparison,
        ("accuracy", "success"),
    ),
    Suite(
        "invariant-ablation",
        "The Invariant Aggregator's two halves alone",
        _ablation,
        ("accuracy", "success"),
        "invariant-ablation",
    ),
)
