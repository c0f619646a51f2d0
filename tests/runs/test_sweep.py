"""Sweeps: nothing is run twice or lost, and a failed cell stops no other."""

import errno
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import FedSieveError, StorageError
from fedsieve.runs import cell as cell_module
from fedsieve.runs import sweep as sweep_module
from fedsieve.runs.cell import CellRunner, finished, run_cell
from fedsieve.runs.events import Event
from fedsieve.runs.grid import expand
from fedsieve.runs.lock import claimed
from fedsieve.runs.sweep import sweep
from fedsieve.runs.worker import Worker
from tests.runs.conftest import TINY, lines_of, without_seconds
from tests.runs.spoiler import Spoiler


def swept(experiments: list[Experiment], out: Path, jobs: int = 2, **more: Any) -> tuple[dict[str, str], list[Event]]:
    """Why cells are not finished, by key; and all events."""
    events: list[Event] = []
    ends = sweep(experiments, out, Path(), "cpu", jobs, events.append, **more)
    return {key: end.error for key, end in ends.items()}, events


class InProcess(Worker):
    """A worker without a process of its own: runs a cell when it is given it."""

    def __init__(self, runner: CellRunner, threads: int, device: str) -> None:
        self.device = device
        self.busy: Experiment | None = None
        self.connection, self._theirs = multiprocessing.Pipe()
        self._runner = runner

    def give(self, experiment: Experiment, out: Path) -> None:
        self.busy = experiment
        self._runner(experiment, out / experiment.key, report=self._theirs.send)

    def dismiss(self) -> None:
        self.connection.close()
        self._theirs.close()

    def end(self) -> str:
        return "was ended"


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No processes, which take seconds to start."""
    monkeypatch.setattr(sweep_module, "Worker", InProcess)


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


@pytest.mark.usefixtures("in_process")
def test_a_failure_is_recorded_and_stops_no_other_cell(tmp_path: Path) -> None:
    missing = Experiment.of({**TINY, "dataset": "table.csv", "model": "mlp"})
    good = Experiment.of(TINY)
    results, events = swept([missing, good], tmp_path, jobs=1)
    assert results[good.key] == ""
    assert "table.csv" in results[missing.key]
    assert [e.kind for e in events if e.kind != "round"] == ["started", "failed", "started", "done"]
    assert "table.csv" in (tmp_path / missing.key / "error.txt").read_text()
    assert not finished(tmp_path / missing.key, missing)


@pytest.mark.usefixtures("in_process")
class TestElsewhere:
    """A cell that another process runs is no failure."""

    def test_it_is_left_to_the_other(self, tmp_path: Path) -> None:
        cells = expand({**TINY, "seed": [0, 1]})
        events: list[Event] = []
        with claimed(tmp_path / cells[0].key) as mine:
            assert mine
            ends = sweep(cells, tmp_path, Path(), "cpu", 1, events.append)
        assert [(end.kind, end.error) for end in ends.values()] == [
            ("elsewhere", "another process runs it"),
            ("done", ""),
        ]
        assert not (tmp_path / cells[0].key / "records.jsonl").exists()
        assert not (tmp_path / cells[0].key / "error.txt").exists()
        assert "failed" not in {event.kind for event in events}
        assert swept(cells, tmp_path, jobs=1)[0] == {e.key: "" for e in cells}

    def test_what_the_other_gave_up_is_run_at_the_end(self, tmp_path: Path) -> None:
        cells = expand({**TINY, "seed": [0, 1]})
        events: list[Event] = []
        with ExitStack() as other:
            other.enter_context(claimed(tmp_path / cells[0].key))

            def watch(event: Event) -> None:
                events.append(event)
                if event.kind == "elsewhere":
                    other.close()

            ends = sweep(cells, tmp_path, Path(), "cpu", 1, watch)
        assert {end.kind for end in ends.values()} == {"done"}
        first = [e.kind for e in events if e.key == cells[0].key and e.kind not in ("started", "round")]
        assert first == ["elsewhere", "done"]

    def test_what_the_other_finished_is_finished(self, tmp_path: Path) -> None:
        cells = expand({**TINY, "seed": [0, 1]})
        with ExitStack() as other:
            other.enter_context(claimed(tmp_path / cells[0].key))

            def watch(event: Event) -> None:
                if event.kind == "elsewhere":
                    other.close()
                    run_cell(cells[0], tmp_path / cells[0].key, Path(), "cpu", lambda event: None)

            ends = sweep(cells, tmp_path, Path(), "cpu", 1, watch)
        assert [end.kind for end in ends.values()] == ["skipped", "done"]

    def test_it_can_be_waited_for(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (cell,) = expand(TINY)
        looks: list[float] = []
        with ExitStack() as other:
            other.enter_context(claimed(tmp_path / cell.key))

            def sleep(seconds: float) -> None:
                looks.append(seconds)
                if len(looks) == 3:
                    other.close()

            monkeypatch.setattr("fedsieve.runs.cell.time.sleep", sleep)
            results, events = swept([cell], tmp_path, wait=True)
        assert results == {cell.key: ""}
        assert looks == [1.0, 1.0, 1.0]
        assert [event.kind for event in events if event.kind in ("elsewhere", "done")] == ["elsewhere", "done"]


@pytest.mark.slow
def test_records_depend_on_threads_and_not_on_jobs(tmp_path: Path) -> None:
    many = {"attack": "min-max", "clients": 9, "malicious": 2, "local": {"batch_size": 64}}
    cells = expand({**TINY, **many, "defense": ["flame", "sieve"]})
    for jobs in (1, 2):
        assert set(swept(cells, tmp_path / str(jobs), jobs, threads=1)[0].values()) == {""}
    for cell in cells:
        one, two = (tmp_path / str(jobs) / cell.key for jobs in (1, 2))
        assert without_seconds(one) == without_seconds(two)
        assert json.loads((one / "environment.json").read_text())["threads"] == 1


@pytest.mark.slow
def test_every_run_has_the_threads_that_were_asked_for(tmp_path: Path) -> None:
    (cell,) = expand(TINY)
    assert swept([cell], tmp_path, jobs=5, threads=3)[0] == {cell.key: ""}
    assert json.loads((tmp_path / cell.key / "environment.json").read_text())["threads"] == 3


@pytest.mark.slow
def test_two_sweeps_at_once_share_the_cells(tmp_path: Path) -> None:
    grid = {**TINY, "rounds": 12, "attack": ["none", "scaling"], "defense": ["mean", "sieve"]}
    file, out, cells = tmp_path / "grid.yaml", tmp_path / "shared", expand(grid)
    file.write_text(yaml.safe_dump(grid))
    command = [sys.executable, "-m", "fedsieve", "sweep", str(file), "--out", str(out), "--jobs", "1", "--json"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [json.loads(process.communicate()[0]) for process in both]
    for cell in cells:  # twice the same rounds would be twice as many lines
        assert [r["round"] for r in lines_of(out / cell.key)] == list(range(12))
    assert [process.returncode for process in both] == [0, 0]
    states = [{c["key"]: c["state"] for c in t["cells"]} for t in printed]
    for cell in cells:
        both_say = {states[0][cell.key], states[1][cell.key]}
        assert "finished" in both_say
        assert both_say <= {"finished", "elsewhere"}
    assert [t["failed"] for t in printed] == [0, 0]
    for t in printed:
        assert t["finished"] + t["elsewhere"] == len(cells)


@pytest.mark.usefixtures("in_process")
def test_a_display_that_cannot_show_is_no_failure(tmp_path: Path) -> None:
    def watch(event: Event) -> None:
        raise OSError(errno.EIO, "the terminal is gone")

    (cell,) = expand(TINY)
    assert sweep([cell], tmp_path, Path(), "cpu", 1, watch)[cell.key].kind == "done"


@pytest.mark.usefixtures("in_process")
class TestUnreadableCells:
    """They fail alone, and say how to go on."""

    def test_the_others_run(self, tmp_path: Path) -> None:
        cells = expand({**TINY, "seed": [0, 1, 2, 3]})
        assert set(swept(cells[:3], tmp_path)[0].values()) == {""}
        first, second, third, _ = (tmp_path / cell.key for cell in cells)
        (first / "experiment.yaml").write_bytes(b"\xff\x00 no text")  # its checkpoint holds the settings too
        (second / "experiment.yaml").unlink()
        (second / "experiment.yaml").mkdir()
        (third / "records.jsonl").unlink()
        (third / "records.jsonl").mkdir()
        results, events = swept(cells, tmp_path, jobs=1)
        assert [bool(results[cell.key]) for cell in cells] == [False, True, True, False]
        for path in (second, third):
            error = results[path.name]
            assert "\n" not in error
            assert error.endswith(f"; delete {path} to run it from the start")
        assert Counter(e.kind for e in events if e.kind in ("done", "failed")) == {"failed": 2, "done": 2}
        for cell in cells[:3]:
            shutil.rmtree(tmp_path / cell.key)
        assert set(swept(cells, tmp_path)[0].values()) == {""}


@pytest.mark.usefixtures("in_process")
class TestStorage:
    """A full disk ends the sweep in one line; what was computed is kept."""

    @pytest.mark.slow
    def test_a_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        cells = expand({**TINY, "seed": [0, 1, 2]})
        (tmp_path / f"full-{cells[1].key}").touch()
        probes: list[None] = []
        real = cell_module.TemporaryFile

        def temporary(**more: Any) -> Any:
            probes.append(None)
            if len(probes) > 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(**more)

        monkeypatch.setattr(cell_module, "TemporaryFile", temporary)
        events: list[Event] = []
        with pytest.raises(StorageError) as error:
            sweep(cells, tmp_path, Path(), "cpu", 1, events.append, [Spoiler])
        assert str(error.value) == f"can't write run directories to {tmp_path}: No space left on device"
        assert [e.kind for e in events if e.kind != "round"] == ["started", "done", "started", "failed"]
        assert "No space left on device" in events[-1].text
        assert "\n" not in events[-1].text
        monkeypatch.undo()
        (tmp_path / f"full-{cells[1].key}").unlink()
        first = (tmp_path / cells[0].key / "records.jsonl").read_bytes()
        assert set(swept(cells, tmp_path)[0].values()) == {""}
        assert (tmp_path / cells[0].key / "records.jsonl").read_bytes() == first

    def test_one_cell_that_cannot_be_written_stops_no_other(self, tmp_path: Path) -> None:
        cells = expand({**TINY, "seed": [0, 1]})
        (tmp_path / cells[0].key).write_text("a file in the way")
        results, _ = swept(cells, tmp_path, jobs=1)
        assert "\n" not in results[cells[0].key]
        assert results[cells[1].key] == ""


@pytest.mark.usefixtures("in_process")
class TestNoMoreProcesses:
    """Too many open files, or no memory to fork."""

    def limited(self, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
        started: list[Any] = []

        def worker(*args: Any) -> Any:
            if len(started) == most:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            started.append(InProcess(*args))
            return started[-1]

        monkeypatch.setattr(sweep_module, "Worker", worker)

    def test_those_that_run_do_all(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.limited(monkeypatch, 1)
        cells = expand({**TINY, "seed": [0, 1, 2]})
        results, events = swept(cells, tmp_path, jobs=3)
        assert set(results.values()) == {""}
        notes = [event.text for event in events if event.kind == "note"]
        assert notes == ["can't start a worker process: Too many open files; going on with 1"]

    def test_none_at_all(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.limited(monkeypatch, 0)
        with pytest.raises(StorageError, match="can't start a worker process: Too many open files; what was computed"):
            swept([Experiment.of(TINY)], tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file in the way")
    with pytest.raises(FedSieveError) as error:
        swept([Experiment.of(TINY)], tmp_path / "out")
    assert str(error.value).startswith(f"can't write run directories to {tmp_path}/out: ")
