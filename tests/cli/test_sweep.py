"""`fedsieve sweep`."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from fedsieve.config.experiment import Experiment
from fedsieve.runs.events import Event
from fedsieve.runs.lock import claimed
from tests.cli.conftest import Command, assert_mistake, words

GRID = "{dataset: digits, clients: 6, rounds: 2, defense: [mean, median]}"


def test_runs_a_grid(fedsieve_: Command, tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(GRID)
    result = fedsieve_(
        "sweep", "grid.yaml", "--set", "seed=[3]", "--out", "out", "--json", "--quiet", "--device", "cpu"
    )
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert (found["finished"], found["failed"], found["elsewhere"]) == (2, 0, 0)
    assert [(cell["state"], cell["error"]) for cell in found["cells"]] == [("finished", "")] * 2
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
    sizes = "seed=[" + ",".join(map(str, range(1000))) + "]"
    many = fedsieve_("sweep", "grid.yaml", "--set", sizes, "--set", sizes.replace("seed", "rounds"))
    assert_mistake(many, "the grid has 2,000,000 combinations (1,000 of seed, 1,000 of rounds, 2 of defense)")


class TestUnusableFolders:
    """One line, before anything is run."""

    @pytest.fixture
    def commands(self, tmp_path: Path) -> list[tuple[str, ...]]:
        (tmp_path / "grid.yaml").write_text(GRID)
        (tmp_path / "file").write_text("a file in the way")
        return [
            ("sweep", "grid.yaml", "--out"),
            ("sweep", "grid.yaml", "--ray", "nowhere:1", "--out"),
            ("reproduce", "table2", "--scale", "smoke", "--runs"),
            ("reproduce", "table2", "--scale", "smoke", "--out"),
            ("reproduce", "table2", "--scale", "smoke", "--tables-only", "--out"),
        ]

    @pytest.mark.parametrize(
        ("folder", "said"),
        [
            ("file", " to file: File exists"),
            ("file/below", " to file/below: Not a directory"),
            ("", "the name of the folder to write to is empty"),
            (300 * "x", "xxx: File name too long"),
        ],
        ids=["a file", "below a file", "empty", "too long"],
    )
    def test_a_wrong_path(
        self, fedsieve_: Command, tmp_path: Path, commands: list[tuple[str, ...]], folder: str, said: str
    ) -> None:
        for command in commands:
            assert_mistake(fedsieve_(*command, folder, "--quiet"), said)
        assert not (tmp_path / "runs").exists()

    def test_a_full_disk(
        self, fedsieve_: Command, commands: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(**_: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("fedsieve.runs.cell.TemporaryFile", full)
        for command in commands:
            result = fedsieve_(*command, "out", "--quiet")
            assert (result.code, result.out) == (1, "")
            (line,) = result.err.splitlines()
            assert line.startswith("error: can't write ")
            assert line.endswith(": No space left on device")


def test_elsewhere(fedsieve_: Command, tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text("{dataset: digits, clients: 6, rounds: 2, defense: mean}")
    key = Experiment.of({"dataset": "digits", "clients": 6, "rounds": 2, "defense": "mean"}).key
    with claimed(tmp_path / "out" / key):
        result = fedsieve_("sweep", "grid.yaml", "--out", "out", "--jobs", "1", "--json", "--quiet")
        assert result.code == 0, result.err
        found = json.loads(result.out)
        said = fedsieve_("sweep", "grid.yaml", "--out", "out", "--jobs", "1", "--quiet")
    (cell,) = found["cells"]
    assert (found["finished"], found["failed"], found["elsewhere"]) == (0, 0, 1)
    assert (cell["state"], cell["error"]) == ("elsewhere", "another process runs it")
    assert said.code == 0
    assert words(said.out).startswith("0 of 1 runs are finished, 1 run elsewhere ")


class TestNastyNames:
    """What a file says is shown as it is."""

    def test_an_error(self, fedsieve_: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "grid.yaml").write_text("{clients: 6, rounds: 2, defense: mean}")
        ends = {}

        def swept(experiments: list[Experiment], *_: Any, **__: Any) -> dict[str, Event]:
            for e in experiments:
                ends[e.key] = Event(e.key, "failed", text="Traceback\nmy[/]Error: [bold]\x1b[2J no :smile:")
            return ends

        monkeypatch.setattr("fedsieve.cli.swept.swept", swept)
        monkeypatch.setattr("fedsieve.cli.swept._name", lambda e: "my[/]mod:Cls[bold]\n\x1b[31m")
        result = fedsieve_("sweep", "grid.yaml", "--out", "o[/]ut")
        assert result.code == 1
        (key,) = ends
        first, second, third = result.out.splitlines()
        assert first == rf"my[/]mod:Cls[bold]\n\x1b[31m ({key}): my[/]Error: [bold]\x1b[2J no :smile:"
        assert second == "0 of 1 runs are finished"
        assert third == "fedsieve report 'o[/]ut' makes a report"
