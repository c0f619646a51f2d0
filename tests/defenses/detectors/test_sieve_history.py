"""The client history against lists, the error rate of its confidence bound, and outlying groups."""

import math
from statistics import fmean, pvariance, stdev

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsieve.detectors.sieve.history import average, estimates, outlying_group, remember

MEMORY = 0.8
F64 = torch.float64

rounds_of = st.lists(
    st.dictionaries(st.integers(0, 5), st.floats(-3, 3), min_size=1, max_size=6), min_size=1, max_size=8
)


def history_of(rounds: list[dict[int, float]]) -> dict[str, Tensor]:
    history = None
    for seen in rounds:
        ids, values = torch.tensor(list(seen)), torch.tensor(list(seen.values()), dtype=F64)
        history = remember(history, ids, torch.stack([values, 2 * values], dim=1), MEMORY, 10)
    assert history is not None
    return history


@settings(max_examples=60, deadline=None, derandomize=True)
@given(rounds=rounds_of)
def test_history_against_lists(rounds: list[dict[int, float]]) -> None:
    history = history_of(rounds)
    known = sorted({i for seen in rounds for i in seen})
    assert history["ids"].tolist() == known
    prior = torch.tensor([0.25, 1.0], dtype=F64)
    mean, error = estimates(history, torch.tensor(known), prior)
    for row, i in enumerate(known):
        values = [seen[i] for seen in rounds if i in seen]
        weights = [MEMORY ** (len(values) - 1 - k) for k in range(len(values))]
        total = sum(weights)
        expected = sum(w * v for w, v in zip(weights, values, strict=True)) / total
        count = total**2 / sum(w * w for w in weights)
        variance = sum(w * (v - expected) ** 2 for w, v in zip(weights, values, strict=True)) / total
        spread = (count * variance + 4 * 0.25) / (count - 1 + 4)
        assert float(mean[row, 0]) == pytest.approx(expected, abs=1e-9)
        assert float(mean[row, 1]) == pytest.approx(2 * expected, abs=1e-9)
        assert float(error[row, 0]) == pytest.approx(math.sqrt(spread / count), rel=1e-6)


def test_absent_clients_keep_their_measurements() -> None:
    history = history_of([{1: 2.0, 3: -1.0}, {3: 0.5}])
    mean, _ = estimates(history, torch.tensor([1]), torch.ones(2, dtype=F64))
    assert mean.tolist() == [[2.0, 4.0]]


def test_clients_that_do_not_come_back_are_forgotten() -> None:
    rounds = [{1: 2.0, 3: -1.0}, *[{3: 0.5}] * 3]
    values = torch.tensor([[4.0, 8.0]], dtype=F64)
    for forget_after, expected in ((4, (MEMORY * 2 + 4) / (MEMORY + 1)), (3, 4.0)):  # away for three rounds
        history = remember(history_of(rounds), torch.tensor([1]), values, MEMORY, forget_after)
        mean, _ = estimates(history, torch.tensor([1]), torch.ones(2, dtype=F64))
        assert mean[0].tolist() == pytest.approx([expected, 2 * expected])
        assert dict(zip(history["ids"].tolist(), history["absent"].tolist(), strict=True)) == {1: 0, 3: 1}


def test_inputs_are_unchanged() -> None:
    history = history_of([{1: 2.0, 3: -1.0}])
    before = {name: tensor.clone() for name, tensor in history.items()}
    remember(history, torch.tensor([1]), torch.ones(1, 2, dtype=F64), MEMORY, 10)
    assert all(torch.equal(history[name], before[name]) for name in history)


@pytest.mark.parametrize("spread", [0.05, 0.2])
def test_error_rate(spread: float) -> None:
    # a client exactly at the limit, 0, with no more noise than the prior has: 1 % of decisions at 2.33 deviations and a
    # little more, since the deviation is an estimate
    g = torch.Generator().manual_seed(0)
    n, wrong, decisions = 2000, 0, 0
    history, ids = None, torch.arange(n)
    for _ in range(30):
        values = spread * torch.randn(n, 1, generator=g, dtype=F64)
        history = remember(history, ids, values, 0.95, 10)
        mean, error = estimates(history, ids, torch.tensor([0.2**2], dtype=F64))
        wrong, decisions = wrong + int((mean - 2.326 * error > 0).sum()), decisions + n
    assert wrong / decisions < 0.015


