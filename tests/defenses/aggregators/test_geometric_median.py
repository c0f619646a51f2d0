"""RFA's geometric median, against the algorithm on vectors, against another minimiser, and against known points."""

from collections.abc import Callable
from math import sqrt
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from fedsieve.aggregators.geometric_median import GeometricMedian, geometric_median
from fedsieve.core.defense import Aggregate
from fedsieve.core.errors import ParameterError
from fedsieve.core.linalg import weighted_sum

Solve = Callable[..., Aggregate]


@pytest.fixture(scope="module")
def solve(make: SimpleNamespace) -> Solve:
    def solved(rows: object, **settings: float) -> Aggregate:
        u = make.updates(rows)
        return GeometricMedian(**settings)(u, make.view(u))  # type: ignore[arg-type]

    return solved


def length(v: list[float]) -> float:
    return sqrt(sum(a * a for a in v))


def published(rows: list[list[float]], nu: float, iterations: int) -> tuple[list[float], list[float]]:
    """Algorithm 2 with alpha_i = 1 / n, from the mean of the shortest n // 2 + 1 rows."""
    n = len(rows)
    lengths = [length(row) for row in rows]
    start = [row for row, own in zip(rows, lengths, strict=True) if own <= sorted(lengths)[n // 2]]
    z = [sum(column) / len(start) for column in zip(*start, strict=True)]
    betas = [1.0]
    for _ in range(iterations):
        betas = [(1 / n) / max(nu, length([a - b for a, b in zip(z, row, strict=True)])) for row in rows]
        z = [
            sum(beta * v for beta, v in zip(betas, column, strict=True)) / sum(betas)
            for column in zip(*rows, strict=True)
        ]
    return z, [beta / sum(betas) for beta in betas]


@st.composite
def tables(draw: st.DrawFn) -> list[list[float]]:
    d = draw(st.integers(1, 4))
    value = st.integers(-40, 40).map(lambda k: k / 8)
    return draw(st.lists(st.lists(value, min_size=d, max_size=d), min_size=1, max_size=8))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(rows=tables(), iterations=st.integers(1, 6))
def test_as_published(solve: Solve, rows: list[list[float]], iterations: int) -> None:
    # ν of 0.01 is coarse: rounding moves a distance of 0 by 1e-8, which must not count
    result = solve(torch.tensor(rows, dtype=torch.float64), smoothing=0.01, iterations=iterations, tolerance=0.0)
    z, weights = published(rows, 0.01, iterations)
    torch.testing.assert_close(result.update.tolist(), z, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(result.weights.tolist(), weights, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n", [5, 8])
@pytest.mark.parametrize("seed", range(4))
def test_is_the_minimum(solve: Solve, n: int, seed: int) -> None:
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x[0] *= 10
    points = x.numpy()

    def total(z: np.ndarray) -> float:
        return float(np.linalg.norm(points - z, axis=1).sum())

    best = minimize(total, points.mean(axis=0), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13})
    found = solve(x, iterations=1000).update.numpy()
    assert total(found) == pytest.approx(best.fun, abs=1e-6)  # smoothing may cost half of ν, here where a row is best
    np.testing.assert_allclose(found, best.x, atol=1e-4)


class TestKnownPoints:
    def test_fermat_point(self, solve: Solve) -> None:
        # the legs' corner of a right isosceles triangle sees it at 45 degrees; the coordinate-wise median is (0, 0)
        x = torch.tensor([[0, 0], [1, 0], [0, 1]], dtype=torch.float64)
        result = solve(x)
        assert result.update.tolist() == pytest.approx([(3 - sqrt(3)) / 6] * 2, abs=1e-9)
        # the weights are inverse to the distances: 0.2989 to the corner, 0.8165 to the others
        a, b = sqrt(2) * (3 - sqrt(3)) / 6, sqrt(2 / 3)
        assert result.weights.tolist() == pytest.approx([b / (b + 2 * a), a / (b + 2 * a), a / (b + 2 * a)], abs=1e-9)
        assert (result.accepted, result.scores, result.state) == (None, None, None)

    def test_square(self, solve: Solve) -> None:
        x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
        assert solve(x).update.tolist() == pytest.approx([0.5, 0.5], abs=1e-6)

    def test_wide_angle(self, solve: Solve) -> None:
        x = torch.tensor([[-5, 1], [0, 0], [4, 1]], dtype=torch.float64)
        assert solve(x).update.tolist() == pytest.approx([0, 0], abs=1e-5)

    def test_on_a_line_it_is_the_median(self, solve: Solve) -> None:
        x = torch.tensor([[0.0], [1.0], [3.0], [9.0], [50.0]], dtype=torch.float64)
        assert solve(x).update.item() == pytest.approx(3, abs=1e-4)

    def test_two(self, solve: Solve) -> None:
        result = solve([[1.0, 0.0], [3.0, 0.5]])
        assert result.update.tolist() == [2, 0.25]  # every point between has the same sum
        assert result.weights.tolist() == [0.5, 0.5]

    def test_one(self, solve: Solve) -> None:
        result = solve([[1.0, -3.0]])
        assert result.update.tolist() == [1, -3]
        assert result.weights.tolist() == [1]

    def test_less_than_the_smoothing_apart_is_the_mean(self, solve: Solve) -> None:
        x = 1e-3 * torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        torch.testing.assert_close(solve(x, smoothing=1.0).update, x.mean(dim=0))


class TestIterations:
    def test_leaves_a_start_on_one_of_the_points(self, solve: Solve) -> None:
        # the shorter majority are three equal rows and one: the start is near a point that is not the median
        x = torch.cat([torch.zeros(3, 2), 10 + torch.randn(6, 2, generator=torch.Generator().manual_seed(0))]).double()
        assert solve(x).update.min() > 7

    def test_stops_when_settled(self, solve: Solve) -> None:
        x = torch.randn(9, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        settled = solve(x)
        assert torch.equal(solve(x, iterations=100_000_000).update, settled.update)
        rough = solve(x, tolerance=0.1)
        assert not torch.equal(rough.update, settled.update)
        torch.testing.assert_close(rough.update, settled.update, rtol=0, atol=0.05)

    def test_three_come_close(self, solve: Solve) -> None:
        # the paper's budget
        x = torch.randn(20, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        few, many = solve(x, iterations=3).update, solve(x).update
        assert (few - many).norm() < 0.01 * (x.mean(dim=0) - x[0]).norm()


class TestHugeRows:
    def benign(self, dtype: torch.dtype) -> Tensor:
        return torch.randn(9, 500, generator=torch.Generator().manual_seed(3), dtype=dtype) + 0.5

    def reference(self, benign: Tensor, directions: Tensor) -> Tensor:
        """The minimum with points at infinity in these directions: each pulls with force 1."""
        z = benign.double().mean(dim=0)
        for _ in range(500):
            pulls = 1 / (benign.double() - z).norm(dim=1)
            z = (pulls @ benign.double() + directions.double().sum(dim=0)) / pulls.sum()
        return z

    @pytest.mark.parametrize("m", [1, 4])
    @pytest.mark.parametrize(
        ("huge", "dtype"),
        [
            (1e6, torch.float32),
            (1e6, torch.float64),
            (1e15, torch.float32),
            (1e30, torch.float32),
            (1e100, torch.float64),
        ],
    )
    def test_move_the_median_by_a_unit_force_each(self, solve: Solve, m: int, huge: float, dtype: torch.dtype) -> None:
        benign = self.benign(dtype)
        direction = torch.zeros(m, 500, dtype=dtype)
        direction[:, 7] = 1
        result = solve(torch.cat([huge * direction, benign]))
        torch.testing.assert_close(result.update.double(), self.reference(benign, direction), rtol=1e-3, atol=1e-3)
        assert result.weights.isfinite().all()
        assert result.weights[:m].max() < 1e-3

    def test_a_row_whose_square_overflows_float64_has_no_weight(self, solve: Solve) -> None:
        benign = self.benign(torch.float64)
        result = solve(torch.cat([torch.full((2, 500), 1e200, dtype=torch.float64), benign]))
        torch.testing.assert_close(result.update, self.reference(benign, benign[:0]), rtol=1e-6, atol=1e-6)
        assert result.weights[:2].tolist() == [0, 0]

    def test_a_tiny_weight_times_a_huge_row(self) -> None:
        x = torch.tensor([[3e38], [1.0], [2.0]])
        weights = torch.tensor([1e-38, 0.5, 0.5], dtype=torch.float64)
        assert weighted_sum(x, weights).item() == pytest.approx(4.5)


def test_an_offset_of_all_rows_moves_the_result_by_it(solve: Solve) -> None:
    x = torch.randn(9, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(solve(x + 1e6).update, solve(x).update + 1e6, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"smoothing": 0.0}, "smoothing must be positive and finite, got 0.0"),
        ({"smoothing": float("inf")}, "smoothing must be positive and finite, got inf"),
        ({"tolerance": -1.0}, "tolerance must be finite and not negative, got -1.0"),
        ({"tolerance": float("nan")}, "tolerance must be finite and not negative, got nan"),
    ],
)
def test_parameters(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ParameterError) as error:
        GeometricMedian(**settings)  # type: ignore[arg-type]
    assert str(error.value) == f"geometric-median: {message}"
    with pytest.raises(ParameterError) as other:
        geometric_median(torch.zeros(3, 2), **settings)  # type: ignore[arg-type]
    assert str(other.value) == str(error.value)


def test_function_is_the_class_on_a_matrix_of_parameters(solve: Solve) -> None:
    x = torch.randn(9, 20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(geometric_median(x), solve(x).update)
    assert torch.equal(geometric_median(x, 3, 0.01, 0.0), solve(x, iterations=3, smoothing=0.01, tolerance=0.0).update)
