"""What every test of an attack needs: a view of one round."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsieve.types import AttackView, Layout


def view(own: Any, others: Any = None, n_clients: int | None = None, seed: int = 0) -> AttackView:
    own = torch.as_tensor(own)
    others = None if others is None else torch.as_tensor(others)
    n = n_clients or len(own) + (0 if others is None else len(others))
    params = torch.linspace(-1, 1, own.shape[1]).to(own)
    return AttackView(0, own, others, n, params, torch.Generator().manual_seed(seed), Layout.of({"w": own[0]}))


@pytest.fixture(scope="session")
def make_view() -> Callable[..., AttackView]:
    """The helper above; a fixture, since test modules can't be imported from each other."""
    return view


@pytest.fixture
def samples() -> tuple[Tensor, Tensor]:
    """Twenty samples of 25 features, four classes."""
    return torch.randn(20, 25, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 4