class TestOutlyingGroup:
    errors = torch.full((20,), 0.01, dtype=F64)

    def groups(self, low: float, high: float, m: int, noise: float = 0.02, n: int = 20) -> Tensor:
        g = torch.Generator().manual_seed(m)
        values = torch.full((n,), low, dtype=F64)
        values[:m] = high
        return values + noise * torch.randn(n, generator=g, dtype=F64)

    @pytest.mark.parametrize("m", [3, 10, 16])
    def test_a_group_beyond_the_limit(self, m: int) -> None:
        found = outlying_group(self.groups(-0.5, 0.5, m), self.errors, 0.2, 2.3)
        assert found.tolist() == [True] * m + [False] * (20 - m)

    def test_a_group_within_the_limit(self) -> None:
        assert not outlying_group(self.groups(-0.5, 0.1, 5), self.errors, 0.2, 2.3).any()

    @pytest.mark.parametrize("m", [1, 2, 18, 19])
    def test_a_group_has_three_members(self, m: int) -> None:
        assert not outlying_group(self.groups(-0.5, 0.5, m), self.errors, 0.2, 2.3).any()

    def test_large_errors_reject_no_group(self) -> None:
        assert not outlying_group(self.groups(-0.5, 0.5, 5), 50 * self.errors, 0.2, 2.3).any()

    @pytest.mark.parametrize("n", [8, 12, 20, 30, 50, 100, 200])
    def test_one_distribution_is_seldom_two_groups(self, n: int) -> None:
        g = torch.Generator().manual_seed(n)
        errors, draws = torch.full((n,), 1e-6, dtype=F64), 400
        normal = sum(outlying_group(v, errors, -10.0, 2.3).any() for v in torch.randn(draws, n, generator=g, dtype=F64))
        uniform = sum(outlying_group(v, errors, -10.0, 2.3).any() for v in torch.rand(draws, n, generator=g, dtype=F64))
        assert normal <= 0.01 * draws
        assert uniform <= 0.06 * draws

    def test_the_limit_is_exact(self) -> None:
        for m in (4, 9, 16):
            values = self.groups(-0.5, 0.5, m)
            errors = torch.linspace(0.01, 0.3, 20, dtype=F64)
            high, own = values[:m].tolist(), errors[:m].tolist()
            error = stdev(high) / m**0.5 + fmean(e * e for e in own) ** 0.5 / m**0.5
            bound = fmean(high) - 2.3 * error
            assert outlying_group(values, errors, bound - 1e-9, 2.3).tolist() == [True] * m + [False] * (20 - m)
            assert not outlying_group(values, errors, bound + 1e-9, 2.3).any()

    @pytest.mark.parametrize(("m", "n"), [(3, 8), (5, 12), (10, 20), (4, 20)])
    def test_how_far_apart_two_groups_are(self, m: int, n: int) -> None:
        values = self.groups(0.0, 0.0, m, n=n)
        high, low = values[:m], values[m:]
        within = ((pvariance(high.tolist()) + pvariance(low.tolist())) / 2) ** 0.5
        least = (3.6 + 40 / n) * within
        gap = float(high.mean() - low.mean())
        for factor, found in ((1 + 1e-6, True), (1 - 1e-6, False)):
            moved = torch.cat([high - gap + factor * least, low])
            tiny = torch.full((n,), 1e-9, dtype=F64)
            assert outlying_group(moved, tiny, -10.0, 2.3).tolist() == [found and k < m for k in range(n)]

    def test_equal_means(self) -> None:
        assert not outlying_group(torch.ones(9, dtype=F64), torch.zeros(9, dtype=F64), 0.0, 2.3).any()


def test_average() -> None:
    one, two = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0])
    first = average(None, {"a": one}, MEMORY)
    second = average(first, {"a": two}, MEMORY)
    torch.testing.assert_close(second["a"] / second["rounds"], (MEMORY * one + two) / (MEMORY + 1))
    assert first["a"] is not one
    assert torch.equal(one, torch.tensor([1.0, 2.0]))
