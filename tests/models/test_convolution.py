"""Our convolutions compute what torch's convolutions compute, alone and for many clients at once."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap

from fedsieve.core.seeding import stream
from fedsieve.federation.clients import LocalTraining, Trainer
from fedsieve.models import convolution
from fedsieve.models.build import build_module
from fedsieve.models.cnn import CNN
from fedsieve.models.convolution import ByClient, conv2d
from fedsieve.models.flat import FlatModel
from fedsieve.models.resnet20 import ResNet20

# stride, padding, kernel
SHAPES = [
    ((1, 1), (0, 0), (3, 3)),
    ((1, 1), (1, 1), (3, 3)),
    ((2, 1), (1, 2), (3, 2)),
    ((2, 2), (0, 1), (1, 1)),  # rows that no window covers
    ((3, 3), (2, 2), (5, 5)),
    ((1, 1), (0, 0), (9, 8)),  # one window
]


def inputs(*shape: int, kernel: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, 4, 3, 9, 8, generator=g, dtype=torch.float64)
    weight = torch.randn(*shape, 5, 3, *kernel, generator=g, dtype=torch.float64)
    return x, weight, torch.randn(*shape, 5, generator=g, dtype=torch.float64)


def close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.fixture(params=["grouped", "matrices"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "_stays_grouped", lambda *channels: request.param == "grouped")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("stride", "padding", "kernel"), SHAPES)
class TestConv2d:
    def test_one(self, stride: Any, padding: Any, kernel: Any) -> None:
        leaves = [t.requires_grad_() for t in inputs(kernel=kernel)]
        expected, found = torch.conv2d(*leaves, stride, padding), conv2d(*leaves, stride, padding)
        close(found, expected)
        outer = torch.randn_like(expected)
        close(torch.autograd.grad(found, leaves, outer), torch.autograd.grad(expected, leaves, outer))

    @pytest.mark.parametrize("shared", ["nothing", "weights", "samples"])
    @pytest.mark.parametrize("most", [1 << 29, 1])  # all clients at once, and one after another
    def test_clients(
        self, stride: Any, padding: Any, kernel: Any, shared: str, most: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(convolution, "_MOST_VALUES", most)
        x, weight, bias = inputs(6, kernel=kernel)
        dims = (None if shared == "samples" else 0, *([None if shared == "weights" else 0] * 2))
        given = [t[0] if dim is None else t for t, dim in zip((x, weight, bias), dims, strict=True)]

        def each(convolve: Any, *t: Tensor) -> Tensor:
            return convolve(*t, stride, padding).pow(3).sum()

        leaves = [t.requires_grad_() for t in given]
        values = vmap(partial(each, conv2d), in_dims=dims)(*leaves)
        slopes = torch.autograd.grad(values.sum(), leaves)
        own = [[t if dim is None else t[k] for t, dim in zip(leaves, dims, strict=True)] for k in range(6)]
        expected = torch.stack([each(torch.conv2d, *t) for t in own])
        torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(slopes, torch.autograd.grad(expected.sum(), leaves), rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("factory", "shape"), [(CNN, (2, 12, 12)), (ResNet20, (3, 8, 8))])
def test_models(factory: Any, shape: tuple[int, ...]) -> None:
    model, params = FlatModel.of(build_module(factory, shape, 10, stream(0, "weights"), {}).double())
    x, y = torch.randn(3, 6, *shape, dtype=torch.float64), torch.arange(18).view(3, 6) % 10
    local = params.repeat(3, 1) + 0.01 * torch.randn(3, len(params), dtype=torch.float64)
    local[:, model.layout.n_parameters :].abs_()
    trainer = Trainer(model, LocalTraining(), 0)
    expected = trainer.together(local, x, y)
    one = model.gradients(local[0], x[0], y[0])
    calls = []

    def counted(*args: Any) -> Tensor:
        calls.append(args)
        return conv2d(*args)

    with pytest.MonkeyPatch.context() as patch, ByClient():
        patch.setattr(convolution, "conv2d", counted)
        found = trainer.together(local, x, y)
        again = model.gradients(local[0], x[0], y[0])
    assert len(calls) == 2 * sum(isinstance(layer, nn.Conv2d) for layer in model.module.modules())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(again, one, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, dilation=2), nn.Conv2d(4, 4, 3, padding="same")],
    ids=["groups", "dilation", "same"],
)
def test_other_convolutions_are_torchs(layer: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "conv2d", None)
    x = torch.randn(2, 4, 7, 7)
    expected = layer(x)
    with ByClient():
        assert torch.equal(layer(x), expected)


def test_there_is_no_second_derivative() -> None:
    x, weight, _ = inputs(kernel=(3, 3))
    slope = torch.autograd.grad(conv2d(x, weight.requires_grad_()).pow(2).sum(), weight, create_graph=True)[0]
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.autograd.grad(slope.sum(), weight)
