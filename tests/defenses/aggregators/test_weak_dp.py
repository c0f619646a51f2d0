"""Weak differential privacy: the clipped mean, and the distribution of the noise."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsieve.aggregators.chain import Chain
from fedsieve.aggregators.mean import Mean
from fedsieve.aggregators.weak_dp import WeakDP, weak_dp
from fedsieve.core.errors import ParameterError
from fedsieve.preaggregators.norm_clipping import NormClipping

VALUES = st.floats(-100, 100).map(lambda v: round(v, 3))


def published(rows: list[list[float]], bound: float) -> list[float]:
    """Sum of u / max(1, |u| / bound), over n; the noise comes on top."""
    total = [0.0] * len(rows[0])
    for row in rows:
        length = math.sqrt(sum(value * value for value in row))
        for j, value in enumerate(row):
            total[j] += value / max(1.0, length / bound)
    return [value / len(rows) for value in total]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 4).flatmap(
        lambda d: st.lists(st.lists(VALUES, min_size=d, max_size=d), min_size=1, max_size=7)
    ),
    bound=st.floats(0.01, 200),
)
def test_as_published(make: SimpleNamespace, rows: list[list[float]], bound: float) -> None:
    u = make.updates(torch.tensor(rows, dtype=torch.float64))
    result = WeakDP(max_norm=bound, noise=0.0)(u, make.view(u))
    torch.testing.assert_close(result.update.tolist(), published(rows, bound), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(result.weights.tolist(), [1 / len(rows)] * len(rows))
    assert (result.accepted, result.scores, result.state) == (None, None, None)
    assert torch.equal(weak_dp(u.matrix, bound, noise=0.0), result.update)


def test_without_noise_is_clipping_and_the_mean(make: SimpleNamespace) -> None:
    fed = make.federation(11, 3, -1000)
    clipped = Chain((NormClipping(),), Mean())(fed.updates, make.view(fed.updates))
    for aggregator in (WeakDP(noise=0.0), WeakDP(sigma=0.0)):
        found = aggregator(fed.updates, make.view(fed.updates))
        assert torch.equal(found.update, clipped.update)
        assert torch.equal(found.weights, clipped.weights)


class TestNoise:
    def noise(self, make: SimpleNamespace, aggregator: WeakDP, n: int = 10, seed: int = 0) -> torch.Tensor:
        """Of an aggregate of n rows of length 5 in the first coordinate, whose mean is known."""
        x = torch.zeros(n, 40_000)
        x[:, 0] = 5.0
        u = make.updates(x)
        update: torch.Tensor = aggregator(u, make.view(u, seed=seed)).update
        return update - x[0]

    @pytest.mark.parametrize(
        ("aggregator", "deviation"),
        [
            (WeakDP(), 0.05 * 5 / 10),
            (WeakDP(noise=2.0), 2 * 5 / 10),
            (WeakDP(max_norm=20.0), 0.05 * 20 / 10),
            (WeakDP(sigma=0.025), 0.025),
            (WeakDP(sigma=0.025, max_norm=20.0), 0.025),
        ],
    )
    def test_is_gaussian_of_that_size(self, make: SimpleNamespace, aggregator: WeakDP, deviation: float) -> None:
        scaled = self.noise(make, aggregator) / deviation
        # five standard errors of 40,000 draws
        assert scaled.mean().item() == pytest.approx(0, abs=5 / 200)
        assert scaled.std().item() == pytest.approx(1, abs=5 / (200 * math.sqrt(2)))
        assert (scaled.abs() < 1).double().mean().item() == pytest.approx(0.6827, abs=5 * 0.4654 / 200)

    def test_comes_from_the_generator_of_the_view(self, make: SimpleNamespace) -> None:
        assert torch.equal(self.noise(make, WeakDP()), self.noise(make, WeakDP()))
        assert not torch.equal(self.noise(make, WeakDP()), self.noise(make, WeakDP(), seed=1))

    def test_shrinks_with_the_number_of_clients(self, make: SimpleNamespace) -> None:
        few, many = self.noise(make, WeakDP(), n=5), self.noise(make, WeakDP(), n=50)
        torch.testing.assert_close(few, 10 * many, rtol=1e-3, atol=1e-4)

    def test_is_0_for_rows_of_zeros(self, make: SimpleNamespace) -> None:
        u = make.updates(torch.zeros(3, 5))
        assert not WeakDP()(u, make.view(u)).update.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_huge_client(make: SimpleNamespace, dtype: torch.dtype) -> None:
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-3e38, 3e38]], dtype=dtype)
    u = make.updates(x)
    result = WeakDP(noise=0.0)(u, make.view(u))
    expected = [(2 - math.sqrt(0.5)) / 3, math.sqrt(0.5) / 3]
    torch.testing.assert_close(result.update, torch.tensor(expected, dtype=dtype))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"max_norm": 0.0}, "weak-dp: max_norm must be finite and positive, got 0.0"),
        ({"max_norm": math.inf}, "weak-dp: max_norm must be finite and positive, got inf"),
        ({"noise": -1.0}, "weak-dp: noise must be finite and at least 0, got -1.0"),
        ({"sigma": -0.5}, "weak-dp: sigma must be finite and at least 0, got -0.5"),
        ({"sigma": math.nan}, "weak-dp: sigma must be finite and at least 0, got nan"),
        ({"noise": 0.1, "sigma": 0.5}, "weak-dp: noise=0.1 has no effect with sigma=0.5; give one of the two"),
        ({"noise": 0.05, "sigma": 0.0}, "weak-dp: noise=0.05 has no effect with sigma=0.0; give one of the two"),
    ],
)
def test_parameters(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError) as error:
        WeakDP(**parameters)
    assert str(error.value) == message
    with pytest.raises(ParameterError) as other:
        weak_dp(torch.ones(3, 2), **parameters)
    assert str(other.value) == message


class TestFunction:
    @pytest.mark.parametrize("parameters", [{}, {"noise": 2.0}, {"sigma": 0.1}, {"max_norm": 0.5}])
    def test_is_the_class_on_a_matrix_of_parameters(self, make: SimpleNamespace, parameters: dict[str, float]) -> None:
        u = make.updates(torch.randn(5, 30, generator=torch.Generator().manual_seed(0)))
        found = weak_dp(u.matrix, **parameters, generator=torch.Generator().manual_seed(3))
        assert torch.equal(found, WeakDP(**parameters)(u, make.view(u, seed=3)).update)

    @pytest.mark.parametrize("parameters", [{}, {"noise": 0.1}, {"sigma": 0.1}])
    def test_needs_a_generator_for_its_noise(self, parameters: dict[str, float]) -> None:
        with pytest.raises(ParameterError) as error:
            weak_dp(torch.ones(3, 2), **parameters)
        assert str(error.value) == "weak-dp: the noise needs a generator; hand one in, or set noise=0.0"

    @pytest.mark.parametrize("parameters", [{"noise": 0.0}, {"sigma": 0.0}])
    def test_without_noise_it_needs_none(self, parameters: dict[str, float]) -> None:
        assert weak_dp(torch.ones(3, 2), **parameters).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("more", "deviation"), [({"noise": 0.3}, 0.3 * 10 / 3), ({}, 0.05 * 10 / 3), ({"sigma": 0.2}, 0.2)]
)
def test_the_noise_is_the_generators(more: dict[str, float], deviation: float) -> None:
    x = torch.tensor([[3.0, 4.0], [6.0, 8.0], [30.0, 40.0]])  # the median length is 10
    found = weak_dp(x, generator=torch.Generator().manual_seed(5), **more)
    drawn = torch.randn(2, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(found, weak_dp(x, noise=0.0) + deviation * drawn)
