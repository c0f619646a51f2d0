"""Scaling: the trigger, the poisoned copies, and the factor."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsieve.attacks.scaling import Scaling
from fedsieve.core.attack import AttackView, Backdoor, PoisonView, Task
from fedsieve.core.errors import ParameterError


def test_is_a_backdoor() -> None:
    assert isinstance(Scaling(target=3), Backdoor)
    assert Scaling(target=3).target == 3


class TestTrigger:
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize(("size", "value"), [(5, 1.0), (2, -0.5)])
    def test_on_images(self, channels: int, size: int, value: float) -> None:
        x = torch.randn(4, channels, 8, 9)
        marked = Scaling(size=size, value=value).trigger(x)
        for image, before in zip(marked, x, strict=True):
            for c in range(channels):
                for row in range(8):
                    for column in range(9):
                        inside = row < size and column < size
                        assert image[c, row, column] == (value if inside else before[c, row, column])

    def test_larger_than_the_image(self) -> None:
        assert (Scaling(size=50).trigger(torch.zeros(1, 1, 4, 4)) == 1).all()

    @pytest.mark.parametrize("largest", [1.0, 255.0, 2.8])
    def test_is_as_bright_as_the_data(self, largest: float, make_poison_view: Callable[..., PoisonView]) -> None:
        x, y = torch.rand(6, 3, 8, 8) * largest * 0.9, torch.arange(6) % 3
        view = make_poison_view(3)
        view = replace(view, task=replace(view.task, largest=largest))
        poisoned, _ = Scaling(target=1, share=1.0).poison(x, y, view)
        assert poisoned[6:, :, :5, :5].unique().tolist() == [pytest.approx(largest)]
        found = Scaling(target=1).triggered(x, y, view.task)
        assert found.x[:, :, :5, :5].unique().tolist() == [pytest.approx(largest)]
        assert torch.equal(found.x[:, :, 5:], x[:, :, 5:])
        # a value that is set stays as it is
        assert Scaling(value=0.5).triggered(x, y, view.task).x[:, :, :5, :5].unique().tolist() == [0.5]

    def test_that_is_there_already(self) -> None:
        x, y = torch.full((4, 1, 8, 8), 255.0), torch.arange(4) % 2
        with pytest.raises(
            ParameterError, match=r"^scaling: each of the 4 test samples looks as with the trigger; set value"
        ):
            Scaling().triggered(x, y, Task(2, Path(), largest=255.0))

    @pytest.mark.parametrize("stride", [1, 4, 20, 100])
    def test_on_features(self, stride: int) -> None:
        x = torch.randn(3, 45)
        marked = Scaling(stride=stride).trigger(x)
        for j in range(45):
            assert torch.equal(marked[:, j], torch.zeros(3) if j % stride == 0 else x[:, j])

    @pytest.mark.parametrize("shape", [(4, 1, 8, 8), (4, 30)])
    def test_is_a_new_tensor(self, shape: tuple[int, ...]) -> None:
        x = torch.full(shape, 0.25)
        marked = Scaling().trigger(x)
        assert (x == 0.25).all()
        assert not torch.equal(marked, x)
        assert marked.dtype == x.dtype

    @pytest.mark.parametrize("shape", [(4, 1, 8, 8), (4, 30)])
    def test_twice_is_once(self, shape: tuple[int, ...]) -> None:
        once = Scaling().trigger(torch.randn(shape))
        assert torch.equal(Scaling().trigger(once), once)


@pytest.mark.parametrize("shape", [(5, 1, 8, 8), (5, 30)])
def test_success_is_measured_on_the_test_data(shape: tuple[int, ...]) -> None:
    x, y, attack = torch.randn(shape), torch.tensor([2, 0, 1, 2, 3]), Scaling(target=2)
    found = attack.triggered(x, y, Task(4, Path()))
    assert torch.equal(found.x, attack.trigger(x))
    assert found.wanted.tolist() == [2] * 5
    assert found.already.tolist() == [True, False, False, True, False]


class TestPoison:
    @pytest.mark.parametrize(("share", "copies"), [(0.5, 10), (0.25, 5), (1.0, 20), (0.01, 1)])
    def test_share(
        self, samples: tuple[Tensor, Tensor], share: float, copies: int, make_poison_view: Callable[..., PoisonView]
    ) -> None:
        x, y = Scaling(target=2, share=share).poison(*samples, make_poison_view())
        assert len(x) == len(y) == 20 + copies
        assert torch.equal(x[:20], samples[0])  # the clean samples come first
        assert torch.equal(y[:20], samples[1])
        assert y[20:].tolist() == [2] * copies
        assert (x.dtype, y.dtype) == (samples[0].dtype, samples[1].dtype)

    def test_copies_are_of_different_samples_with_the_trigger(
        self, samples: tuple[Tensor, Tensor], make_poison_view: Callable[..., PoisonView]
    ) -> None:
        attack = Scaling(share=0.5, stride=20)
        x, _ = attack.poison(*samples, make_poison_view())
        triggered = attack.trigger(samples[0]).tolist()
        sources = [triggered.index(row) for row in x[20:].tolist()]
        assert len(set(sources)) == 10

    def test_generator_draws_the_samples(
        self, samples: tuple[Tensor, Tensor], make_poison_view: Callable[..., PoisonView]
    ) -> None:
        attack = Scaling(share=0.5)
        one, same, other = (attack.poison(*samples, make_poison_view(seed=seed))[0] for seed in (0, 0, 1))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)

    def test_on_images(self, make_poison_view: Callable[..., PoisonView]) -> None:
        x, y = Scaling(target=1, share=1.0).poison(torch.zeros(6, 1, 8, 8), torch.arange(6) % 3, make_poison_view(3))
        assert x.shape == (12, 1, 8, 8)
        assert not x[:6].any()
        assert x[6:].sum(dim=(1, 2, 3)).tolist() == [25] * 6
        assert y[6:].tolist() == [1] * 6

    def test_target_out_of_range(
        self, samples: tuple[Tensor, Tensor], make_poison_view: Callable[..., PoisonView]
    ) -> None:
        with pytest.raises(ParameterError) as error:
            Scaling(target=4).poison(*samples, make_poison_view())
        assert str(error.value) == "scaling: target must be below the 4 classes, got 4"
        Scaling(target=3).poison(*samples, make_poison_view())

    @pytest.mark.parametrize(
        ("parameters", "shape", "message"),
        [
            (
                {"stride": 5},
                (1, 8, 8),
                "scaling: stride has no effect on images of shape [1, 8, 8], got 5; set size and value instead",
            ),
            ({"size": 2}, (25,), "scaling: size has no effect on samples of shape [25], got 2; set stride instead"),
            (
                {"value": 2.0},
                (25,),
                "scaling: value has no effect on samples of shape [25], got 2.0; set stride instead",
            ),
        ],
    )
    def test_parameter_of_the_other_trigger(
        self,
        make_poison_view: Callable[..., PoisonView],
        parameters: dict[str, Any],
        shape: tuple[int, ...],
        message: str,
    ) -> None:
        y = torch.arange(6) % 4
        with pytest.raises(ParameterError) as error:
            Scaling(**parameters).poison(torch.zeros(6, *shape), y, make_poison_view())
        assert str(error.value) == message
        other = (25,) if len(shape) == 3 else (1, 8, 8)
        x, _ = Scaling(**parameters).poison(torch.ones(6, *other), y, make_poison_view())
        assert len(x) == 9


class TestCraft:
    own = torch.tensor([[1.0, -2.0], [3.0, 4.0]])

    @pytest.mark.parametrize("n_clients", [2, 5, 100])
    def test_by_default_replaces_the_mean(self, make_view: Callable[..., AttackView], n_clients: int) -> None:
        sent = Scaling().craft(make_view(self.own, n_clients=n_clients))
        torch.testing.assert_close(sent, n_clients / 2 * self.own)
        # if all benign updates are 0, the mean over the clients is the malicious clients' mean
        torch.testing.assert_close(sent.sum(dim=0) / n_clients, self.own.mean(dim=0))

    @pytest.mark.parametrize("factor", [1.0, 0.5, 10.0])
    def test_factor(self, make_view: Callable[..., AttackView], factor: float) -> None:
        assert torch.equal(Scaling(factor=factor).craft(make_view(self.own, n_clients=7)), factor * self.own)

    def test_rows_keep_their_own_updates(self, make_view: Callable[..., AttackView]) -> None:
        sent = Scaling(factor=2.0).craft(make_view(self.own, torch.randn(5, 2)))
        assert sent.tolist() == [[2, -4], [6, 8]]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"share": 0.0}, "scaling: share must be in (0, 1], got 0.0"),
        ({"share": 1.5}, "scaling: share must be in (0, 1], got 1.5"),
        ({"share": math.nan}, "scaling: share must be in (0, 1], got nan"),
        ({"factor": 0.0}, "scaling: factor must be positive, got 0.0"),
        ({"factor": -2.0}, "scaling: factor must be positive, got -2.0"),
        ({"size": 0}, "scaling: size and stride must be at least 1 and target at least 0, got 0, 20 and 0"),
        ({"stride": 0}, "scaling: size and stride must be at least 1 and target at least 0, got 5, 0 and 0"),
        ({"target": -1}, "scaling: size and stride must be at least 1 and target at least 0, got 5, 20 and -1"),
    ],
)
def test_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError) as error:
        Scaling(**parameters)
    assert str(error.value) == message
