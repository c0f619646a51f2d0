"""One cell of a grid: which events it reports, whatever happens."""

from pathlib import Path
from typing import Any

import pytest

from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import FedSieveError
from fedsieve.core.records import RoundRecord
from fedsieve.runs.cell import finished, run_cell, split
from fedsieve.runs.events import Event
from fedsieve.runs.grid import expand
from fedsieve.runs.lock import claimed
from tests.runs.conftest import NOWHERE, TINY, lines_of

CELL = Experiment.of(TINY)


def events_of(experiment: Experiment, path: Path, **more: Any) -> list[Event]:
    events: list[Event] = []
    run_cell(experiment, path, NOWHERE, "cpu", events.append, **more)
    return events


class Shown:
    """A display that keeps what it was given."""

    seen: list[Any] = []  # noqa: RUF012

    def __init__(self, path: Path) -> None:
        self.path = path

    def show(self, record: RoundRecord) -> None:
        self.seen.append(record.round)

    def close(self) -> None:
        self.seen.append("closed")


def test_a_run(tmp_path: Path) -> None:
    Shown.seen.clear()
    events = events_of(CELL, tmp_path / "cell", displays=[Shown])
    kinds = [event.kind for event in events]
    assert (kinds[0], kinds[-1]) == ("started", "done")
    assert set(kinds[1:-1]) <= {"round"}
    assert events[-1].round == 3
    assert events[-1].text.endswith(" %")
    assert events[-1].error == ""
    assert Shown.seen == [0, 1, 2, "closed"]
    assert finished(tmp_path / "cell", CELL)
    assert [event.kind for event in events_of(CELL, tmp_path / "cell")] == ["done"]


def test_another_process_runs_it(tmp_path: Path) -> None:
    with claimed(tmp_path / "cell"):
        (event,) = events_of(CELL, tmp_path / "cell")
    assert (event.kind, event.error) == ("elsewhere", "another process runs it")
    assert not (tmp_path / "cell").exists()


def test_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("fedsieve.runs.cell.run", fails)
    events = events_of(CELL, tmp_path / "cell")
    assert [event.kind for event in events] == ["started", "failed"]
    assert "Traceback" in events[-1].error  # a failure of ours, so that it can be found
    assert (tmp_path / "cell" / "error.txt").read_text().endswith("ZeroDivisionError: by zero\n")
    monkeypatch.undo()
    assert events_of(CELL, tmp_path / "cell")[-1].kind == "done"
    assert not (tmp_path / "cell" / "error.txt").exists()


def test_a_mistake_is_one_line(tmp_path: Path) -> None:
    missing = Experiment.of({**TINY, "dataset": "table.csv", "model": "mlp"})
    events = events_of(missing, tmp_path / "cell")
    assert events[-1].kind == "failed"
    assert "table.csv" in events[-1].error
    assert "\n" not in events[-1].error


def test_a_directory_that_cannot_be_locked(tmp_path: Path) -> None:
    (tmp_path / ".locks").write_text("a file in the way")
    (event,) = events_of(CELL, tmp_path / "cell")
    assert event.kind == "failed"
    assert event.error.startswith(f"can't lock run directories in {tmp_path}/.locks: ")


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cell").write_text("a file in the way")
    events = events_of(CELL, tmp_path / "cell")
    assert events[-1].kind == "failed"
    assert events[-1].error.startswith(f"can't write the run directory {tmp_path}/cell: ")


def test_an_interruption_is_not_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedsieve.runs.cell.run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        events_of(CELL, tmp_path / "cell")
    assert not (tmp_path / "cell" / "error.txt").exists()


def test_finished_and_waiting(tmp_path: Path) -> None:
    cells, events = expand({**TINY, "seed": [0, 1, 2]}), []
    events_of(cells[1], tmp_path / "grid" / cells[1].key)
    results, waiting = split(cells, tmp_path / "grid", events.append)
    assert results == {cells[1].key: ""}
    assert waiting == [cells[0], cells[2]]
    assert [(event.key, event.kind, event.round) for event in events] == [(cells[1].key, "skipped", 3)]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "grid").write_text("a file in the way")
    with pytest.raises(FedSieveError, match=f"can't write run directories to {tmp_path}/grid: "):
        split([CELL], tmp_path / "grid", lambda event: None)


class TestFinished:
    def test_another_experiment_in_the_directory(self, tmp_path: Path) -> None:
        one, other = expand({**TINY, "seed": [0, 1]})
        events_of(one, tmp_path / one.key)
        assert finished(tmp_path / one.key, one)
        (tmp_path / one.key).rename(tmp_path / other.key)
        assert not finished(tmp_path / other.key, other)

    def test_a_round_is_missing(self, tmp_path: Path) -> None:
        events_of(CELL, tmp_path / "cell")
        records = tmp_path / "cell" / "records.jsonl"
        whole = records.read_bytes()
        records.write_bytes(whole[:-1])  # the last line is cut short
        assert not finished(tmp_path / "cell", CELL)
        records.write_bytes(whole)
        assert finished(tmp_path / "cell", CELL)
        assert len(lines_of(tmp_path / "cell")) == 3
