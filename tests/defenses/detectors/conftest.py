"""A federation of quadratics over many rounds, for detectors with a history."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import log, sqrt
from statistics import fmean, pstdev
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsieve.core.defense import Detection, Detector, ServerView, Updates
from fedsieve.core.layout import Layout

Craft = Callable[[Tensor, int, int], Tensor]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def curved(d: int, seed: int = 0) -> Tensor:
    """A positive definite matrix."""
    root = normal(d, d, seed=seed)
    return root @ root.T / d + 0.3 * torch.eye(d, dtype=torch.float64)


def noise(u: Tensor, m: int, seed: int) -> Tensor:
    return torch.cat([0.5 * normal(m, u.shape[1], seed=seed), u[m:]])


def huge(u: Tensor, m: int, seed: int) -> Tensor:
    return torch.cat([1e30 * normal(m, u.shape[1], seed=seed), u[m:]])


def largest(u: Tensor, m: int, seed: int) -> Tensor:
    return torch.cat([3e38 * normal(m, u.shape[1], seed=seed).sign(), u[m:]])


# What the first m clients send instead of their updates, by name; the seed differs from round to round.
ATTACKS: dict[str, Craft] = {
    "benign": lambda u, m, seed: u,
    "noise": noise,
    "flipped": lambda u, m, seed: torch.cat([-3 * u[:m], u[m:]]),
    "huge": huge,
    "largest": largest,
    "constant": lambda u, m, seed: torch.cat([torch.full_like(u[:m], 0.2), u[m:]]),
}


@dataclass
class Rounds:
    """Clients whose losses are quadratics with similar Hessians; the server adds the median of the clients that stay.

    Attributes:
        n: Number of clients, with ids from 100.
        m: Number of malicious clients, the first ones.
        d: Number of parameters.
        attack: What the malicious clients send; a name in ``ATTACKS``.
        jitter: Standard deviation of the noise of gradients.
        seed: Of the losses and the noise.
        dtype: Of the updates.
    """

    n: int = 20
    m: int = 5
    d: int = 12
    attack: str = "benign"
    jitter: float = 0.05
    seed: int = 0
    dtype: torch.dtype = torch.float64
    w: Tensor = field(default_factory=lambda: torch.zeros(0))
    round: int = 0
    state: Any = None

    def __post_init__(self) -> None:
        self.hessian = curved(self.d, self.seed)
        self.own = 0.1 * normal(self.n, self.d, seed=self.seed + 1).abs()
        self.optima = normal(self.d, seed=self.seed + 2) + 0.3 * normal(self.n, self.d, seed=self.seed + 3)
        self.w = 5 * normal(self.d, seed=self.seed + 4)

    def sent(self) -> Tensor:
        away = self.w - self.optima
        gradients = away @ self.hessian + self.own * away
        seed = 1000 * (self.seed + 1) + self.round
        gradients += self.jitter * normal(self.n, self.d, seed=seed)
        return ATTACKS[self.attack](-0.1 * gradients, self.m, seed)

    def view(self) -> ServerView:
        generator = torch.Generator().manual_seed(self.round)
        return ServerView(self.round, self.m, generator, self.w.to(self.dtype), self.state)

    def play(self, detector: Detector, order: Tensor | None = None, clients: Tensor | None = None) -> Detection:
        """One round. Acceptance and scores are in the order of client ids, whatever ``order`` the updates came in."""
        sent = self.sent()
        ids = torch.arange(self.n) if clients is None else clients
        ids = ids if order is None else ids[order]
        u = Updates(sent[ids].to(self.dtype), 100 + ids, Layout.of({"w": torch.empty(self.d)}))
        found = detector.detect(u, self.view())
        kept = (ids if found.accepted is None else ids[found.accepted]).sort().values
        self.w = self.w + torch.from_numpy(np.median(sent[kept].numpy(), axis=0))
        self.state, self.round = found.state, self.round + 1
        assert found.scores is not None
        assert found.scores.dtype == self.dtype
        back = ids.argsort()
        accepted = None if found.accepted is None else found.accepted[back]
        return replace(found, accepted=accepted, scores=found.scores[back])


def within(values: list[float], k: int) -> float:
    """Least sum of squares within one group, or within two contiguous ones."""

    def squares(part: list[float]) -> float:
        return sum((v - fmean(part)) ** 2 for v in part)

    ranked = sorted(values)
    return squares(ranked) if k == 1 else min(squares(ranked[:i]) + squares(ranked[i:]) for i in range(1, len(ranked)))


def published_gap(scores: list[float], references: list[list[float]]) -> bool:
    """Tibshirani, Walther, Hastie (2001): is k = 1 not the smallest k with Gap(k) >= Gap(k + 1) - s(k + 1)?"""
    logs = {k: [log(within(r, k)) for r in references] for k in (1, 2)}
    gap = {k: fmean(logs[k]) - log(within(scores, k)) for k in (1, 2)}
    return not gap[1] >= gap[2] - sqrt(1 + 1 / len(references)) * pstdev(logs[2])


@pytest.fixture(scope="session")
def rounds() -> SimpleNamespace:
    """The helpers above; a fixture, since test modules cannot be imported from each other."""
    return SimpleNamespace(Rounds=Rounds, attacks=ATTACKS, normal=normal, curved=curved, published_gap=published_gap)
