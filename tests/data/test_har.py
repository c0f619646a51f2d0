"""UCI HAR: its text tables, the split of each person's rows, and the real file."""

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsieve.core.errors import CorruptDataError, MissingDataError
from fedsieve.data import har, store
from fedsieve.data.dataset import Dataset, Loader, RemoteFile
from fedsieve.data.har import HAR, parse, split

ROWS = {"train": 13, "test": 7}


def table(values: np.ndarray) -> bytes:
    """As published: sixteen characters a number, three digits of exponent."""
    return b"".join(b"".join(number(v) for v in row) + b"\n" for row in values)


def number(value: float) -> bytes:
    mantissa, exponent = f"{value:.7e}".split("e")
    return f"{mantissa}e{int(exponent):+04d}".rjust(16).encode()


@pytest.fixture
def features() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (20, 561))


@pytest.fixture
def members(features: np.ndarray) -> dict[str, bytes]:
    """Subject 1 has rows in both parts; subjects 2 and 30 in one each."""
    at, result = 0, {}
    for part, subjects in (("train", [1] * 3 + [2] * 10), ("test", [1] * 2 + [30] * 5)):
        rows = np.arange(at, at := at + ROWS[part])
        contents = {
            "X": table(features[rows]),
            "y": b"".join(b"%d\n" % (row % 6 + 1) for row in rows),
            "subject": b"".join(b"%d\n" % subject for subject in subjects),
        }
        result |= {f"UCI HAR Dataset/{part}/{kind}_{part}.txt": content for kind, content in contents.items()}
    return result


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_is_a_loader() -> None:
    assert isinstance(HAR(), Loader)


def test_reads_what_was_written(members: dict[str, bytes], features: np.ndarray) -> None:
    x, y, owners = parse(members)
    assert x.dtype == torch.float32
    np.testing.assert_allclose(x.numpy(), features, rtol=1e-7, atol=1e-7)
    assert y.tolist() == [row % 6 for row in range(20)]
    assert owners.tolist() == [0] * 3 + [1] * 10 + [0] * 2 + [29] * 5


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("X", b"1 2 three\n", "does not hold tables of numbers: could not convert"),
        ("X", b"1 2 3\n", "does not hold tables of numbers: shape"),
        ("y", b"1\n" * 12, "has 20 rows, 19 activities and 20 subjects"),
        ("y", b"1.5\n" * 13, "does not hold tables of numbers"),
        ("y", b"0\n" * 13, "activities not in 1 to 6"),
        ("y", b"7\n" * 13, "activities not in 1 to 6"),
        ("subject", b"31\n" * 13, "subjects not in 1 to 30"),
    ],
)
def test_bad_tables(members: dict[str, bytes], kind: str, content: bytes, message: str) -> None:
    with pytest.raises(CorruptDataError, match=message):
        parse(members | {f"UCI HAR Dataset/train/{kind}_train.txt": content})


def test_split() -> None:
    owners = torch.tensor([0] * 10 + [7] * 9 + [2] * 20)[torch.randperm(39, generator=torch.Generator().manual_seed(1))]
    train, test = split(owners, torch.Generator().manual_seed(0))
    assert sorted(torch.cat([train, test]).tolist()) == list(range(39))
    assert owners[train].bincount().tolist() == [7, 0, 14, 0, 0, 0, 0, 6]
    again, _ = split(owners, torch.Generator().manual_seed(0))
    other, _ = split(owners, torch.Generator().manual_seed(2))
    assert train.equal(again)
    assert not train.equal(other)


def test_loads_from_a_server(
    members: dict[str, bytes], server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in members.items()}
    monkeypatch.setattr(har, "FILE", RemoteFile("har/f.zip", (f"{server.url}/f.zip",), members=md5))
    server.serve("/f.zip", zipped(members))
    with pytest.raises(MissingDataError, match="`fedsieve data fetch har`"):
        HAR().verify(tmp_path)
    data = HAR().load(tmp_path, torch.Generator())
    HAR().fetch(tmp_path)
    HAR().verify(tmp_path)
    assert len(server.asked) == 1
    assert data.owners is not None
    assert data.owners.bincount(minlength=30)[[0, 1, 29]].tolist() == [4, 7, 4]  # of 5, 10 and 5
    assert data.test_owners is not None
    assert data.test_owners.bincount(minlength=30)[[0, 1, 29]].tolist() == [1, 3, 1]
    assert (data.owner_names[0], data.owner_names[29], len(data.owner_names)) == ("person 1", "person 30", 30)
    assert (len(data.x_train), len(data.x_test)) == (15, 5)

    (tmp_path / "har/f.zip").write_bytes(b"damaged")  # is replaced
    HAR().load(tmp_path, torch.Generator())
    assert len(server.asked) == 2


