"""Grids: what they expand to, that nothing is run twice or lost, and that a failure stops nobody."""

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

from fedsieve import sweep as sweep_module
from fedsieve.experiment import Experiment
from fedsieve.runs import RunDirectory
from fedsieve.server import ServerState
from fedsieve.sweep import Event, claimed, expand, finished, play, sweep, sweep_on_ray
from fedsieve.types import FedSieveError, ParameterError

TINY: dict[str, Any] = {"dataset": "digits", "clients": 6, "rounds": 3, "evaluate_every": 3}


class TestExpand:
    def test_product_of_lists(self) -> None:
        found = expand({**TINY, "attack": ["none", "min-max"], "defense": ["mean", "median"], "seed": [0, 1, 2]})
        assert len(found) == 12
        assert Counter(e.attack.name for e in found) == {"none": 6, "min-max": 6}
        assert {e.seed for e in found} == {0, 1, 2}

    def test_no_list_is_one_cell(self) -> None:
        assert [e.key for e in expand(TINY)] == [Experiment.of(TINY).key]

    def test_lists_in_components_are_values(self) -> None:
        (found,) = expand({**TINY, "model": {"name": "mlp", "hidden": [9, 8]}})
        assert list(found.model.parameters["hidden"]) == [9, 8]

    def test_chains_are_lists_in_a_list(self) -> None:
        found = expand({**TINY, "defense": ["mean", ["norm-clipping", "median"]]})
        assert [e.defense.name for e in found] == ["mean", "norm-clipping,median"]

    def test_lists_in_sections(self) -> None:
        found = expand({**TINY, "local": {"learning_rate": [0.1, 0.5], "steps": 2}, "root": {"size": [10, 20]}})
        assert [(e.local.learning_rate, e.root.size) for e in found] == [(0.1, 10), (0.1, 20), (0.5, 10), (0.5, 20)]
        assert {e.local.steps for e in found} == {2}

    def test_shares_of_malicious_clients(self) -> None:
        found = expand({**TINY, "clients": 10, "attack": "min-max", "defense": "mean", "malicious": [0.2, 0.4, 6]})
        assert [e.malicious for e in found] == [2, 4, 6]

    def test_equal_cells_are_one(self) -> None:
        assert len(expand({**TINY, "seed": [0, 1, 0]})) == 2

    @pytest.mark.parametrize(
        ("grid", "message"),
        [
            ({"seed": []}, "seed is an empty list"),
            ({"local": {"steps": []}}, "local.steps is an empty list"),
            ({"attack": ["none", "min-mux"], "seed": [0, 1]}, "attack=min-mux, seed=0: "),
            ({"sede": [0, 1]}, "unknown setting sede"),
        ],
    )
    def test_wrong_ones(self, grid: dict[str, Any], message: str) -> None:
        with pytest.raises(ParameterError) as error:
            expand({**TINY, **grid})
        assert message in str(error.value)


def swept(experiments: list[Experiment], out: Path, jobs: int = 2) -> tuple[dict[str, str], list[Event]]:
    events: list[Event] = []
    return sweep(experiments, out, Path(), "cpu", jobs, events.append), events


