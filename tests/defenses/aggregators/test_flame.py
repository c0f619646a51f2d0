"""FLAME, against the algorithm as loops; and what it shares with other methods: angles, HDBSCAN, clipping."""

from math import sqrt
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsieve.aggregators.flame import FLAME, flame, majority, mean_distance
from fedsieve.config import registry
from fedsieve.core import clustering
from fedsieve.core.angles import cosine_distances
from fedsieve.core.clipping import clipped_mean
from fedsieve.core.defense import ServerView
from fedsieve.core.errors import ParameterError

VALUES = st.floats(-10, 10, allow_subnormal=False).map(lambda v: round(v, 3))
TIED = st.sampled_from([-1.0, 0.0, 1.0, 2.0])


def drawn(data: st.DataObject, n: int, d: int) -> list[list[float]]:
    values = data.draw(st.sampled_from([VALUES, TIED]))
    return data.draw(st.lists(st.lists(values, min_size=d, max_size=d), min_size=n, max_size=n))


def angle(a: list[float], b: list[float]) -> float:
    lengths = [sqrt(sum(v * v for v in vector)) for vector in (a, b)]
    if not all(lengths):
        return float(any(lengths))
    return max(0.0, 1 - sum(v * w for v, w in zip(a, b, strict=True)) / lengths[0] / lengths[1])


def hangs_together(table: list[list[float]]) -> set[int]:
    """The first group of more than half the points that steps no longer than a growing limit connect."""
    n = len(table)
    for limit in [0.0, *sorted({v for row in table for v in row})]:
        for start in range(n):
            group, new = {start}, {start}
            while new:
                new = {j for i in new for j in range(n) if table[i][j] <= limit} - group
                group |= new
            if len(group) > n / 2:
                return group
    raise AssertionError


