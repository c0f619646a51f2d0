"""Run directories with chosen records, so that every number of a table is known."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from fedsieve.config.experiment import Experiment
from fedsieve.core.records import DiagnosisRecord, RoundRecord


def record(number: int, accuracy: float | None, **more: Any) -> RoundRecord:
    """A round of four clients, the first of them malicious."""
    usual: dict[str, Any] = {
        "round": number,
        "clients": (0, 1, 2, 3),
        "malicious": (0,),
        "rejected": (0,),
        "screened": (),
        "weights": (0.0, 1 / 3, 1 / 3, 1 / 3),
        "scores": None,
        "update_norm": 1.0,
        "applied": True,
        "note": "",
        "test_accuracy": accuracy,
        "test_loss": None,
        "attack_success_rate": None,
        "attack_success_rate_all": None,
        "false_positive_rate": 0.0,
        "false_negative_rate": 0.0,
    }
    return RoundRecord(**{**usual, **more})


def diagnosis(n: int = 4) -> DiagnosisRecord:
    """Clients on a line, the last of them without a mask."""
    points = tuple((float(k), -float(k)) for k in range(n - 1))
    updates = tuple((0.1 * k, 0.2) for k in range(n))
    return DiagnosisRecord(
        (*points, (None, None)), (0.5, 0.5), ("one", "two"), ((0.4, 0.6),) * n, ("residual norm", "", "", ""), updates
    )


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run directory with these accuracies, or these records, and settings."""

    def made(name: str, accuracies: list[float | None], records: list[RoundRecord] | None = None, **more: Any) -> Path:
        rounds = more.pop("rounds", len(accuracies))
        settings = {"dataset": "digits", "clients": 4, "malicious": 1, "rounds": rounds, **more}
        path = tmp_path / "runs" / name
        path.mkdir(parents=True)
        (path / "experiment.yaml").write_text(Experiment.of(settings).to_yaml())
        found = records or [record(k, a) for k, a in enumerate(accuracies)]
        (path / "records.jsonl").write_text("".join(json.dumps(asdict(r)) + "\n" for r in found))
        return path

    return made
