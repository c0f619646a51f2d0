"""The batch cross-entropy, against plain loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, vmap

from fedsieve.core.loss import LossName
from fedsieve.models.losses import LOSSES, batch_cross_entropy


def drawn(k: int, c: int, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(c, (k,), generator=g)
    return 3 * torch.randn(k, c, generator=g, dtype=torch.float64), y


def by_hand(logits: list[list[float]], y: list[int]) -> float:
    total = 0.0
    for row, label in zip(logits, y, strict=True):
        total -= row[label] - math.log(sum(math.exp(other[label]) for other in logits))
    return total / len(y)


cases = given(k=st.integers(1, 12), c=st.integers(2, 5), seed=st.integers(0, 10**6))


@settings(max_examples=50, deadline=None, derandomize=True)
@cases
def test_batch_cross_entropy_against_loops(k: int, c: int, seed: int) -> None:
    logits, y = drawn(k, c, seed)
    assert float(batch_cross_entropy(logits, y)) == pytest.approx(by_hand(logits.tolist(), y.tolist()), abs=1e-9)


@settings(max_examples=30, deadline=None, derandomize=True)
@cases
def test_a_constant_added_to_a_classs_logits_changes_nothing(k: int, c: int, seed: int) -> None:
    # which is what a skewed mix of labels does to a model's logits
    logits, y = drawn(k, c, seed)
    moved = logits + torch.arange(c, dtype=torch.float64)
    torch.testing.assert_close(batch_cross_entropy(moved, y), batch_cross_entropy(logits, y), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("k", [1, 2, 7, 32, 33])
@pytest.mark.parametrize("c", [2, 10])
def test_cross_entropy_of_several_clients_at_once_is_torchs(k: int, c: int) -> None:
    """Bit for bit, value and gradient, however the clients' gradients are taken."""
    g = torch.Generator().manual_seed(k)
    logits, y = 3 * torch.randn(6, k, c, generator=g), torch.randint(c, (6, k), generator=g)
    ours, torchs = LOSSES["cross-entropy"], torch.nn.functional.cross_entropy
    expected = vmap(grad(torchs))(logits, y)
    assert torch.equal(vmap(ours)(logits, y), vmap(torchs)(logits, y))
    assert torch.equal(vmap(grad(ours))(logits, y), expected)
    leaf = logits.clone().requires_grad_()
    assert torch.equal(torch.autograd.grad(vmap(ours)(leaf, y).sum(), leaf)[0], expected)
    torch.testing.assert_close(ours(logits[0], y[0]), vmap(ours)(logits, y)[0])


def test_names_are_complete() -> None:
    assert set(LOSSES) == set(LossName.__args__)
