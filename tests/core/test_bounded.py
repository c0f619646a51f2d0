"""Files that unpack to more than they may, that lie about it, or never end."""

import gzip
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsieve.core.bounded import (
    GIB,
    MAX_LINE,
    Meter,
    memory_limit,
    open_regular,
    read_at_most,
    read_lines,
    read_member,
    read_npz,
)
from fedsieve.core.errors import CorruptDataError, FedSieveError, MissingDataError, ParameterError


class TestLimit:
    @pytest.mark.parametrize(("value", "expected"), [("", 4 * GIB), ("0.5", GIB // 2), (" 12 ", 12 * GIB)])
    def test_of_the_environment(self, monkeypatch: pytest.MonkeyPatch, value: str, expected: int) -> None:
        monkeypatch.setenv("FEDSIEVE_MAX_GIB", value)
        assert memory_limit() == expected

    @pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "4GB", "1e99"])
    def test_wrong(self, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
        monkeypatch.setenv("FEDSIEVE_MAX_GIB", value)
        with pytest.raises(ParameterError, match=r"^FEDSIEVE_MAX_GIB must be a number of GiB above 0, got "):
            memory_limit()

    def test_what_is_used_adds_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FEDSIEVE_MAX_GIB", "2")
        meter = Meter(Path("a.csv"))
        meter.add(GIB)
        meter.add(GIB)
        with pytest.raises(CorruptDataError) as error:
            meter.add(GIB // 2)
        assert str(error.value) == (
            "a.csv unpacks to at least 2.5 GiB in memory, more than the limit of 2; "
            "set the environment variable FEDSIEVE_MAX_GIB to more if the file is right"
        )


class TestRegular:
    def test_files_only(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
        for name, reason in (
            ("pipe", "it is a pipe or a device, not a file"),
            (".", "Is a directory"),
            ("none", "No such file or directory"),
            ("a\0b", "embedded null"),
        ):
            with pytest.raises(MissingDataError, match=f"cannot be read: {reason}"):
                open_regular(tmp_path / name)
        with pytest.raises(MissingDataError, match="it is a pipe or a device, not a file"):
            open_regular(Path("/dev/zero"))


class TestStreams:
    def test_as_many_as_expected(self) -> None:
        assert read_at_most(io.BytesIO(b"x" * 3_000_000), 3_000_000, "f") == b"x" * 3_000_000
        with pytest.raises(CorruptDataError, match=r"^f unpacks to more than the 2999999 bytes that were expected"):
            read_at_most(io.BytesIO(b"x" * 3_000_000), 2_999_999, "f")

    def test_lines(self) -> None:
        text = io.TextIOWrapper(io.BytesIO(b"a\r\nb\n\nc"), newline="")
        assert list(read_lines(text, Path("f"))) == ["a\r\n", "b\n", "\n", "c"]
        with pytest.raises(CorruptDataError, match=r"^f, line 2: a NUL character"):
            list(read_lines(io.StringIO("a\nb\0\n"), Path("f")))
        with pytest.raises(CorruptDataError, match=f"^f, line 2: more than {MAX_LINE} characters"):
            list(read_lines(io.StringIO("a\n" + "b" * MAX_LINE), Path("f")))


def archive(content: bytes, method: int = zipfile.ZIP_DEFLATED) -> io.BytesIO:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as whole:
        whole.writestr("m", content)
    return stream


class TestMember:
    def test_declares_too_much(self) -> None:
        with zipfile.ZipFile(archive(b"0" * 1001)) as found:
            assert read_member(found, "m", 1001, "m") == b"0" * 1001
            with pytest.raises(CorruptDataError, match=r"^m unpacks to 1001 bytes, at most 1000 were expected$"):
                read_member(found, "m", 1000, "m")

    def test_declares_too_little(self) -> None:
        stream = archive(b"0" * 10_000_000)
        raw = bytearray(stream.getvalue())
        size = (10_000_000).to_bytes(4, "little")
        while (at := raw.find(size)) >= 0:  # in both headers
            raw[at : at + 4] = (10).to_bytes(4, "little")
        with zipfile.ZipFile(io.BytesIO(raw)) as found, pytest.raises(zipfile.BadZipFile, match="CRC"):
            read_member(found, "m", 100, "m")

    @pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_methods_that_are_unpacked_in_one_piece(self, method: int) -> None:
        with (
            zipfile.ZipFile(archive(b"0" * 1000, method)) as found,
            pytest.raises(CorruptDataError, match=f"compressed by method {method}; only deflate, 8, is read"),
        ):
            read_member(found, "m", 1000, "m")


class TestNPZ:
    def test_some_of_the_arrays(self, tmp_path: Path) -> None:
        path = tmp_path / "a.npz"
        np.savez_compressed(path, x=np.arange(6).reshape(2, 3), y=np.array(["a", "\u00e9"]), z=1)
        found = read_npz(path, ("y", "x", "w"), width=4)
        assert list(found) == ["y", "x"]
        assert found["x"].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert found["y"].tolist() == ["a", "\u00e9"]

    @pytest.mark.parametrize("width", [1, 4])
    def test_memory_is_counted_in_values(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
        np.savez_compressed(tmp_path / "a.npz", x=np.zeros(1_000_000, np.uint8))  # a kilobyte on the disk
        monkeypatch.setenv("FEDSIEVE_MAX_GIB", str(2_000_000 / GIB))
        if width == 1:
            assert read_npz(tmp_path / "a.npz", ("x",), width).keys() == {"x"}
        else:
            with pytest.raises(CorruptDataError, match=r"unpacks to at least 0\.00373 GiB .* the limit of 0\.00186;"):
                read_npz(tmp_path / "a.npz", ("x",), width)

    def test_all_arrays_count(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        np.savez(tmp_path / "a.npz", x=np.zeros(600_000, np.uint8), y=np.zeros(600_000, np.uint8))
        monkeypatch.setenv("FEDSIEVE_MAX_GIB", str(1_000_000 / GIB))
        assert read_npz(tmp_path / "a.npz", ("x",), 1).keys() == {"x"}
        with pytest.raises(CorruptDataError, match="more than the limit"):
            read_npz(tmp_path / "a.npz", ("x", "y"), 1)

    @pytest.mark.parametrize("shape", ["(1000000000000,)", "(-1,)", "(2, 2)"])
    def test_shapes_that_lie(self, tmp_path: Path, shape: str) -> None:
        header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
        content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + b"\0" * 5
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as whole:
            whole.writestr("x.npy", content)
        with pytest.raises(CorruptDataError, match=r"a\.npz is not a whole \.npz file without pickles: "):
            read_npz(tmp_path / "a.npz", ("x",), 1)

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(st.data())
    def test_any_damage_is_one_error(self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
        path = tmp_path_factory.getbasetemp() / "damaged.npz"
        stream = io.BytesIO()
        np.savez_compressed(stream, x=np.arange(12.0).reshape(3, 4), y=np.arange(3))
        raw = bytearray(stream.getvalue())
        for _ in range(data.draw(st.integers(1, 4))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(bytes(raw[: data.draw(st.integers(0, len(raw)))]) if data.draw(st.booleans()) else bytes(raw))
        try:
            read_npz(path, ("x", "y"), 4)
        except FedSieveError as error:
            assert "\n" not in str(error)  # noqa: PT017


BOMB = """
import resource, sys
from pathlib import Path
from fedsieve.core.errors import FedSieveError
from fedsieve.data.arrays import NPZ
from fedsieve.data.table import CSV
import torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
loader = NPZ(file=sys.argv[1]) if sys.argv[1].endswith("npz") else CSV(file=sys.argv[1], label="y")
try:
    loader.load(Path(), torch.Generator())
except FedSieveError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)
"""


@pytest.mark.parametrize("kind", ["zeros", "rows", "spaces", "npz"])
def test_bombs_fill_little_memory(tmp_path: Path, kind: str) -> None:
    """Files of 200 MB, packed in 200 kB, with a limit of 100 MB."""
    if kind == "npz":
        path = tmp_path / "b.npz"
        np.savez_compressed(path, x=np.zeros((1000, 200_000), np.uint8), y=np.arange(1000) % 2)
    else:
        path = tmp_path / "b.csv.gz"
        unit = {"zeros": b"\0", "rows": b"1,0\n", "spaces": b" "}[kind]
        with gzip.open(path, "wb", compresslevel=1) as stream:
            stream.write(b"x,y\n")
            for _ in range(200):
                stream.write(unit * (1_000_000 // len(unit)))
    assert path.stat().st_size < 2_000_000
    environment = {**os.environ, "FEDSIEVE_MAX_GIB": str(100e6 / GIB), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", BOMB, str(path)], env=environment, capture_output=True, text=True, timeout=100
    )
    grown, _, said = done.stdout.partition(" ")
    assert done.returncode == 0, done.stderr
    assert int(grown) * (1 if sys.platform == "darwin" else 1024) < 150e6
    long = kind in ("zeros", "spaces")
    assert ("line 2: more than 16777216 characters" if long else "in memory, more than the limit of 0.0931") in said
