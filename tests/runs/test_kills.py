"""Processes of a sweep that are killed, interrupted or left behind: nothing is lost, and the same command goes on."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fedsieve.config.experiment import Experiment
from fedsieve.federation.simulation import SimulationState
from fedsieve.runs import worker as worker_module
from fedsieve.runs.cell import finished, run_cell
from fedsieve.runs.directory import RunDirectory
from fedsieve.runs.events import Event
from fedsieve.runs.grid import expand
from fedsieve.runs.lock import claimed
from fedsieve.runs.signals import interruptible
from fedsieve.runs.sweep import sweep
from fedsieve.runs.worker import Worker
from tests.runs.conftest import CPU, TINY, without_seconds
from tests.runs.spoiler import Spoiler

pytestmark = pytest.mark.slow  # starts and kills processes

EIGHT: dict[str, Any] = {**TINY, "rounds": 8, "evaluate_every": 1}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in a worker."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def assert_undisturbed(cells: list[Experiment], out: Path, straight: Path) -> None:
    """The records below ``out`` are those of runs that nothing happened to."""
    for cell in cells:
        run_cell(cell, straight / cell.key, Path(), "cpu", lambda event: None)
        assert finished(out / cell.key, cell)
        assert without_seconds(out / cell.key) == without_seconds(straight / cell.key)


def rounds_of(path: Path) -> int:
    return (path / "records.jsonl").read_bytes().count(b"\n")


def assert_saved(path: Path) -> None:
    """The run was interrupted, not spoilt: its checkpoint is of its last record."""
    assert not (path / "error.txt").exists()
    recorded = rounds_of(path)
    found = RunDirectory(path).load(CPU)
    assert found is not None
    assert 0 < found.round == recorded


def begun(out: Path) -> list[Path]:
    """Run directories with at least one round."""
    return [path.parent for path in out.glob("*/records.jsonl") if path.stat().st_size]


def wait_until_free(path: Path) -> None:
    deadline = time.monotonic() + 300
    while True:
        with claimed(path) as free:
            if free:
                return
        assert time.monotonic() < deadline, f"somebody still runs {path}"
        time.sleep(0.05)


def test_workers_that_die_at_any_moment(tmp_path: Path) -> None:
    cells = expand({**EIGHT, "seed": [0, 1, 2, 3]})
    for way, cell in zip(("kill", "replace", "fsync"), cells, strict=False):
        (tmp_path / f"{way}-{cell.key}").touch()
    events: list[Event] = []
    ends = sweep(cells, tmp_path, Path(), "cpu", 2, events.append, [Spoiler], checkpoint_every=0.0)
    assert [end.kind for end in ends.values()] == ["done"] * 4
    assert not list(tmp_path.glob("*-*"))  # all have happened
    notes = {event.key: event.text for event in events if event.text.startswith("its process ")}
    assert notes == {cell.key: "its process was ended by SIGKILL; it is tried again" for cell in cells[:3]}
    assert_undisturbed(cells, tmp_path, tmp_path / "straight")


def test_a_worker_that_always_dies(tmp_path: Path) -> None:
    (cell,) = expand(EIGHT)
    (tmp_path / f"kill-{cell.key}").touch()

    def again(event: Event) -> None:
        if event.kind == "note":
            (tmp_path / f"kill-{event.key}").touch()

    ends = sweep([cell], tmp_path, Path(), "cpu", 1, again, [Spoiler])
    error = "its process was ended by SIGKILL, as before"
    assert ends == {cell.key: Event(cell.key, "failed", text=error)}
    assert (tmp_path / cell.key / "error.txt").read_text() == f"{error}\n"


def test_a_worker_told_to_end_saves_and_is_replaced(tmp_path: Path) -> None:
    (cell,) = expand(EIGHT)
    (tmp_path / f"term-{cell.key}").touch()
    notes: list[str] = []

    def watch(event: Event) -> None:
        if event.kind == "note":
            notes.append(event.text)
            assert rounds_of(tmp_path / cell.key) == 6
            assert_saved(tmp_path / cell.key)

    ends = sweep([cell], tmp_path, Path(), "cpu", 1, watch, [Spoiler])
    assert notes == ["its process was ended by SIGTERM; it is tried again"]
    assert ends[cell.key].kind == "done"
    assert_undisturbed([cell], tmp_path, tmp_path / "straight")


def test_a_worker_that_nobody_listens_to_saves_and_ends(tmp_path: Path) -> None:
    (cell,) = expand({**TINY, "rounds": 100_000})
    worker = Worker(run_a_cell, 1, "cpu")
    worker.give(cell, tmp_path)
    while worker.connection.recv().round < 3:
        pass
    worker.connection.close()
    worker.process.join(120)
    assert worker.process.exitcode == 0
    assert_saved(tmp_path / cell.key)


def run_a_cell(*args: Any, **more: Any) -> None:
    run_cell(*args, **more, data=Path(), device="cpu")


# A sweep whose process kills itself when a cell is in its third round or later.
SUICIDE = """
import os, pathlib, signal, sys
from fedsieve.runs.grid import expand
from fedsieve.runs.signals import interruptible
from fedsieve.runs.sweep import sweep
from tests.runs.test_kills import LONG

