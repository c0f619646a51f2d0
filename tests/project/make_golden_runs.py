"""Writes golden_runs.json: what short runs of every kind of defense decide and reach, round by round.

Not a test; test_golden_runs.py holds the code to the file. Numbers that move are named in CHANGELOG.md under Results.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fedsieve import Experiment, Simulation

FILE = Path(__file__).with_name("golden_runs.json")
KEPT = ("clients", "malicious", "rejected", "weights", "scores", "update_norm", "test_accuracy", "test_loss")
_DIGITS = {"dataset": "digits", "rounds": 4}
_HAR = {"dataset": "har", "rounds": 4, "root": {"size": 100, "bias": 0.1}}
CASES: dict[str, dict[str, Any]] = {
    "digits, aggregator": {**_DIGITS, "attack": "min-max", "defense": "trimmed-mean"},
    "digits, aggregator with a selection": {**_DIGITS, "attack": "lie", "defense": "multi-krum"},
    "digits, aggregator with root data": {**_DIGITS, "attack": "scaling", "defense": "fltrust"},
    "digits, aggregator with state": {**_DIGITS, "attack": "fang-trim", "defense": "sparsefed"},
    "digits, invariant": {**_DIGITS, "attack": "min-sum", "defense": "invariant"},
    "digits, detector skymask": {**_DIGITS, "attack": "min-max", "defense": "skymask"},
    "digits, detector skymask-nr": {**_DIGITS, "attack": "min-max", "defense": "skymask-nr"},
    "digits, detector sieve": {**_DIGITS, "attack": "label-flip", "defense": "sieve"},
    "digits, detector tolpegin": {**_DIGITS, "attack": "fang-krum", "defense": "tolpegin"},
    "digits, pre-aggregator": {**_DIGITS, "attack": "sign-flip", "defense": "norm-clipping"},
    "digits, pre-aggregator with state": {**_DIGITS, "attack": "ipm", "defense": "momentum,median"},
    "digits, chain": {**_DIGITS, "attack": "min-max", "defense": "norm-clipping,sieve,trimmed-mean"},
    "digits, partial participation": {**_DIGITS, "clients_per_round": 15, "attack": "min-max", "defense": "bulyan"},
    "digits, attack made of attacks": {**_DIGITS, "attack": "mixture", "defense": "flame"},
    "digits, server optimizer": {
        **_DIGITS,
        "attack": "label-flip",
        "defense": "geometric-median",
        "local": {"epochs": 1, "momentum": 0.5, "proximal": 0.1, "clip_norm": 1.0, "weight_decay": 1e-4},
        "server": {"learning_rate": 0.01, "optimizer": "Yogi"},
    },
    "har, aggregator": {**_HAR, "attack": "min-max", "defense": "krum"},
    "har, detector skymask": {**_HAR, "attack": "fang-trim", "defense": "skymask"},
    "har, detector sieve": {**_HAR, "attack": "scaling", "defense": "sieve"},
    "har, chain": {**_HAR, "attack": "min-max", "defense": "momentum,sieve,median"},
}


def play(settings: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """What is kept of each round."""
    simulation = Simulation.of(Experiment.of(settings), folder, torch.device("cpu"))
    rounds = [{key: asdict(record)[key] for key in KEPT} for _, record in simulation.rounds()]
    return json.loads(json.dumps(rounds))


def main() -> None:
    folder = Path(os.environ["FEDSIEVE_DATA"])
    golden = {name: play(settings, folder) for name, settings in CASES.items()}
    FILE.write_text(json.dumps(golden) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
