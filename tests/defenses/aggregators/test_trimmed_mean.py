"""Coordinate-wise trimmed mean, against the definition."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsieve.aggregators.trimmed_mean import TrimmedMean, trimmed_mean, trimmed_mean_and_weights
from fedsieve.core import linalg
from fedsieve.core.defense import Aggregate
from fedsieve.core.errors import BoundError, ParameterError

VALUES = st.floats(-100, 100, allow_subnormal=False)
TIED = st.sampled_from([-1.0, -0.0, 0.0, 1.0, 2.0])


def published(rows: list[list[float]], f: int) -> tuple[list[float], list[float]]:
    """Definition 2: for each k, the mean of the subset U_k of {x_1k, ..., x_nk} without its largest and smallest f.

    And each client's weight: a column's is shared evenly by the values within U_k's range, ties included, even where
    they are more than U_k has members.
    """
    n, d = len(rows), len(rows[0])
    means, kept = [], [0.0] * n
    for k in range(d):
        column = [row[k] for row in rows]
        in_order = sorted(column)
        middle = [in_order[place] for place in range(n) if f <= place < n - f]
        means.append(sum(middle) / (n - 2 * f))
        inside = [i for i in range(n) if min(middle) <= column[i] <= max(middle)]
        for i in inside:
            kept[i] += 1 / len(inside) / d
    return means, kept


def tables(values: st.SearchStrategy[float]) -> st.SearchStrategy[tuple[list[list[float]], int]]:
    def with_f(d: int) -> st.SearchStrategy[list[list[float]]]:
        return st.lists(st.lists(values, min_size=d, max_size=d), min_size=1, max_size=9)

    rows = st.integers(1, 4).flatmap(with_f)
    return rows.flatmap(lambda r: st.tuples(st.just(r), st.integers(0, (len(r) - 1) // 2)))


def matches(rows: list[list[float]], f: int) -> None:
    x = torch.tensor(rows, dtype=torch.float64)
    mean, weights = trimmed_mean_and_weights(x, f)
    assert torch.equal(trimmed_mean(x, f), mean)
    expected, shares = published(rows, f)
    torch.testing.assert_close(mean.tolist(), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(weights.tolist(), shares, rtol=1e-12, atol=1e-12)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(case=tables(VALUES))
def test_as_published(case: tuple[list[list[float]], int]) -> None:
    matches(*case)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(case=tables(TIED))
def test_as_published_with_ties(case: tuple[list[list[float]], int]) -> None:
    matches(*case)


class TestWeights:
    def weights(self, rows: list[list[float]], f: int) -> list[float]:
        return trimmed_mean_and_weights(torch.tensor(rows, dtype=torch.float64), f)[1].tolist()

    def test_are_the_share_of_kept_values(self) -> None:
        # kept of 1, 2, 3 is the 2; of 5, 4, 6 the 5; of 9, 8, 7 the 8: row 0 has one of three, row 1 two
        assert self.weights([[1, 5, 9], [2, 4, 8], [3, 6, 7]], 1) == pytest.approx([1 / 3, 2 / 3, 0])

    def test_ties_share(self) -> None:
        # sorted 0, 1, 1, 1, 9: the three ones are kept
        assert self.weights([[0], [1], [1], [1], [9]], 1) == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 0])
        # sorted 1, 1, 1, 2, 3: kept are 1, 1, 2, and the three ones can't be told apart
        assert self.weights([[1], [1], [1], [2], [3]], 1) == pytest.approx([1 / 4, 1 / 4, 1 / 4, 1 / 4, 0])
        # only one place is left, and five share it
        assert self.weights([[1]] * 5, 2) == pytest.approx([1 / 5] * 5)

    def test_columns_count_the_same(self) -> None:
        # kept of the first column is only the 5, of the second, where all are equal, all
        assert self.weights([[1, 7], [5, 7], [9, 7]], 1) == pytest.approx([1 / 6, 1 / 2 + 1 / 6, 1 / 6])

    def test_nothing_trimmed(self) -> None:
        assert self.weights([[1, 5], [2, 5], [3, 5]], 0) == pytest.approx([1 / 3] * 3)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(7, 3000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    results: list[tuple[Tensor, Tensor]] = []
    for block_bytes in (1, 1 << 30):
        monkeypatch.setattr(linalg, "_BLOCK_BYTES", block_bytes)
        results.append(trimmed_mean_and_weights(x, 2))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-12, atol=0)


def test_huge_values_do_not_reach_the_mean() -> None:
    x = torch.tensor([[3e38, 1.0], [-3e38, 1.0], [1.0, 3e38], [2.0, 3.0]])
    assert trimmed_mean(x, 1).tolist() == [1.5, 2.0]


class TestBound:
    @pytest.mark.parametrize(("n", "f"), [(1, 1), (2, 1), (4, 2), (10, 7)])
    def test_function(self, n: int, f: int) -> None:
        with pytest.raises(BoundError) as error:
            trimmed_mean(torch.zeros(n, 2), f)
        assert str(error.value) == f"trimmed-mean needs n > 2f, got n={n} clients and f={f} assumed malicious"

    def test_check(self) -> None:
        with pytest.raises(BoundError) as error:
            TrimmedMean().check(10, 5)
        assert str(error.value) == "trimmed-mean needs n > 2f, got n=10 clients and f=5 assumed malicious"
        TrimmedMean().check(11, 5)
        TrimmedMean().check(1, 0)

    def test_check_with_trim(self) -> None:
        TrimmedMean(trim=1).check(3, 2)
        with pytest.raises(BoundError, match=r"n=2 clients and f=1"):
            TrimmedMean(trim=1).check(2, 0)

    def test_call(self, make: SimpleNamespace) -> None:
        u = make.updates(torch.zeros(4, 2))
        with pytest.raises(BoundError, match="n=4 clients and f=2"):
            TrimmedMean()(u, make.view(u, f=2))

    def test_negative(self) -> None:
        with pytest.raises(ParameterError) as error:
            TrimmedMean(trim=-1)
        assert str(error.value) == "trimmed-mean: trim must be at least 0, got -1"
        with pytest.raises(ParameterError) as other:
            trimmed_mean(torch.zeros(4, 2), -1)
        assert str(other.value) == str(error.value)


@pytest.mark.parametrize(
    ("aggregator", "f", "expected"),
    [(TrimmedMean(), 1, 2), (TrimmedMean(), 0, 22), (TrimmedMean(trim=2), 0, 2), (TrimmedMean(trim=0), 2, 22)],
)
def test_number_of_trimmed_values(
    make: SimpleNamespace, aggregator: Callable[..., Aggregate], f: int, expected: float
) -> None:
    u = make.updates([[1.0], [2.0], [3.0], [4.0], [100.0]] if expected == 22 else [[-9.0], [1.0], [2.0], [3.0], [7.0]])
    assert aggregator(u, make.view(u, f=f)).update.item() == expected


def test_rejects_no_client(make: SimpleNamespace) -> None:
    u = make.updates([[1.0], [2.0], [3.0]])
    result = TrimmedMean()(u, make.view(u, f=1))
    assert (result.accepted, result.scores, result.state) == (None, None, None)
