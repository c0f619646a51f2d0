"""Krum and Multi-Krum, against the definition."""

from collections.abc import Callable
from math import isclose
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from fedsieve.aggregators.krum import Krum, MultiKrum, krum, multi_krum, select
from fedsieve.core.errors import BoundError, ParameterError

# Binary fractions: sums and squares of them are exact, so that a tie in the paper's arithmetic is one here.
QUARTERS = st.integers(-12, 12).map(lambda k: k / 4)


def published(rows: list[list[float]], f: int) -> list[float]:
    """Section 4: s(i) = sum over the n - f - 2 vectors closest to V_i, of |V_i - V_j|^2."""
    scores = []
    for i, row in enumerate(rows):
        squares = sorted(
            sum((a - b) ** 2 for a, b in zip(row, other, strict=True)) for j, other in enumerate(rows) if j != i
        )
        scores.append(sum(squares[: max(len(rows) - f - 2, 1)], 0.0))
    return scores


def best(scores: list[float], k: int) -> list[bool]:
    last = sorted(scores)[min(k, len(scores)) - 1]
    return [score <= last or isclose(score, last, rel_tol=1e-10) for score in scores]


def mean_of(rows: list[list[float]], chosen: list[bool]) -> list[float]:
    kept = [row for row, is_in in zip(rows, chosen, strict=True) if is_in]
    return [sum(column) / len(kept) for column in zip(*kept, strict=True)]


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[list[float]], int]:
    d = draw(st.integers(1, 3))
    rows = draw(st.lists(st.lists(QUARTERS, min_size=d, max_size=d), min_size=1, max_size=9))
    return rows, draw(st.integers(0, max(0, (len(rows) - 3) // 2)))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(case=cases(), keep=st.one_of(st.none(), st.integers(1, 10)))
def test_as_published(make: SimpleNamespace, case: tuple[list[list[float]], int], keep: int | None) -> None:
    rows, f = case
    u = make.updates(torch.tensor(rows, dtype=torch.float64))
    scores = published(rows, f)
    for aggregator, k in ((Krum(), 1), (MultiKrum(keep=keep), len(rows) - f if keep is None else keep)):
        result = aggregator(u, make.view(u, f=f))
        chosen = best(scores, k)
        torch.testing.assert_close(result.update.tolist(), mean_of(rows, chosen), rtol=1e-12, atol=1e-12)
        assert result.weights.tolist() == pytest.approx([is_in / sum(chosen) for is_in in chosen])
        assert result.scores is not None
        torch.testing.assert_close(result.scores.tolist(), scores, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("n", "f"), [(7, 2), (20, 5), (20, 0), (50, 23)])
def test_scores_against_nearest_neighbours(n: int, f: int) -> None:
    x = torch.randn(n, 40, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    distances, _ = NearestNeighbors(n_neighbors=n - f - 2).fit(x.numpy()).kneighbors()
    torch.testing.assert_close(select(x, f, 1)[1], torch.from_numpy((distances**2).sum(axis=1)))


# Three nearest others: score of 2: 1 + 4 + 4 = 9; of 1: 1 + 1 + 9 = 11; of 0: 1 + 4 + 16 = 21; of 4: 4 + 9 + 16 = 29;
# of 8: 16 + 36 + 49 = 101; of 100: 0 + 92^2 + 96^2 = 17680. The median is 4, the trimmed mean 14 / 3, the mean 215 / 7.
HAND = [[8.0], [0.0], [100.0], [1.0], [2.0], [100.0], [4.0]]


class TestByHand:
    def test_krum(self, make: SimpleNamespace) -> None:
        u = make.updates(HAND)
        result = Krum()(u, make.view(u, f=2))
        assert result.update.tolist() == [2]
        assert result.weights.tolist() == [0, 0, 0, 0, 1, 0, 0]
        assert result.scores is not None
        assert result.scores.tolist() == pytest.approx([101, 21, 17680, 11, 9, 17680, 29], rel=1e-6)
        assert result.accepted is None  # to select one update does not reject the others
        assert result.state is None

    @pytest.mark.parametrize(
        ("keep", "kept"),
        [
            (None, [8, 0, 1, 2, 4]),
            (1, [2]),
            (3, [0, 1, 2]),
            (5, [8, 0, 1, 2, 4]),
            (6, [8, 0, 100, 1, 2, 100, 4]),  # the two 100s are tied for the sixth place
            (99, [8, 0, 100, 1, 2, 100, 4]),
        ],
    )
    def test_multi_krum(self, make: SimpleNamespace, keep: int | None, kept: list[float]) -> None:
        u = make.updates(HAND)
        result = MultiKrum(keep=keep)(u, make.view(u, f=2))
        assert result.update.item() == pytest.approx(sum(kept) / len(kept))
        accepted = [row[0] in kept for row in HAND]
        assert result.accepted is not None
        assert result.accepted.tolist() == accepted
        assert result.weights.tolist() == pytest.approx([is_in / len(kept) for is_in in accepted])

    def test_f_decides_how_many_neighbours_count(self, make: SimpleNamespace) -> None:
        # five of the others count, so one 100 at least: the middle of the range is best, not the dense end
        u = make.updates(HAND)
        assert Krum()(u, make.view(u, f=0)).update.tolist() == [8]


class TestFewRows:
    def test_two_are_as_near_to_each_other(self, make: SimpleNamespace) -> None:
        u = make.updates([[1.0, 0.0], [3.0, 0.5]])
        result = Krum()(u, make.view(u))
        assert result.update.tolist() == [2, 0.25]
        assert result.weights.tolist() == [0.5, 0.5]

    @pytest.mark.parametrize("aggregator", [Krum(), MultiKrum(), MultiKrum(keep=3)])
    def test_one(self, make: SimpleNamespace, aggregator: Krum | MultiKrum) -> None:
        u = make.updates([[1.0, -3.0]])
        result = aggregator(u, make.view(u))
        assert result.update.tolist() == [1, -3]
        assert result.scores is not None
        assert result.scores.tolist() == [0]

    def test_multi_krum_without_malicious_clients_is_the_mean(self, make: SimpleNamespace) -> None:
        u = make.updates(HAND)
        assert MultiKrum()(u, make.view(u)).update.item() == pytest.approx(215 / 7)


class TestTies:
    def test_equal_rows_share(self, make: SimpleNamespace) -> None:
        # three equal rows among random ones: the same update as one of them
        x = torch.randn(9, 5000, generator=torch.Generator().manual_seed(0))
        x[[2, 5, 8]] = 0.1
        u = make.updates(x)
        result = Krum()(u, make.view(u, f=3))
        torch.testing.assert_close(result.update, x[2])
        assert result.weights.tolist() == pytest.approx([0, 0, 1 / 3, 0, 0, 1 / 3, 0, 0, 1 / 3])

    def test_all_rows_equal(self, make: SimpleNamespace) -> None:
        u = make.updates(torch.randn(1, 300, generator=torch.Generator().manual_seed(0)).repeat(9, 1))
        for aggregator in (Krum(), MultiKrum(), MultiKrum(keep=1)):
            assert aggregator(u, make.view(u, f=3)).weights.tolist() == pytest.approx([1 / 9] * 9)


class TestHugeRows:
    def rows(self, huge: float, dtype: torch.dtype) -> Tensor:
        x = torch.randn(12, 800, generator=torch.Generator().manual_seed(1), dtype=dtype)
        x[3] += 2  # subtle enough to hide behind the huge ones, were the distances lost
        x[4], x[5] = huge, -huge
        return x

    @pytest.mark.parametrize(("huge", "dtype"), [(1e8, torch.float32), (1e30, torch.float32), (1e200, torch.float64)])
    def test_other_distances_stay_exact(self, make: SimpleNamespace, huge: float, dtype: torch.dtype) -> None:
        modest, blatant = (make.updates(self.rows(size, dtype)) for size in (100.0, huge))
        for aggregator in (Krum(), MultiKrum()):
            one, other = (aggregator(u, make.view(u, f=3)) for u in (modest, blatant))
            assert torch.equal(one.update, other.update)
            assert torch.equal(one.weights, other.weights)
            assert other.weights[3:6].tolist() == [0, 0, 0]
            assert one.scores is not None
            assert other.scores is not None
            torch.testing.assert_close(other.scores[6:], one.scores[6:])

    def test_scores_are_finite(self, make: SimpleNamespace) -> None:
        u = make.updates(self.rows(1e30, torch.float32))
        result = Krum()(u, make.view(u, f=3))
        assert result.scores is not None
        assert result.scores[4].item() == torch.finfo(torch.float32).max
        assert result.scores.isfinite().all()


class TestBound:
    @pytest.mark.parametrize(("aggregator", "name"), [(Krum(), "krum"), (MultiKrum(), "multi-krum")])
    def test_message(self, make: SimpleNamespace, aggregator: Krum | MultiKrum, name: str) -> None:
        message = f"{name} needs n >= 2f + 3, got n=8 clients and f=3 assumed malicious"
        with pytest.raises(BoundError) as error:
            aggregator.check(8, 3)
        assert str(error.value) == message
        u = make.updates(torch.zeros(8, 2))
        with pytest.raises(BoundError) as error:
            aggregator(u, make.view(u, f=3))
        assert str(error.value) == message

    @pytest.mark.parametrize(("n", "f"), [(9, 3), (5, 1), (1, 0), (2, 0)])
    def test_holds(self, make: SimpleNamespace, n: int, f: int) -> None:
        u = make.updates(torch.zeros(n, 2))
        for aggregator in (Krum(), MultiKrum()):
            aggregator.check(n, f)
            assert aggregator(u, make.view(u, f=f)).update.tolist() == [0, 0]

    @pytest.mark.parametrize("keep", [0, -1])
    def test_keep(self, keep: int) -> None:
        with pytest.raises(ParameterError) as error:
            MultiKrum(keep=keep)
        assert str(error.value) == f"multi-krum: keep must be at least 1, got {keep}"


class TestFunctions:
    @pytest.mark.parametrize("keep", [None, 1, 3])
    def test_are_the_classes_on_a_matrix_of_parameters(self, make: SimpleNamespace, keep: int | None) -> None:
        u = make.updates(torch.randn(9, 40, generator=torch.Generator().manual_seed(0)))
        assert torch.equal(krum(u.matrix, f=3), Krum()(u, make.view(u, f=3)).update)
        assert torch.equal(multi_krum(u.matrix, 3, keep), MultiKrum(keep)(u, make.view(u, f=3)).update)

    def test_by_hand(self) -> None:
        assert krum(torch.tensor(HAND), f=2).tolist() == [2]
        assert multi_krum(torch.tensor(HAND), f=2).tolist() == [3]

    @pytest.mark.parametrize(("function", "name"), [(krum, "krum"), (multi_krum, "multi-krum")])
    def test_bound(self, function: Callable[..., Tensor], name: str) -> None:
        with pytest.raises(BoundError) as error:
            function(torch.zeros(8, 2), f=3)
        assert str(error.value) == f"{name} needs n >= 2f + 3, got n=8 clients and f=3 assumed malicious"
        with pytest.raises(ParameterError) as other:
            function(torch.zeros(8, 2), f=-1)
        assert str(other.value) == f"{name}: f must be at least 0, got -1"

    def test_keep(self) -> None:
        with pytest.raises(ParameterError, match=r"^multi-krum: keep must be at least 1, got 0$"):
            multi_krum(torch.zeros(8, 2), f=1, keep=0)
