"""Bulyan, against the definition."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsieve.aggregators.bulyan import Bulyan, bulyan, mean_around_median, take_by_krum
from fedsieve.core import linalg
from fedsieve.core.errors import BoundError, ParameterError
from fedsieve.core.ranks import mean_of_ranks

# Binary fractions: sums and squares of them are exact, so that a tie in the paper's arithmetic is one here.
QUARTERS = st.integers(-12, 12).map(lambda k: k / 4)
FINE = st.integers(-100_000, 100_000).map(lambda k: k / 1024)


def taken(rows: list[list[float]], ids: list[int], f: int) -> list[int]:
    """Step 1: n - 2f times, Krum's choice among the remaining vectors moves to the selection."""
    left, selection = list(range(len(rows))), []
    for _ in range(len(rows) - 2 * f):
        scores = {}
        for i in left:
            squares = sorted(sum((a - b) ** 2 for a, b in zip(rows[i], rows[j], strict=True)) for j in left if j != i)
            scores[i] = sum(squares[: max(len(left) - f - 2, 1)])
        chosen = min(left, key=lambda i: (round(scores[i], 9), ids[i]))
        left.remove(chosen)
        selection.append(chosen)
    return selection


def around(rows: list[list[float]], beta: int) -> tuple[list[float], list[float]]:
    """Step 2: of each coordinate, the mean of the beta values closest to the median; and each row's weight."""
    n, d = len(rows), len(rows[0])
    means, parts = [], [0.0] * n
    for k in range(d):
        column = [row[k] for row in rows]
        in_order = sorted(column)
        median = (in_order[(n - 1) // 2] + in_order[n // 2]) / 2
        closest = sorted(column, key=lambda v: (abs(v - median), v))[:beta]
        means.append(sum(closest) / beta)
        inside = [i for i in range(n) if min(closest) <= column[i] <= max(closest)]
        for i in inside:
            parts[i] += 1 / len(inside) / d
    return means, parts


@st.composite
def federations(draw: st.DrawFn) -> tuple[list[list[float]], list[int], int]:
    f, d = draw(st.integers(0, 2)), draw(st.integers(1, 3))
    row = st.lists(QUARTERS, min_size=d, max_size=d)
    rows = draw(st.lists(row, min_size=4 * f + 3 if f else 1, max_size=4 * f + 6))
    return rows, draw(st.permutations(range(len(rows)))), f


@settings(max_examples=120, deadline=None, derandomize=True)
@given(case=federations())
def test_as_published(make: SimpleNamespace, case: tuple[list[list[float]], list[int], int]) -> None:
    rows, ids, f = case
    u = make.updates(torch.tensor(rows, dtype=torch.float64), ids)
    result = Bulyan()(u, make.view(u, f=f))
    selection = taken(rows, ids, f)
    means, parts = around([rows[i] for i in selection], len(rows) - 4 * f)
    weights = [0.0] * len(rows)
    for i, part in zip(selection, parts, strict=True):
        weights[i] = part
    torch.testing.assert_close(result.update.tolist(), means, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(result.weights.tolist(), weights, rtol=1e-12, atol=1e-12)
    if ids == sorted(ids):
        assert torch.equal(bulyan(u.matrix, f), result.update)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(column=st.lists(st.one_of(FINE, QUARTERS), min_size=1, max_size=9), share=st.floats(0.01, 1))
def test_closest_to_the_median(column: list[float], share: float) -> None:
    beta = max(1, round(share * len(column)))
    rows = [[value] for value in column]
    mean, parts = mean_around_median(torch.tensor(rows, dtype=torch.float64), beta)
    expected, shares = around(rows, beta)
    torch.testing.assert_close(mean.tolist(), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts.tolist(), shares, rtol=1e-12, atol=1e-12)


class TestMeanAroundMedian:
    def found(self, column: list[float], beta: int) -> float:
        return mean_around_median(torch.tensor(column, dtype=torch.float64)[:, None], beta)[0].item()

    def test_is_not_the_trimmed_mean(self) -> None:
        # the median is 4, closest to it are 4, 3, 2; the middle ranks are 3, 4, 11
        column = [2.0, 3.0, 4.0, 11.0, 12.0]
        assert self.found(column, 3) == 3
        assert mean_of_ranks(torch.tensor(column)[:, None], 1, 4)[0].item() == 6

    def test_of_an_even_number(self) -> None:
        assert self.found([0, 1, 3, 9], 2) == 2  # the median is 2
        assert self.found([0, 1, 3, 9], 3) == pytest.approx(4 / 3)

    def test_the_lower_of_two_equally_close(self) -> None:
        assert self.found([-1, 0, 1], 2) == -0.5
        assert self.found([1, 0, -1], 2) == -0.5
        assert self.found([-1, -1, 0, 1, 1], 2) == -0.5

    def test_all(self) -> None:
        assert self.found([-1, 0, 7], 3) == 2
        assert self.found([7], 1) == 7

    def test_weights(self) -> None:
        x = torch.tensor([[2.0, 0], [3, 0], [4, 1], [9, 0], [10, 5]])
        # kept of the first column are rows 0 to 2, of the second any three of the four 0s and not 1: rows 0, 1, 3
        assert mean_around_median(x, 3)[1].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 6, 1 / 6, 0])

    def test_blocks_do_not_matter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x = torch.randn(7, 3000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        results: list[tuple[Tensor, Tensor]] = []
        for block_bytes in (1, 1 << 30):
            monkeypatch.setattr(linalg, "_BLOCK_BYTES", block_bytes)
            results.append(mean_around_median(x, 3))
        assert torch.equal(results[0][0], results[1][0])
        torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-12, atol=0)

    def test_huge_values_do_not_reach_it(self) -> None:
        x = torch.tensor([[3e38], [1.0], [2.0], [3.0], [-3e38]])
        assert mean_around_median(x, 3)[0].item() == 2


class TestTakeByKrum:
    def test_ties_go_to_the_smallest_id(self) -> None:
        distances = linalg.pairwise_sq_distances(torch.ones(7, 3))
        assert take_by_krum(distances, torch.tensor([9, 4, 7, 1, 8, 2, 3]), 1, 5).tolist() == [
            False,
            True,
            True,
            True,
            False,
            True,
            True,
        ]

    def test_scores_are_those_among_the_rest(self) -> None:
        # 0, 1, 2.2 | 10, 10.5, 11.5, 30 with f = 1: four neighbours at first
        x = torch.tensor([[0.0], [1.0], [2.2], [10.0], [10.5], [11.5], [30.0]], dtype=torch.float64)
        chosen = take_by_krum(linalg.pairwise_sq_distances(x), torch.arange(7), 1, 5)
        assert chosen.nonzero().flatten().tolist() == sorted(taken(x.tolist(), list(range(7)), 1))
        at_once = linalg.lowest(linalg.krum_scores(linalg.pairwise_sq_distances(x), 1), 5)
        assert not torch.equal(chosen, at_once)


def test_one_coordinate_is_enough_against_krum_and_not_against_bulyan(make: SimpleNamespace) -> None:
    # section 3: in many dimensions a vector may be far off in one of them and still be the nearest to all
    d, f = 1000, 2
    x = torch.randn(11, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:f] = x[f:].mean(dim=0)
    x[:f, 7] += 20
    u = make.updates(x)
    view = make.view(u, f=f)
    assert linalg.krum_scores(linalg.pairwise_sq_distances(x), f).argmin() < f
    result = Bulyan()(u, view)
    assert abs(result.update[7]) < 1
    assert result.update.abs().max() < 1.5


def test_without_malicious_clients_it_is_the_mean(make: SimpleNamespace) -> None:
    x = torch.randn(5, 30, generator=torch.Generator().manual_seed(0))
    x[2] = 1e4
    u = make.updates(x)
    result = Bulyan()(u, make.view(u))
    torch.testing.assert_close(result.update, x.mean(dim=0))
    assert result.weights.tolist() == pytest.approx([0.2] * 5)
    assert (result.accepted, result.scores, result.state) == (None, None, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huge_rows_change_nothing(make: SimpleNamespace, dtype: torch.dtype) -> None:
    results = []
    for huge in (100.0, 1e30):
        x = torch.randn(12, 300, generator=torch.Generator().manual_seed(1), dtype=dtype)
        x[4], x[5] = huge, -huge
        u = make.updates(x)
        results.append(Bulyan()(u, make.view(u, f=2)))
    assert torch.equal(results[0].update, results[1].update)
    assert torch.equal(results[0].weights, results[1].weights)


class TestBound:
    def test_message(self, make: SimpleNamespace) -> None:
        message = "bulyan needs n >= 4f + 3, got n=14 clients and f=3 assumed malicious"
        with pytest.raises(BoundError) as error:
            Bulyan().check(14, 3)
        assert str(error.value) == message
        u = make.updates(torch.zeros(14, 2))
        with pytest.raises(BoundError) as error:
            Bulyan()(u, make.view(u, f=3))
        assert str(error.value) == message

    @pytest.mark.parametrize(("n", "f"), [(15, 3), (7, 1), (1, 0), (2, 0)])
    def test_holds(self, make: SimpleNamespace, n: int, f: int) -> None:
        Bulyan().check(n, f)
        u = make.updates(torch.zeros(n, 2))
        result = Bulyan()(u, make.view(u, f=f))
        assert result.update.tolist() == [0, 0]
        assert result.weights.sum().item() == pytest.approx(1)


class TestFunction:
    def test_is_the_class_on_a_matrix_of_parameters(self, make: SimpleNamespace) -> None:
        u = make.updates(torch.randn(12, 40, generator=torch.Generator().manual_seed(0)))
        assert torch.equal(bulyan(u.matrix, f=2), Bulyan()(u, make.view(u, f=2)).update)

    def test_bound(self) -> None:
        with pytest.raises(BoundError) as error:
            bulyan(torch.zeros(14, 2), f=3)
        assert str(error.value) == "bulyan needs n >= 4f + 3, got n=14 clients and f=3 assumed malicious"
        with pytest.raises(ParameterError) as other:
            bulyan(torch.zeros(14, 2), f=-1)
        assert str(other.value) == "bulyan: f must be at least 0, got -1"
