"""The comparison and the ablation of Wang et al., Invariant Aggregator, AISTATS 2024, on other data and models."""

from typing import Any

from fedsieve.reproduce.plan import Plan, Row, Scale, Suite, defenses

_AGGREGATORS = defenses("invariant", "mean", "median", "trimmed-mean", "krum", "sign-majority")
_STEPS: dict[str, dict[str, Any]] = {
    **defenses("invariant"),
    "mask alone": {"defense": {"name": "invariant", "trim": False}},
    "trim alone": {"defense": {"name": "invariant", "mask": False}},
    "invariant, preset code": {"defense": {"name": "invariant", "preset": "code"}},
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
    cifar = {
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
        Row("cifar10, Dirichlet 0.5", "edge-case", {**cifar, "attack": "edge-case"}, "cifar10, Dirichlet 0.5", 300),
        Row("fashion-mnist, q = 0.5", "scaling", {**images, "attack": "scaling"}),
    )
    if scale == "small":
        return attacked
    return (
        *attacked,
        Row("cifar10, Dirichlet 0.5", "none", {**cifar, "attack": "none"}),
        Row("fashion-mnist, q = 0.5", "none", {**images, "attack": "none"}),
    )


def _note(scale: Scale) -> str:
    return {
        "smoke": "Smoke scale: the digits that ship with scikit-learn. It shows that everything works, not how well.",
        "small": "Small scale: 100 to 120 rounds, one seed.",
        "paper": "Paper scale: 400 rounds, three seeds.",
    }[scale]


def _comparison(scale: Scale) -> Plan:
    note = _note(scale) + " The paper compares larger, pretrained models; its numbers are not in this project."
    return Plan(_rows(scale), _AGGREGATORS, (0, 1, 2) if scale == "paper" else (0,), note=note)


def _ablation(scale: Scale) -> Plan:
    note = _note(scale) + " The numbers in brackets are of a pretrained ResNet18, as later papers quote them."
    return Plan(_rows(scale), _STEPS, (0, 1, 2) if scale == "paper" else (0,), note=note)


INVARIANT = (
    Suite(
        "invariant",
        "The Invariant Aggregator against backdoors, beside other aggregators",
        _comparison,
        ("accuracy", "success"),
    ),
    Suite(
        "invariant-ablation",
        "The Invariant Aggregator's two steps, mask and trimmed mean, alone and together",
        _ablation,
        ("accuracy", "success"),
        "invariant-ablation",
    ),
)
