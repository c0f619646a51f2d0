"""The attacks on the trimmed mean and on Krum, against loops and against these aggregators."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsieve.attacks.fang import FangKrum, FangTrim, beyond_extremes, largest_chosen_step
from fedsieve.core.attack import AttackView
from fedsieve.core.errors import ParameterError

Rows = list[list[float]]
VALUE = st.integers(-1000, 1000).map(lambda v: v / 100)


def tables(least: int = 2, most: int = 7) -> st.SearchStrategy[Rows]:
    def rows(d: int) -> st.SearchStrategy[Rows]:
        return st.lists(st.lists(VALUE, min_size=d, max_size=d), min_size=least, max_size=most)

    return st.integers(1, 5).flatmap(rows)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sign(v: float) -> int:
    return (v > 0) - (v < 0)


def distance(a: list[float], b: list[float]) -> float:
    return math.sqrt(sum((p - q) ** 2 for p, q in zip(a, b, strict=True)))


def directions(rows: Rows) -> list[int] | None:
    """Signs of the sums; None where one is zero but for rounding."""
    sums = [math.fsum(column) for column in zip(*rows, strict=True)]
    return None if min(map(abs, sums)) < 1e-9 else [sign(v) for v in sums]


def trimmed_mean(rows: Tensor, f: int) -> Tensor:
    return rows.sort(dim=0).values[f : len(rows) - f].mean(dim=0)


def published_krum(rows: Rows, f: int) -> list[float]:
    """Score of each row: the sum of the squared distances to its n - f - 2 nearest others, one at least."""
    k = max(1, len(rows) - f - 2)
    return [sum(sorted(distance(a, b) ** 2 for j, b in enumerate(rows) if j != i)[:k]) for i, a in enumerate(rows)]


def published_lambda(benign: Rows, s: list[int], f: int, threshold: float) -> float:
    """From theorem 1's bound, halved until Krum selects a crafted update."""
    b, d = len(benign), len(s)
    k, denominator = max(b - 2, 1), max(b - f - 1, 1)  # n - f - 2 and n - 2f - 1, with n = b + f
    nearest = min(sum(sorted(distance(a, c) for j, c in enumerate(benign) if j != i)[:k]) for i, a in enumerate(benign))
    farthest = max(distance(a, [0.0] * d) for a in benign)
    step = nearest / (denominator * math.sqrt(d)) + farthest / math.sqrt(d)
    while step > threshold:
        crafted = [-step * c for c in s]
        scores = published_krum([crafted] * f + benign, f)
        if abs(scores[0] - min(scores[f:])) < 1e-9:
            return math.nan  # a tie but for rounding; either answer is right
        if scores[0] < min(scores[f:]):
            return step
        step /= 2
    return 0.0


