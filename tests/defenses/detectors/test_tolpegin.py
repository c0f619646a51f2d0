"""Tolpegin's detector: principal components against scikit-learn's, two-means against every split, decisions."""

from itertools import product
from math import sqrt
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from fedsieve.aggregators.chain import Chain
from fedsieve.aggregators.mean import Mean
from fedsieve.core import linalg
from fedsieve.core.clustering import gram_components
from fedsieve.core.defense import Detection, Updates
from fedsieve.core.errors import ParameterError
from fedsieve.core.layout import Layout
from fedsieve.detectors.tolpegin import Tolpegin, output_rows, standardised_gram, tolpegin, two_means


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def published_gram(rows: list[list[float]]) -> list[list[float]]:
    """Inner products of the rows, every column standardised by the standard deviation of all n values."""
    n, columns = len(rows), []
    for column in zip(*rows, strict=True):
        mean = sum(column) / n
        deviation = sqrt(sum((v - mean) ** 2 for v in column) / n)
        columns.append([(v - mean) / deviation if min(column) < max(column) else 0.0 for v in column])
    return [[sum(column[i] * column[j] for column in columns) for j in range(n)] for i in range(n)]


class TestPoints:
    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(
        rows=st.integers(1, 5).flatmap(
            lambda p: st.lists(st.lists(st.integers(-5, 5).map(float), min_size=p, max_size=p), min_size=1, max_size=7)
        )
    )
    def test_gram_as_published(self, rows: list[list[float]]) -> None:
        found = standardised_gram(torch.tensor(rows, dtype=torch.float64))
        torch.testing.assert_close(found.tolist(), published_gram(rows), rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize(("n", "p"), [(20, 110), (50, 7), (12, 1)])
    def test_against_scikit_learn(self, n: int, p: int) -> None:
        x = normal(n, p) * 10.0 ** normal(p, seed=1) + normal(p, seed=2)
        x[: n // 4] += 2 * x.std(dim=0)
        expected = PCA(min(2, p), svd_solver="full").fit_transform(StandardScaler().fit_transform(x.numpy()))
        found = gram_components(standardised_gram(x), 2)
        np.testing.assert_allclose(np.abs(found[:, : expected.shape[1]]), np.abs(expected), rtol=1e-8, atol=1e-8)
        assert not found[:, expected.shape[1] :].any()

    @pytest.mark.parametrize("value", [0.0, 0.1, -1e30, 1e-30])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_column_without_variance(self, value: float, dtype: torch.dtype) -> None:
        # a mean of equal values may be off by rounding, which must not be scaled to variance 1
        assert not standardised_gram(torch.full((7, 3), value, dtype=dtype)).any()

    @pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e300])
    def test_scale_does_not_matter(self, scale: float) -> None:
        x = normal(6, 4)
        torch.testing.assert_close(standardised_gram(scale * x), standardised_gram(x), rtol=1e-9, atol=1e-9)

    def test_blocks_do_not_matter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = []
        for block_bytes in (1, 1 << 30):
            monkeypatch.setattr(linalg, "_BLOCK_BYTES", block_bytes)
            found.append(standardised_gram(normal(5, 3000)))
        torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-9)


LAYOUT = Layout.of({"body": torch.empty(5), "weight": torch.empty(3, 2), "bias": torch.empty(3)}, {"s": torch.empty(2)})


class TestOutputRows:
    x = torch.arange(32.0).view(2, 16)

    def test_whole_layer(self) -> None:
        assert output_rows(self.x, LAYOUT, None).tolist() == [list(range(5, 14)), list(range(21, 30))]

    @pytest.mark.parametrize(("label", "expected"), [(0, [5, 6, 11]), (2, [9, 10, 13])])
    def test_one_class(self, label: int, expected: list[int]) -> None:
        assert output_rows(self.x, LAYOUT, label).tolist() == [expected, [v + 16 for v in expected]]

    def test_without_bias(self) -> None:
        layout = Layout.of({"weight": torch.empty(4, 2, 1), "other": torch.empty(8)})
        assert output_rows(self.x, layout, None).tolist()[0] == list(range(8))
        assert output_rows(self.x, layout, 3).tolist()[0] == [6, 7]

    def test_vector(self) -> None:
        assert output_rows(self.x, Layout.of({"w": torch.empty(16)}), None).tolist() == self.x.tolist()

    def test_no_such_class(self) -> None:
        with pytest.raises(ParameterError) as error:
            output_rows(self.x, LAYOUT, 3)
        assert str(error.value) == "tolpegin: label must be below 3, the number of classes, got 3"


