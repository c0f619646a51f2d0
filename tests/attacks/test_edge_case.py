"""Edge cases: which images are added, how many, what is measured, and the errors for unfit files and data."""

import math
import os
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray
from torch import Tensor

from fedsieve.attacks.edge_case import EdgeCase
from fedsieve.core.attack import AttackView, Backdoor, PoisonView, Task
from fedsieve.core.errors import CorruptDataError, MissingDataError, ParameterError
from fedsieve.data import cifar10, fashion_mnist

FORMAT = "an npz file with uint8 arrays train and test, [k, height, width, channels] each"
PLACE = Path("edge-cases/southwest-planes.npz")


def image(number: int) -> ndarray:
    """Two by two pixels of three channels; the first channel of the first pixel is the number."""
    return np.arange(12, dtype=np.uint8).reshape(2, 2, 3) + np.uint8(number)


def write(folder: Path, **arrays: ndarray) -> Path:
    path = folder / PLACE
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **arrays)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images to train on, numbers 100 to 104, and three to test, from 200."""
    write(
        tmp_path, train=np.stack([image(100 + k) for k in range(5)]), test=np.stack([image(200 + k) for k in range(3)])
    )
    return tmp_path


def encode(raw: ndarray) -> Tensor:
    return torch.from_numpy(raw).permute(0, 3, 1, 2).float()


def clean(k: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(k, 3, 2, 2), torch.arange(k) % 4


def test_is_a_backdoor() -> None:
    assert isinstance(EdgeCase(), Backdoor)


class TestPoison:
    def test_by_hand(self, folder: Path, make_poison_view: Callable[..., PoisonView]) -> None:
        x, y = EdgeCase(target=2, share=0.25).poison(*clean(6), make_poison_view(folder=folder, encode=encode))
        # 2 of 8 are a quarter; the clean samples come first
        assert (x.shape, x.dtype) == ((8, 3, 2, 2), torch.float32)
        assert not x[:6].any()
        assert y.tolist() == [0, 1, 2, 3, 0, 1, 2, 2]
        for planted in x[6:]:
            number = int(planted[0, 0, 0])
            assert 100 <= number < 105
            expected = [[[number + 6 * i + 3 * j + c for j in range(2)] for i in range(2)] for c in range(3)]
            assert planted.tolist() == expected

    def test_by_default_eight_in_sixty_four(self, folder: Path, make_poison_view: Callable[..., PoisonView]) -> None:
        _, y = EdgeCase(target=3).poison(
            torch.zeros(56, 3, 2, 2), torch.zeros(56).long(), make_poison_view(folder=folder, encode=encode)
        )
        assert (len(y), int((y == 3).sum())) == (64, 8)

    @settings(max_examples=30, deadline=None, derandomize=True)
    @given(k=st.integers(1, 60), share=st.floats(0.01, 0.9), seed=st.integers(0, 99))
    def test_each_image_before_any_again(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        make_poison_view: Callable[..., PoisonView],
        k: int,
        share: float,
        seed: int,
    ) -> None:
        folder = tmp_path_factory.mktemp("data")
        one = np.stack([image(100 + i) for i in range(5)])
        write(folder, train=one, test=one)
        attack = EdgeCase(target=1, share=share)
        x, y = attack.poison(*clean(k), make_poison_view(seed=seed, folder=folder, encode=encode))
        count = max(1, round(k * share / (1 - share)))
        numbers = x[k:, 0, 0, 0].tolist()
        assert len(x) == len(y) == k + count
        for start in range(0, count, 5):
            assert len(set(numbers[start : start + 5])) == min(5, count - start)

    def test_generator_draws_the_images(self, folder: Path, make_poison_view: Callable[..., PoisonView]) -> None:
        drawn = [
            EdgeCase(target=0).poison(*clean(14), make_poison_view(seed=seed, folder=folder, encode=encode))[0]
            for seed in (0, 0, 1, 2, 3)
        ]
        assert torch.equal(drawn[0], drawn[1])
        assert any(not torch.equal(drawn[0], other) for other in drawn[2:])

    def test_takes_the_samples_type(self, folder: Path, make_poison_view: Callable[..., PoisonView]) -> None:
        x, y = clean(5)
        x, y = EdgeCase(target=0).poison(x.double(), y, make_poison_view(folder=folder, encode=encode))
        assert (x.dtype, y.dtype) == (torch.float64, torch.int64)


class TestTriggered:
    def test_is_the_files_test_part(self, folder: Path) -> None:
        found = EdgeCase(target=2).triggered(*clean(7), Task(4, folder, encode))
        assert found.x[:, 0, 0, 0].tolist() == [200, 201, 202]
        assert found.x.shape == (3, 3, 2, 2)
        assert found.wanted.tolist() == [2, 2, 2]
        assert found.already.tolist() == [False, False, False]

    def test_does_not_depend_on_the_test_data(self, folder: Path) -> None:
        task = Task(4, folder, encode)
        one = EdgeCase(target=2).triggered(*clean(7), task)
        other = EdgeCase(target=2).triggered(torch.ones(1, 3, 2, 2), torch.tensor([2]), task)
        assert all(torch.equal(getattr(one, f), getattr(other, f)) for f in ("x", "wanted", "already"))


class TestFile:
    def test_elsewhere(self, folder: Path, tmp_path: Path) -> None:
        path = tmp_path / "mine.npz"
        np.savez(path, train=image(1)[None], test=image(7)[None])
        for file, below in ((str(path), Path("/nowhere")), ("mine.npz", tmp_path)):
            found = EdgeCase(file=file, target=0).triggered(*clean(1), Task(4, below, encode))
            assert found.x[:, 0, 0, 0].tolist() == [7]

    def test_missing(self, tmp_path: Path, make_poison_view: Callable[..., PoisonView]) -> None:
        message = f"{tmp_path / PLACE} is missing; edge-case needs {FORMAT}; docs/data.md says how to get it"
        with pytest.raises(MissingDataError) as error:
            EdgeCase(target=0).poison(*clean(3), make_poison_view(folder=tmp_path, encode=encode))
        assert str(error.value) == message
        with pytest.raises(MissingDataError) as error:
            EdgeCase(target=0).triggered(*clean(3), Task(4, tmp_path, encode))
        assert str(error.value) == message

    @pytest.mark.parametrize(
        ("arrays", "said"),
        [
            ({"train": np.zeros((2, 2, 2, 3))}, "train is float64 of shape [2, 2, 2, 3]"),
            ({"train": np.zeros((2, 12), np.uint8)}, "train is uint8 of shape [2, 12]"),
            ({"train": np.zeros((0, 2, 2, 3), np.uint8)}, "train is uint8 of shape [0, 2, 2, 3]"),
        ],
    )
    def test_of_another_kind(
        self, tmp_path: Path, make_poison_view: Callable[..., PoisonView], arrays: dict[str, ndarray], said: str
    ) -> None:
        path = write(tmp_path, **arrays)
        with pytest.raises(CorruptDataError) as error:
            EdgeCase(target=0).poison(*clean(3), make_poison_view(folder=tmp_path, encode=encode))
        assert str(error.value) == f"{path} is not {FORMAT}: {said}"

    def test_without_a_part(self, tmp_path: Path) -> None:
        path = write(tmp_path, train=image(0)[None])
        with pytest.raises(CorruptDataError, match="test") as error:
            EdgeCase(target=0).triggered(*clean(3), Task(4, tmp_path, encode))
        assert str(error.value).startswith(f"{path} is not {FORMAT}: ")

    def test_that_would_run_code(self, tmp_path: Path) -> None:
        path = write(tmp_path, test=np.array([object()], dtype=object))
        with pytest.raises(CorruptDataError, match="allow_pickle=False") as error:
            EdgeCase(target=0).triggered(*clean(3), Task(4, tmp_path, encode))
        assert str(error.value).startswith(f"{path} is not {FORMAT}: ")

    @pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off"])
    def test_broken(self, tmp_path: Path, content: bytes) -> None:
        path = write(tmp_path)
        path.write_bytes(content)
        with pytest.raises(CorruptDataError) as error:
            EdgeCase(target=0).triggered(*clean(3), Task(4, tmp_path, encode))
        assert str(error.value).startswith(f"{path} is not {FORMAT}: ")
        assert "\n" not in str(error.value)

    def test_cut_in_the_middle(self, folder: Path) -> None:
        path = folder / PLACE
        whole = path.read_bytes()
        with zipfile.ZipFile(path) as archive:
            start = archive.getinfo("test.npy").header_offset
        path.write_bytes(whole[: start + 40] + b"\0" * 20 + whole[start + 60 :])
        with pytest.raises(CorruptDataError, match="is not an npz file"):
            EdgeCase(target=0).triggered(*clean(3), Task(4, folder, encode))

    def test_one_array_alone(self, tmp_path: Path) -> None:
        path = write(tmp_path)
        with path.open("wb") as stream:
            np.save(stream, image(0)[None])
        with pytest.raises(CorruptDataError, match="is not an npz file"):
            EdgeCase(target=0).triggered(*clean(3), Task(4, tmp_path, encode))


class TestFit:
    @pytest.mark.parametrize(
        ("form", "shape"),
        [(None, [3, 2, 2]), (encode, [1, 4, 4]), (encode, [12]), (fashion_mnist.encode, [1, 28, 28])],
        ids=["no raw form", "other images", "features", "refused by the dataset"],
    )
    def test_images_of_another_shape(
        self, folder: Path, make_poison_view: Callable[..., PoisonView], form: Any, shape: list[int]
    ) -> None:
        message = (
            f"edge-case: {folder / PLACE} has images of shape [2, 2, 3], which don't fit samples of shape {shape}; "
            f"use data of such images, as cifar10 is"
        )
        x, y = torch.zeros(4, *shape), torch.arange(4)
        with pytest.raises(ParameterError) as error:
            EdgeCase(target=0).poison(x, y, make_poison_view(folder=folder, encode=form))
        assert str(error.value) == message
        with pytest.raises(ParameterError) as error:
            EdgeCase(target=0).triggered(x, y, Task(4, folder, form))
        assert str(error.value) == message

    def test_target_out_of_range(self, folder: Path, make_poison_view: Callable[..., PoisonView]) -> None:
        with pytest.raises(ParameterError) as error:
            EdgeCase().poison(*clean(3), make_poison_view(folder=folder, encode=encode))
        assert str(error.value) == "edge-case: target must be below the 4 classes, got 9"
        with pytest.raises(ParameterError, match="target must be below the 4 classes, got 4"):
            EdgeCase(target=4).triggered(*clean(3), Task(4, folder, encode))


class TestCraft:
    own = torch.tensor([[1.0, -2.0], [3.0, 4.0]])

    def test_black_box_sends_the_trained_update(self, make_view: Callable[..., AttackView]) -> None:
        view = make_view(self.own, torch.randn(5, 2))
        assert EdgeCase().craft(view) is view.malicious_updates

    def test_model_replacement(self, make_view: Callable[..., AttackView]) -> None:
        sent = EdgeCase(factor=3.5).craft(make_view(self.own, torch.randn(5, 2)))
        assert sent.tolist() == [[3.5, -7], [10.5, 14]]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"share": 0.0}, "edge-case: share must be in (0, 1), got 0.0"),
        ({"share": 1.0}, "edge-case: share must be in (0, 1), got 1.0"),
        ({"share": math.nan}, "edge-case: share must be in (0, 1), got nan"),
        ({"target": -1}, "edge-case: target must be at least 0, got -1"),
        ({"factor": 0.0}, "edge-case: factor must be positive, got 0.0"),
    ],
)
def test_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError) as error:
        EdgeCase(**parameters)
    assert str(error.value) == message


@pytest.mark.real_data
def test_southwest_planes_in_cifar10(make_poison_view: Callable[..., PoisonView]) -> None:
    folder = Path(os.environ["FEDSIEVE_DATA"])
    as_cifar10 = partial(cifar10.encode, cifar10.RELEASE)
    with np.load(folder / PLACE) as arrays:
        raw = {part: arrays[part] for part in ("train", "test")}
    assert [raw[part].shape for part in raw] == [(784, 32, 32, 3), (196, 32, 32, 3)]
    found = EdgeCase().triggered(torch.zeros(2, 3, 32, 32), torch.zeros(2).long(), Task(10, folder, as_cifar10))
    assert found.x.shape == (196, 3, 32, 32)
    assert found.wanted.unique().tolist() == [9]
    # one pixel by hand: CIFAR-10's means and deviations of the three channels
    for channel, (mean, std) in enumerate([(0.4914, 0.2470), (0.4822, 0.2435), (0.4465, 0.2616)]):
        value = (int(raw["test"][5, 10, 20, channel]) / 255 - mean) / std
        assert float(found.x[5, channel, 10, 20]) == pytest.approx(value, rel=1e-5)
    view = make_poison_view(10, folder=folder, encode=as_cifar10)
    x, y = EdgeCase().poison(torch.zeros(7000, 3, 32, 32), torch.zeros(7000).long(), view)
    assert (len(x), int((y == 9).sum())) == (8000, 1000)  # 216 planes a second time
    assert sorted(x[7000:7784, 0, 16, 16].tolist()) == sorted(as_cifar10(raw["train"])[:, 0, 16, 16].tolist())
