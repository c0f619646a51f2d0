"""One cell of a grid: which events it reports, whatever happens."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import FedSieveError, StorageError
from fedsieve.core.records import RoundRecord
from fedsieve.runs.cell import check_folder, finished, run_cell, split
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
        events = events_of(CELL, tmp_path / "cell")
    assert [event.kind for event in events] == ["started", "elsewhere"]
    assert events[-1].error == "another process runs it"
    assert not events[-1].finished
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


def test_an_error_without_a_text_is_a_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise FedSieveError

    monkeypatch.setattr("fedsieve.runs.cell.run", fails)
    assert events_of(CELL, tmp_path / "cell")[-1].error.splitlines()[-1] == "fedsieve.core.errors.FedSieveError"


def test_an_error_that_no_encoding_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise FedSieveError("no file \udcff")

    monkeypatch.setattr("fedsieve.runs.cell.run", fails)
    assert events_of(CELL, tmp_path / "cell")[-1].error == "no file \udcff"
    assert (tmp_path / "cell" / "error.txt").read_text() == "no file ?\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EMFILE])
def test_a_display_that_cannot_write(tmp_path: Path, number: int) -> None:
    class Full(Shown):
        def show(self, record: RoundRecord) -> None:
            raise OSError(number, os.strerror(number))

    event = events_of(CELL, tmp_path / "cell", displays=[Full])[-1]
    assert (event.kind, event.error) == ("failed", f"[Errno {number}] {os.strerror(number)}")
    assert events_of(CELL, tmp_path / "cell")[-1].kind == "done"


def test_a_directory_that_cannot_be_locked(tmp_path: Path) -> None:
    (tmp_path / ".locks").write_text("a file in the way")
    event = events_of(CELL, tmp_path / "cell")[-1]
    assert event.kind == "failed"
    assert "\n" not in event.error
    assert event.error.startswith(f"can't lock run directories in {tmp_path}/.locks: ")


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cell").write_text("a file in the way")
    events = events_of(CELL, tmp_path / "cell")
    assert events[-1].kind == "failed"
    assert events[-1].error == (
        f"can't read {tmp_path}/cell/records.jsonl: Not a directory; delete {tmp_path}/cell to run it from the start"
    )
    assert (tmp_path / "cell").read_text() == "a file in the way"


class TestUnreadable:
    """One line that says how to go on, or the run is mended from its checkpoint."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        events_of(CELL, tmp_path / "cell")
        return tmp_path / "cell"

    @pytest.mark.parametrize("content", [b"\xff\x00", b"- a list", b"seed: [1", b""])
    def test_settings_are_mended(self, path: Path, content: bytes) -> None:
        settings, before = path / "experiment.yaml", lines_of(path)
        whole = settings.read_bytes()
        settings.write_bytes(content)
        assert not finished(path, CELL)
        assert events_of(CELL, path)[-1].kind == "done"
        assert (settings.read_bytes(), lines_of(path)) == (whole, before)
        assert finished(path, CELL)

    @pytest.mark.parametrize("name", ["records.jsonl", "experiment.yaml"])
    def test_a_directory_in_place_of_a_file(self, path: Path, name: str) -> None:
        (path / name).unlink()
        (path / name).mkdir()
        event = events_of(CELL, path)[-1]
        assert event.kind == "failed"
        assert "\n" not in event.error
        assert event.error.endswith(f"; delete {path} to run it from the start")
        assert "--out" not in event.error
        assert "--fresh" not in event.error
        assert (path / "error.txt").read_text() == f"{event.error}\n"

    @pytest.mark.parametrize("content", [b"\xff\n", b"{}\n", b"\n\n\n\n\n", b"1\n"])
    def test_records(self, path: Path, content: bytes) -> None:
        (path / "records.jsonl").write_bytes(content)
        event = events_of(CELL, path)[-1]
        assert event.kind == "failed"
        assert "\n" not in event.error
        assert event.error.endswith(f"; delete {path} to run it from the start")
        assert "--out" not in event.error
        assert "--fresh" not in event.error

    def test_of_another_experiment(self, path: Path) -> None:
        other = Experiment.of({**TINY, "seed": 1})
        event = events_of(other, path)[-1]
        assert "seed: 0 there, 1 asked for" in event.error
        assert event.error.endswith(f"; delete {path} to run it from the start")

    def test_a_pipe_is_not_waited_for(self, path: Path) -> None:
        (path / "records.jsonl").unlink()
        os.mkfifo(path / "records.jsonl")
        assert not finished(path, CELL)
        assert events_of(CELL, path)[-1].kind == "failed"


def test_an_interruption_is_not_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedsieve.runs.cell.run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        events_of(CELL, tmp_path / "cell")
    assert not (tmp_path / "cell" / "error.txt").exists()


def test_finished_and_waiting(tmp_path: Path) -> None:
    cells, events = expand({**TINY, "seed": [0, 1, 2, 0]}), []
    events_of(cells[1], tmp_path / "grid" / cells[1].key)
    results, waiting = split([*cells, cells[2]], tmp_path / "grid", events.append)
    assert results == {cells[1].key: Event(cells[1].key, "skipped", 3)}
    assert waiting == [cells[0], cells[2]]
    assert [(event.key, event.kind, event.round) for event in events] == [(cells[1].key, "skipped", 3)]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "grid").write_text("a file in the way")
    with pytest.raises(FedSieveError, match=f"can't write run directories to {tmp_path}/grid: "):
        split([CELL], tmp_path / "grid", lambda event: None)


def test_a_folder_that_is_gone_or_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_folder(tmp_path)
    with pytest.raises(StorageError) as error:
        check_folder(tmp_path / "gone")
    assert str(error.value) == f"can't write run directories to {tmp_path}/gone: No such file or directory"

    def fails(number: int) -> None:
        def temporary(**_: Any) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("fedsieve.runs.cell.TemporaryFile", temporary)

    fails(errno.ENOSPC)
    with pytest.raises(StorageError, match=f"can't write tables to {tmp_path}: No space left on device"):
        check_folder(tmp_path, "tables")
    fails(errno.EMFILE)
    check_folder(tmp_path)  # that says nothing about the folder
    with pytest.raises(StorageError, match="Too many open files"):
        check_folder(tmp_path, make=True)


class TestFinished:
    def test_settings_of_the_same_text_are_not_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ten thousand cells are told from each other in seconds."""
        events_of(CELL, tmp_path / "cell")
        monkeypatch.setattr(Experiment, "recorded", None)
        assert finished(tmp_path / "cell", CELL)

    def test_settings_in_another_order(self, tmp_path: Path) -> None:
        events_of(CELL, tmp_path / "cell")
        settings = tmp_path / "cell" / "experiment.yaml"
        settings.write_text(yaml.safe_dump(yaml.safe_load(settings.read_text()), sort_keys=True))
        assert finished(tmp_path / "cell", CELL)

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
