"""Majority vote on signs, against Algorithm 1."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsieve.aggregators.mean import Mean
from fedsieve.aggregators.sign_majority import SignMajority, majority, sign_majority, typical_size
from fedsieve.aggregators.trimmed_mean import TrimmedMean
from fedsieve.core import linalg
from fedsieve.core.errors import ParameterError

VALUES = st.one_of(st.sampled_from([-1.0, -0.0, 0.0, 1.0]), st.floats(-100, 100, allow_subnormal=False))


def sign(value: float) -> int:
    return (value > 0) - (value < 0)


def published(rows: list[list[float]]) -> tuple[list[int], list[float]]:
    """Lines 4 to 9: every worker sends the sign of each coordinate, the server the sign of their sum.

    And each worker's weight: the votes for the outcome share a coordinate's; a tied coordinate has none.
    """
    n = len(rows)
    outcome, parts = [], [0.0] * n
    for k in range(len(rows[0])):
        votes = [sign(row[k]) for row in rows]
        outcome.append(sign(sum(votes)))
        winners = [i for i in range(n) if votes[i] == outcome[k] != 0]
        for i in winners:
            parts[i] += 1 / len(winners)
    total = sum(parts)
    return outcome, [part / total if total else 0.0 for part in parts]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 4).flatmap(lambda d: st.lists(st.lists(VALUES, min_size=d, max_size=d), min_size=1, max_size=8))
)
def test_as_published(make: SimpleNamespace, rows: list[list[float]]) -> None:
    u = make.updates(torch.tensor(rows, dtype=torch.float64))
    result = SignMajority(step=0.5)(u, make.view(u))
    outcome, parts = published(rows)
    assert result.update.tolist() == [0.5 * vote for vote in outcome]
    assert torch.equal(sign_majority(u.matrix, step=0.5), result.update)
    torch.testing.assert_close(result.weights.tolist(), parts, rtol=1e-12, atol=1e-12)
    assert (result.accepted, result.scores, result.state) == (None, None, None)


# Votes in the first column: three up, two down. In the second: one up, two down, two abstain. Third: two against two.
# Mean absolute values: 4, 1, 2, 10, 3, of which the median is 3.
ROWS = [[1.0, 0.0, 11.0], [1.0, -1.0, 1.0], [1.0, -3.0, -2.0], [-10.0, 20.0, 0.0], [-7.0, 0.0, -2.0]]
BY_HAND = {
    SignMajority(step=0.1): [0.1, -0.1, 0],
    SignMajority(): [3, -3, 0],
    Mean(): [-2.8, 3.2, 1.6],
    TrimmedMean(trim=2): [1, 0, 0],
}


@pytest.mark.parametrize("aggregator", BY_HAND, ids=lambda aggregator: str(aggregator))
def test_by_hand(make: SimpleNamespace, aggregator: Any) -> None:
    u = make.updates(torch.tensor(ROWS, dtype=torch.float64))
    assert aggregator(u, make.view(u)).update.tolist() == pytest.approx(BY_HAND[aggregator])


def test_weights_by_hand() -> None:
    # the first column is shared by rows 0, 1, 2, the second by 1 and 2, the third by none
    weights = majority(torch.tensor(ROWS, dtype=torch.float64))[1].tolist()
    assert weights == pytest.approx([1 / 6, 5 / 12, 5 / 12, 0, 0])


def test_size_of_the_step(make: SimpleNamespace) -> None:
    assert typical_size(torch.tensor(ROWS)) == 3
    assert typical_size(torch.tensor([[1.0, -3.0], [4.0, 4.0]])) == 3  # the mean of 2 and 4
    u = make.updates([[1.0], [2.0], [3e38]])  # the largest size does not matter
    assert SignMajority()(u, make.view(u)).update.tolist() == [2]
    assert sign_majority(u.matrix).tolist() == [2]


def test_a_minority_is_outvoted(make: SimpleNamespace) -> None:
    u = make.updates([[2.0, -2.0]] * 6 + [[-1e30, 1e30]] * 5)
    result = SignMajority()(u, make.view(u))
    assert result.update.tolist() == [2, -2]
    assert result.weights.tolist() == pytest.approx([1 / 6] * 6 + [0] * 5)


def test_every_vote_tied(make: SimpleNamespace) -> None:
    u = make.updates([[1.0, 0.0], [-2.0, 0.0]])
    result = SignMajority()(u, make.view(u))
    assert (result.update.tolist(), result.weights.tolist()) == ([0, 0], [0, 0])


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(6, 3000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    results: list[tuple[Tensor, Tensor, float]] = []
    for block_bytes in (1, 1 << 30):
        monkeypatch.setattr(linalg, "_BLOCK_BYTES", block_bytes)
        results.append((*majority(x), typical_size(x)))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-12, atol=0)
    assert results[0][2] == pytest.approx(results[1][2], rel=1e-12)


@pytest.mark.parametrize("zeros", [0.0, 1e-4, 0.5])
def test_many_columns(zeros: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 200_000, generator=generator) * (torch.rand(9, 200_000, generator=generator) >= zeros)
    x[8] = -x[:8].sum(dim=0).sign()
    signs = x.sign()
    winners = (signs == signs.sum(dim=0).sign()) & (signs != 0)
    expected = (winners / winners.sum(dim=0).clamp(min=1)).sum(dim=1, dtype=torch.float64)
    outcome, weights = majority(x)
    assert torch.equal(outcome, signs.sum(dim=0).sign())
    torch.testing.assert_close(weights.double(), expected / expected.sum(), rtol=1e-5, atol=1e-7)
    assert weights.min() >= 0


@pytest.mark.parametrize("step", [0.0, -1.0, math.inf, math.nan])
def test_parameters(step: float) -> None:
    with pytest.raises(ParameterError) as error:
        SignMajority(step=step)
    assert str(error.value) == f"sign-majority: step must be finite and positive, got {step}"
    with pytest.raises(ParameterError) as other:
        sign_majority(torch.ones(3, 2), step)
    assert str(other.value) == str(error.value)