def inertia(points: np.ndarray, labels: np.ndarray) -> float:
    sides = (points[labels], points[~labels])
    return sum(float(((side - side.mean(axis=0)) ** 2).sum()) for side in sides)


class TestTwoMeans:
    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(seed=st.integers(0, 10**6), n=st.integers(2, 9))
    def test_no_point_is_nearer_to_the_other_centre(self, seed: int, n: int) -> None:
        points = np.random.default_rng(seed).normal(size=(n, 2))
        labels = two_means(points)
        assert labels is not None
        assert 0 < labels.sum() < n
        centres = points[~labels].mean(axis=0), points[labels].mean(axis=0)
        far, near = (((points - c) ** 2).sum(axis=1) for c in centres)
        assert (labels == (near < far)).all()

    @pytest.mark.parametrize("seed", range(10))
    def test_two_clouds_get_the_best_split_of_all(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        angle = rng.uniform(0, 2 * np.pi)
        points = rng.normal(size=(10, 2)) + 6 * (np.arange(10) < 3)[:, None] * [np.cos(angle), np.sin(angle)]
        splits = [np.array(bits) for bits in product([False, True], repeat=10) if 0 < sum(bits) < 10]
        best = min(inertia(points, labels) for labels in splits)
        labels = two_means(points)
        assert labels is not None
        assert inertia(points, labels) == pytest.approx(best)

    def test_the_second_coordinate_may_be_the_better_start(self) -> None:
        points = np.array([[x, y] for y in (0.0, 9.0) for x in (-4.0, -2.0, 2.0, 4.0)])
        labels = two_means(points)
        assert labels is not None
        assert labels.tolist() == [False] * 4 + [True] * 4

    def test_all_equal(self) -> None:
        assert two_means(np.ones((4, 2))) is None
        assert two_means(np.zeros((1, 2))) is None

    def test_order_is_irrelevant(self) -> None:
        for seed in range(20):
            rng = np.random.default_rng(seed)
            points, order = rng.normal(size=(15, 2)), rng.permutation(15)
            one, other = two_means(points), two_means(points[order])
            assert one is not None
            assert other is not None
            assert (other == one[order]).all()


# --- The decision -------------------------------------------------------------------------------------------


def detect(
    make: SimpleNamespace, matrix: Any, detector: Tolpegin | None = None, layout: Layout | None = None
) -> Detection:
    u = make.updates(matrix)
    u = u if layout is None else Updates(u.matrix, u.client_ids, layout)
    return (detector or Tolpegin()).detect(u, make.view(u))


def flippers(n: int, m: int, seed: int = 0) -> Tensor:
    """Updates of a body of 5 and an output layer of 3 x 2; in the first m rows, class 0 has the opposite sign."""
    x = normal(n, 16, seed=seed)
    x[:, [5, 6, 11]] = 0.1 * x[:, [5, 6, 11]] + 1
    x[:m, [5, 6, 11]] *= -1
    return x


class TestDecision:
    @pytest.mark.parametrize("m", [1, 4, 9])
    @pytest.mark.parametrize("seed", range(5))
    def test_the_flipped_class_tells_attackers_apart(self, make: SimpleNamespace, m: int, seed: int) -> None:
        found = detect(make, flippers(20, m, seed), Tolpegin(label=0), LAYOUT)
        assert found.accepted.tolist() == [False] * m + [True] * (20 - m)
        assert found.scores is not None
        assert found.scores[:m].min() > found.scores[m:].max()
        assert found.state is None

    def test_another_class_does_not_tell_them_apart(self, make: SimpleNamespace) -> None:
        found = detect(make, flippers(20, 4), Tolpegin(label=1), LAYOUT)
        assert found.accepted.tolist() != [False] * 4 + [True] * 16

    @pytest.mark.parametrize("detector", [Tolpegin(), Tolpegin(layer="all")])
    @pytest.mark.parametrize("factor", [-1, 1000])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_planted_attackers(
        self, make: SimpleNamespace, detector: Tolpegin, factor: float, dtype: torch.dtype
    ) -> None:
        fed = make.federation(20, 6, factor, dtype=dtype)
        result = Chain((detector,), Mean())(fed.updates, make.view(fed.updates))
        assert result.accepted is not None
        assert result.accepted.tolist() == (~fed.malicious).tolist()
        torch.testing.assert_close(result.update, fed.benign_mean)

    def test_layer(self, make: SimpleNamespace) -> None:
        fed = make.federation(20, 0, 1)
        fed.updates.matrix[:4, :-110] *= -1  # in the body alone
        expected = [False] * 4 + [True] * 16
        assert detect(make, fed.updates.matrix, Tolpegin(layer="all")).accepted.tolist() == expected
        assert detect(make, fed.updates.matrix, Tolpegin()).accepted.tolist() != expected

    @pytest.mark.parametrize("detector", [Tolpegin(), Tolpegin(layer="all")])
    def test_running_statistics_are_ignored(self, make: SimpleNamespace, detector: Tolpegin) -> None:
        fed = make.federation(20, 6, -1, statistics=20)
        fed.updates.statistics[10:] *= -1000
        accepted = detector.detect(fed.updates, make.view(fed.updates)).accepted
        assert accepted is not None
        assert accepted.tolist() == (~fed.malicious).tolist()

    def test_plain_function(self, make: SimpleNamespace) -> None:
        x = make.federation(20, 6, -1).updates.matrix
        accepted = detect(make, x, Tolpegin(layer="all")).accepted
        assert accepted is not None
        assert torch.equal(tolpegin(x), accepted)
        assert tolpegin(x[:2]).all()

    def test_a_malicious_majority_is_the_larger_cluster(self, make: SimpleNamespace) -> None:
        fed = make.federation(20, 12, -1)
        assert detect(make, fed.updates.matrix).accepted.tolist() == fed.malicious.tolist()

    def test_tie(self, make: SimpleNamespace) -> None:
        fed = make.federation(20, 10, -1)
        found = detect(make, fed.updates.matrix)
        assert not found.accepted.any()
        assert found.scores is not None
        assert found.scores.isfinite().all()
        result = Chain((Tolpegin(),), Mean())(fed.updates, make.view(fed.updates))
        assert not result.update.any()
        assert not result.weights.any()

    def test_by_hand(self, make: SimpleNamespace) -> None:
        # mean 2, standard deviation 2: 6 is at distance 8/3 from the centre of the three, on a scale of 2
        found = detect(make, [[0.0], [1.0], [1.0], [6.0]])
        assert found.accepted.tolist() == [True, True, True, False]
        assert found.scores is not None
        scale = sqrt((4 + 1 + 1 + 16) / 4)
        expected = [2 / 3 / scale, 1 / 3 / scale, 1 / 3 / scale, 16 / 3 / scale]
        assert found.scores.tolist() == pytest.approx(expected)

    def test_one_huge_client(self, make: SimpleNamespace) -> None:
        fed = make.federation(12, 1, 1e30)
        assert detect(make, fed.updates.matrix).accepted.tolist() == (~fed.malicious).tolist()

    def test_without_attack_benign_clients_are_rejected(self, make: SimpleNamespace) -> None:
        # a limit of the automatic split, stated in the docstring
        fed = make.federation(21, 0, 1)
        accepted = detect(make, fed.updates.matrix).accepted
        assert 0.5 * 21 < int(accepted.sum()) < 21

    @pytest.mark.parametrize("rows", [[[1.0, 2.0]], [[1.0, 2.0], [-9.0, 9.0]], [[3.0, 1.0]] * 5, [[0.0, 0.0]] * 5])
    def test_too_few_or_equal_updates(self, make: SimpleNamespace, rows: list[list[float]]) -> None:
        found = detect(make, rows)
        assert found.accepted.tolist() == [True] * len(rows)
        assert found.scores is not None
        assert not found.scores.any()

    @pytest.mark.parametrize("detector", [Tolpegin(), Tolpegin(layer="all"), Tolpegin(label=0)])
    def test_order_of_clients_is_irrelevant(self, make: SimpleNamespace, detector: Tolpegin) -> None:
        for seed in range(10):
            x = flippers(15, 3, seed)
            order = torch.randperm(15, generator=torch.Generator().manual_seed(seed))
            one, other = detect(make, x, detector, LAYOUT), detect(make, x[order], detector, LAYOUT)
            assert torch.equal(other.accepted, one.accepted[order])
            assert one.scores is not None
            torch.testing.assert_close(other.scores, one.scores[order], rtol=1e-9, atol=1e-9)


class TestErrors:
    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"label": -1}, "tolpegin: label must be at least 0, got -1"),
            (
                {"label": 2, "layer": "all"},
                "tolpegin: label=2 has no effect with layer=all; it needs layer=output",
            ),
        ],
    )
    def test_out_of_range(self, parameters: dict[str, Any], message: str) -> None:
        with pytest.raises(ParameterError) as error:
            Tolpegin(**parameters)
        assert str(error.value) == message

    def test_no_such_class(self, make: SimpleNamespace) -> None:
        with pytest.raises(ParameterError, match="label must be below 10, the number of classes, got 10"):
            detect(make, torch.zeros(3, 240), Tolpegin(label=10))
