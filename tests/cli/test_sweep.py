"""`fedsieve sweep`."""

import json
from pathlib import Path

from fedsieve.config.experiment import Experiment
from tests.cli.conftest import Command, assert_mistake, words

GRID = "{dataset: digits, clients: 6, rounds: 2, defense: [mean, median]}"


def test_runs_a_grid(fedsieve_: Command, tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(GRID)
    result = fedsieve_(
        "sweep", "grid.yaml", "--set", "seed=[3]", "--out", "out", "--json", "--quiet", "--device", "cpu"
    )
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert (found["finished"], found["failed"]) == (2, 0)
    keys = [
        Experiment.of({"dataset": "digits", "clients": 6, "rounds": 2, "defense": d, "seed": 3}).key
        for d in ("mean", "median")
    ]
    assert {cell["key"]: cell["run_dir"] for cell in found["cells"]} == {key: f"out/{key}" for key in keys}
    assert {cell["name"] for cell in found["cells"]} == {
        f"none / {d}, digits, groups, 0 of 6, seed 3" for d in ("mean", "median")
    }
    assert all((tmp_path / "out" / key / "records.jsonl").is_file() for key in keys)
    again = fedsieve_("sweep", "grid.yaml", "--set", "seed=3", "--out", "out", "--quiet")  # all are skipped
    assert words(again.out) == "2 of 2 runs are finished fedsieve report out makes a report"


def test_a_failed_cell(fedsieve_: Command, tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text("{dataset: har, rounds: 2, defense: mean}")
    result = fedsieve_("sweep", "grid.yaml", "--quiet", "--jobs", "1")
    assert result.code == 1
    said = words(result.out)
    assert "none / mean, har" in said
    assert "UCI HAR Dataset.zip is missing" in said
    assert "0 of 1 runs are finished" in said


def test_mistakes(fedsieve_: Command, tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(GRID)
    assert_mistake(fedsieve_("sweep", "nowhere.yaml"), "can't read nowhere.yaml")
    assert_mistake(fedsieve_("sweep", "grid.yaml", "--set", "seed=[]"), "seed is an empty list")
    assert_mistake(fedsieve_("sweep", "grid.yaml", "--set", "attack=[none,nune]"), "attack=nune")
    assert_mistake(fedsieve_("sweep", "grid.yaml", "--device", "gpu"), "can't compute on device 'gpu'")
    (tmp_path / "out").write_text("a file in the way")
    assert_mistake(fedsieve_("sweep", "grid.yaml", "--out", "out", "--quiet"), "can't write run directories to out: ")
