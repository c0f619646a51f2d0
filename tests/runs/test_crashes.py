"""A run that dies, or meets a full disk, at any call of the file system at all: nothing is lost, and it goes on."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import FedSieveError, StorageError
from fedsieve.runs.directory import RunDirectory
from fedsieve.runs.run import run
from tests.runs.conftest import ALL, CPU, KilledError, run_into, without_seconds

SETTINGS = {**ALL, "rounds": 3, "evaluate_every": 2}
# Every call of runs/files.py that changes a disk. The first names are those that give up without changing anything.
CHANGING = ("makedirs", "open", "write", "fsync", "replace", "unlink", "ftruncate")


class DiedError(BaseException):
    """The process has ended: nothing that comes after it, such as saving in a finally, happens."""


class Disk:
    """Stands in for ``os``: fails at the ``k``-th change, and at every one after it until ``healthy`` again.

    Half of what the failing call writes is written: a process can die in the middle of a line.
    """

    def __init__(self, k: int, fail: Callable[[], BaseException]) -> None:
        self.k, self.fail, self.calls, self.healthy = k, fail, 0, False

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in CHANGING:
            return real

        def call(*args: Any, **more: Any) -> Any:
            if not (self.healthy or (name == "open" and not args[1] & (os.O_WRONLY | os.O_RDWR))):
                self.calls += 1
                if self.calls >= self.k:
                    if name == "write":
                        real(args[0], args[1][: len(args[1]) // 2])
                    raise self.fail()
            return None if name == "fsync" else real(*args, **more)  # which takes long, and nobody pulls the plug

        return call


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def calls_of(out: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> int:
    """Number of changes of the disk that a run makes."""
    disk = Disk(10**9, DiedError)
    with monkeypatch.context() as patch:
        patch.setattr("fedsieve.runs.files.os", disk)
        run_into(SETTINGS, out, checkpoint_every=0.0, **more)
    return disk.calls


def dies_and_goes_on(k: int, out: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> bool:
    """Resume a run that dies at its k-th change of the disk, and resume it again; whether it has so many changes."""
    disk = Disk(k, DiedError)
    with monkeypatch.context() as patch:
        patch.setattr("fedsieve.runs.files.os", disk)
        with suppress(DiedError):
            run_into(SETTINGS, out, resume=True, **more)
    run_into(SETTINGS, out, resume=True)
    return disk.calls >= k


@pytest.fixture
def straight(doubles: ModuleType, tmp_path: Path) -> list[str]:
    run_into(SETTINGS, tmp_path / "straight")
    return without_seconds(tmp_path / "straight")


class TestEveryPoint:
    @pytest.mark.slow
    def test_of_a_run_that_dies(self, straight: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        points = calls_of(tmp_path / "count", monkeypatch)
        assert points > 50
        for k in range(1, points + 1):
            out = tmp_path / str(k)
            with monkeypatch.context() as patch:
                patch.setattr("fedsieve.runs.files.os", Disk(k, DiedError))
                with pytest.raises(DiedError):
                    run_into(SETTINGS, out, checkpoint_every=0.0)
            notes: list[str] = []
            run_into(SETTINGS, out, resume=True, on_note=notes.append)
            assert without_seconds(out) == straight, k
            assert len(notes) <= 1, k
            assert not any("going on from" in note for note in notes), k  # no file is damaged, at no time

    @pytest.mark.slow
    def test_of_a_run_that_dies_twice(
        self, straight: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Once before the end, and then at every point of the run that goes on."""
        k = 1
        while True:
            out = tmp_path / str(k)
            with pytest.raises(KilledError):
                run_into(SETTINGS, out, checkpoint_every=0.0, kill_after=0)
            with (out / "records.jsonl").open("ab") as file:
                file.write(b'{"round": 1, "cli')
            reached = dies_and_goes_on(k, out, monkeypatch, checkpoint_every=0.0)
            assert without_seconds(out) == straight, k
            if not reached:
                break
            k += 3
        assert k > 25

    @pytest.mark.slow
    def test_of_a_run_that_is_made_longer(
        self, straight: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """From one round, whose evaluation a longer run does not have, to three."""
        k = 1
        while True:
            out = tmp_path / str(k)
            run_into({**SETTINGS, "rounds": 1}, out)
            reached = dies_and_goes_on(k, out, monkeypatch)
            assert without_seconds(out) == straight, k
            if not reached:
                break
            k += 2
        assert k > 20

    @pytest.mark.slow
    def test_of_a_run_that_is_replaced(
        self, straight: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run_into({**SETTINGS, "seed": 1}, tmp_path / "count")
        points = calls_of(tmp_path / "count", monkeypatch, fresh=True)
        for k in range(1, points, 5):
            out = tmp_path / str(k)
            run_into({**SETTINGS, "seed": 1}, out)
            with monkeypatch.context() as patch:
                patch.setattr("fedsieve.runs.files.os", Disk(k, DiedError))
                with pytest.raises(DiedError):
                    run_into(SETTINGS, out, fresh=True, checkpoint_every=0.0)
            said = ""
            try:
                run_into(SETTINGS, out, resume=True)
            except FedSieveError as error:
                said = str(error)
                run_into(SETTINGS, out, fresh=True)
            # otherwise the old run is still there, or what is left of it
            assert not said or "seed: 1 there, 0 asked for" in said, k
            assert without_seconds(out) == straight, k

    def test_of_a_disk_that_fills_up(
        self, straight: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        points = calls_of(tmp_path / "count", monkeypatch)
        for k in range(1, points + 1, 3):
            out, disk = tmp_path / str(k), Disk(k, full)
            with monkeypatch.context() as patch:
                patch.setattr("fedsieve.runs.files.os", disk)
                with pytest.raises(StorageError) as error:
                    run_into(SETTINGS, out, checkpoint_every=0.0)
            assert str(error.value).startswith("can't write "), k
            assert str(error.value).endswith(": No space left on device"), k
            kept = [record.round for record in RunDirectory(out).iter_records()]
            assert kept == list(range(len(kept)))
            run_into(SETTINGS, out, resume=True)
            assert without_seconds(out) == straight, k

    def test_a_disk_that_is_full_for_a_moment(
        self, straight: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """When the run ends for that reason, its last round is saved if there is room again."""
        points = calls_of(tmp_path / "count", monkeypatch)

        for k in range(1, points + 1, 5):
            out, disk = tmp_path / str(k), Disk(k, full)

            def fail(disk: Disk = disk) -> OSError:
                disk.healthy = True
                return full()

            disk.fail = fail
            with monkeypatch.context() as patch:
                patch.setattr("fedsieve.runs.files.os", disk)
                with pytest.raises(StorageError):
                    run_into(SETTINGS, out, checkpoint_every=0.0)
            run_into(SETTINGS, out, resume=True)
            assert without_seconds(out) == straight, k


class TestStorage:
    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.EIO, errno.EACCES])
    @pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
    def test_one_line(
        self, doubles: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
    ) -> None:
        with pytest.raises(KilledError):
            run_into(SETTINGS, tmp_path / "out", kill_after=0)

        def fails(*_: Any, **__: Any) -> Any:
            raise OSError(number, os.strerror(number))

        before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        with monkeypatch.context() as patch:
            disk = Disk(10**9, DiedError)
            setattr(disk, call, fails)
            patch.setattr("fedsieve.runs.files.os", disk)
            with pytest.raises(StorageError) as error:
                run_into(SETTINGS, tmp_path / "out", resume=True)
        assert os.strerror(number) in str(error.value)
        assert "\n" not in str(error.value)
        assert before["records.jsonl"] in (tmp_path / "out" / "records.jsonl").read_bytes()

    def test_what_ended_the_run_is_told_first(
        self, doubles: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        disk = Disk(10**9, full)

        def fill(record: Any) -> None:
            disk.k = 0
            raise ZeroDivisionError("ours")

        monkeypatch.setattr("fedsieve.runs.files.os", disk)
        with pytest.raises(ZeroDivisionError, match="ours") as error:
            run(Experiment.of(SETTINGS), out=tmp_path / "out", data=tmp_path, device=CPU, on_round=fill)
        (note,) = error.value.__notes__
        assert note == f"can't write a checkpoint to {tmp_path}/out: No space left on device"

    def test_a_folder_that_vanishes(self, doubles: ModuleType, tmp_path: Path) -> None:
        out = tmp_path / "out"

        def vanish(record: Any) -> None:
            if record.round == 0:
                out.rename(tmp_path / "elsewhere")

        with pytest.raises(StorageError, match=f"can't write to {out}/records.jsonl: No such file or directory"):
            run(Experiment.of(SETTINGS), out=out, data=tmp_path, device=CPU, on_round=vanish)
        assert not out.exists()  # and is not made again, with half of the records
        (tmp_path / "elsewhere").rename(out)
        run_into(SETTINGS, out, resume=True)
        assert [record.round for record in RunDirectory(out).records()] == [0, 1, 2]

    def test_records_are_on_disk_before_a_checkpoint(
        self, doubles: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What a power cut leaves: only what was synced."""
        seen: list[tuple[str, str]] = []
        disk, names = Disk(10**9, DiedError), {}

        def opened(path: Any, flags: int, mode: int = 0o777) -> int:
            file = os.open(path, flags, mode)
            names[file] = Path(path).name
            return file

        def synced(file: int) -> None:
            seen.append(("sync", names[file]))
            os.fsync(file)

        def replaced(a: Any, b: Any) -> None:
            seen.append(("replace", Path(b).name))
            Path(a).replace(b)

        for name, call in (("open", opened), ("fsync", synced), ("replace", replaced)):
            setattr(disk, name, call)
        monkeypatch.setattr("fedsieve.runs.files.os", disk)
        run_into({**SETTINGS, "rounds": 2}, tmp_path / "out", checkpoint_every=0.0)
        assert seen[-5:] == [
            ("sync", "records.jsonl"),
            ("sync", "checkpoint.safetensors.new"),
            ("replace", "checkpoint.previous.safetensors"),
            ("replace", "checkpoint.safetensors"),
            ("sync", "out"),
        ]

    @pytest.mark.parametrize("name", ["records.jsonl", "checkpoint.safetensors.new"])
    def test_nothing_is_written_through_a_link(self, doubles: ModuleType, tmp_path: Path, name: str) -> None:
        with pytest.raises(KilledError):
            run_into(SETTINGS, tmp_path / "out", kill_after=0)
        victim = tmp_path / "victim"
        victim.write_bytes((tmp_path / "out" / "records.jsonl").read_bytes() + b"the user's\n")
        (tmp_path / "out" / name).unlink(missing_ok=True)
        (tmp_path / "out" / name).symlink_to(victim)
        before = victim.read_bytes()
        if name == "records.jsonl":
            with pytest.raises(FedSieveError, match="it is a symbolic link"):
                run_into(SETTINGS, tmp_path / "out", resume=True)
        else:
            run_into(SETTINGS, tmp_path / "out", resume=True)
        assert victim.read_bytes() == before


LIMITED = """
import resource, signal, sys
sys.path.insert(0, {tests!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import torch, fedsieve.cli, fedsieve.runs.run, fedsieve.federation.simulation, fedsieve.report.text, sklearn.cluster
from fedsieve.core.records import RoundRecord
from fedsieve.runs import directory
real, n = directory.RunDirectory.append, 0
def append(self, record):
    global n
    n += 1
    if n == 2:
        resource.setrlimit({limit})
    return real(self, record)
directory.RunDirectory.append = append
sys.argv = ["fedsieve", "run", "--dataset", "doubles:Tiny", "--defense", "mean", "--rounds", "4", "--out", "out",
            "--quiet", "--threads", "1", *sys.argv[1:]]
fedsieve.cli.main()
"""


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY)", "File too large"),
        ("resource.RLIMIT_NOFILE, (0, resource.getrlimit(resource.RLIMIT_NOFILE)[1])", "Too many open files"),
    ],
    ids=["file size", "handles"],
)
@pytest.mark.slow
def test_limits_of_a_process(tmp_path: Path, limit: str, said: str) -> None:
    tests = str(Path(__file__).parents[1])

    def start(text: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", text, *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    done = start(LIMITED.format(tests=tests, limit=limit))
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("loading doubles")]
    assert lines[0] == f"error: can't write to out/records.jsonl: {said}"
    # without a file handle, torch can't end as it would like to
    assert "fedsieve" not in "".join(lines[1:]), done.stderr
    assert [record.round for record in RunDirectory(tmp_path / "out").records()] == [0]
    again = start(LIMITED.format(tests=tests, limit=limit).replace("n == 2", "False"), "--resume")
    assert again.returncode == 0, again.stderr
    assert [record.round for record in RunDirectory(tmp_path / "out").records()] == [0, 1, 2, 3]
