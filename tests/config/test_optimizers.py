"""FedYogi against the paper's formulas; the list of optimizers."""

import math
from typing import Any

import pytest
import torch

from fedsieve.config.experiment import Experiment
from fedsieve.config.optimizers import Yogi, optimizers
from fedsieve.core.defense import Aggregate, ServerView, Updates
from fedsieve.core.layout import Layout
from fedsieve.federation.server import Server, ServerState


def published(deltas: list[float], lr: float, beta1: float, beta2: float, tau: float) -> list[float]:
    """Algorithm 2 of Reddi et al., one coordinate; ``deltas`` are the rounds' mean updates."""
    x, m, v, found = 0.0, 0.0, tau**2, []
    for delta in deltas:
        m = beta1 * m + (1 - beta1) * delta
        v = v - (1 - beta2) * delta**2 * math.copysign(1, v - delta**2) * (v != delta**2)
        x += lr * m / (math.sqrt(v) + tau)
        found.append(x)
    return found


@pytest.mark.parametrize(("betas", "eps"), [((0.9, 0.99), 1e-3), ((0.5, 0.9), 0.1), ((0.0, 0.99), 1e-3)])
def test_as_published(betas: tuple[float, float], eps: float) -> None:
    deltas = [0.5, -0.2, 3.0, 0.0, 1e-4, -1.0]
    weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = Yogi([weight], lr=0.1, betas=betas, eps=eps)
    for delta, expected in zip(deltas, published(deltas, 0.1, *betas, eps), strict=True):
        weight.grad = torch.tensor([-delta], dtype=torch.float64)
        optimizer.step()
        assert weight.item() == pytest.approx(expected, rel=1e-12)


def test_second_moment_forgets_slowly() -> None:
    # after one large gradient Adam's moment decays by a factor each step, Yogi's by what the new gradient is
    weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = Yogi([weight])
    for gradient in (10.0, *[0.1] * 50):
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
    moment = optimizer.state[weight]["exp_avg_sq"].item()
    assert moment == pytest.approx(1e-6 + 0.01 * 100 - 50 * 0.01 * 0.01, rel=1e-9)
    assert moment > 1.6 * 0.99**50


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"eps": 0.0}, {"betas": (1.0, 0.9)}, {"betas": (0.9, -0.1)}])
def test_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be positive and betas"):
        Yogi([torch.zeros(1)], **wrong)


def test_at_the_server_over_rounds() -> None:
    def mean(updates: Updates, view: ServerView) -> Aggregate:
        return Aggregate(updates.matrix.mean(dim=0), torch.full((1,), 1.0, dtype=torch.float64))

    layout = Layout.of({"w": torch.zeros(1)})
    server = Server(mean, layout, learning_rate=0.1, optimizer=Yogi)
    state = ServerState(torch.zeros(1, dtype=torch.float64))
    deltas = [0.5, -0.2, 3.0]
    for delta, expected in zip(deltas, published(deltas, 0.1, 0.9, 0.99, 1e-3), strict=True):
        rows = torch.tensor([[delta]], dtype=torch.float64)
        state, _ = server.step(state, Updates(rows, torch.arange(1), layout))
        assert state.params.item() == pytest.approx(expected, rel=1e-12)


def test_by_name() -> None:
    found = optimizers()
    assert found["Yogi"] is Yogi
    assert {"SGD", "Adam", "AdamW", "Adagrad"} <= set(found)
    assert not {"Optimizer", "LBFGS", "SparseAdam"} & set(found)
    e = Experiment.of({"server": {"optimizer": {"name": "Yogi", "eps": 0.01}, "learning_rate": 0.1}})
    assert e.server.optimizer is not None
    assert e.server.optimizer.name == "Yogi"
