"""Views, updates and root data with closed forms for all tests of defenses."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedsieve.config import registry
from fedsieve.core.defense import Aggregate, Aggregator, ServerView, Updates
from fedsieve.core.layout import Layout


@dataclass(frozen=True)
class Quadratic:
    """Root data whose loss is half the squared distance of the parameters to ``target``.

    Trained updates are like those of benign clients of :func:`federation`: a step towards the target, with noise.

    Attributes:
        target: The optimum; running statistics have the mean of benign clients' statistics here.
        sent: The root model's update.
        noise: Standard deviation of the noise of trained updates.
        statistics: Number of running statistics, the last entries of ``target``.
    """

    target: Tensor
    sent: Tensor
    noise: float = 0.03
    statistics: int = 0

    def loss(self, flat: Tensor, /) -> Tensor:
        return 0.5 * self._offset(flat).square().sum()

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        x = torch.arange(20)[:, None]
        return x, x[:, 0] % self.n_classes

    @property
    def n_classes(self) -> int:
        return 4

    def gradient(self, flat: Tensor, loss: Any = "cross-entropy", /) -> tuple[Tensor, Tensor]:
        return self.loss(flat), self._offset(flat)

    def update(self) -> Tensor:
        return self.sent

    def train(self, datasets: Sequence[tuple[Tensor, Tensor]], /) -> Tensor:
        g = torch.Generator().manual_seed(12345)
        noise = self.noise * torch.randn(len(datasets), len(self.target), generator=g, dtype=torch.float64)
        trained = 0.1 * self.target + noise.to(self.target)
        trained[0] = self.sent
        return trained

    def _offset(self, flat: Tensor) -> Tensor:
        offset = flat - self.target
        offset[len(flat) - self.statistics :] = 0
        return offset


@dataclass(frozen=True)
class Softmax:
    """Root data seen through a linear softmax classifier without bias: ``flat`` is its weight, row by row."""

    x: Tensor
    y: Tensor
    sent: Tensor

    def loss(self, flat: Tensor, /) -> Tensor:
        return cross_entropy(self.x @ flat.view(-1, self.x.shape[1]).T, self.y)

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        return self.x, self.y

    @property
    def n_classes(self) -> int:
        return int(self.y.max()) + 1

    def gradient(self, flat: Tensor, loss: Any = "cross-entropy", /) -> tuple[Tensor, Tensor]:
        leaf = flat.detach().clone().requires_grad_()
        loss = self.loss(leaf)
        (gradient,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), gradient

    def update(self) -> Tensor:
        return self.sent

    def train(self, datasets: Sequence[tuple[Tensor, Tensor]], /) -> Tensor:
        raise AssertionError("no test trains on these root data")


@dataclass(frozen=True)
class Head:
    """The architecture of :func:`layout`: its output layer, applied to the sample.

    The other parameters have no effect; the first running statistic, if there is one, is added to every input.
    """

    layout: Layout

    @property
    def input_shape(self) -> tuple[int, ...]:
        shapes = {s.name: s.shape for s in self.layout.segments}
        return (shapes["out.weight"][1] if "out.weight" in shapes else 1,)

    def logits(self, flat: Tensor, x: Tensor, /) -> Tensor:
        tensors = self.layout.unflatten(flat)
        if "running_mean" in tensors:
            x = x + tensors["running_mean"][0]
        return x @ tensors["out.weight"].T + tensors["out.bias"] if "out.bias" in tensors else x * flat


def layout(d: int, statistics: int = 0) -> Layout:
    """A body and an output layer of ten classes on ten features; a single vector if d is too small for that.

    Args:
        d: Number of coordinates, running statistics included.
        statistics: Number of running statistics.
    """
    p = d - statistics
    shapes = {"body": (p - 110,), "out.weight": (10, 10), "out.bias": (10,)} if p > 110 else {"w": (p,)}
    moving = {"running_mean": torch.empty(statistics)} if statistics else {}
    return Layout.of({name: torch.empty(shape) for name, shape in shapes.items()}, moving)


def updates(matrix: Any, ids: Any = None, statistics: int = 0) -> Updates:
    """``matrix`` as a defense gets it; client ids count from 100, so that none is a row number."""
    matrix = torch.as_tensor(matrix)
    ids = torch.arange(100, 100 + len(matrix)) if ids is None else torch.as_tensor(ids)
    return Updates(matrix, ids, layout(matrix.shape[1], statistics))


def view(like: Updates, f: int = 0, root: Any = None, seed: int = 0, state: Any = None, round: int = 0) -> ServerView:
    """The server's view in a round that starts from a global model of zeros."""
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
    statistics: int = 0,
) -> SimpleNamespace:
    """One round on a quadratic: benign updates are a step towards its optimum, with noise.

    Args:
        n: Number of clients.
        m: Number of malicious clients, the first rows.
        factor: What malicious updates are multiplied by; minus points away from the optimum.
        d: Number of coordinates, running statistics included.
        dtype: Of the updates.
        seed: Of the optimum and the noise.
        noise: Standard deviation of the noise.
        statistics: Number of running statistics, the last columns.
    """
    g = torch.Generator().manual_seed(seed)
    target = torch.randn(d, generator=g, dtype=torch.float64)
    honest = 0.1 * target + noise * torch.randn(n + 1, d, generator=g, dtype=torch.float64)
    sent = honest[:n].clone()
    sent[:m] *= factor
    malicious = torch.arange(n) < m
    return SimpleNamespace(
        updates=updates(sent.to(dtype), statistics=statistics),
        root=Quadratic(target.to(dtype), honest[n].to(dtype), noise, statistics),
        malicious=malicious,
        benign_mean=honest[m:n].mean(dim=0).to(dtype) if m < n else None,
    )


