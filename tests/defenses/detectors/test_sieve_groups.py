"""Groups of values against loops, their false alarms on one normal distribution, and shapes that are no groups."""

import math
from statistics import fmean, pstdev, pvariance

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsieve.detectors.sieve.groups import separate_groups

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def by_hand(values: list[float], least: float, minority: float) -> tuple[list[bool], list[bool]]:
    """The docstring in plain loops."""
    n = len(values)
    left, large, small = list(range(n)), [False] * n, [False] * n

    def squares(part: list[float]) -> float:
        return len(part) * pvariance(part)

    while len(left) >= 6 and len({values[k] for k in left}) > 1:
        ranked = sorted(values[k] for k in left)
        cuts = [k for k in range(1, len(ranked)) if ranked[k - 1] < ranked[k]]
        k = min(cuts, key=lambda k: squares(ranked[:k]) + squares(ranked[k:]))
        low, high = ranked[:k], ranked[k:]
        gap = fmean(high) - fmean(low)
        within = max(0.5, math.sqrt((pvariance(high) + pvariance(low)) / 2))
        between = [v for v in ranked if fmean(low) + gap / 3 < v < fmean(high) - gap / 3]
        if min(len(low), len(high)) < 3 or fmean(high) <= least or gap < (3.6 + 40 / len(ranked)) * within:
            break
        if len(between) > len(high) / 3:
            break
        for client in left:
            if values[client] >= high[0] and values[client] > fmean(low) + 3 * pstdev(low):
                (large if len(high) > minority * n else small)[client] = True
        left = [client for client in left if values[client] < high[0]]
    return large, small


def found(values: list[float], least: float = 2.0, minority: float = 0.15) -> tuple[list[bool], list[bool]]:
    large, small = separate_groups(torch.tensor(values, dtype=F64), least, minority)
    return large.tolist(), small.tolist()


def test_copies_of_one_value_have_no_variance_to_count_with() -> None:
    others = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], dtype=torch.float64)
    close, far = (torch.cat([others, torch.full((4,), v, dtype=torch.float64)]) for v in (3.0, 6.0))
    assert not separate_groups(close, 2.0, 0.15)[0].any()  # 2.5 apart, below (3.6 + 40 / 10) times 0.5
    assert separate_groups(far, 2.0, 0.15)[0].tolist() == [False] * 6 + [True] * 4


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 30)), min_size=1, max_size=4),
    spread=st.sampled_from([0.0, 0.1, 0.6, 1.5]),
    minority=st.sampled_from([0.0, 0.15, 0.4]),
    seed=st.integers(0, 10**6),
)
def test_against_loops(sizes: list[tuple[int, int]], spread: float, minority: float, seed: int) -> None:
    parts = [centre + spread * normal(size, seed=seed + k) for k, (size, centre) in enumerate(sizes)]
    values = torch.cat(parts)
    values = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))]
    assert found(values.tolist(), 2.0, minority) == by_hand(values.tolist(), 2.0, minority)


@pytest.mark.parametrize("n", [8, 12, 20, 30, 50, 100, 200])
def test_false_alarms_on_one_normal_distribution(n: int) -> None:
    trials = 600
    drawn = normal(trials, n, seed=n)
    alarms = sum(bool((large | small).any()) for large, small in (separate_groups(v, -99.0, 0.0) for v in drawn))
    # 11 of 600 or fewer in 98 % of experiments where the rate is 1 %
    assert alarms <= 11


@pytest.mark.parametrize("n", [20, 100])
@pytest.mark.parametrize("shape", ["exponential", "uniform", "heavy", "log-normal"])
def test_long_tails_are_no_groups(n: int, shape: str) -> None:
    g, alarms = torch.Generator().manual_seed(n), 0
    for _ in range(200):
        z = torch.randn(n, generator=g, dtype=F64)
        uniform = torch.rand(n, generator=g, dtype=F64)
        values = {
            "exponential": -3 * (1 - uniform).log(),
            "uniform": 10 * uniform,
            "heavy": 3 * z / (torch.randn(3, n, generator=g, dtype=F64).square().mean(dim=0)).sqrt(),
            "log-normal": (0.5 * z).exp(),
        }[shape]
        alarms += bool((separate_groups(values, -99.0, 0.0)[0]).any())
    assert alarms <= 0.05 * 200


class TestByHand:
    low = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)

    def test_two(self) -> None:
        values = [*self.low, 9.0, 9.1, 9.2]
        assert found(values) == ([False] * 8 + [True] * 3, [False] * 11)

    @pytest.mark.parametrize(("minority", "is_small"), [(0.0, False), (0.27, False), (0.28, True)])
    def test_minority(self, minority: float, is_small: bool) -> None:
        members = [False] * 8 + [True] * 3  # 3 / 11 = 0.2727
        large, small = found([*self.low, 9.0, 9.1, 9.2], minority=minority)
        assert (large, small) == (([False] * 11, members) if is_small else (members, [False] * 11))

    def test_nested(self) -> None:
        values = [*self.low, *(9 + v for v in self.low[:4]), 30.0, 30.1, 30.2]
        large, small = found(values, minority=0.21)  # 3 / 15 = 0.2 are few, 4 / 15 are not
        assert large == [False] * 8 + [True] * 4 + [False] * 3
        assert small == [False] * 12 + [True] * 3

    def test_two_are_no_group(self) -> None:
        assert found([*self.low, 9.0, 9.1]) == ([False] * 10, [False] * 10)
        assert found([0.0, 0.1, *(9 + v for v in self.low)]) == ([False] * 10, [False] * 10)

    def test_the_upper_mean_must_be_above_the_least(self) -> None:
        values = [*self.low, 9.0, 9.1, 9.2]
        assert found(values, least=9.05)[0] == [False] * 8 + [True] * 3
        assert found(values, least=9.11)[0] == [False] * 11
        assert found([v - 20 for v in values])[0] == [False] * 11

    def test_values_in_between(self) -> None:
        values = [*self.low, 9.0, 9.1, 9.2, 9.3, 9.4, 9.5]
        assert found([*values, 4.5, 4.6])[0] == [False] * 8 + [True] * 6 + [False] * 2
        assert found([*values, 4.4, 4.5, 4.6, 4.7])[0][:8] == [False] * 8
        assert not any(found([*values, 3.3, 4.5, 5.4, 6.2])[0])

    def test_ties(self) -> None:
        assert found([0.0] * 10 + [12.0] * 5) == ([False] * 10 + [True] * 5, [False] * 15)
        assert found([7.0] * 30) == ([False] * 30, [False] * 30)

    @pytest.mark.parametrize("n", [0, 1, 2, 5])
    def test_fewer_than_six(self, n: int) -> None:
        values = [0.0, 0.0, 50.0, 50.0, 50.0][:n]
        assert found(values) == ([False] * n, [False] * n)

    def test_order_is_irrelevant(self) -> None:
        values = normal(40, seed=3)
        values[5:17] += 15
        order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
        one, other = separate_groups(values, 2.0, 0.15)[0], separate_groups(values[order], 2.0, 0.15)[0]
        assert one[5:17].all()
        assert int(one.sum()) == 12
        assert torch.equal(other, one[order])
