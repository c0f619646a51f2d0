"""CIFAR-10: Python 2's pickles read without running them, from folder and archive, and the real files."""

import hashlib
import io
import os
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsieve.data import cifar10, store
from fedsieve.data.cifar10 import CIFAR10, parse
from fedsieve.data.dataset import Dataset, Loader, RemoteFile
from fedsieve.types import CorruptDataError, MissingDataError


def string(value: bytes) -> bytes:
    """Python 2's ``str`` in protocol 2."""
    return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value


def integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def array(pixels: np.ndarray, dtype: bytes = b"u1", order: bytes = b"\x89", rows: int | None = None) -> bytes:
    """A numpy array as Python 2 pickled it."""
    shape = integer(len(pixels) if rows is None else rows) + integer(pixels.shape[1]) + b"\x86"
    kind = (
        b"cnumpy\ndtype\n" + string(dtype) + b"K\0K\x01\x87R(K\x03" + string(b"|") + b"NNN" + integer(-1) * 2 + b"K\0tb"
    )
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + string(b"b") + b"\x87R"
    return made + b"(K\x01" + shape + kind + order + string(pixels.tobytes()) + b"tb"


def batch(data: bytes, labels: list[int]) -> bytes:
    numbers = b"](" + b"".join(map(integer, labels)) + b"e"
    names = b"](" + string(b"truck_s_1.png") * len(labels) + b"e"
    items = {b"batch_label": string(b"a batch"), b"labels": numbers, b"data": data, b"filenames": names}
    return b"\x80\x02}(" + b"".join(string(key) + value for key, value in items.items()) + b"u."


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 3072), np.uint8)