def watch(event):
    if event.round >= 3:
        os.kill(os.getpid(), signal.SIGKILL)

sweep(expand(LONG), pathlib.Path(sys.argv[1]), pathlib.Path(), "cpu", 2, watch)
"""
LONG = {**TINY, "rounds": 100_000, "seed": [0, 1]}


def test_workers_whose_parent_dies_save_and_end(tmp_path: Path) -> None:
    parent = subprocess.run([sys.executable, "-c", SUICIDE, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert (parent.returncode, parent.stdout, parent.stderr) == (-signal.SIGKILL, "", "")
    for cell in expand(LONG):
        wait_until_free(tmp_path / cell.key)
    assert begun(tmp_path)
    for path in begun(tmp_path):
        assert_saved(path)


GRID = {**EIGHT, "rounds": 12, "attack": ["none", "scaling"], "defense": ["mean", "median", "sieve"]}


def command(file: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "fedsieve", "sweep", str(file), "--out", str(out), "--quiet", "--device", "cpu"]


def started(file: Path, out: Path, cells: int, **more: Any) -> subprocess.Popen[str]:
    """A sweep of its own process group, with some cells in it."""
    process = subprocess.Popen(
        command(file, out),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
        **more,
    )
    deadline = time.monotonic() + 300
    while len(begun(out)) < cells:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def test_killed_altogether(tmp_path: Path) -> None:
    file, out, cells = tmp_path / "grid.yaml", tmp_path / "killed", expand(GRID)
    file.write_text(yaml.safe_dump(GRID))
    process = started(file, out, 2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert sum(finished(out / cell.key, cell) for cell in cells) < len(cells)
    again = subprocess.run(command(file, out), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert all("starting at round 0" in line for line in again.stderr.splitlines())  # nothing else is told
    assert_undisturbed(cells, out, tmp_path / "straight")


@pytest.mark.parametrize(
    ("name", "to_all", "code"),
    [("SIGINT", True, 130), ("SIGTERM", False, 143), ("SIGHUP", True, 129)],
    ids=["Ctrl-C", "docker stop", "ssh closed"],
)
def test_interrupted(tmp_path: Path, name: str, to_all: bool, code: int) -> None:
    file, out, grid = tmp_path / "grid.yaml", tmp_path / "out", {**LONG, "seed": [0, 1, 2, 3]}
    file.write_text(yaml.safe_dump(grid))
    process = started(file, out, 2, stderr=subprocess.PIPE)
    (os.killpg if to_all else os.kill)(process.pid, getattr(signal, name))
    _, said = process.communicate(timeout=300)
    assert process.returncode == code
    assert "Traceback" not in said
    assert f"the same command continues from {out}" in " ".join(said.split())
    assert len(begun(out)) >= 2
    for path in begun(out):
        assert_saved(path)


def test_a_second_signal_does_not_disturb_the_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = RunDirectory.save

    def disturbed(self: RunDirectory, state: SimulationState, *args: Any) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        save(self, state, *args)

    def interrupt(event: Event) -> None:
        if event.kind == "round":
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunDirectory, "save", disturbed)
    with pytest.raises(KeyboardInterrupt), interruptible() as interruption:
        run_cell(Experiment.of(TINY), tmp_path / "cell", Path(), "cpu", interrupt)
    assert interruption.code == 143
    assert_saved(tmp_path / "cell")


def test_a_signal_in_a_finalizer_counts_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "_end_with_parent", lambda: None)
    theirs: list[Any] = []

    class Dropped:
        def __del__(self) -> None:
            with suppress(KeyboardInterrupt):  # as Python does, with a message
                signal.raise_signal(signal.SIGTERM)

    def runner(*_: Any, report: Any) -> None:
        Dropped()
        theirs.append(report)
        report(Event("key", "started"))

    ours, other = multiprocessing.Pipe()
    ours.send((None, None))
    with pytest.raises(SystemExit) as ended:
        worker_module._work(other, runner, 1)
    assert ended.value.code == 143
    assert len(theirs) == 1
    assert not ours.poll()
