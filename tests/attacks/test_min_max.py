"""Min-Max and Min-Sum, against a search for gamma by brute force."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsieve.attacks.min_max import MinMax, MinSum, deviation, largest_step, largest_step_in_sum
from fedsieve.core.attack import AttackView

Rows = list[list[float]]
KINDS = ("unit-vector", "sign", "std")

BOUNDS = {"max": max, "min": min}

every_kind = pytest.mark.parametrize("kind", KINDS)


def distance(a: list[float], b: list[float]) -> float:
    return math.sqrt(sum((p - q) ** 2 for p, q in zip(a, b, strict=True)))


def mean(rows: Rows) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def published_deviation(rows: Rows, kind: str) -> list[float]:
    """Section IV-A of the paper: inverse unit vector, inverse sign, inverse standard deviation; here without minus."""
    mu = mean(rows)
    if kind == "unit-vector":
        length = math.sqrt(sum(c * c for c in mu))
        return [c / length for c in mu] if length else mu
    if kind == "sign":
        return [float((c > 0) - (c < 0)) for c in mu]
    n = len(rows)
    return [math.sqrt(sum((row[j] - mu[j]) ** 2 for row in rows) / (n - 1)) for j in range(len(mu))]


def published_gamma(rows: Rows, p: list[float]) -> float:
    """Equation 8: the largest gamma with max_i |mu - gamma p - x_i| <= max_ij |x_i - x_j|, by bisection.

    The left side is convex in gamma and fulfils the bound at 0, so those that do form an interval from there.
    """
    mu = mean(rows)
    bound = max(distance(a, b) for a in rows for b in rows)

    def fulfils(gamma: float) -> bool:
        v = [m - gamma * c for m, c in zip(mu, p, strict=True)]
        return max(distance(v, row) for row in rows) <= bound

    low, high = 0.0, 1.0
    while fulfils(high):
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if fulfils(middle) else (low, middle)
    return low


def published_gamma_of_the_sum(rows: Rows, p: list[float], bound: str) -> float:
    """Equation 9 likewise: sum_i |mu - gamma p - x_i|^2 <= max_i (published code: min_i) sum_j |x_i - x_j|^2."""
    mu = mean(rows)
    limit = BOUNDS[bound](sum(distance(a, b) ** 2 for b in rows) for a in rows)

    def fulfils(gamma: float) -> bool:
        v = [m - gamma * c for m, c in zip(mu, p, strict=True)]
        return sum(distance(v, row) ** 2 for row in rows) <= limit

    low, high = 0.0, 1.0
    while fulfils(high):
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if fulfils(middle) else (low, middle)
    return low


def tables() -> st.SearchStrategy[Rows]:
    value = st.integers(-1000, 1000).map(lambda v: v / 100)

    def rows(d: int) -> st.SearchStrategy[Rows]:
        return st.lists(st.lists(value, min_size=d, max_size=d), min_size=2, max_size=6)

    return st.integers(1, 5).flatmap(rows)


@every_kind
@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows=tables())
def test_as_published(make_view: Callable[..., AttackView], kind: str, rows: Rows) -> None:
    x = torch.tensor(rows, dtype=torch.float64)
    p = published_deviation(rows, kind)
    # a mean that is zero but for rounding has no direction
    if kind != "std" and min((abs(c) for c in mean(rows)), default=0) < 1e-9:
        return
    torch.testing.assert_close(deviation(x, kind).tolist(), p, rtol=1e-9, atol=1e-9)  # type: ignore[arg-type]
    if not any(p):
        return
    gamma = published_gamma(rows, p)
    bound = max(distance(a, b) for a in rows for b in rows)
    assert largest_step(x, torch.tensor(p, dtype=torch.float64), bound**2) == pytest.approx(gamma, rel=1e-6, abs=1e-6)
    expected = [m - gamma * c for m, c in zip(mean(rows), p, strict=True)]
    sent = MinMax(kind).craft(make_view(x[:1], x[1:]))  # type: ignore[arg-type]
    torch.testing.assert_close(sent[0].tolist(), expected, rtol=1e-6, atol=1e-5)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slack(sent: Tensor, known: Tensor) -> float:
    """The bound minus the largest distance to a known update, as a share of the bound."""
    bound = torch.cdist(known, known).max()
    return float((bound - torch.cdist(sent[:1], known).max()) / bound)


class TestByHand:
    # one dimension, benign updates 1 and 3: mu = 2, their distance is 2, and so is that of v = 1 to the farther one, 3
    def test_two_updates(self, make_view: Callable[..., AttackView]) -> None:
        known = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
        for kind in KINDS:
            sent = MinMax(kind).craft(make_view(known[:1], known[1:]))  # type: ignore[arg-type]
            assert sent.tolist() == [[pytest.approx(1)]]

    def test_wide_triangle(self, make_view: Callable[..., AttackView]) -> None:
        # corners (0, 1), (0, -1), (3, 0): mu = (1, 0), the diameter is sqrt(10), along the x axis
        # (v - 3)^2 <= 10 and v^2 + 1 <= 10: the smallest v is 3 - sqrt(10)
        known = torch.tensor([[0.0, 1], [0, -1], [3, 0]], dtype=torch.float64)
        sent = MinMax("unit-vector").craft(make_view(known[:2], known[2:]))
        torch.testing.assert_close(sent, torch.tensor([[3 - math.sqrt(10), 0]] * 2, dtype=torch.float64))


class TestBound:
    @every_kind
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_holds_and_is_tight(
        self, make_view: Callable[..., AttackView], kind: str, seed: int, dtype: torch.dtype
    ) -> None:
        known = (0.3 + normal(10, 2000, seed=seed)).to(dtype)
        sent = MinMax(kind).craft(make_view(known[:3], known[3:]))  # type: ignore[arg-type]
        assert sent.dtype == dtype
        assert abs(slack(sent.double(), known.double())) < (1e-5 if dtype == torch.float32 else 1e-9)

    @every_kind
    def test_goes_against_the_mean(self, make_view: Callable[..., AttackView], kind: str) -> None:
        known = 1 + 0.5 * normal(10, 50)
        sent = MinMax(kind).craft(make_view(known[:3], known[3:]))  # type: ignore[arg-type]
        assert (sent[0] - known.mean(dim=0)) @ known.mean(dim=0) < 0

    def test_deviations_differ(self, make_view: Callable[..., AttackView]) -> None:
        known = 0.3 + normal(10, 50)
        sent = torch.cat([MinMax(kind).craft(make_view(known[:1], known[1:])) for kind in KINDS])  # type: ignore[arg-type]
        assert (torch.cdist(sent, sent) + 100 * torch.eye(3)).min() > 0.1


class TestKnowledge:
    @every_kind
    def test_partial_knowledge_uses_malicious_updates_only(
        self, make_view: Callable[..., AttackView], kind: str
    ) -> None:
        own, others = normal(4, 20), 5 + normal(6, 20, seed=1)
        sent = MinMax(kind).craft(make_view(own, n_clients=10))  # type: ignore[arg-type]
        assert abs(slack(sent, own)) < 1e-9
        full = MinMax(kind).craft(make_view(own, others))  # type: ignore[arg-type]
        assert abs(slack(full, torch.cat([own, others]))) < 1e-9
        assert not torch.allclose(sent, full)

    @every_kind
    @pytest.mark.parametrize("m", [1, 3])
    def test_all_send_the_same(self, make_view: Callable[..., AttackView], kind: str, m: int) -> None:
        sent = MinMax(kind).craft(make_view(normal(m, 20), normal(6, 20, seed=1)))  # type: ignore[arg-type]
        assert sent.shape == (m, 20)
        assert torch.equal(sent, sent[:1].expand(m, -1))

    def test_rows_share_no_memory(self, make_view: Callable[..., AttackView]) -> None:
        sent = MinMax().craft(make_view(normal(3, 20)))
        sent[0] = 7
        assert not (sent[1:] == 7).any()

    @every_kind
    def test_one_known_update_is_sent_honestly(self, make_view: Callable[..., AttackView], kind: str) -> None:
        own = normal(1, 20)
        sent = MinMax(kind).craft(make_view(own, n_clients=10))  # type: ignore[arg-type]
        assert torch.equal(sent, own)

    @every_kind
    def test_equal_updates_leave_no_room(self, make_view: Callable[..., AttackView], kind: str) -> None:
        own = normal(1, 20).expand(3, -1).clone()
        sent = MinMax(kind).craft(make_view(own))  # type: ignore[arg-type]
        torch.testing.assert_close(sent, own, rtol=0, atol=1e-6)

    @every_kind
    def test_zero_updates(self, make_view: Callable[..., AttackView], kind: str) -> None:
        assert not MinMax(kind).craft(make_view(torch.zeros(3, 4))).any()  # type: ignore[arg-type]


class TestLargestStep:
    def test_no_direction(self) -> None:
        assert largest_step(normal(3, 4), torch.zeros(4, dtype=torch.float64), 100.0) == 0

    def test_by_hand(self) -> None:
        # from the mean 0, |gamma + 1| <= 3 and |gamma - 1| <= 3
        x = torch.tensor([[1.0], [-1.0]])
        assert largest_step(x, torch.ones(1), 9.0) == pytest.approx(2)
        assert largest_step(x, torch.tensor([-0.5]), 9.0) == pytest.approx(4)

    def test_length_of_the_direction_does_not_matter(self) -> None:
        x, p = normal(5, 6), normal(6, seed=1)
        short, long = (k * largest_step(x, k * p, 100.0) for k in (0.01, 100))
        assert short == pytest.approx(long)

    def test_none_where_no_step_fulfils_the_bound(self) -> None:
        # on the first axis through the mean (0, 0) no point is nearer than 9 to the row (-1, 9); the radius is 8
        x = torch.tensor([[-1.0, 9.0], [0.5, -4.5], [0.5, -4.5]], dtype=torch.float64)
        assert largest_step(x, torch.tensor([1.0, 0.0], dtype=torch.float64), 64.0) == 0


@every_kind
@pytest.mark.parametrize("bound", BOUNDS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(rows=tables())
def test_min_sum_as_published(make_view: Callable[..., AttackView], kind: str, bound: str, rows: Rows) -> None:
    x = torch.tensor(rows, dtype=torch.float64)
    p = published_deviation(rows, kind)
    if (kind != "std" and min(abs(c) for c in mean(rows)) < 1e-9) or not any(p):
        return
    gamma = published_gamma_of_the_sum(rows, p, bound)
    found = largest_step_in_sum(x, torch.tensor(p, dtype=torch.float64), bound)  # type: ignore[arg-type]
    # a root of two sums' difference, so that rounding to 1e-12 leaves 1e-6
    assert found == pytest.approx(gamma, rel=1e-5, abs=1e-5 / math.sqrt(sum(c * c for c in p)))
    expected = [m - found * c for m, c in zip(mean(rows), p, strict=True)]
    sent = MinSum(kind, bound).craft(make_view(x[:1], x[1:]))  # type: ignore[arg-type]
    torch.testing.assert_close(sent[0].tolist(), expected, rtol=1e-9, atol=1e-9)


class TestMinSum:
    known = torch.tensor([[0.0, 1], [0, -1], [3, 0]], dtype=torch.float64)

    # The corners' offsets from mu = (1, 0) have squared norms 2, 2 and 4, S = 8. The sums of squared distances are
    # 4 + 10 = 14, 14 and 20: 3 gamma^2 + 8 <= 20 or <= 14. Min-Max on the same corners sends 3 - sqrt(10) = -0.16.
    @pytest.mark.parametrize(("bound", "gamma"), [("max", 2.0), ("min", math.sqrt(2))])
    def test_wide_triangle(self, make_view: Callable[..., AttackView], bound: str, gamma: float) -> None:
        sent = MinSum("unit-vector", bound).craft(make_view(self.known[:2], self.known[2:]))  # type: ignore[arg-type]
        torch.testing.assert_close(sent, torch.tensor([[1 - gamma, 0]] * 2, dtype=torch.float64))

    def test_the_papers_bound_is_the_default(self) -> None:
        assert MinSum() == MinSum("unit-vector", "max")

    @every_kind
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_goes_against_the_mean_and_less_far_than_min_max_on_spread_updates(
        self, make_view: Callable[..., AttackView], kind: str, dtype: torch.dtype
    ) -> None:
        known = (1 + 0.5 * normal(10, 500)).to(dtype)
        view = make_view(known[:3], known[3:])
        mu = known.mean(dim=0)
        sums, most = (attack.craft(view) for attack in (MinSum(kind), MinMax(kind)))  # type: ignore[arg-type]
        assert sums.dtype == dtype
        assert (sums[0] - mu) @ mu < 0
        assert torch.equal(sums, sums[:1].expand(3, -1))
        assert 0 < (sums[0] - mu).norm() < (most[0] - mu).norm()

    @every_kind
    def test_no_room(self, make_view: Callable[..., AttackView], kind: str) -> None:
        one = normal(1, 20)
        attack = MinSum(kind)  # type: ignore[arg-type]
        assert torch.equal(attack.craft(make_view(one, n_clients=10)), one)
        torch.testing.assert_close(attack.craft(make_view(one.repeat(3, 1))), one.repeat(3, 1), rtol=0, atol=1e-9)
        assert not attack.craft(make_view(torch.zeros(3, 4))).any()

    def test_partial_knowledge_uses_malicious_updates_only(self, make_view: Callable[..., AttackView]) -> None:
        own, others = normal(4, 20), 5 + normal(6, 20, seed=1)
        partial, full = MinSum().craft(make_view(own)), MinSum().craft(make_view(own, others))
        assert (partial - own.mean(dim=0)).norm() > 0
        assert not torch.allclose(partial, full)

    def test_no_direction(self) -> None:
        assert largest_step_in_sum(normal(3, 4), torch.zeros(4, dtype=torch.float64), "max") == 0