def published(updates: list[list[float]], start: list[float], models: bool) -> list[float]:
    """Algorithm 1 without its noise: cluster, median of all distances to the last model, clip, average."""
    n, d = len(updates), len(start)
    seen = [[u + g for u, g in zip(row, start, strict=True)] if models else row for row in updates]
    accepted = hangs_together([[angle(a, b) for b in seen] for a in seen])
    lengths = [sqrt(sum(v * v for v in row)) for row in updates]
    ranked = sorted(lengths)
    bound = (ranked[n // 2] + ranked[(n - 1) // 2]) / 2
    total = [0.0] * d
    for i in accepted:
        gamma = min(1.0, bound / lengths[i]) if lengths[i] else 1.0
        total = [t + gamma * v for t, v in zip(total, updates[i], strict=True)]
    return [t / len(accepted) for t in total]


class TestCosineDistances:
    @given(data=st.data(), n=st.integers(1, 6), d=st.integers(1, 5), shifted=st.booleans())
    @settings(max_examples=60, deadline=None, derandomize=True)
    def test_against_loops(self, data: st.DataObject, n: int, d: int, shifted: bool) -> None:
        rows, start = drawn(data, n, d), drawn(data, 1, d)[0]
        seen = [[v + g for v, g in zip(row, start, strict=True)] if shifted else row for row in rows]
        x = torch.tensor(rows, dtype=torch.float64)
        found = cosine_distances(x, torch.tensor(start, dtype=torch.float64) if shifted else None)
        wanted = torch.tensor([[angle(a, b) for b in seen] for a in seen], dtype=torch.float64)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
        assert torch.equal(found, found.T)

    def test_nearly_parallel_rows(self) -> None:
        # 1 - cos(t) = t^2 / 2 for small t; one minus a float64 cosine would be 0 or 1.1e-16
        t = torch.tensor([0, 1e-9, 3e-9], dtype=torch.float64)
        x = torch.stack([t.cos(), t.sin()], dim=1)
        found = cosine_distances(x)
        torch.testing.assert_close(found[0], t.square() / 2, rtol=1e-6, atol=0)

    @pytest.mark.parametrize("far", [False, True])
    def test_equal_rows_are_at_zero(self, far: bool) -> None:
        row = torch.randn(3001, generator=torch.Generator().manual_seed(0))
        x = torch.cat([row.expand(9, -1), 4 * row.expand(2, -1)] + far * [-row[None]])
        found = cosine_distances(x, torch.zeros_like(row))
        assert not found[:11, :11].any()
        assert not far or torch.allclose(found[11, :11], torch.tensor(2.0, dtype=torch.float64))

    def test_huge_and_zero_rows(self) -> None:
        found = cosine_distances(torch.tensor([[1e30, 0], [0, 1e-30], [0, 0], [0, 0]]))
        assert found.tolist() == [[0, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]


class TestHDBSCAN:
    def test_by_hand(self) -> None:
        points = torch.tensor([0, 1, 2, 30, 31, 32.5, 100], dtype=torch.float64)
        found = clustering.hdbscan((points[:, None] - points).abs(), 2).tolist()
        assert len({found[0], found[3], found[6]}) == 3
        assert found[6] == -1
        assert found[0] == found[1]
        assert found[3] == found[4]

    @pytest.mark.parametrize("n", [1, 2, 3, 11, 12])
    @pytest.mark.parametrize("size", [2, 7])
    def test_coinciding_points_are_one_cluster(self, n: int, size: int) -> None:
        assert clustering.hdbscan(torch.zeros(n, n, dtype=torch.float64), size).tolist() == [0] * n

    def test_two_groups(self) -> None:
        far = (torch.arange(11) < 3)[:, None] != (torch.arange(11) < 3)
        before = far.double()
        found = clustering.hdbscan(before, 2).tolist()
        assert found[:3] == 3 * [found[0]]
        assert found[3:] == 8 * [found[3]]
        assert found[0] != found[3]
        assert torch.equal(before, far.double())


class TestClippedMean:
    def test_by_hand(self) -> None:
        # lengths 5, 50, 0, 15: median 10
        x = torch.tensor([[3.0, 4], [30, 40], [0, 0], [0, 15]])
        mean, bound = clipped_mean(x, rows=torch.tensor([True, True, False, False]))
        assert bound == 10
        torch.testing.assert_close(mean, torch.tensor([4.5, 6]))

    def test_no_row_chosen(self) -> None:
        mean, bound = clipped_mean(torch.ones(3, 4), rows=torch.zeros(3, dtype=torch.bool))
        assert mean.tolist() == [0] * 4
        assert bound == 2

    def test_huge_row(self) -> None:
        x = torch.tensor([[1e30, 1e30], [0, 1], [0, 1], [0, 0]])
        mean, _ = clipped_mean(x, rows=torch.ones(4, dtype=torch.bool))
        torch.testing.assert_close(mean, torch.tensor([0.5**0.5, 0.5**0.5 + 2]) / 4)


@given(data=st.data(), n=st.integers(1, 9), d=st.integers(1, 4))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_majority_is_what_hangs_together_first(data: st.DataObject, n: int, d: int) -> None:
    x = torch.tensor(drawn(data, n, d), dtype=torch.float64)
    distances = cosine_distances(x).round(decimals=9)
    found = majority(distances)
    assert set(found.nonzero().flatten().tolist()) == hangs_together(distances.tolist())
    assert int(found.sum()) > n / 2


@given(seed=st.integers(0, 2**32), n=st.integers(1, 9), d=st.integers(1, 4), models=st.booleans())
@settings(max_examples=80, deadline=None, derandomize=True)
def test_against_the_paper(make: SimpleNamespace, seed: int, n: int, d: int, models: bool) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g, dtype=torch.float64) * torch.rand(n, 1, generator=g, dtype=torch.float64)
    start = torch.randn(d, generator=g, dtype=torch.float64)
    aggregator = FLAME(0.0, "models" if models else "updates")
    found = aggregator(make.updates(x), ServerView(0, 0, g, start))
    wanted = torch.tensor(published(x.tolist(), start.tolist(), models), dtype=torch.float64)
    torch.testing.assert_close(found.update, wanted, rtol=1e-9, atol=1e-9)
    assert torch.equal(flame(x, start if models else None, noise=0.0), found.update)


def run(
    make: SimpleNamespace, x: Any, aggregator: FLAME | None = None, start: Tensor | None = None, seed: int = 0
) -> Any:
    u = make.updates(x)
    start = torch.zeros_like(u.matrix[0]) if start is None else start
    return (aggregator or FLAME(0.0))(u, ServerView(0, 0, torch.Generator().manual_seed(seed), start))


def test_by_hand(make: SimpleNamespace) -> None:
    # angles of 0, 1, 3, 50 and 52 degrees: 0, 1 and 3 are the first three to hang together; lengths 1, 2, 9, 4, 8
    degrees = torch.tensor([0.0, 1, 3, 50, 52], dtype=torch.float64).deg2rad()
    lengths = torch.tensor([1.0, 2, 9, 4, 8], dtype=torch.float64)
    units = torch.stack([degrees.cos(), degrees.sin()], dim=1)
    found = run(make, lengths[:, None] * units)
    assert found.accepted.tolist() == [True, True, True, False, False]
    torch.testing.assert_close(found.update, (units[0] + 2 * units[1] + 4 * units[2]) / 3)
    torch.testing.assert_close(found.weights, found.accepted.double() / 3)
    wanted = ((1 - (degrees[0] - degrees[1]).cos()) + (1 - (degrees[1] - degrees[2]).cos())) / 2
    torch.testing.assert_close(found.scores[1], wanted)
    assert found.scores[3:].min() > found.scores[:3].max()


def test_some_benign_clients_are_rejected_without_any_attack(make: SimpleNamespace) -> None:
    fed = make.federation(20, 0, 1)
    kept = int(run(make, fed.updates.matrix).accepted.sum())
    assert 11 <= kept < 20


def test_angles_of_models_are_not_those_of_updates(make: SimpleNamespace) -> None:
    start = torch.tensor([100.0, 0])
    x = torch.tensor([[0.0, 1], [0, 1.1], [0, 1.2], [0, -9], [30, 1.4]])
    # the last model lies between the first two, closer than the third; its update is across theirs
    assert run(make, x, FLAME(0.0, "models"), start).accepted.tolist() == [True, True, False, False, True]
    assert run(make, x, FLAME(0.0, "updates"), start).accepted.tolist() == [True, True, True, False, False]


def test_reversed_attackers_are_out_and_scaled_ones_clipped(make: SimpleNamespace) -> None:
    fed = make.federation(11, 3, -1000)
    assert not (run(make, fed.updates.matrix).accepted & fed.malicious).any()
    fed = make.federation(11, 3, 1000)
    found = run(make, fed.updates.matrix)
    assert found.update.norm() < 1.1 * fed.benign_mean.norm()


class TestNoise:
    def test_of_lambda_times_the_median_length(self, make: SimpleNamespace) -> None:
        x = torch.ones(5, 40_000) * torch.tensor([1.0, 2, 3, 4, 5])[:, None] / 200  # lengths 1 to 5
        plain, noisy = (run(make, x, FLAME(noise)).update for noise in (0.0, 0.01))
        assert float((noisy - plain).std()) == pytest.approx(0.03, rel=0.03)
        assert abs(float((noisy - plain).mean())) < 5 * 0.03 / 200

    def test_follows_the_generator(self, make: SimpleNamespace) -> None:
        x = make.federation(5, 0, 1).updates.matrix
        one, same, other = (run(make, x, FLAME(), seed=seed).update for seed in (0, 0, 1))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)
        assert torch.equal(flame(x, torch.zeros_like(x[0]), generator=torch.Generator().manual_seed(0)), one)

    def test_default_is_the_published_value(self) -> None:
        assert FLAME().noise == 0.001
        assert FLAME().angles == "models"


class TestEdges:
    @pytest.mark.parametrize("n", [1, 2])
    def test_up_to_two_clients_are_accepted(self, make: SimpleNamespace, n: int) -> None:
        found = run(make, torch.tensor([[1.0, 0], [-1, 0]])[:n])
        assert found.accepted.tolist() == [True] * n
        assert found.weights.tolist() == [1 / n] * n

    def test_a_majority_of_zeros(self, make: SimpleNamespace) -> None:
        found = run(make, torch.tensor([[0.0, 0], [1, 0], [0, 0], [0, 0], [0, 1]]), FLAME(1.0))
        assert found.accepted.tolist() == [True, False, True, True, False]
        assert found.scores.tolist() == [0, 1, 0, 0, 1]
        assert not found.update.any()

    def test_equal_rows_and_equal_attackers(self, make: SimpleNamespace) -> None:
        row = torch.randn(1000, generator=torch.Generator().manual_seed(0))
        x = torch.cat([-row.expand(3, -1), row.expand(8, -1)])
        found = run(make, x)
        assert found.accepted.tolist() == [False] * 3 + [True] * 8
        torch.testing.assert_close(found.update, row)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_huge_row(self, make: SimpleNamespace, dtype: torch.dtype) -> None:
        fed = make.federation(11, 1, -1e30, dtype=dtype)
        found = run(make, fed.updates.matrix, FLAME())
        assert not found.accepted[0]
        assert found.update.isfinite().all()
        assert found.scores.isfinite().all()
        assert found.update.dtype == found.scores.dtype == dtype

    def test_mean_distance_to_no_other_point(self) -> None:
        distances = torch.tensor([[0.0, 1], [1, 0]], dtype=torch.float64)
        assert mean_distance(distances, torch.tensor([True, False])).tolist() == [0, 1]


class TestParameters:
    @pytest.mark.parametrize("noise", [-0.1, float("nan"), float("inf")])
    def test_noise(self, noise: float) -> None:
        with pytest.raises(ParameterError, match=f"^flame: noise must be finite and at least 0, got {noise}$"):
            FLAME(noise=noise)
        with pytest.raises(ParameterError, match=f"^flame: noise must be finite and at least 0, got {noise}$"):
            flame(torch.zeros(3, 2), noise=noise)

    def test_angles(self) -> None:
        with pytest.raises(ParameterError, match=r"'models' or 'updates'"):
            registry.build_defense("flame", {"angles": "layers"})


def test_the_noise_is_the_generators_in_units_of_the_bound() -> None:
    x = torch.tensor([[3.0, 4.0], [6.0, 8.0], [30.0, 40.0]])
    found = flame(x, noise=0.01, generator=torch.Generator().manual_seed(5))
    drawn = torch.randn(2, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(found, flame(x, noise=0.0) + 0.01 * 10 * drawn)


def test_function_needs_a_generator_for_its_noise() -> None:
    with pytest.raises(ParameterError) as error:
        flame(torch.ones(3, 2))
    assert str(error.value) == "flame: noise=0.001 needs a generator; hand one in, or set noise=0.0"
