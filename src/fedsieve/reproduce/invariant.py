"""The comparison and the ablation of Wang et al., Invariant Aggregator, AISTATS 2024, on other data and models.

At the paper scale: its 100 clients of whom 20 are drawn for a round, 20 % malicious, Dirichlet 0.5, 300 rounds on
CIFAR-10 and 500 on tweets. ``resnet20`` stands for the paper's pretrained ResNet-18, HAR for its tabular data.
"""

from collections.abc import Mapping
from typing import Any

from fedsieve.reproduce.plan import Plan, Row, Scale, Suite, defenses

_AGGREGATORS = defenses("invariant", "mean", "median", "trimmed-mean", "krum", "sign-majority")
_STEPS: dict[str, dict[str, Any]] = {
    **defenses("invariant"),
    "mask alone": {"defense": {"name": "invariant", "trim": False}},
    "trim alone": {"defense": {"name": "invariant", "mask": False}},
    "invariant, preset code": {"defense": {"name": "invariant", "preset": "code"}},
}
# The rivals that the paper names, and the median.
_RIVALS = defenses(
    "mean",
    "median",
    "trimmed-mean",
    "krum",
    "multi-krum",
    "sign-majority",
    "weak-dp",
    "geometric-median",
    "sparsefed",
)
_TRAINING = {
    "local": {"steps": 5, "batch_size": 32, "learning_rate": 0.05, "momentum": 0.9},
    "server": {"learning_rate": 1.0},
}
_CIFAR = {"dataset": "cifar10", "partition": {"name": "dirichlet", "alpha": 0.5}, "evaluate_every": 10, **_TRAINING}
_SAMPLED = {"clients": 100, "clients_per_round": 20, "malicious": 20}
# An eighth of a malicious client's samples are copies with the trigger, as with edge cases; its update is not scaled.
_TABULAR = {"name": "scaling", "share": 0.143, "factor": 1.0}


def _rows(scale: Scale) -> tuple[Row, ...]:
    if scale == "smoke":
        settings = {"dataset": "digits", "attack": "scaling", "rounds": 40}
        return (Row("digits", "scaling", settings), Row("digits", "none", {**settings, "attack": "none"}))
    if scale == "small":
        cifar = {**_CIFAR, "model": "cnn", "clients": 20, "malicious": 4, "rounds": 120}
        images = {
            "dataset": "fashion-mnist",
            "clients": 30,
            "malicious": 6,
            "partition": {"name": "groups", "q": 0.5},
            "rounds": 100,
            "evaluate_every": 10,
        }
        return (
            Row("cifar10, Dirichlet 0.5", "edge-case", {**cifar, "attack": "edge-case"}, "cifar10, Dirichlet 0.5", 300),
            Row("fashion-mnist, q = 0.5", "scaling", {**images, "attack": "scaling"}),
        )
    cifar = {**_CIFAR, **_SAMPLED, "model": "resnet20", "rounds": 300}
    tweets = {**_SAMPLED, "dataset": "sentiment140", "model": "lstm", "rounds": 500, "evaluate_every": 10}
    har = {"dataset": "har", "model": "mlp", "clients": 30, "malicious": 6, "rounds": 300, **_TRAINING}
    return (
        *_pair("cifar10, Dirichlet 0.5", cifar, "edge-case", "edge-case", "cifar10, Dirichlet 0.5", 300),
        *_pair("tweets by author", tweets, "phrase", "phrase"),
        *_pair("har", har, "trigger", _TABULAR),
    )


def _pair(group: str, settings: Mapping[str, Any], label: str, attack: Any, *paper: Any) -> tuple[Row, Row]:
    """A row with the attack, beside the published numbers if there are any, and one without."""
    quiet = Row(group, "none", {**settings, "attack": "none"})
    return Row(group, label, {**settings, "attack": attack}, *paper), quiet


def _note(scale: Scale) -> str:
    return {
        "smoke": "Smoke scale: the digits that ship with scikit-learn. It shows that everything works, not how well.",
        "small": "Small scale: 100 to 120 rounds, one seed.",
        "paper": "Paper scale: three seeds; the paper's 300 rounds on CIFAR-10 and 500 on tweets, with 20 of 100 "
        "clients a round and 20 % of the clients malicious. `resnet20` learns from nothing where the paper has a "
        "pretrained ResNet-18, the LSTM has random word vectors, and HAR (30 clients, all in every round, an MLP, 300 "
        "rounds) stands for the paper's tabular data.",
    }[scale]


def _plan(scale: Scale, columns: Mapping[str, Mapping[str, Any]], note: str) -> Plan:
    return Plan(_rows(scale), columns, (0, 1, 2) if scale == "paper" else (0,), note=f"{_note(scale)} {note}")


def _comparison(scale: Scale) -> Plan:
    columns = {**_STEPS, **_RIVALS} if scale == "paper" else _AGGREGATORS
    return _plan(scale, columns, "The paper compares larger, pretrained models; its numbers are not in this project.")


def _ablation(scale: Scale) -> Plan:
    return _plan(scale, _STEPS, "The numbers in brackets are of a pretrained ResNet18, as later papers quote them.")


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