class TestTrim:
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(rows=tables(), m=st.integers(1, 3), spread=st.floats(1.1, 5))
    def test_intervals_of_full_knowledge(
        self, make_view: Callable[..., AttackView], rows: Rows, m: int, spread: float
    ) -> None:
        """Below the least value in [w/b, w] or [b w, w], above the largest in [w, b w] or [w, w/b]."""
        s = directions(rows)
        if s is None:
            return
        x = torch.tensor(rows, dtype=torch.float64)
        sent = FangTrim(spread).craft(make_view(x[:1].repeat(m, 1), x[1:]))
        s = directions([rows[0]] * m + rows[1:])
        if s is None:
            return
        for row in sent.tolist():
            for value, column, way in zip(row, zip(*rows, strict=True), s, strict=True):
                w = min(column) if way > 0 else max(column)
                low, high = sorted((w, w / spread if way * w > 0 else w * spread))
                assert low - 1e-9 <= value <= high + 1e-9
                assert (value - w) * way <= 1e-9

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(rows=tables())
    def test_intervals_of_partial_knowledge(self, make_view: Callable[..., AttackView], rows: Rows) -> None:
        """As published: mu - s [3, 4] sigma over the malicious clients' own updates."""
        s = directions(rows)
        if s is None:
            return
        sent = FangTrim().craft(make_view(torch.tensor(rows, dtype=torch.float64), n_clients=20))
        for row in sent.tolist():
            for value, column, way in zip(row, zip(*rows, strict=True), s, strict=True):
                mu = sum(column) / len(rows)
                sigma = math.sqrt(sum((c - mu) ** 2 for c in column) / len(rows))
                assert 3 * sigma - 1e-9 <= -way * (value - mu) <= 4 * sigma + 1e-9

    # sums 6 and -6: the first value is below 1, the second above -1; both lie between the extreme and 0
    def test_by_hand(self, make_view: Callable[..., AttackView]) -> None:
        known = torch.tensor([[1.0, -1.0], [2.0, -2.0], [3.0, -3.0]])
        sent = FangTrim().craft(make_view(known[:2], known[2:]))
        assert ((sent[:, 0] >= 0.5) & (sent[:, 0] <= 1)).all()
        assert ((sent[:, 1] >= -1) & (sent[:, 1] <= -0.5)).all()

    # the extreme is on the other side of 0: sums 4 and -4, values in [-2, -1] and [1, 2]
    def test_by_hand_beyond_zero(self, make_view: Callable[..., AttackView]) -> None:
        known = torch.tensor([[-1.0, 1.0], [2.0, -2.0], [3.0, -3.0]])
        sent = FangTrim().craft(make_view(known[:2], known[2:]))
        assert ((sent[:, 0] >= -2) & (sent[:, 0] <= -1)).all()
        assert ((sent[:, 1] >= 1) & (sent[:, 1] <= 2)).all()

    @pytest.mark.parametrize("granted", [True, False])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_moves_the_trimmed_mean_against_the_benign_mean(
        self, make_view: Callable[..., AttackView], granted: bool, dtype: torch.dtype
    ) -> None:
        known = (1 + normal(20, 400)).to(dtype)
        own, others = known[:5], known[5:]
        sent = FangTrim().craft(make_view(own, others if granted else None, n_clients=20))
        assert sent.dtype == dtype
        mu = others.mean(dim=0)
        moved = trimmed_mean(torch.cat([sent, others]), 5) - trimmed_mean(known, 5)
        assert (moved * mu.sign()).mean() < -0.2

    def test_clients_differ_and_depend_on_the_generator(self, make_view: Callable[..., AttackView]) -> None:
        known = 1 + normal(6, 10)
        one, same, other = (FangTrim().craft(make_view(known[:2], known[2:], seed=seed)) for seed in (0, 0, 1))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)
        assert not torch.equal(one[0], one[1])

    def test_no_direction(self, make_view: Callable[..., AttackView]) -> None:
        assert not beyond_extremes(torch.tensor([[1.0], [-1.0]]), 2, 2.0, torch.Generator()).any()
        for others in (torch.zeros(2, 3), None):
            assert not FangTrim().craft(make_view(torch.zeros(2, 3), others)).any()

    def test_one_known_update_is_sent_honestly(self, make_view: Callable[..., AttackView]) -> None:
        own = normal(1, 4)
        assert torch.equal(FangTrim().craft(make_view(own, n_clients=5)), own)

    @pytest.mark.parametrize("spread", [1.0, 0.5, math.nan])
    def test_out_of_range(self, spread: float) -> None:
        with pytest.raises(ParameterError) as error:
            FangTrim(spread=spread)
        assert str(error.value) == f"fang-trim: spread must be above 1, got {spread}"

    def test_spread_has_no_effect_with_partial_knowledge(self, make_view: Callable[..., AttackView]) -> None:
        with pytest.raises(ParameterError) as error:
            FangTrim(spread=3.0).craft(make_view(normal(3, 4), n_clients=9))
        expected = (
            "fang-trim: spread has no effect with partial knowledge, got 3.0; leave it out, or set knowledge=full"
        )
        assert str(error.value) == expected
        assert FangTrim(spread=3.0).craft(make_view(normal(3, 4), normal(6, 4, seed=1))).shape == (3, 4)


