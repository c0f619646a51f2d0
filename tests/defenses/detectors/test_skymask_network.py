"""Mask training through a network, updates that overflow, and the published code's slices."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsieve.core.layout import Layout
from fedsieve.core.loss import Loss, LossName
from fedsieve.detectors.skymask.masks import first_coordinates, mask_gradient, rows_without_overflow, train_masks
from fedsieve.models.flat import FlatModel
from fedsieve.models.losses import LOSSES
from fedsieve.models.mlp import MLP


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def train(x: Tensor, root: Any, start: Tensor, **more: Any) -> tuple[Tensor, int]:
    settings = {"learning_rate": 1e6, "clip": 1e-7, "max_steps": 20, "tolerance": 1e-3} | more
    return train_masks(x, start, root, **settings)


class ModelRoot:
    """Root data seen through a network."""

    def __init__(self, model: FlatModel, x: Tensor, y: Tensor, sent: Tensor) -> None:
        self.model, self.x, self.y, self.sent = model, x, y, sent

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        return self.x, self.y

    @property
    def n_classes(self) -> int:
        return int(self.y.max()) + 1

    def loss(self, flat: Tensor, /) -> Tensor:
        return self.model.losses(flat[None], self.x, self.y)[0]

    def gradient(self, flat: Tensor, loss: LossName | Loss = "cross-entropy", /) -> tuple[Tensor, Tensor]:
        return self.model.gradient(flat, self.x, self.y, LOSSES[loss] if isinstance(loss, str) else loss)

    def update(self) -> Tensor:
        return self.sent

    def train(self, datasets: Any, /) -> Tensor:
        raise AssertionError("mask training trains no client")


@pytest.mark.parametrize("loss", ["cross-entropy", "batch"])
def test_loss(loss: LossName) -> None:
    torch.manual_seed(0)
    model, start = FlatModel.of(MLP((4,), 3, hidden=(5,)).double())
    x, y, rows = normal(12, 4), torch.arange(12) % 3, normal(5, len(start))
    masks, _ = train(rows, ModelRoot(model, x, y, start), start, max_steps=1, loss=loss, clip=None)
    slope = model.gradient(start + rows.mean(dim=0), x, y, LOSSES[loss])[1]
    expected = 1 - 1e6 * mask_gradient(rows, torch.ones_like(rows), slope)
    torch.testing.assert_close(masks, expected, rtol=1e-9, atol=1e-9)


def test_statistics_do_not_learn() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2)).double()
    model, start = FlatModel.of(module)
    root = ModelRoot(model, normal(8, 3), torch.arange(8) % 2, start)
    masks, _ = train(normal(5, len(start)), root, start, max_steps=3)
    p = model.layout.n_parameters
    assert p < len(start)
    assert torch.equal(masks[:, p:], torch.ones_like(masks[:, p:]))
    assert (masks[:, :p] != 1).any()


def test_no_graph_over_clients_times_coordinates() -> None:
    torch.manual_seed(0)
    model, start = FlatModel.of(MLP((20,), 5, hidden=(30,)))
    n, d = 17, len(start)
    root = ModelRoot(model, normal(8, 20).float(), torch.arange(8) % 5, start)
    x = normal(n, d).float()
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        masks, _ = train(x, root, start, max_steps=3)
    assert len(saved) > 3  # the model's own backward pass was seen
    assert max(saved) < d < n * d
    assert not masks.requires_grad
    assert masks.grad_fn is None
    assert not x.requires_grad


class TestOverflow:
    def narrow(self, make: SimpleNamespace, d: int = 4) -> Any:
        class Narrow(make.Quadratic):  # type: ignore[misc, name-defined]
            def gradient(self, flat: Tensor, loss: Any = "cross-entropy", /) -> tuple[Tensor, Tensor]:
                value, slope = super().gradient(flat)
                return value, slope if value < 1e6 else slope * math.nan

        return Narrow(torch.zeros(d, dtype=torch.float64), normal(d))

    def test_the_longest_rows_are_dropped(self, make: SimpleNamespace) -> None:
        x = normal(6, 4)
        x[1] *= 1e9
        x[4] *= 1e6
        x[2] *= 50  # long, but not too long
        found = rows_without_overflow(x, torch.zeros(4, dtype=torch.float64), self.narrow(make))
        assert found.tolist() == [True, False, True, True, False, True]

    def test_all_rows_stay_without_overflow(self, make: SimpleNamespace) -> None:
        assert rows_without_overflow(normal(6, 4), torch.zeros(4, dtype=torch.float64), self.narrow(make)).all()

    def test_a_global_model_that_overflows(self, make: SimpleNamespace) -> None:
        start = torch.full((4,), 1e9, dtype=torch.float64)
        assert not rows_without_overflow(normal(6, 4), start, self.narrow(make)).any()


def test_first_coordinates_by_hand() -> None:
    layout = Layout.of({"a": torch.empty(2, 2), "b": torch.empty(1), "c": torch.empty(3)}, {"mean": torch.empty(2)})
    x = torch.arange(20.0).view(2, 10)
    expected = [0, 1, 2, 3, 0, 0, 1, 2, 0, 1]
    assert first_coordinates(x, layout).tolist() == [expected, [10 + v for v in expected]]