def records(path: Path) -> list[dict[str, Any]]:
    """All that is in the records but the time it took."""
    lines = [json.loads(line) for line in (path / "records.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def test_runs_skips_and_reports(tmp_path: Path) -> None:
    cells = expand({**TINY, "defense": ["mean", "skymask"], "seed": [0, 1]})
    results, events = swept(cells, tmp_path)
    assert results == {e.key: "" for e in cells}
    assert Counter(e.kind for e in events if e.kind != "round") == {"started": 4, "done": 4}
    assert all(finished(tmp_path / e.key, e) for e in cells)
    before = {e.key: (tmp_path / e.key / "records.jsonl").read_bytes() for e in cells}
    results, events = swept([*cells, Experiment.of({**TINY, "seed": 7})], tmp_path, jobs=1)
    assert set(results.values()) == {""}
    assert Counter(e.kind for e in events if e.kind != "round") == {"skipped": 4, "started": 1, "done": 1}
    assert all((tmp_path / key / "records.jsonl").read_bytes() == content for key, content in before.items())


def test_a_failure_is_recorded_and_stops_nobody(tmp_path: Path) -> None:
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


def test_another_experiment_in_the_directory_is_not_taken_for_finished(tmp_path: Path) -> None:
    one, other = expand({**TINY, "seed": [0, 1]})
    play(one, tmp_path / one.key, Path(), "cpu", lambda event: None)
    assert finished(tmp_path / one.key, one)
    (tmp_path / one.key).rename(tmp_path / other.key)
    assert not finished(tmp_path / other.key, other)


GRID = {
    **TINY,
    "rounds": 12,
    "attack": ["none", "scaling"],
    "defense": ["mean", "median", "skymask"],
    "seed": [0, 1, 2, 3],
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


def test_killed_twice_and_none_the_worse(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump(GRID))
    cells = expand(GRID)
    assert len(cells) == 24
    for some in (4, 13):
        process = started(file, tmp_path / "killed", some)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert 0 < sum(finished(tmp_path / "killed" / e.key, e) for e in cells) < 24
    again = subprocess.run(command(file, tmp_path / "killed"), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    results, _ = swept(cells, tmp_path / "straight")
    assert set(results.values()) == {""}
    for cell in cells:
        assert records(tmp_path / "killed" / cell.key) == records(tmp_path / "straight" / cell.key)


def test_two_at_once_share_the_cells(tmp_path: Path) -> None:
    grid = {**GRID, "seed": [0, 1]}
    file, out = tmp_path / "grid.yaml", tmp_path / "shared"
    file.write_text(yaml.safe_dump(grid))
    both = [subprocess.Popen([*command(file, out), "--json"], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [json.loads(process.communicate()[0]) for process in both]
    cells = expand(grid)
    for cell in cells:  # twice the same rounds would be twice as many lines
        assert [r["round"] for r in records(out / cell.key)] == list(range(12))
    errors = [{c["key"]: c["error"] for c in t["cells"]} for t in told]
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
        state, played = found
        assert state.round == len(played) > 0


def test_a_worker_interrupted_twice_saves_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = RunDirectory.save

    def slowly(self: RunDirectory, state: ServerState) -> None:
        os.kill(os.getpid(), signal.SIGINT)  # the second comes while the first is being answered
        save(self, state)

    def interrupt(event: Event) -> None:
        if event.kind == "round":
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(RunDirectory, "save", slowly)
    before = signal.signal(signal.SIGINT, sweep_module._interrupted_once)
    try:
        with pytest.raises(KeyboardInterrupt):
            play(Experiment.of(TINY), tmp_path / "cell", Path(), "cpu", interrupt)
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


@pytest.mark.filterwarnings("ignore")  # what a cluster warns of is not ours
class TestRay:
    def test_without_ray(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(FedSieveError, match=r"pip install fedsieve\[ray\]"):
            sweep_on_ray([], tmp_path, Path(), "cpu", "auto", lambda event: None)

    def test_a_local_cluster_loses_a_worker(self, tmp_path: Path) -> None:
        ray = pytest.importorskip("ray")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
        try:
            cells = expand({**TINY, "rounds": 80, "defense": ["mean", "skymask"], "seed": [0, 1]})
            events: list[Event] = []
            victim = subprocess.Popen([sys.executable, "-c", KILLER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
            results = sweep_on_ray(cells, tmp_path, Path(), "cpu", "auto", events.append)
            assert "killed" in victim.communicate(timeout=60)[0]
        finally:
            ray.shutdown()
        assert results == {e.key: "" for e in cells}
        straight, _ = swept(cells, tmp_path / "straight")
        assert set(straight.values()) == {""}
        for cell in cells:
            assert records(tmp_path / cell.key) == records(tmp_path / "straight" / cell.key)
        assert {e.kind for e in events} == {"started", "done"}


# Kills the first worker that has played some rounds, from outside, as a machine that goes down would.
KILLER = """
import os, pathlib, signal, subprocess, sys, time
folder = pathlib.Path(sys.argv[1])
while not any(len(p.read_bytes().splitlines()) > 5 for p in folder.glob("*/records.jsonl")):
    time.sleep(0.02)
found = subprocess.run(["pgrep", "-f", "ray::_ray_cell"], capture_output=True, text=True).stdout.split()
os.kill(int(found[0]), signal.SIGKILL)
print("killed")
"""
