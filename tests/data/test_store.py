"""Files arrive whole and right, or not at all."""

import hashlib
import io
import random
import socket
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from fedsieve.core.errors import CorruptDataError, MissingDataError
from fedsieve.data import store
from fedsieve.data.dataset import RemoteFile

GOOD = random.Random(0).randbytes(300_000)
WRONG = GOOD[:-1] + bytes([GOOD[-1] ^ 1])


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def file(server: Any) -> RemoteFile:
    return RemoteFile("clothes/the file.bin", (f"{server.url}/published.bin",), md5(GOOD))


@pytest.fixture
def offline() -> RemoteFile:
    with socket.socket() as free:  # nothing listens on its port once it is closed
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return RemoteFile("clothes/the file.bin", (f"http://127.0.0.1:{port}/published.bin",), md5(GOOD))


def put(folder: Path, content: bytes) -> Path:
    path = folder / "clothes/the file.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


class TestDataFolder:
    def test_is_that_of_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FEDSIEVE_DATA", "~/somewhere")
        assert store.data_folder() == Path.home() / "somewhere"

    @pytest.mark.parametrize("value", [None, ""])
    def test_is_the_cache_by_default(self, monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
        monkeypatch.delenv("FEDSIEVE_DATA", raising=False)
        if value is not None:
            monkeypatch.setenv("FEDSIEVE_DATA", value)
        assert store.data_folder().is_absolute()
        assert "fedsieve" in store.data_folder().parts


class TestVerify:
    def test_right(self, file: RemoteFile, tmp_path: Path) -> None:
        put(tmp_path, GOOD)
        store.verify(file, tmp_path)

    def test_missing(self, file: RemoteFile, tmp_path: Path) -> None:
        with pytest.raises(MissingDataError) as error:
            store.verify(file, tmp_path, dataset="clothes")
        assert str(error.value) == (
            f"{tmp_path}/clothes/the file.bin is missing; `fedsieve data fetch clothes` downloads it, "
            "or set FEDSIEVE_DATA to a folder that has clothes/the file.bin"
        )

    def test_wrong(self, file: RemoteFile, tmp_path: Path) -> None:
        path = put(tmp_path, WRONG)
        with pytest.raises(CorruptDataError) as error:
            store.verify(file, tmp_path)
        assert str(error.value) == f"{path} is corrupt: its MD5 is {md5(WRONG)}, expected {md5(GOOD)}"

    def test_relative_folder_is_named_in_full(
        self, file: RemoteFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(MissingDataError, match=str(tmp_path)):
            store.verify(file, Path("data"))


class TestMembers:
    archive = zipped(a=b"one", b=b"two", unchecked=b"three")
    file = RemoteFile("clothes/the file.bin", (), members={"a": md5(b"one"), "b": md5(b"two")})

    def test_right(self, tmp_path: Path) -> None:
        put(tmp_path, self.archive)
        store.verify(self.file, tmp_path)
        assert store.read_members(self.file, tmp_path) == {"a": b"one", "b": b"two"}

    def test_wrong_member(self, tmp_path: Path) -> None:
        path = put(tmp_path, zipped(a=b"one", b=b"owt"))
        with pytest.raises(CorruptDataError) as error:
            store.verify(self.file, tmp_path)
        assert str(error.value) == f"b in {path} is corrupt: its MD5 is {md5(b'owt')}, expected {md5(b'two')}"

    def test_larger_than_published(self, tmp_path: Path) -> None:
        path = put(tmp_path, zipped(a=b"one", b=b"0" * 1_000_000))
        with pytest.raises(CorruptDataError) as error:
            store.verify(replace(self.file, largest=3), tmp_path)
        assert str(error.value) == f"b in {path} unpacks to 1000000 bytes, at most 3 were expected"
        put(tmp_path, self.archive)
        store.verify(replace(self.file, largest=3), tmp_path)

    def test_missing_member(self, tmp_path: Path) -> None:
        put(tmp_path, zipped(a=b"one"))
        with pytest.raises(CorruptDataError, match=r"There is no item named 'b'"):
            store.verify(self.file, tmp_path)

    def test_no_zip(self, tmp_path: Path) -> None:
        path = put(tmp_path, b"<html>log in</html>")
        with pytest.raises(CorruptDataError) as error:
            store.verify(self.file, tmp_path)
        assert str(error.value) == f"{path} is corrupt: File is not a zip file"

    @pytest.mark.parametrize("seed", range(5))
    def test_any_damage_is_corrupt_data(self, tmp_path: Path, seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(100):
            damaged = bytearray(self.archive)
            for _ in range(dice.randint(1, 4)):
                damaged[dice.randrange(len(damaged))] = dice.randrange(256)
            put(tmp_path, bytes(damaged[: dice.choice([len(damaged), dice.randrange(len(damaged))])]))
            with suppress(CorruptDataError):  # and no other; damage outside the checked members has no effect
                assert store.read_members(self.file, tmp_path) == {"a": b"one", "b": b"two"}


class TestFetch:
    def test_present_file_needs_no_server(self, offline: RemoteFile, tmp_path: Path) -> None:
        path = put(tmp_path, GOOD)
        assert store.fetch(offline, tmp_path) == path

    def test_downloads(self, server: Any, file: RemoteFile, tmp_path: Path) -> None:
        server.serve("/published.bin", GOOD)
        path = store.fetch(file, tmp_path / "not" / "there")
        assert path == tmp_path / "not/there/clothes/the file.bin"
        assert contents(tmp_path) == {"not/there/clothes/the file.bin": GOOD}

    def test_is_silent_off_a_terminal(
        self, server: Any, file: RemoteFile, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        server.serve("/published.bin", GOOD)
        store.fetch(file, tmp_path)
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize("progress", [True, False])
    def test_bar_on_a_terminal(
        self,
        server: Any,
        file: RemoteFile,
        tmp_path: Path,
        capfd: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        progress: bool,
    ) -> None:
        monkeypatch.setenv("FORCE_COLOR", "1")
        server.serve("/published.bin", GOOD)
        store.fetch(file, tmp_path, progress=progress)
        out, err = capfd.readouterr()
        assert out == ""
        assert ("the file.bin" in err and "300.0/300.0 kB" in err) == progress

    @pytest.mark.parametrize(
        "bad",
        [
            {"body": GOOD[:1000], "size": len(GOOD)},  # breaks off
            {"body": GOOD[:1000]},  # a truncated file, served as such
            {"body": WRONG},
            {"status": 404},
            {"status": 503, "body": b"busy"},
        ],
    )
    def test_bad_answers(self, server: Any, file: RemoteFile, tmp_path: Path, bad: dict[str, Any]) -> None:
        answer = type(server.answer("/"))(**bad)
        server.serve("/published.bin", answer)
        with pytest.raises(MissingDataError):
            store.fetch(file, tmp_path)
        assert contents(tmp_path) == {}
        assert server.asked.count("/published.bin") == store.ATTEMPTS

        server.serve("/published.bin", answer, GOOD)  # and a better one at the second attempt
        store.fetch(file, tmp_path)
        assert contents(tmp_path) == {"clothes/the file.bin": GOOD}

    def test_second_address(self, server: Any, tmp_path: Path) -> None:
        server.serve("/two", GOOD)
        file = RemoteFile("f", (f"{server.url}/one", f"{server.url}/two"), md5(GOOD))
        store.fetch(file, tmp_path)
        assert server.asked == ["/one", "/two"]

    @pytest.mark.parametrize("slash", ["", "/"])
    def test_mirror_first(
        self, server: Any, file: RemoteFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slash: str
    ) -> None:
        monkeypatch.setenv("FEDSIEVE_MIRROR", f"{server.url}/mirror{slash}")
        server.serve("/mirror/clothes/the file.bin", GOOD)
        store.fetch(file, tmp_path)
        assert server.asked == ["/mirror/clothes/the file.bin"]

    def test_published_address_if_the_mirror_fails(
        self, server: Any, file: RemoteFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FEDSIEVE_MIRROR", "no address at all")
        server.serve("/published.bin", GOOD)
        store.fetch(file, tmp_path)
        assert server.asked == ["/published.bin"]

    def test_secrets_of_an_address_are_not_shown(
        self, server: Any, file: RemoteFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FEDSIEVE_MIRROR", server.url.replace("//", "//me:hunter2@"))
        with pytest.raises(MissingDataError) as error:
            store.fetch(file, tmp_path)
        assert "hunter2" not in str(error.value)

    def test_corrupt_file_is_replaced(self, server: Any, file: RemoteFile, tmp_path: Path) -> None:
        put(tmp_path, WRONG)
        server.serve("/published.bin", GOOD)
        assert store.fetch(file, tmp_path).read_bytes() == GOOD

    def test_corrupt_file_stays_if_it_cannot_be_replaced(self, offline: RemoteFile, tmp_path: Path) -> None:
        path = put(tmp_path, WRONG)
        with pytest.raises(CorruptDataError) as error:
            store.fetch(offline, tmp_path, dataset="clothes")
        host = offline.urls[0].split("/")[2]
        assert str(error.value) == (
            f"{path} is corrupt: its MD5 is {md5(WRONG)}, expected {md5(GOOD)}; not used, and not replaced "
            f"({host}: no connection); `fedsieve data fetch clothes` tries again"
        )
        assert contents(tmp_path) == {"clothes/the file.bin": WRONG}

    def test_offline(self, offline: RemoteFile, tmp_path: Path) -> None:
        with pytest.raises(MissingDataError) as error:
            store.fetch(offline, tmp_path, dataset="clothes")
        host = offline.urls[0].split("/")[2]
        assert str(error.value) == (
            f"{tmp_path}/clothes/the file.bin is missing and could not be downloaded ({host}: no connection); "
            "`fedsieve data fetch clothes` tries again, "
            "or set FEDSIEVE_DATA to a folder that has clothes/the file.bin"
        )

    @pytest.mark.parametrize(
        ("answer", "reason"),
        [
            ({"status": 404}, "HTTP 404 Not Found"),
            ({"body": b"x", "size": 9}, "the transfer broke off"),
            ({"body": b"x"}, f"what it sent is corrupt: its MD5 is {md5(b'x')}, expected {md5(GOOD)}"),
        ],
    )
    def test_reasons(self, server: Any, file: RemoteFile, tmp_path: Path, answer: dict[str, Any], reason: str) -> None:
        server.serve("/published.bin", type(server.answer("/"))(**answer))
        with pytest.raises(MissingDataError) as error:
            store.fetch(file, tmp_path)
        assert f"({server.url[7:]}: {reason});" in str(error.value)

    def test_download_without_end(
        self, server: Any, file: RemoteFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store, "LARGEST", 200_000)
        server.serve("/published.bin", GOOD)
        with pytest.raises(MissingDataError, match="what it sends has more than 200000 bytes"):
            store.fetch(file, tmp_path)
        assert contents(tmp_path) == {}

    def test_slow_server(self, server: Any, file: RemoteFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(store, "TIMEOUT", (1.0, 0.05))
        monkeypatch.setattr(store, "ATTEMPTS", 1)
        server.barrier = Barrier(2)  # one request comes alone
        with pytest.raises(MissingDataError, match="timed out"):
            store.fetch(file, tmp_path)
        server.barrier.abort()

    def test_folder_that_cannot_be_made(self, server: Any, file: RemoteFile, tmp_path: Path) -> None:
        server.serve("/published.bin", GOOD)
        (tmp_path / "clothes").write_bytes(b"a file where the folder should be")
        with pytest.raises(MissingDataError, match=f"cannot create {tmp_path}/clothes: File exists"):
            store.fetch(file, tmp_path)
        assert server.asked == []

    def test_folder_in_the_place_of_the_file(self, server: Any, file: RemoteFile, tmp_path: Path) -> None:
        server.serve("/published.bin", GOOD)
        (tmp_path / file.path).mkdir(parents=True)
        with pytest.raises(MissingDataError, match=f"cannot write below {tmp_path}/clothes: Is a directory"):
            store.fetch(file, tmp_path)
        assert contents(tmp_path) == {}

    def test_two_at_once(self, server: Any, file: RemoteFile, tmp_path: Path) -> None:
        server.serve("/published.bin", GOOD)
        server.barrier = Barrier(2)  # both are downloading before either is done
        with ThreadPoolExecutor(2) as pool:
            paths = list(pool.map(lambda _: store.fetch(file, tmp_path), range(2)))
        assert paths[0] == paths[1]
        assert contents(tmp_path) == {"clothes/the file.bin": GOOD}

    def test_stopped_half_way(
        self, server: Any, file: RemoteFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(*_: object) -> None:
            assert len(contents(tmp_path)) == 1  # the download, under its temporary name
            assert not (tmp_path / file.path).exists()
            raise KeyboardInterrupt

        monkeypatch.setattr(store, "_check_file", interrupted)
        server.serve("/published.bin", GOOD)
        with pytest.raises(KeyboardInterrupt):
            store.fetch(file, tmp_path)
        assert contents(tmp_path) == {}

    def test_zip(self, server: Any, tmp_path: Path) -> None:
        file = RemoteFile("f.zip", (f"{server.url}/f.zip",), members={"a": md5(b"one")})
        server.serve("/f.zip", zipped(a=b"eno"), zipped(a=b"one"))
        assert store.fetch(file, tmp_path).read_bytes() == zipped(a=b"one")
