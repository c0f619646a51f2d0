"""Short runs on the real datasets: the numbers that a user gets, not stand-ins."""

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsieve.config.experiment import Experiment
from fedsieve.core.records import RoundRecord
from fedsieve.runs.run import run

pytestmark = pytest.mark.real_data


def played(out: Path, **settings: Any) -> tuple[list[RoundRecord], dict[str, Any]]:
    experiment = Experiment.of(settings)
    folder = Path(os.environ["FEDSIEVE_DATA"])
    records, summary = run(experiment, out=out, data=folder, device=torch.device("cpu"))
    assert len(records) == experiment.rounds
    assert all(record.applied and not record.screened for record in records)
    return records, summary


def assert_finite(records: list[RoundRecord]) -> None:
    for record in records:
        assert record.update_norm is not None
        assert record.update_norm > 0
        assert sum(record.weights) == pytest.approx(1)
        if record.test_accuracy is not None:
            assert record.test_loss is not None
            assert math.isfinite(record.test_loss)
    assert records[-1].test_accuracy is not None


@pytest.mark.parametrize("attack", ["min-max", "scaling"])
def test_sieve_finds_malicious_clients_on_fashion_mnist(tmp_path: Path, attack: str) -> None:
    settings = {"dataset": "fashion-mnist", "attack": attack, "clients": 20, "malicious": 4, "rounds": 24}
    records, summary = played(tmp_path / "sieve", **settings, defense="sieve", evaluate_every=24)
    assert_finite(records)
    for record in records:
        assert len(record.malicious) == 4
        assert record.rejected is not None
        assert set(record.malicious) <= set(record.rejected)
    assert summary["benign_client_rounds_lost"] <= 6  # of 384
    if attack == "scaling":
        assert summary["attack_success_rate"] < 0.2
        return
    undefended, without = played(tmp_path / "mean", **settings, defense="mean", evaluate_every=24)
    assert undefended[-1].malicious == records[-1].malicious
    assert summary["test_accuracy"] > without["test_accuracy"] + 0.1


@pytest.mark.parametrize("attack", ["none", "label-flip", "min-sum"])
@pytest.mark.parametrize("seed", [3, 4])
def test_sieve_tells_subjects_from_malicious_clients_on_har(tmp_path: Path, attack: str, seed: int) -> None:
    records, summary = played(
        tmp_path, dataset="har", attack=attack, defense="sieve", rounds=40, evaluate_every=40, seed=seed
    )
    # one subject of 24, the oddest, may stand with six who send the same; with seed 3 it does in most rounds
    assert summary["late_false_positive_rate"] <= (0.08 if attack == "min-sum" else 0.03)
    if attack == "min-sum":  # six equal updates that do no harm there: accepted in many rounds, and together one client
        weights = [dict(zip(record.clients, record.weights, strict=True)) for record in records]
        assert max(sum(of[i] for i in r.malicious) for of, r in zip(weights, records, strict=True)) < 1.2 / 30
    elif attack == "label-flip":
        assert summary["late_false_negative_rate"] <= 0.03


def test_skymask_finds_min_max_on_fashion_mnist(tmp_path: Path) -> None:
    settings = {"dataset": "fashion-mnist", "clients": 30, "malicious": 6, "rounds": 12, "evaluate_every": 12}
    records, summary = played(tmp_path, attack="min-max", **settings)
    assert Experiment.of({}).defense.parameters["preset"] == "paper"
    assert all(record.diagnosis is not None for record in records)
    assert summary["false_positive_rate"] <= 0.05
    assert summary["false_negative_rate"] == 0


@pytest.mark.parametrize(("attack", "slices"), [("label-flip", False), ("label-flip", True), ("min-max", True)])
def test_published_skymask_code_on_har(tmp_path: Path, attack: str, slices: bool) -> None:
    # the published code itself, run with its own settings: 0 / 0 in the late rounds, accuracy 0.93 to 0.945 by round 30
    _, summary = played(
        tmp_path,
        dataset={"name": "har", "standardise": True},
        attack=attack,
        defense={"name": "skymask", "preset": "code", "slices": slices},
        local={"loss": "batch", "clip_value": 0.01, "epochs": 1, "batch_size": 32},
        root={"size": 200},
        rounds=14,
        evaluate_every=14,
    )
    assert summary["late_false_positive_rate"] == 0
    assert summary["late_false_negative_rate"] == 0
    assert summary["test_accuracy"] > 0.92


def test_natural_clients_on_har(tmp_path: Path) -> None:
    records, summary = played(tmp_path, dataset="har", defense="mean", rounds=60)
    assert_finite(records)
    assert records[0].clients == tuple(range(30))
    assert summary["late_test_accuracy"] > 0.6


def test_batchnorm_on_cifar10(tmp_path: Path) -> None:
    records, _ = played(
        tmp_path, dataset="cifar10", attack="label-flip", clients=5, malicious=1, rounds=2, evaluate_every=2
    )
    assert_finite(records)
    assert records[0].test_accuracy is None
    assert all(record.rejected is not None for record in records)
