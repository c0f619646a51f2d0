"""CIFAR-10 and CIFAR-100: Python 2's pickles read without running them, from folder and archive; the real files."""

import dataclasses
import hashlib
import io
import os
import pickle
import struct
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from fedsieve.core.errors import CorruptDataError, MissingDataError, ParameterError
from fedsieve.data import cifar10, cifar100, store
from fedsieve.data.cifar10 import CIFAR10
from fedsieve.data.cifar100 import CIFAR100
from fedsieve.data.dataset import Dataset, Loader, RemoteFile


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


def batch(data: bytes, labels: list[int], fine: list[int] | None = None) -> bytes:
    """With ``fine`` labels it is one of CIFAR-100, and ``labels`` are the coarse ones."""
    numbers = b"](" + b"".join(map(integer, labels)) + b"e"
    names = b"](" + string(b"truck_s_1.png") * len(labels) + b"e"
    items = {b"batch_label": string(b"a batch"), b"labels": numbers, b"data": data, b"filenames": names}
    if fine is not None:
        items[b"coarse_labels"] = items.pop(b"labels")
        items[b"fine_labels"] = b"](" + b"".join(map(integer, fine)) + b"e"
    return b"\x80\x02}(" + b"".join(string(key) + value for key, value in items.items()) + b"u."


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 3072), np.uint8)


@pytest.fixture
def batches(pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Six batches of five images each, with labels that tell them apart."""
    made = {name: batch(array(pixels), [k] * 5) for k, name in enumerate(cifar10.RELEASE.batches)}
    publish(cifar10, made, monkeypatch)
    return made


def publish(module: ModuleType, made: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make these the batches with the right checksums."""
    md5 = {name: hashlib.md5(raw).hexdigest() for name, raw in made.items()}
    monkeypatch.setattr(module, "RELEASE", dataclasses.replace(module.RELEASE, batches=md5))


def parse(content: bytes, where: str) -> Any:
    return cifar10.parse(cifar10.RELEASE, content, where)


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


def serve(server: Any, content: bytes, monkeypatch: pytest.MonkeyPatch, module: ModuleType = cifar10) -> None:
    server.serve("/cifar.tar.gz", content)
    path, md5 = module.RELEASE.archive.path, hashlib.md5(content).hexdigest()
    archive = RemoteFile(path, (f"{server.url}/cifar.tar.gz",), md5)
    monkeypatch.setattr(module, "RELEASE", dataclasses.replace(module.RELEASE, archive=archive))


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

    def test_batches_larger_than_any_published(
        self, batches: dict[str, bytes], server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cifar10, "LARGEST", len(batches["data_batch_1"]) - 1)
        serve(
            server, archive({f"cifar-10-batches-py/{name}": content for name, content in batches.items()}), monkeypatch
        )
        put(tmp_path / "unpacked" / "cifar10", batches)
        for folder in (tmp_path, tmp_path / "unpacked"):
            with pytest.raises(CorruptDataError, match=r"data_batch_1.* unpacks to more than the \d+ bytes"):
                load(folder)

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


@pytest.mark.parametrize("loader", [CIFAR10(), CIFAR100()])
def test_is_a_loader(loader: Any) -> None:
    assert isinstance(loader, Loader)


class TestEncode:
    def test_is_what_training_data_got(self, batches: dict[str, bytes], pixels: np.ndarray, tmp_path: Path) -> None:
        put(tmp_path / "cifar10", batches)
        data = load(tmp_path)
        assert data.encode is not None
        images = pixels.reshape(5, 3, 32, 32).transpose(0, 2, 3, 1)  # not contiguous
        images.setflags(write=False)
        assert torch.equal(data.encode(images), data.x_train[:5])
        assert torch.equal(data.encode(torch.from_numpy(images.copy())), data.x_train[:5])
        assert data.encode(images[:0]).shape == (0, 3, 32, 32)

    @pytest.mark.parametrize(
        ("raw", "message"),
        [
            ([[1]], "list"),
            (np.zeros((2, 32, 32, 3)), r"float64 of shape \[2, 32, 32, 3\]"),
            (torch.zeros(2, 32, 32, 3), r"float32 of shape \[2, 32, 32, 3\]"),
            (np.zeros((2, 3, 32, 32), np.uint8), r"uint8 of shape \[2, 3, 32, 32\]"),
            (np.zeros((32, 32, 3), np.uint8), r"uint8 of shape \[32, 32, 3\]"),
        ],
    )
    def test_wrong_images(self, raw: Any, message: str) -> None:
        with pytest.raises(ParameterError, match=rf"^images must be uint8 of shape \[k, 32, 32, 3\], got {message}$"):
            cifar10.encode(cifar10.RELEASE, raw)


class TestCIFAR100:
    @pytest.fixture
    def hundred(self, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
        made = {
            "train": batch(array(pixels), [19, 3, 0, 1, 2], fine=[99, 7, 0, 7, 50]),
            "test": batch(array(pixels[:2]), [1, 2], fine=[98, 3]),
        }
        publish(cifar100, made, monkeypatch)
        return made

    def check(self, data: Dataset, pixels: np.ndarray) -> None:
        assert data.n_classes == 100
        assert data.y_train.tolist() == [99, 7, 0, 7, 50]
        assert data.y_test.tolist() == [98, 3]
        blue = (pixels[1, 2048] / 255 - 0.4409) / 0.2762
        assert data.x_test[1, 2, 0, 0].item() == pytest.approx(blue, abs=1e-5)
        assert data.encode is not None
        assert torch.equal(data.encode(pixels.reshape(5, 3, 32, 32).transpose(0, 2, 3, 1)), data.x_train)

    @pytest.mark.parametrize("place", ["cifar100/cifar-100-python", "cifar100", "cifar-100-python"])
    def test_unpacked(self, hundred: dict[str, bytes], pixels: np.ndarray, tmp_path: Path, place: str) -> None:
        put(tmp_path / place, hundred)
        CIFAR100().verify(tmp_path)
        CIFAR100().fetch(tmp_path)
        self.check(CIFAR100().load(tmp_path, torch.Generator()), pixels)

    def test_archive(
        self,
        hundred: dict[str, bytes],
        pixels: np.ndarray,
        server: Any,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        members = {f"cifar-100-python/{name}": content for name, content in hundred.items()}
        serve(server, archive({"cifar-100-python/meta": b"names", **members}), monkeypatch, cifar100)
        with pytest.raises(MissingDataError, match="`fedsieve data fetch cifar100`"):
            CIFAR100().verify(tmp_path)
        self.check(CIFAR100().load(tmp_path, torch.Generator()), pixels)
        CIFAR100().verify(tmp_path)
        assert [file.path for file in CIFAR100().files()] == ["cifar100/cifar-100-python.tar.gz"]

    def test_wrong_batches(self, pixels: np.ndarray) -> None:
        for content in [
            batch(array(pixels), [1] * 5),
            batch(array(pixels), [1] * 5, fine=[100] * 5),
            batch(array(pixels), [1] * 5, fine=[1] * 4),
        ]:
            with pytest.raises(CorruptDataError, match=r"^here is not a CIFAR-100 batch: ."):
                cifar10.parse(cifar100.RELEASE, content, "here")


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