@pytest.fixture
def batches(pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Six batches of five images each, with labels that tell them apart."""
    made = {name: batch(array(pixels), [k] * 5) for k, name in enumerate(cifar10.BATCHES)}
    monkeypatch.setattr(cifar10, "BATCHES", {name: hashlib.md5(raw).hexdigest() for name, raw in made.items()})
    return made


def archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def put(folder: Path, batches: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in batches.items():
        (folder / name).write_bytes(content)


def serve(server: Any, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    server.serve("/cifar.tar.gz", content)
    remote = RemoteFile(cifar10.ARCHIVE.path, (f"{server.url}/cifar.tar.gz",), hashlib.md5(content).hexdigest())
    monkeypatch.setattr(cifar10, "ARCHIVE", remote)


def load(folder: Path) -> Dataset:
    return CIFAR10().load(folder, torch.Generator())


class TestParse:
    def test_reads_what_was_written(self, pixels: np.ndarray) -> None:
        x, y = parse(batch(array(pixels), [3, 1, 4, 1, 9]), "here")
        assert x.dtype == torch.uint8
        assert y.dtype == torch.int64
        assert (x.numpy().reshape(5, 3072) == pixels).all()
        assert y.tolist() == [3, 1, 4, 1, 9]

    def test_malicious_pickle_runs_nothing(self, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> Any:
                return os.system, (f"touch {tmp_path}/ran",)

        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            content = pickle.dumps({"data": Evil()}, protocol)
            with pytest.raises(CorruptDataError, match=r"here is not a CIFAR-10 batch: it wants to call \w+\.system"):
                parse(content, "here")
        assert list(tmp_path.iterdir()) == []
        pickle.loads(content)  # noqa: S301 - it would have run
        assert [path.name for path in tmp_path.iterdir()] == ["ran"]

    @pytest.mark.parametrize(
        "name",
        [
            b"builtins\neval",
            b"__builtin__\neval",
            b"numpy\nload",
            b"numpy.core.multiarray\nfromfile",
            b"numpy\ndtype.__class__",
        ],
    )
    def test_only_three_names_may_be_called(self, name: bytes) -> None:
        with pytest.raises(CorruptDataError, match="it wants to call"):
            parse(b"\x80\x02c" + name + b"\n" + string(b"x") + b"\x85R.", "here")

    def test_stand_ins_cannot_be_changed(self, pixels: np.ndarray) -> None:
        for state in [b"}" + string(b"__init__") + b"Ns", b"N}" + string(b"__init__") + b"Ns\x86"]:
            with pytest.raises(CorruptDataError):
                parse(b"\x80\x02cnumpy\ndtype\n" + state + b"b.", "here")  # BUILD on the class itself
        parse(batch(array(pixels), [0] * 5), "here")

    def test_bad_batches(self, pixels: np.ndarray) -> None:
        good = array(pixels)
        for content in [
            b"",
            batch(good, [0] * 5)[:-1000],
            b"\x80\x02}.",
            b"\x80\x02N.",
            batch(string(b"no array"), [0] * 5),
            batch(good, [0] * 4),
            batch(good, [10] * 5),
            batch(good, [-1] * 5),
            batch(array(pixels, dtype=b"f8"), [0] * 5),
            batch(array(pixels, order=b"\x88"), [0] * 5),
            batch(array(pixels, rows=6), [0] * 5),
            batch(array(pixels[:, 1:]), [0] * 5),
        ]:
            with pytest.raises(CorruptDataError, match=r"^here is not a CIFAR-10 batch: .") as error:
                parse(content, "here")
            assert "\n" not in str(error.value)


class TestLoad:
    @pytest.mark.parametrize("place", ["cifar10/cifar-10-batches-py", "cifar10", "cifar-10-batches-py"])
    def test_unpacked(self, batches: dict[str, bytes], pixels: np.ndarray, tmp_path: Path, place: str) -> None:
        put(tmp_path / place, batches)
        CIFAR10().verify(tmp_path)
        CIFAR10().fetch(tmp_path)
        data = load(tmp_path)
        assert data.x_train.shape == (25, 3, 32, 32)
        assert data.x_train.dtype == torch.float32
        assert data.y_train.tolist() == [k for k in range(5) for _ in range(5)]
        assert data.y_test.tolist() == [5] * 5
        green = (pixels[0, 1024] / 255 - 0.4822) / 0.2435
        assert data.x_test[0, 1, 0, 0].item() == pytest.approx(green, abs=1e-5)

    def test_corrupt_batch(self, batches: dict[str, bytes], tmp_path: Path) -> None:
        put(tmp_path / "cifar10", batches | {"data_batch_3": b"damaged"})
        for action in (CIFAR10().verify, CIFAR10().fetch, load):
            with pytest.raises(CorruptDataError, match=rf"{tmp_path}/cifar10/data_batch_3 is corrupt: its MD5 is"):
                action(tmp_path)

    def test_archive(
        self, batches: dict[str, bytes], server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        members = {f"cifar-10-batches-py/{name}": batches[name] for name in reversed(batches)}
        extra = {"cifar-10-batches-py/readme.html": b"hello", "elsewhere/data_batch_1": b"not this one"}
        serve(server, archive(extra | members), monkeypatch)
        put(tmp_path / "cifar10", {"data_batch_1": b"not all six"})
        with pytest.raises(MissingDataError, match="`fedsieve data fetch cifar10`"):
            CIFAR10().verify(tmp_path)
        CIFAR10().fetch(tmp_path)
        CIFAR10().verify(tmp_path)
        data = load(tmp_path)
        assert data.y_train.tolist() == [k for k in range(5) for _ in range(5)]
        assert server.asked == ["/cifar.tar.gz"]
        assert sorted(p.name for p in (tmp_path / "cifar10").iterdir()) == ["cifar-10-python.tar.gz", "data_batch_1"]

    def test_bad_archives(
        self, batches: dict[str, bytes], server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        members = {f"cifar-10-batches-py/{name}": content for name, content in batches.items()}
        wrong = members | {"cifar-10-batches-py/test_batch": b"wrong"}
        some = dict(list(members.items())[:4])
        for content, message in [
            (archive(members)[:-50], "is not a whole tar.gz file"),
            (b"no archive", "is not a whole tar.gz file"),
            (archive(wrong), r"test_batch in .*tar\.gz is corrupt: its MD5 is"),
            (archive(some), "is corrupt: it lacks data_batch_5, test_batch"),
        ]:
            serve(server, content, monkeypatch)
            with pytest.raises(CorruptDataError, match=message):
                load(tmp_path)


def test_is_a_loader() -> None:
    assert isinstance(CIFAR10(), Loader)


@pytest.mark.real_data
def test_real_data() -> None:
    folder = store.data_folder()
    CIFAR10().verify(folder)
    real = load(folder)
    assert real.x_train.shape == (50_000, 3, 32, 32)
    assert real.x_test.shape == (10_000, 3, 32, 32)
    assert real.y_train.bincount().tolist() == [5000] * 10
    assert real.y_test.bincount().tolist() == [1000] * 10
    assert real.y_train[:4].tolist() == [6, 9, 9, 4]
    assert real.y_test[:4].tolist() == [3, 8, 8, 0]
    assert real.x_train.mean((0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-3)
    assert real.x_train.std((0, 2, 3)).tolist() == pytest.approx([1, 1, 1], abs=1e-3)
    assert real.owners is None
