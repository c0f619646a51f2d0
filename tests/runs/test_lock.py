"""Locks on run directories: one holder at a time, and none longer than its process lives."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedsieve.core.errors import BusyError, FedSieveError, StorageError
from fedsieve.runs.lock import claimed, held

HOLD = """
import sys, time
from pathlib import Path
from fedsieve.runs.lock import claimed
with claimed(Path(sys.argv[1])) as mine:
    print(mine, flush=True)
    time.sleep(600)
"""


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    with claimed(tmp_path / "cell") as first:
        assert first
        with claimed(tmp_path / "cell") as second:
            assert not second
        with claimed(tmp_path / "cell") as third:  # the failed claim has not released the lock
            assert not third
        with claimed(tmp_path / "other") as other:
            assert other
    with claimed(tmp_path / "cell") as again:
        assert again


def test_an_error_in_the_block_releases(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), claimed(tmp_path / "cell"):
        raise ZeroDivisionError
    with claimed(tmp_path / "cell") as again:
        assert again


def test_the_run_directory_itself_is_left_alone(tmp_path: Path) -> None:
    with claimed(tmp_path / "new" / "cell"):
        assert [path.name for path in (tmp_path / "new").iterdir()] == [".locks"]


def test_a_killed_process_releases(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "cell")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "True\n"
            with claimed(tmp_path / "cell") as mine:
                assert not mine
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    with claimed(tmp_path / "cell") as mine:
        assert mine


@pytest.mark.parametrize("in_the_way", ["grid", "grid/.locks"])
def test_a_folder_that_cannot_be_written(tmp_path: Path, in_the_way: str) -> None:
    path = tmp_path / in_the_way
    path.parent.mkdir(exist_ok=True)
    path.write_text("a file in the way")
    with pytest.raises(FedSieveError) as error, claimed(tmp_path / "grid" / "cell"):
        pass
    assert str(error.value).startswith(f"can't lock run directories in {tmp_path}/grid/.locks: ")
    assert "\n" not in str(error.value)


def test_two_names_of_one_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cell").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "cell")
    monkeypatch.chdir(tmp_path / "cell")
    for name in (Path(), Path("../cell"), Path("../link"), tmp_path / "link", Path("../none/../cell")):
        with claimed(tmp_path / "cell"), claimed(name) as second:
            assert not second, name


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_parent_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """As with a container's volume: only the run directory itself is the user's."""
    real = Path.mkdir

    def refused(self: Path, *args: Any, **more: Any) -> None:
        if self.name == ".locks":
            raise OSError(number, os.strerror(number))
        real(self, *args, **more)

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(StorageError, match="can't lock run directories in"), claimed(tmp_path / "cell"):
        pass
    (tmp_path / "cell").mkdir()
    with claimed(tmp_path / "cell") as first, claimed(tmp_path / "cell") as second:
        assert (first, second) == (True, False)
    assert [path.name for path in (tmp_path / "cell").iterdir()] == [".lock"]


def test_held(tmp_path: Path) -> None:
    with held(tmp_path / "cell"), pytest.raises(BusyError) as error, held(tmp_path / "cell"):
        raise AssertionError("two at once")
    assert str(error.value) == f"another process runs in {tmp_path}/cell; wait for it, or choose another --out"


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object, **__: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr("filelock.FileLock.acquire", unsupported)
    with pytest.raises(FedSieveError, match="does not appear to support flock"), claimed(tmp_path / "cell"):
        pass


def test_a_loop_of_links(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(FedSieveError, match=r"^can't lock run directories in .*: it is a symbolic link$"):
        claimed(tmp_path / "loop").__enter__()
