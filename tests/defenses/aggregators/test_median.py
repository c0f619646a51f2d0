"""Coordinate-wise median, against the definition."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsieve.aggregators.median import Median, median, median_and_weights

VALUES = st.floats(-100, 100, allow_subnormal=False)
TIED = st.sampled_from([-1.0, -0.0, 0.0, 1.0, 2.0])


def published(rows: list[list[float]]) -> tuple[list[float], list[float]]:
    """Definition 1: the k-th coordinate is the usual (one-dimensional) median of x_1k, ..., x_nk.

    And each client's weight: a column's is shared by the values from the lower to the upper of the middle ones.
    """
    n, d = len(rows), len(rows[0])
    medians, parts = [], [0.0] * n
    for k in range(d):
        column = [row[k] for row in rows]
        in_order = sorted(column)
        low, high = in_order[(n - 1) // 2], in_order[n // 2]
        medians.append((low + high) / 2)
        inside = [i for i in range(n) if low <= column[i] <= high]
        for i in inside:
            parts[i] += 1 / len(inside) / d
    return medians, parts


def tables(values: st.SearchStrategy[float]) -> st.SearchStrategy[list[list[float]]]:
    return st.integers(1, 4).flatmap(
        lambda d: st.lists(st.lists(values, min_size=d, max_size=d), min_size=1, max_size=9)
    )


@settings(max_examples=200, deadline=None, derandomize=True)
@given(rows=st.one_of(tables(VALUES), tables(TIED)))
def test_as_published(rows: list[list[float]]) -> None:
    x = torch.tensor(rows, dtype=torch.float64)
    found, weights = median_and_weights(x)
    expected, parts = published(rows)
    torch.testing.assert_close(found.tolist(), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(weights.tolist(), parts, rtol=1e-12, atol=1e-12)
    assert torch.equal(median(x), found)


@pytest.mark.parametrize("n", [1, 2, 9, 10])
def test_against_quantile(n: int) -> None:
    x = torch.randn(n, 2500, generator=torch.Generator().manual_seed(n))
    torch.testing.assert_close(median(x), torch.quantile(x, 0.5, dim=0))


def test_by_hand(make: SimpleNamespace) -> None:
    # the mean is 3.8; without one value at either end it is 10 / 3
    u = make.updates([[9.0], [0.0], [1.0], [9.0], [0.0]])
    result = Median()(u, make.view(u, f=1))
    assert result.update.tolist() == [1]
    assert result.weights.tolist() == [0, 0, 1, 0, 0]
    assert (result.accepted, result.scores, result.state) == (None, None, None)


def test_of_an_even_number(make: SimpleNamespace) -> None:
    u = make.updates([[1.0, 5.0], [2.0, 5.0], [4.0, 5.0], [100.0, 6.0]])
    result = Median()(u, make.view(u))
    assert result.update.tolist() == [3, 5]
    # of the first column rows 1 and 2 share; of the second, three tied rows
    assert result.weights.tolist() == pytest.approx([1 / 6, 1 / 4 + 1 / 6, 1 / 4 + 1 / 6, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("huge", [1e30, -1e30])
def test_a_minority_can_send_anything(make: SimpleNamespace, dtype: torch.dtype, huge: float) -> None:
    u = make.updates(torch.tensor([[huge], [1.0], [huge], [3.0], [2.0]], dtype=dtype))
    assert Median()(u, make.view(u)).update.item() in (1, 3)
    half = make.updates(torch.tensor([[huge], [1.0], [huge], [3.0]], dtype=dtype))
    assert abs(Median()(half, make.view(half)).update.item()) > 1e29