def test_standardised(members: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constant = table(
        np.concatenate([np.full((13, 1), 0.25), np.random.default_rng(1).uniform(-1, 1, (13, 560))], axis=1)
    )
    members = {**members, "UCI HAR Dataset/train/X_train.txt": constant}
    other = members["UCI HAR Dataset/test/X_test.txt"].split(b"\n")
    members["UCI HAR Dataset/test/X_test.txt"] = b"\n".join([number(0.25) + row[16:] for row in other if row] + [b""])
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in members.items()}
    monkeypatch.setattr(har, "FILE", RemoteFile("har/f.zip", (), members=md5))
    (tmp_path / "har").mkdir()
    (tmp_path / "har/f.zip").write_bytes(zipped(members))
    plain = HAR().load(tmp_path, torch.Generator().manual_seed(2))
    scaled = HAR(standardise=True).load(tmp_path, torch.Generator().manual_seed(2))
    assert plain.x_train[:, 0].eq(0.25).all()
    train = plain.x_train.double()
    mean, std = train.mean(dim=0), train.std(dim=0, correction=0)
    std[0] = 1
    for found, x in ((scaled.x_train, plain.x_train), (scaled.x_test, plain.x_test)):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, ((x.double() - mean) / std).float(), rtol=1e-6, atol=1e-6)
        assert found[:, 0].eq(0).all()
    assert scaled.x_train[:, 1:].double().square().mean(dim=0).numpy() == pytest.approx(1, abs=1e-6)
    for name in ("y_train", "y_test", "owners"):
        assert torch.equal(getattr(scaled, name), getattr(plain, name))


@pytest.fixture(scope="module")
def real() -> Dataset:
    folder = store.data_folder()
    HAR().verify(folder)
    return HAR().load(folder, torch.Generator().manual_seed(0))


@pytest.mark.real_data
def test_real_data(real: Dataset) -> None:
    assert real.input_shape == (561,)
    assert len(real.x_train) + len(real.x_test) == 10_299
    assert (real.y_train.bincount() + real.y_test.bincount()).tolist() == [1722, 1544, 1406, 1777, 1906, 1944]
    assert (real.x_train.min(), real.x_train.max()) == (-1, 1)
    assert real.x_test.abs().max() <= 1


@pytest.mark.real_data
def test_real_data_standardised(real: Dataset) -> None:
    scaled = HAR(standardise=True).load(store.data_folder(), torch.Generator().manual_seed(0))
    assert scaled.x_train.mean(dim=0).abs().max() < 1e-4
    assert scaled.x_train.std(dim=0, correction=0).numpy() == pytest.approx(1, abs=1e-4)
    assert torch.equal(scaled.y_train, real.y_train)
    assert scaled.x_test.isfinite().all()


@pytest.mark.real_data
def test_real_rows_in_order() -> None:
    x, y, owners = parse(store.read_members(har.FILE, store.data_folder()))
    assert x[0, :3].tolist() == pytest.approx([0.28858451, -0.020294171, -0.13290514], abs=1e-8)
    assert y[:7352].bincount().tolist() == [1226, 1073, 986, 1286, 1374, 1407]
    assert y[0] == 4  # standing
    assert (len(owners[:7352].unique()), len(owners[7352:].unique())) == (21, 9)


@pytest.mark.real_data
def test_real_split(real: Dataset) -> None:
    _, _, owners = parse(store.read_members(har.FILE, store.data_folder()))
    everyone = owners.bincount()
    assert len(everyone) == 30
    assert real.owners is not None
    assert real.owners.bincount().tolist() == [round(0.7 * rows) for rows in everyone.tolist()]
    train, test = split(owners, torch.Generator().manual_seed(0))
    assert not set(train.tolist()) & set(test.tolist())
