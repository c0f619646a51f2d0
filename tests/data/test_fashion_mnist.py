"""Fashion-MNIST: the idx format, and the real files."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsieve.core.errors import CorruptDataError, MissingDataError, ParameterError
from fedsieve.data import fashion_mnist, store
from fedsieve.data.dataset import Dataset, Loader, RemoteFile
from fedsieve.data.fashion_mnist import FashionMNIST, read_idx, read_pair


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def arrays() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (20, 28, 28), np.uint8), rng.integers(0, 10, 20, np.uint8)


def write(path: Path, raw: bytes) -> Path:
    path.write_bytes(gzip.compress(raw))
    return path


def test_is_a_loader() -> None:
    assert isinstance(FashionMNIST(), Loader)


def test_reads_what_was_written(arrays: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    images, labels = arrays
    x, y = read_pair(write(tmp_path / "images", idx(images)), write(tmp_path / "labels", idx(labels)))
    assert x.shape == (20, 1, 28, 28)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    np.testing.assert_allclose(x[:, 0].numpy(), images / 255, atol=1e-7)
    assert y.tolist() == labels.tolist()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "it begins with "),
        (b"\0\0", "it begins with 00 00"),
        (b"\0\0\x0d\x01\0\0\0\0", "it begins with 00 00 0d 01"),
        (b"\0\0\x08\0", "it begins with 00 00 08 00"),
        (b"\0\0\x08\x03\0\0", "has 6 bytes, expected"),
        (b"\0\0\x08\x01\0\0\0\x03ab", r"has 10 bytes, expected 11 for shape \(3,\)"),
        (b"\0\0\x08\x01\0\0\0\x03abcd", r"has 12 bytes, expected 11 for shape \(3,\)"),
    ],
)
def test_bad_idx(raw: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(CorruptDataError, match=message):
        read_idx(write(tmp_path / "f.gz", raw))


@pytest.mark.parametrize(
    "content",
    [b"no gzip", gzip.compress(b"x" * 99)[:-9], gzip.compress(b"x") + b"more", b"\x1f\x8b\x08\0\0\0\0\0\0\xff~"],
    ids=["no gzip", "cut", "more", "broken"],  # a gzip header holds the time, which would be in the name
)
def test_bad_gzip(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "f.gz"
    path.write_bytes(content)
    with pytest.raises(CorruptDataError, match="is not a whole gzip file"):
        read_idx(path)


def test_unpacks_to_no_more_than_the_published_file(
    arrays: tuple[np.ndarray, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "images", idx(arrays[0]))
    monkeypatch.setattr(fashion_mnist, "_LARGEST", 16 + 20 * 28 * 28)
    assert read_idx(path).shape == (20, 28, 28)
    write(path, b"0" * 1_000_000)
    with pytest.raises(
        CorruptDataError, match=r"images unpacks to more than the 15696 bytes that were expected at most$"
    ):
        read_idx(path)


def test_pairs_must_fit(arrays: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    images, labels = arrays
    good = write(tmp_path / "images", idx(images)), write(tmp_path / "labels", idx(labels))
    with pytest.raises(CorruptDataError, match=r"shape \(20,\), expected \(N, 28, 28\)"):
        read_pair(good[1], good[0])
    with pytest.raises(CorruptDataError, match=r"shape \(19,\), expected \(20,\)"):
        read_pair(good[0], write(tmp_path / "few", idx(labels[1:])))
    with pytest.raises(CorruptDataError, match="has class 10, expected 0 to 9"):
        read_pair(good[0], write(tmp_path / "high", idx(np.full(20, 10, np.uint8))))


def test_loads_from_a_server(
    arrays: tuple[np.ndarray, np.ndarray], server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = []
    for name, array in zip(fashion_mnist.MD5, [*arrays, *(a[:5] for a in arrays)], strict=True):
        server.serve(f"/{name}", gzip.compress(idx(array)))
        files.append(RemoteFile(f"fashion-mnist/{name}", (f"{server.url}/{name}",)))
    monkeypatch.setattr(fashion_mnist, "FILES", tuple(files))
    with pytest.raises(MissingDataError, match="`fedsieve data fetch fashion-mnist`"):
        FashionMNIST().verify(tmp_path)
    data = FashionMNIST().load(tmp_path, torch.Generator())
    FashionMNIST().fetch(tmp_path)
    FashionMNIST().verify(tmp_path)
    assert (len(data.x_train), len(data.x_test)) == (20, 5)
    assert len(server.asked) == 4
    assert data.encode is not None
    torch.testing.assert_close(data.encode(arrays[0][..., None]), data.x_train)
    with pytest.raises(ParameterError, match=r"must be uint8 of shape \[k, 28, 28, 1\], got uint8 of shape \[20, 28"):
        data.encode(arrays[0])


@pytest.fixture(scope="module")
def real() -> Dataset:
    folder = store.data_folder()
    FashionMNIST().verify(folder)
    return FashionMNIST().load(folder, torch.Generator())


@pytest.mark.real_data
def test_real_data(real: Dataset) -> None:
    assert real.x_train.shape == (60_000, 1, 28, 28)
    assert real.x_test.shape == (10_000, 1, 28, 28)
    assert real.input_shape == (1, 28, 28)
    assert real.y_train.bincount().tolist() == [6000] * 10
    assert real.y_test.bincount().tolist() == [1000] * 10
    assert real.y_train[:4].tolist() == [9, 0, 0, 3]
    assert real.y_test[:4].tolist() == [9, 2, 1, 1]
    assert real.x_train.mean().abs() < 1e-3
    assert (real.x_train.std() - 1).abs() < 1e-3
    assert real.owners is None
