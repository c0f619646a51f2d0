"""Agreement with other libraries where they follow the paper; `pip install fedsieve[agreement]` runs it.

docs/variants.md lists where they don't, and the cases here that differ hold that page to the truth.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsieve.aggregators.bulyan import Bulyan
from fedsieve.aggregators.geometric_median import weiszfeld
from fedsieve.aggregators.krum import Krum, MultiKrum
from fedsieve.aggregators.median import Median
from fedsieve.aggregators.trimmed_mean import TrimmedMean
from fedsieve.attacks.ipm import IPM
from fedsieve.attacks.lie import LIE
from fedsieve.core.defense import ServerView, Updates
from fedsieve.core.layout import Layout
from fedsieve.core.linalg import centred_gram

CASES = [(7, 1, 5), (12, 2, 30), (20, 4, 200)]  # n, f, d
every_case = pytest.mark.parametrize(("n", "f", "d"), CASES)


@pytest.fixture(scope="module")
def byzfl() -> ModuleType:
    """ByzFL's rules and attacks. The package itself would import torchvision and seaborn, which these don't use."""
    spec = importlib.util.find_spec("byzfl")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("byzfl is not installed")
    package = ModuleType("byzfl")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["byzfl"] = package
    for name in ("aggregators", "attacks"):
        setattr(package, name, importlib.import_module(f"byzfl.{name}"))
    return package


@pytest.fixture(scope="module")
def flower() -> Any:
    """Flower's aggregation functions."""
    return pytest.importorskip("flwr.server.strategy.aggregate", reason="flwr is not installed")


def rows(n: int, d: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(n + d), dtype=torch.float64)


def ours(rule: Callable[..., Any], x: Tensor, f: int) -> Tensor:
    updates = Updates(x, torch.arange(len(x)), Layout.of({"w": x[0]}))
    found: Tensor = rule(updates, ServerView(0, f, torch.Generator(), torch.zeros_like(x[0]))).update
    return found


def as_results(x: Tensor) -> list[tuple[list[Any], int]]:
    """As Flower wants it: a list of layers and a number of samples for each client."""
    return [([row.numpy().copy()], 1) for row in x]


def close(found: Tensor, theirs: Any, tolerance: float = 1e-5) -> None:
    """ByzFL computes in float32."""
    torch.testing.assert_close(found, torch.as_tensor(theirs).double(), rtol=tolerance, atol=tolerance)


class TestByzFL:
    @every_case
    def test_trimmed_mean(self, byzfl: Any, n: int, f: int, d: int) -> None:
        x = rows(n, d)
        close(ours(TrimmedMean(), x, f), byzfl.aggregators.TrMean(f)(x))

    @every_case
    def test_median(self, byzfl: Any, n: int, f: int, d: int) -> None:
        x = rows(n, d)
        close(ours(Median(), x, f), byzfl.aggregators.Median()(x))

    def test_krum_counts_one_neighbour_more(self, byzfl: Any) -> None:
        # n = 5, f = 1: the paper has n - f - 2 = 2 neighbours, ByzFL n - f - 1 = 3
        x = torch.tensor([[0.0], [1.0], [2.0], [7.0], [7.5]], dtype=torch.float64)
        scores = {  # squares to the 2 and the 3 nearest, by hand
            2: [1 + 4, 1 + 1, 1 + 4, 0.25 + 25, 0.25 + 30.25],
            3: [1 + 4 + 49, 1 + 1 + 36, 1 + 4 + 25, 0.25 + 25 + 36, 0.25 + 30.25 + 42.25],
        }
        assert ours(Krum(), x, 1).tolist() == x[int(np.argmin(scores[2]))].tolist() == [1]
        assert byzfl.aggregators.Krum(1)(x).tolist() == x[int(np.argmin(scores[3]))].tolist() == [2]

    @every_case
    def test_krum_with_as_many_neighbours(self, byzfl: Any, n: int, f: int, d: int) -> None:
        x = rows(n, d)
        close(ours(Krum(), x, f), byzfl.aggregators.Krum(f + 1)(x))

    @every_case
    def test_geometric_median(self, byzfl: Any, n: int, f: int, d: int) -> None:
        x = rows(n, d)
        gram = centred_gram(x, torch.ones(n, dtype=torch.bool))
        start = torch.full((n,), 1 / n, dtype=torch.float64)
        found = weiszfeld(gram, start, smoothing=1e-6, iterations=1000, tolerance=1e-14) @ x
        # theirs starts at 0 and has its own smoothing: many iterations bring both to the same point
        close(found, byzfl.aggregators.GeometricMedian(nu=1e-6, T=1000)(x), 1e-4)

    def test_ipm(self, byzfl: Any, doubles: ModuleType) -> None:
        x = rows(8, 20)
        found = IPM(epsilon=0.7).craft(doubles.attack_view(x[:2], x[2:]))
        close(found[0], byzfl.attacks.InnerProductManipulation(0.7)(x))

    def test_lie_has_the_other_sign_and_ddof_1(self, byzfl: Any, doubles: ModuleType) -> None:
        x = rows(8, 20)
        found, theirs = LIE(z=1.5).craft(doubles.attack_view(x[:2], x[2:]))[0], byzfl.attacks.ALittleIsEnough(1.5)(x)
        mean = x.mean(dim=0)
        close(mean - found, (theirs - mean) * (7 / 8) ** 0.5)


class TestFlower:
    @every_case
    def test_median(self, flower: Any, n: int, f: int, d: int) -> None:
        x = rows(n, d)
        np.testing.assert_allclose(ours(Median(), x, f), flower.aggregate_median(as_results(x))[0], atol=1e-12)

    @every_case
    def test_trimmed_mean(self, flower: Any, n: int, f: int, d: int) -> None:
        x = rows(n, d)
        theirs = flower.aggregate_trimmed_avg(as_results(x), (f + 0.5) / n)[0]  # a share, rounded down
        np.testing.assert_allclose(ours(TrimmedMean(), x, f), theirs, atol=1e-12)

    @every_case
    def test_krum(self, flower: Any, n: int, f: int, d: int) -> None:
        x = rows(n, d)
        np.testing.assert_allclose(ours(Krum(), x, f), flower.aggregate_krum(as_results(x), f, 0)[0], atol=1e-12)

    @every_case
    def test_multi_krum(self, flower: Any, n: int, f: int, d: int) -> None:
        x = rows(n, d)
        theirs = flower.aggregate_krum(as_results(x), f, n - f)[0]
        np.testing.assert_allclose(ours(MultiKrum(), x, f), theirs, atol=1e-12)

    def test_multi_krum_weighs_by_what_clients_report(self, flower: Any) -> None:
        x = torch.tensor([[0.0], [1.0], [2.0], [50.0], [60.0]], dtype=torch.float64)
        results = [([row.numpy()], 98 if k == 2 else 1) for k, row in enumerate(x)]
        assert ours(MultiKrum(keep=3), x, 1).tolist() == [1]
        assert flower.aggregate_krum(results, 1, 3)[0].tolist() == [1.97]

    @pytest.mark.parametrize(("n", "f", "d"), [(7, 1, 5), (12, 2, 30), (20, 4, 200)])
    def test_bulyan(self, flower: Any, n: int, f: int, d: int) -> None:
        x = rows(n, d)
        theirs = flower.aggregate_bulyan(as_results(x), f, flower.aggregate_krum, to_keep=0)[0]
        np.testing.assert_allclose(ours(Bulyan(), x, f), theirs, atol=1e-12)
