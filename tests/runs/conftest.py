"""Runs that are killed, resumed and compared, for the tests of several files."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from fedsieve.config.experiment import Experiment
from fedsieve.core.records import RoundRecord
from fedsieve.runs.run import run

CPU = torch.device("cpu")
NOWHERE = Path("no such folder")
# state of an optimizer and tensors of a defense; sampled clients, an attack that draws
ALL: dict[str, Any] = {
    "dataset": "doubles:Tiny",
    "attack": "doubles:Noise",
    "defense": "doubles:Momentum",
    "server": {"optimizer": "Adam", "learning_rate": 0.05},
    "clients": 6,
    "clients_per_round": 4,
    "malicious": 2,
    "rounds": 7,
    "evaluate_every": 3,
}
DETECTOR: dict[str, Any] = {**ALL, "defense": "doubles:Below", "attack": "doubles:Constant", "server": {}}
# state of an attacker, in tensors too, and of the clients
ATTACKER: dict[str, Any] = {
    "dataset": "doubles:Tiny",
    "model": "doubles:Normed",
    "local": {"batch_size": 10, "batch_norm": "local"},
    "attack": "doubles:Simulating",
    "defense": "momentum,doubles:Below",
    "knows_defense": True,
    "clients": 6,
    "malicious": 2,
    "rounds": 4,
}
# attackers that remember, have a simulated defense that remembers, and come back under new ids
RETURNING: dict[str, Any] = {
    **ATTACKER,
    "attack": {
        "name": "fresh-identity",
        "every": 2,
        "attack": {"name": "mixture", "attacks": ["doubles:Counts", "doubles:Simulating"]},
    },
    "clients_per_round": 4,
    "rounds": 5,
}
PARTIAL: dict[str, Any] = {**RETURNING, "knowledge": "partial"}
SKYMASK: dict[str, Any] = {
    "clients": 6,
    "rounds": 4,
    "attack": "min-max",
    "malicious": 2,
    "defense": {"name": "skymask", "mask_steps": 3},
}
TINY: dict[str, Any] = {"dataset": "digits", "clients": 6, "rounds": 3, "evaluate_every": 3, "defense": "mean"}
FILES = ["checkpoint.safetensors", "environment.json", "experiment.yaml", "records.jsonl", "scores.json"]


class KilledError(Exception):
    """What stops a run in these tests."""


def run_into(
    settings: dict[str, Any], out: Path, *, kill_after: int | None = None, **more: Any
) -> tuple[list[RoundRecord], dict[str, Any]]:
    def kill(record: RoundRecord) -> None:
        if record.round == kill_after:
            raise KilledError

    return run(Experiment.of(settings), out=out, data=NOWHERE, device=CPU, on_round=kill, **more)


def without_seconds(out: Path) -> list[str]:
    """The lines of the records, byte for byte but for the one field that may differ."""
    lines = (out / "records.jsonl").read_text().splitlines()
    assert lines
    result = []
    for line in lines:
        before, found, _ = line.partition(',"seconds":{')
        assert found
        result.append(before)
    return result


def saved(out: Path) -> dict[str, Tensor]:
    with safe_open(out / "checkpoint.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)


def assert_same_run(one: Path, two: Path) -> None:
    assert without_seconds(one) == without_seconds(two)
    for name in ("experiment.yaml", "scores.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    a, b = saved(one), saved(two)
    assert set(a) == set(b) != set()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


def lines_of(path: Path) -> list[dict[str, Any]]:
    """All fields of the records but the seconds."""
    lines = [json.loads(line) for line in (path / "records.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
