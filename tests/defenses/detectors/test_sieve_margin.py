"""The margin loss and other losses against loops, and what must not change them."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fedsieve.core.loss import Loss, is_recordable
from fedsieve.detectors.sieve.margin import balanced_loss, cross_entropy_of, margin, margin_of, margins


def drawn(k: int, c: int, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(c, (k,), generator=g)
    return 3 * torch.randn(k, c, generator=g, dtype=torch.float64), y


def margins_by_hand(logits: list[list[float]], y: list[int]) -> dict[int, float]:
    """By class present."""
    classes, c = sorted(set(y)), len(logits[0])
    means = {a: [0.0] * c for a in classes}
    for a in classes:
        rows = [row for row, label in zip(logits, y, strict=True) if label == a]
        means[a] = [sum(row[b] for row in rows) / len(rows) for b in range(c)]
    overall = [sum(means[a][b] for a in classes) / len(classes) for b in range(c)]
    found = {}
    for a in classes:
        centred = [means[a][b] - overall[b] for b in range(c)]
        found[a] = centred[a] - sum(centred) / c
    return found


cases = given(k=st.integers(1, 12), c=st.integers(2, 5), seed=st.integers(0, 10**6))


@settings(max_examples=50, deadline=None, derandomize=True)
@cases
def test_against_loops(k: int, c: int, seed: int) -> None:
    logits, y = drawn(k, c, seed)
    expected = margins_by_hand(logits.tolist(), y.tolist())
    found = margins(logits, y)
    assert found.tolist() == pytest.approx([expected.get(a, 0.0) for a in range(c)], abs=1e-9)
    assert float(margin(logits, y)) == pytest.approx(-sum(expected.values()) / len(expected), abs=1e-9)
    for a in range(c):
        assert float(margin_of(a)(logits, y)) == -float(found[a])


@settings(max_examples=30, deadline=None, derandomize=True)
@cases
def test_a_constant_added_to_a_classs_logits_changes_nothing(k: int, c: int, seed: int) -> None:
    # which is what a skewed mix of labels does to a model's logits
    logits, y = drawn(k, c, seed)
    moved = logits + torch.arange(c, dtype=torch.float64)
    torch.testing.assert_close(margin(moved, y), margin(logits, y), rtol=1e-9, atol=1e-9)


@settings(max_examples=30, deadline=None, derandomize=True)
@cases
def test_is_linear_and_ignores_constants_of_samples(k: int, c: int, seed: int) -> None:
    logits, y = drawn(k, c, seed)
    other, _ = drawn(k, c, seed + 1)
    torch.testing.assert_close(margin(2 * logits + other, y), 2 * margin(logits, y) + margin(other, y))
    shift = torch.linspace(-5, 5, k, dtype=torch.float64)[:, None]
    torch.testing.assert_close(margin(logits + shift, y), margin(logits, y), rtol=1e-9, atol=1e-9)


def test_counts_classes_not_samples() -> None:
    logits, y = drawn(9, 3, 0)
    repeated = torch.cat([logits, logits[y == 1], logits[y == 1]])
    labels = torch.cat([y, y[y == 1], y[y == 1]])
    assert (y == 1).any()
    torch.testing.assert_close(margin(repeated, labels), margin(logits, y))


def test_the_gradient_is_finite_without_samples_of_a_class() -> None:
    logits = torch.eye(3)[:2].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(margin(logits, torch.tensor([0, 2])), logits)
    # of two classes present: minus the mean of half the difference of the own logit and the other class's
    assert gradient.tolist() == [[-0.25, 0, 0.25], [0.25, 0, -0.25]]


def test_by_hand() -> None:
    # two classes whose own logit is higher by 1: means [[1, 0], [0, 1]], centred [[.5, -.5], [-.5, .5]]
    assert float(margin(torch.eye(2), torch.arange(2))) == -0.5
    assert float(margin(torch.eye(2), 1 - torch.arange(2))) == 0.5
    assert float(margin(torch.eye(2)[:1], torch.zeros(1, dtype=torch.long))) == 0  # one class has no margin


def test_balanced_loss() -> None:
    logits, y = drawn(7, 3, 0)[0], torch.tensor([0, 0, 0, 0, 2, 2, 0])
    each = [-float(row.log_softmax(0)[c]) for row, c in zip(logits, y.tolist(), strict=True)]
    expected = (sum(each[k] for k in (0, 1, 2, 3, 6)) / 5 + (each[4] + each[5]) / 2) / 2
    assert float(balanced_loss(logits, y)) == pytest.approx(expected)


@settings(max_examples=30, deadline=None, derandomize=True)
@cases
def test_cross_entropy_of_a_class_is_that_of_its_samples(k: int, c: int, seed: int) -> None:
    logits, y = drawn(k, c, seed)
    for a in set(y.tolist()):
        each = [-float(row.log_softmax(0)[a]) for row, label in zip(logits, y.tolist(), strict=True) if label == a]
        assert float(cross_entropy_of(a)(logits, y)) == pytest.approx(sum(each) / len(each))


class Operations(TorchDispatchMode):
    """The names of all operations while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        self.names.add("index by a mask" if by_mask else name)
        return func(*args, **(kwargs or {}))


# a GPU's results that the CPU has to know: a number, or the shape of a tensor
WAITS = {"_local_scalar_dense", "nonzero", "index by a mask", "masked_select", "_unique2", "bincount"}


@pytest.mark.parametrize("loss", [margin, balanced_loss, margin_of(2), cross_entropy_of(2)])
def test_losses_never_wait_for_a_device(loss: Loss) -> None:
    assert is_recordable(loss)
    logits, y = drawn(7, 3, 0)
    logits.requires_grad_()
    with Operations() as seen:
        loss(logits, y).backward()
    assert "div" in seen.names
    assert not seen.names & WAITS


def test_losses_of_a_class_are_made_once() -> None:
    assert margin_of(2) is margin_of(2)
    assert cross_entropy_of(2) is cross_entropy_of(2)
