"""Sweeps: nothing is run twice or lost, and a failed cell stops no other."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import FedSieveError
from fedsieve.federation.simulation import SimulationState
from fedsieve.runs import sweep as sweep_module
from fedsieve.runs.cell import finished, run_cell
from fedsieve.runs.directory import RunDirectory
from fedsieve.runs.events import Event
from fedsieve.runs.grid import expand
from fedsieve.runs.lock import claimed
from fedsieve.runs.sweep import sweep
from tests.runs.conftest import TINY, lines_of


def swept(experiments: list[Experiment], out: Path, jobs: int = 2) -> tuple[dict[str, str], list[Event]]:
    events: list[Event] = []
    return sweep(experiments, out, Path(), "cpu", jobs, events.append), events


def test_runs_skips_and_reports(tmp_path: Path) -> None:
    cells = expand({**TINY, "defense": ["mean", "sieve"], "seed": [0, 1]})
    results, events = swept(cells, tmp_path)
    assert results == {e.key: "" for e in cells}
    assert Counter(e.kind for e in events if e.kind != "round") == {"started": 4, "done": 4}
    assert all(finished(tmp_path / e.key, e) for e in cells)
    before = {e.key: (tmp_path / e.key / "records.jsonl").read_bytes() for e in cells}
    results, events = swept([*cells, Experiment.of({**TINY, "seed": 7})], tmp_path, jobs=1)
    assert set(results.values()) == {""}
    assert Counter(e.kind for e in events if e.kind != "round") == {"skipped": 4, "started": 1, "done": 1}
    assert all((tmp_path / key / "records.jsonl").read_bytes() == content for key, content in before.items())


def test_a_failure_is_recorded_and_stops_no_other_cell(tmp_path: Path) -> None:
    missing = Experiment.of({**TINY, "dataset": "table.csv", "model": "mlp"})
    good = Experiment.of(TINY)
    results, events = swept([missing, good], tmp_path, jobs=1)
    assert results[good.key] == ""
    assert "table.csv" in results[missing.key]
    assert [e.kind for e in events if e.kind != "round"] == ["started", "failed", "started", "done"]
    assert "table.csv" in (tmp_path / missing.key / "error.txt").read_text()
    assert not finished(tmp_path / missing.key, missing)


def test_a_cell_that_another_process_runs_is_left_to_it(tmp_path: Path) -> None:
    cells = expand({**TINY, "seed": [0, 1]})
    with claimed(tmp_path / cells[0].key) as mine:
        assert mine
        results, events = swept(cells, tmp_path, jobs=1)
    assert results == {cells[0].key: "another process runs it", cells[1].key: ""}
    assert not (tmp_path / cells[0].key / "records.jsonl").exists()
    assert "elsewhere" in {e.kind for e in events}
    assert swept(cells, tmp_path, jobs=1)[0] == {e.key: "" for e in cells}


GRID = {
    **TINY,
    "rounds": 12,
    "attack": ["none", "scaling"],
    "defense": ["mean", "median", "sieve"],
    "seed": [0, 1],
}


def command(file: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "fedsieve", "sweep", str(file), "--out", str(out), "--quiet", "--device", "cpu"]


def started(file: Path, out: Path, cells: int) -> subprocess.Popen[bytes]:
    """A sweep of its own process group, with some cells in it."""
    process = subprocess.Popen(
        command(file, out),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )
    deadline = time.monotonic() + 120
    while len(list(out.glob("*/records.jsonl"))) < cells:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def test_killed_twice_the_records_are_the_same(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump(GRID))
    cells = expand(GRID)
    assert len(cells) == 12
    for some in (3, 7):
        process = started(file, tmp_path / "killed", some)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert 0 < sum(finished(tmp_path / "killed" / e.key, e) for e in cells) < 12
    again = subprocess.run(command(file, tmp_path / "killed"), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    results, _ = swept(cells, tmp_path / "straight")
    assert set(results.values()) == {""}
    for cell in cells:
        assert lines_of(tmp_path / "killed" / cell.key) == lines_of(tmp_path / "straight" / cell.key)


def test_two_sweeps_at_once_share_the_cells(tmp_path: Path) -> None:
    grid = {**GRID, "seed": [0]}
    file, out = tmp_path / "grid.yaml", tmp_path / "shared"
    file.write_text(yaml.safe_dump(grid))
    both = [subprocess.Popen([*command(file, out), "--json"], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [json.loads(process.communicate()[0]) for process in both]
    cells = expand(grid)
    for cell in cells:  # twice the same rounds would be twice as many lines
        assert [r["round"] for r in lines_of(out / cell.key)] == list(range(12))
    errors = [{c["key"]: c["error"] for c in t["cells"]} for t in printed]
    assert all(not errors[0][e.key] or not errors[1][e.key] for e in cells)


def test_interrupted_at_the_keyboard(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    grid = {**GRID, "rounds": 200, "seed": [0]}
    file.write_text(yaml.safe_dump(grid))
    process = started(file, tmp_path / "out", 2)
    os.killpg(process.pid, signal.SIGINT)  # to the workers too, as a terminal does
    assert process.wait(60) == 130
    interrupted = [e for e in expand(grid) if (tmp_path / "out" / e.key / "records.jsonl").exists()]
    assert len(interrupted) >= 2
    for cell in interrupted:
        found = RunDirectory(tmp_path / "out" / cell.key).resume(cell, torch.device("cpu"))
        assert found is not None
        state, kept = found
        assert state.round == len(kept) > 0


def test_a_worker_interrupted_twice_saves_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = RunDirectory.save

    def slowly(self: RunDirectory, state: SimulationState) -> None:
        os.kill(os.getpid(), signal.SIGINT)  # the second comes while the first is being answered
        save(self, state)

    def interrupt(event: Event) -> None:
        if event.kind == "round":
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(RunDirectory, "save", slowly)
    before = signal.signal(signal.SIGINT, sweep_module._interrupted_once)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_cell(Experiment.of(TINY), tmp_path / "cell", Path(), "cpu", interrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "cell" / "checkpoint.safetensors").exists()


def test_a_worker_that_dies_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = expand({**TINY, "rounds": 10, "seed": [0, 1]})
    workers: list[Any] = []
    real = sweep_module._Worker

    def hired(*args: Any) -> Any:
        workers.append(real(*args))
        return workers[-1]

    monkeypatch.setattr(sweep_module, "_Worker", hired)
    killed: list[str] = []

    def watch(event: Event) -> None:
        if event.kind == "round" and not killed:
            killed.append(event.key)
            os.kill(workers[0].process.pid, signal.SIGKILL)

    results = sweep(cells, tmp_path, Path(), "cpu", 1, watch)
    assert killed
    assert len(workers) == 2
    assert set(results.values()) == {""}


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file in the way")
    with pytest.raises(FedSieveError) as error:
        swept([Experiment.of(TINY)], tmp_path / "out")
    assert str(error.value).startswith(f"can't write run directories to {tmp_path}/out: ")
