"""What every test of a defense needs: views, updates, and root data that are a function with a closed form."""

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedsieve.types import Layout, Objective, ServerView, Updates, Witnesses


@dataclass(frozen=True)
class Quadratic:
    """Root data whose loss is half the squared distance to ``target``; the root client sent ``sent``.

    Witnesses are like benign clients of :func:`federation`: a step to the optimum, and noise.
    """

    target: Tensor
    sent: Tensor
    noise: float = 0.03

    def loss(self, flat: Tensor, /) -> Tensor:
        return 0.5 * (flat - self.target).square().sum()

    def gradient(self, flat: Tensor, objective: Objective = "cross-entropy", /) -> tuple[Tensor, Tensor]:
        return self.loss(flat), flat - self.target

    def update(self) -> Tensor:
        return self.sent

    def witnesses(self) -> Witnesses:
        g = torch.Generator().manual_seed(12345)
        noise = self.noise * torch.randn(28, len(self.target), generator=g, dtype=torch.float64).to(self.target)
        parts, held_out, lying = (0.1 * self.target + noise).split([20, 5, 3])
        classes, folds = torch.arange(20) % 2, torch.arange(20) % 5
        return Witnesses(self.sent, parts, classes, folds, held_out, -lying, complete=True)


@dataclass(frozen=True)
class Softmax:
    """Root data seen through a linear softmax classifier without bias: ``flat`` is its weight, row by row."""

    x: Tensor
    y: Tensor
    sent: Tensor

    def loss(self, flat: Tensor, /) -> Tensor:
        return cross_entropy(self.x @ flat.view(-1, self.x.shape[1]).T, self.y)

    def gradient(self, flat: Tensor, objective: Objective = "cross-entropy", /) -> tuple[Tensor, Tensor]:
        leaf = flat.detach().clone().requires_grad_()
        loss = self.loss(leaf)
        (gradient,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), gradient

    def update(self) -> Tensor:
        return self.sent

    def witnesses(self) -> Witnesses:
        raise AssertionError("nothing here asks for witnesses")


@dataclass(frozen=True)
class Head:
    """The architecture behind :func:`layout`: its output layer, applied to the sample; the body has no effect."""

    layout: Layout

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.layout.segments[-2].shape[1] if len(self.layout.segments) == 3 else 1,)

    def logits(self, flat: Tensor, x: Tensor, /) -> Tensor:
        tensors = self.layout.unflatten(flat)
        return x @ tensors["out.weight"].T + tensors["out.bias"] if "out.bias" in tensors else x * flat


def layout(d: int) -> Layout:
    """A body and an output layer of ten classes on ten features; one nameless vector if d is too small for that."""
    shapes = {"body": (d - 110,), "out.weight": (10, 10), "out.bias": (10,)} if d > 110 else {"w": (d,)}
    return Layout.of({name: torch.empty(shape) for name, shape in shapes.items()})


def updates(matrix: Any, ids: Any = None) -> Updates:
    """``matrix`` as it would reach a defense; ids count from 100, so that none is a position."""
    matrix = torch.as_tensor(matrix)
    ids = torch.arange(100, 100 + len(matrix)) if ids is None else torch.as_tensor(ids)
    return Updates(matrix, ids, layout(matrix.shape[1]))


def view(like: Updates, f: int = 0, root: Any = None, seed: int = 0, state: Any = None, round: int = 0) -> ServerView:
    """The server's view in a round that starts from the model zero."""
    zero = torch.zeros_like(like.matrix[0])
    return ServerView(round, f, torch.Generator().manual_seed(seed), zero, state, root, Head(like.layout))


def federation(
    n: int,
    m: int,
    factor: float,
    *,
    d: int = 240,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    noise: float = 0.03,
) -> SimpleNamespace:
    """One round on a quadratic: benign updates are a step to its optimum plus noise.

    The first ``m`` rows are multiplied by ``factor`` (minus: away from the optimum).
    """
    g = torch.Generator().manual_seed(seed)
    target = torch.randn(d, generator=g, dtype=torch.float64)
    honest = 0.1 * target + noise * torch.randn(n + 1, d, generator=g, dtype=torch.float64)
    sent = honest[:n].clone()
    sent[:m] *= factor
    malicious = torch.arange(n) < m
    return SimpleNamespace(
        updates=updates(sent.to(dtype)),
        root=Quadratic(target.to(dtype), honest[n].to(dtype), noise),
        malicious=malicious,
        benign_mean=honest[m:n].mean(dim=0).to(dtype) if m < n else None,
    )


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """The helpers above; a fixture, since test modules can't be imported from each other."""
    return SimpleNamespace(updates=updates, view=view, federation=federation, Quadratic=Quadratic, Softmax=Softmax)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Twenty points need no thread pool; on a busy machine it costs more than the tests themselves."""
    with threadpool_limits(limits=1):
        yield