class TestKrum:
    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(rows=tables(least=2), copies=st.integers(1, 4))
    def test_lambda_as_published(self, rows: Rows, copies: int) -> None:
        s = directions(rows)
        if s is None:
            return
        expected = published_lambda(rows, s, copies, 1e-5)
        if math.isnan(expected):
            return
        found = largest_chosen_step(
            torch.tensor(rows, dtype=torch.float64), torch.tensor(s, dtype=torch.float64), copies, 1e-5
        )
        assert found == pytest.approx(expected, rel=1e-9)

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(rows=tables(least=1, most=4))
    def test_partial_knowledge_tries_more_copies(self, make_view: Callable[..., AttackView], rows: Rows) -> None:
        """Partial knowledge: the smallest number of crafted updates for which there is a lambda."""
        s = directions(rows)
        if s is None or len(rows) < 2:
            return
        steps = [published_lambda(rows, s, copies, 1e-5) for copies in range(1, len(rows) + 1)]
        step = next((v for v in steps if v), 0.0)
        if any(math.isnan(v) for v in steps):
            return
        own = torch.tensor(rows, dtype=torch.float64)
        # where there is none: the mean minus the threshold
        start, step = ([0.0] * len(s), step) if step else (own.mean(dim=0).tolist(), 1e-5)
        row = [v - step * c for v, c in zip(start, s, strict=True)]
        expected = torch.tensor([row] * len(rows), dtype=torch.float64)
        torch.testing.assert_close(FangKrum().craft(make_view(own, n_clients=20)), expected)

    # Benign 1, 2, 3, 4 and two crafted: the nearest two of 2 are 1 + 1 away, over n - 2f - 1 = 1, and the farthest
    # from 0 is 4: lambda 6. At -6, -3 and -1.5 Krum selects a benign one: 2 scores 1 + 1, the crafted 0 + 2.5^2. At
    # -0.75 the crafted score is 1.75^2 = 3.1, and only at -0.375 it is 1.375^2 = 1.89 < 2.
    def test_by_hand(self, make_view: Callable[..., AttackView]) -> None:
        others = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
        assert FangKrum().craft(make_view(torch.full((2, 1), 2.5), others)).tolist() == [[-0.375]] * 2

    # a third crafted update is a second neighbour at distance 0, and the score is 0: lambda is the bound, again 6
    def test_enough_copies_are_always_selected(self, make_view: Callable[..., AttackView]) -> None:
        others = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
        assert FangKrum().craft(make_view(torch.full((3, 1), 2.5), others)).tolist() == [[-6]] * 3

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_krum_goes_against_the_benign_mean(self, make_view: Callable[..., AttackView], dtype: torch.dtype) -> None:
        known = (0.3 + 0.5 * normal(20, 50)).to(dtype)
        own, others = known[:5], known[5:]
        sent = FangKrum().craft(make_view(own, others))
        assert sent.dtype == dtype
        scores = published_krum(torch.cat([sent, others]).double().tolist(), 5)
        assert min(range(20), key=scores.__getitem__) < 5
        assert sent[0] @ others.mean(dim=0) < 0
        assert all(torch.equal(a, b) for a, b in pairwise(sent))

    def test_where_nothing_is_found_the_mean_is_sent(self, make_view: Callable[..., AttackView]) -> None:
        # equal benign updates have score 0, and that of one crafted update is larger
        others, own = torch.ones(6, 3), torch.full((1, 3), 8.0)
        expected = torch.full((1, 3), 2 - 0.5)
        torch.testing.assert_close(FangKrum(threshold=0.5).craft(make_view(own, others)), expected)

    def test_radius(self, make_view: Callable[..., AttackView]) -> None:
        known = 0.3 + 0.5 * normal(20, 50)
        exact, near = (FangKrum(radius=r).craft(make_view(known[:5], known[5:])) for r in (0.0, 0.01))
        assert torch.equal(near[0], exact[0])
        lengths = (near - exact)[1:].norm(dim=1)
        assert ((lengths > 0) & (lengths <= 0.01)).all()

    @pytest.mark.parametrize("m", [1, 2, 3])
    def test_zero_updates(self, make_view: Callable[..., AttackView], m: int) -> None:
        for others in (torch.zeros(4, 3), None):
            assert not FangKrum().craft(make_view(torch.zeros(m, 3), others)).any()

    def test_huge_updates(self, make_view: Callable[..., AttackView]) -> None:
        others = torch.full((4, 3), 1e30)
        others[0] = 1.0
        assert FangKrum().craft(make_view(torch.ones(2, 3), others)).isfinite().all()

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"threshold": 0.0}, "fang-krum: threshold must be positive, got 0.0"),
            ({"threshold": math.nan}, "fang-krum: threshold must be positive, got nan"),
            ({"radius": -1.0}, "fang-krum: radius must be at least 0, got -1.0"),
        ],
    )
    def test_out_of_range(self, parameters: dict[str, float], message: str) -> None:
        with pytest.raises(ParameterError) as error:
            FangKrum(**parameters)
        assert str(error.value) == message
