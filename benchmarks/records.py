"""What records of 100 clients take on disk, and how long 2,500 of them take to load."""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from harness import Figure, Measured, in_turn, seconds

from fedsieve import Experiment, RoundRecord, RunDirectory
from fedsieve.data.store import data_folder
from fedsieve.report.load import read
from fedsieve.runs.run import run

ROUNDS = 2_500
NOT_RECORDS = ("experiment.yaml", "environment.json", "checkpoint.safetensors", "checkpoint.previous.safetensors")


def measure(small: bool) -> Measured:
    """The figures; with ``small``, of few rounds."""
    played, rounds = (3, 6) if small else (100, ROUNDS)
    figures, loads = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("sieve", "skymask"):
            out = Path(folder) / name
            records = play(name, played, out)
            size = on_disk(out) / played
            figures.append(
                Figure(f"a round of 100 clients with {name} on disk", f"{size:,.0f} bytes", "record bytes", size)
            )
            long = Path(folder) / f"{name}-long"
            write_long(records, rounds, long)
            loads[f"{name}: records"] = lambda long=long: _all(RunDirectory(long).records(), rounds)
            loads[f"{name}: as a report reads them"] = lambda long=long: read(long).digest
        times = in_turn(loads, seconds=0.0 if small else 30.0)
        for name in loads:
            own = times.of(name)
            figures.append(Figure(f"{rounds:,} rounds with {name}", seconds(own), "record load", own))
    notes = [f"Digits, an mlp of four layers, 100 clients, 20 of them malicious; sizes over {played} rounds."]
    return Measured(figures, notes=notes)


def play(defense: str, rounds: int, out: Path) -> list[RoundRecord]:
    """Rounds of 100 clients with a detector, written to a run directory."""
    settings = {
        "dataset": "digits",
        "model": {"name": "mlp", "hidden": [64, 32, 16]},
        "partition": "iid",
        "clients": 100,
        "attack": "label-flip",
        "defense": defense,
        "rounds": rounds,
        "evaluate_every": 1,
    }
    found, _ = run(Experiment.of(settings), out=out, data=data_folder(), device=torch.device("cpu"))
    return found


def write_long(records: list[RoundRecord], rounds: int, out: Path) -> None:
    """A run directory of more rounds, made by repeating records."""
    experiment = Experiment.of(
        {"dataset": "digits", "clients": 100, "attack": "label-flip", "defense": "mean", "rounds": rounds}
    )
    directory = RunDirectory(out)
    directory.write_experiment(experiment, torch.device("cpu"))
    for k in range(rounds):
        directory.append(replace(records[k % len(records)], round=k))


def on_disk(out: Path) -> int:
    """Bytes of the records in a run directory."""
    return sum(p.stat().st_size for p in out.rglob("*") if p.is_file() and p.name not in NOT_RECORDS)


def _all(records: list[RoundRecord], rounds: int) -> None:
    if len(records) != rounds:
        raise RuntimeError(f"{len(records)} of {rounds} records were read")
