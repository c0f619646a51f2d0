"""Numpy arrays of the user's: the test set, tokens, mistakes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import CorruptDataError, MissingDataError, ParameterError
from fedsieve.data.arrays import NPZ
from fedsieve.data.dataset import Dataset, Loader
from fedsieve.data.user_files import split


def test_is_a_loader() -> None:
    loader = NPZ()
    assert isinstance(loader, Loader)
    assert loader.files() == ()
    for action in (loader.verify, loader.fetch, lambda folder: loader.load(folder, torch.Generator())):
        with pytest.raises(ParameterError, match=r"^npz: file is not set; name one, e\.g\. --set dataset\.file="):
            action(Path())


def load(folder: Path, seed: int = 0, tokens: bool = False, **arrays: Any) -> Dataset:
    np.savez(folder / "a.npz", **arrays)
    loader = NPZ(file=str(folder / "a.npz"), tokens=tokens)
    loader.verify(Path())
    loader.fetch(Path())
    return loader.load(Path(), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.float64, np.bool_])
def test_split(tmp_path: Path, dtype: Any) -> None:
    x = np.arange(40).reshape(10, 2, 2).astype(dtype)
    y = np.array([3, -5, 9, 3, 9, -5, 3, 3, 9, 9], np.int8)
    data = load(tmp_path, x=x, y=y, clients=np.array(list("abcdabcdab")), other=np.zeros(3))
    labels, owners = torch.tensor([1, 0, 2, 1, 2, 0, 1, 1, 2, 2]), torch.arange(10) % 4
    train, test = split("npz", 10, 0.2, torch.Generator().manual_seed(0), owners, labels)
    assert data.x_train.dtype == torch.float32
    assert data.x_train.equal(torch.from_numpy(x.astype(np.float32))[train])
    assert data.x_test.equal(torch.from_numpy(x.astype(np.float32))[test])
    assert data.y_train.equal(labels[train])
    assert data.y_test.equal(labels[test])
    assert data.n_classes == 3
    assert data.owners is not None
    assert data.test_owners is not None
    assert data.owners.equal(owners[train])
    assert data.test_owners.equal(owners[test])
    assert data.owner_names == ("a", "b", "c", "d")


def test_own_test_set(tmp_path: Path) -> None:
    data = load(tmp_path, x=np.ones((4, 3)), y=[0, 1, 0, 1], x_test=np.zeros((2, 3)), y_test=np.array([2, 0]))
    assert data.y_train.tolist() == [0, 1, 0, 1]
    assert data.y_test.tolist() == [2, 0]
    assert data.x_test.eq(0).all()
    assert data.n_classes == 3
    assert data.owners is None


def test_tokens(tmp_path: Path) -> None:
    x = np.array([[1, 2, 0], [4, 0, 0], [3, 3, 3]], np.uint16)
    data = load(tmp_path, tokens=True, x=x, y=[0, 1, 0])
    assert data.x_train.dtype == torch.int64
    assert data.vocabulary == ("0", "1", "2", "3", "4")
    words = np.array(["<pad>", "<unk>", "a", "b", "c", "d"])
    assert load(tmp_path, tokens=True, x=x, y=[0, 1, 0], vocabulary=words).vocabulary == tuple(words)
    with pytest.raises(CorruptDataError, match="x has token 4, its vocabulary 4 words"):
        load(tmp_path, tokens=True, x=x, y=[0, 1, 0], vocabulary=words[:4])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones((2, 3))}, "must have arrays x and y, and x_test and y_test or neither; it has x"),
        ({"x": np.ones((2, 3)), "y": [0, 1], "x_test": np.ones((2, 3))}, "must have arrays"),
        ({"x": np.ones((2, 3)), "y": [0.0, 1.0]}, r"y must be integers \[N\], got float64 of shape \[2\]"),
        ({"x": np.ones((2, 3)), "y": [[0, 1]]}, r"y must be integers \[N\], got int64 of shape \[1, 2\]"),
        ({"x": np.ones(2), "y": [0, 1]}, r"x must be numbers .* got float64 of shape \[2\]"),
        ({"x": np.array([["a"], ["b"]]), "y": [0, 1]}, r"x must be numbers .* got <U1"),
        ({"x": np.array([[{}], [{}]]), "y": [0, 1]}, r"is not a whole \.npz file without pickles: Object arrays"),
        ({"x": np.ones((3, 3)), "y": [0, 1]}, r"x has shape \[3, 3\], y has 2 labels"),
        ({"x": np.ones((0, 3)), "y": np.array([], int)}, r"x has shape \[0, 3\], y has 0 labels"),
        (
            {"x": np.array([[1.0], [np.nan]]), "y": [0, 1]},
            r"x has a value that is not finite in float32, nan at \[1, 0\]",
        ),
        ({"x": np.array([[1.0], [1e300]]), "y": [0, 1]}, "x has a value that is not finite in float32"),
        ({"x": np.ones((2, 3)), "y": [0, 1], "clients": [1]}, r"clients has shape \[1\], expected \[2\]"),
        (
            {"x": np.ones((2, 3)), "y": [0, 1], "x_test": np.ones((2, 4)), "y_test": [0, 1]},
            r"x has samples of shape \[3\], x_test of shape \[4\]",
        ),
    ],
)
def test_wrong_arrays(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(CorruptDataError, match=message) as error:
        load(tmp_path, **arrays)
    assert "\n" not in str(error.value)


class TestLabels:
    @pytest.mark.parametrize("dtype", [np.uint64, np.int64])
    def test_large_integers_are_exact(self, tmp_path: Path, dtype: Any) -> None:
        names = [2**62, 2**62 + 1, 2**62 + 2]
        data = load(tmp_path, x=np.ones((6, 3)), y=np.array(names * 2, dtype))
        assert data.n_classes == 3
        assert data.class_names == tuple(map(str, names))

    def test_of_two_types_are_compared_as_integers(self, tmp_path: Path) -> None:
        # numpy would join the two as floats
        y, y_test = np.array([2**62, -1], np.int64), np.array([2**62 + 1, 2**62], np.uint64)
        data = load(tmp_path, x=np.ones((2, 3)), y=y, x_test=np.ones((2, 3)), y_test=y_test)
        assert data.class_names == ("-1", str(2**62), str(2**62 + 1))
        assert (data.y_train.tolist(), data.y_test.tolist()) == ([1, 0], [2, 1])
        assert "no training samples of class 2 ('4611686018427387905')" in data.reading


class TestOwnTestSet:
    x, y = np.ones((6, 3)), np.arange(6) % 2
    clients, test = np.array(["b", "a"] * 3), {"x_test": np.ones((3, 3)), "y_test": np.array([0, 1, 1])}

    def test_clients_of_its_rows(self, tmp_path: Path) -> None:
        data = load(tmp_path, x=self.x, y=self.y, clients=self.clients, clients_test=np.array(list("aab")), **self.test)
        assert data.owner_names == ("a", "b")
        assert data.owners is not None
        assert data.test_owners is not None
        assert (data.owners.tolist(), data.test_owners.tolist()) == ([1, 0] * 3, [0, 0, 1])
        assert load(tmp_path, x=self.x, y=self.y, clients=self.clients, **self.test).test_owners is None

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"clients_test": np.array(list("abc"))}, "clients_test has 'c', which is not in clients"),
            ({"clients_test": np.array(list("ab"))}, r"clients_test has shape \[2\], expected \[3\]"),
            ({"clients_test": np.array([0, 1, 1])}, "clients_test has '0', which is not in clients"),
        ],
    )
    def test_wrong_clients(self, tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
        with pytest.raises(CorruptDataError, match=message):
            load(tmp_path, x=self.x, y=self.y, clients=self.clients, **self.test, **arrays)

    def test_what_has_no_effect(self, tmp_path: Path) -> None:
        with pytest.raises(CorruptDataError, match="has an array clients_test, but not both clients and y_test"):
            load(tmp_path, x=self.x, y=self.y, clients=self.clients, clients_test=self.clients)
        np.savez(tmp_path / "a.npz", x=self.x, y=self.y, **self.test)
        with pytest.raises(
            ParameterError, match=r"^npz: test has no effect: .*a\.npz has a test set, x_test and y_test"
        ):
            NPZ(file=str(tmp_path / "a.npz"), test=0.3).load(Path(), torch.Generator())


class TestClients:
    x, y = np.ones((40, 3)), np.arange(40) % 2

    @pytest.mark.parametrize(
        "clients", [np.array(["01", "1"] * 20), np.arange(40) % 2 + 2**62, np.array([b"a", b"b"] * 20)]
    )
    def test_imply_the_natural_partition(self, tmp_path: Path, clients: Any) -> None:
        load(tmp_path, x=self.x, y=self.y, clients=clients)
        e = Experiment.of({"dataset": str(tmp_path / "a.npz")})
        assert (e.partition.name, e.clients) == ("natural", 2)
        assert Experiment.of({"dataset": str(tmp_path / "a.npz"), "partition": "iid"}).clients == 30

    def test_without(self, tmp_path: Path) -> None:
        load(tmp_path, x=self.x, y=self.y)
        e = Experiment.of({"dataset": str(tmp_path / "a.npz")})
        assert (e.partition.name, e.clients) == ("iid", 30)

    def test_each_keeps_a_row_to_train_on(self, tmp_path: Path) -> None:
        owners = load(tmp_path, x=self.x, y=self.y, clients=np.arange(40).clip(0, 20)).owners
        assert owners is not None
        assert len(owners) == 32
        assert len(owners.unique()) == 21

    @pytest.mark.parametrize(
        ("clients", "message"),
        [
            (np.array([1.0, np.nan] * 20), r"clients must be integers or text \[N\], got float64 of shape \[40\]"),
            (np.array(["a", ""] * 20), r"clients has an empty text in row 1"),
            (np.ones((40, 1), int), r"clients"),
        ],
    )
    def test_wrong(self, tmp_path: Path, clients: Any, message: str) -> None:
        np.savez(tmp_path / "a.npz", x=self.x, y=self.y, clients=clients)
        for use in (
            lambda: NPZ(file=str(tmp_path / "a.npz")).load(Path(), torch.Generator()),
            lambda: Experiment.of({"dataset": str(tmp_path / "a.npz")}),
        ):
            with pytest.raises(CorruptDataError, match=message):
                use()


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (np.ones((10, 1, 4, 5)), "10 images of 1 x 4 x 5 (channels, height, width), 2 classes (5/5)"),
        (np.ones((10, 7)), "10 rows, 2 classes (5/5), 7 features"),
        (np.ones((10, 7, 2)), "10 rows, 2 classes (5/5), 7 x 2 features"),
    ],
)
def test_reading(tmp_path: Path, x: np.ndarray, said: str) -> None:
    assert load(tmp_path, x=x, y=np.arange(10) % 2).reading == said


def test_reading_of_many_classes(tmp_path: Path) -> None:
    assert load(tmp_path, x=np.ones((210, 7)), y=np.arange(210) % 21).reading.startswith(
        "210 rows, 21 classes of 10 each"
    )
    assert "21 classes of 10 to 11" in load(tmp_path, x=np.ones((211, 7)), y=np.arange(211) % 21).reading


def test_wrong_tokens(tmp_path: Path) -> None:
    with pytest.raises(CorruptDataError, match=r"x must be integers \[N, length\], got float64"):
        load(tmp_path, tokens=True, x=np.ones((2, 3)), y=[0, 1])
    with pytest.raises(CorruptDataError, match=r"x has token -1, but token ids begin with 0"):
        load(tmp_path, tokens=True, x=np.array([[1], [-1]]), y=[0, 1])
    with pytest.raises(CorruptDataError, match=r"x has token 18446744073709551615, but token ids end with 10000000"):
        load(tmp_path, tokens=True, x=np.array([[1], [2**64 - 1]], np.uint64), y=[0, 1])


def test_one_class(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"^npz: y has 1 distinct values; classes must be 2 to 1000$"):
        load(tmp_path, x=np.ones((2, 3)), y=[4, 4])


def test_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"a\.npz cannot be read: No such file or directory"):
        NPZ(file=str(tmp_path / "a.npz")).verify(Path())
    np.savez(tmp_path / "a.npz", x=np.ones((20, 3)), y=np.arange(20))
    whole = (tmp_path / "a.npz").read_bytes()
    np.save(tmp_path / "one.npy", np.ones(3))
    for content in (b"", b"nonsense", whole[:-30], (tmp_path / "one.npy").read_bytes()):
        (tmp_path / "b.npz").write_bytes(content)
        with pytest.raises(CorruptDataError, match=r"b\.npz is not a whole \.npz file without pickles: ."):
            NPZ(file=str(tmp_path / "b.npz")).verify(Path())
    with pytest.raises(ParameterError, match=r"^npz: test must be above 0 and below 1, got 2"):
        NPZ(test=2.0)