# The rates of mask training are made for the gradients of a network's mean loss; these fit the quadratic's.
_FITS = {"mask_learning_rate": 1e6, "mask_clip": 1e-7}
# Without the noise that these add on purpose, which has tests of its own.
_QUIET = {"noise": 0.0}
PARAMETERS: dict[str, dict[str, Any]] = {"skymask": _FITS, "skymask-nr": _FITS, "flame": _QUIET, "weak-dp": _QUIET}


def build(name: str) -> Aggregator:
    """A registered defense with parameters that fit :class:`Quadratic`."""
    return registry.build_defense(name, PARAMETERS.get(name, {}))


def clients(name: str) -> int:
    """Number of clients with which a defense tolerates three malicious ones."""
    return 15 if name == "bulyan" else 11


def well_formed(result: Aggregate, matrix: torch.Tensor) -> None:
    """Shapes, dtype, device, finite numbers, weights that are shares, and agreement between the fields."""
    n, d = matrix.shape
    assert result.update.shape == (d,)
    assert result.weights.shape == (n,)
    assert result.update.dtype == result.weights.dtype == matrix.dtype
    assert result.update.device == result.weights.device == matrix.device
    assert result.update.isfinite().all()
    assert (result.weights >= 0).all()
    total = float(result.weights.sum())
    assert total == pytest.approx(1, abs=1e-5) or (total == 0 and not result.update.any())
    if result.accepted is not None:
        assert result.accepted.shape == (n,)
        assert result.accepted.dtype == torch.bool
        assert result.accepted.device == matrix.device
        assert not result.weights[~result.accepted].any()
    if result.scores is not None:
        assert result.scores.shape == (n,)
        assert result.scores.device == matrix.device
        assert result.scores.isfinite().all()
    assert not result.update.requires_grad


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """The helpers above; a fixture, since test modules cannot be imported from each other."""
    return SimpleNamespace(
        updates=updates,
        view=view,
        federation=federation,
        Quadratic=Quadratic,
        Softmax=Softmax,
        parameters=PARAMETERS,
        build=build,
        clients=clients,
        well_formed=well_formed,
    )


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Thread pools cost more time than the tests themselves on twenty points."""
    with threadpool_limits(limits=1):
        yield
