"""Clusters of masks: components against scikit-learn, one cluster or two on planted clouds, the gap statistic."""

import math

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from torch import Tensor

from fedsieve.core.clustering import best_cut
from fedsieve.core.layout import Segment
from fedsieve.detectors.skymask.clusters import (
    Clusters,
    best_number,
    kept_shares,
    mixture,
    principal_components,
    two_clusters,
)


def bits(n: int, d: int, seed: int = 0, share: float = 0.5) -> Tensor:
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed)) < share


def up_to_sign(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-9) -> None:
    assert found.shape == expected.shape
    for k in range(found.shape[1]):
        one, other = found[:, k], expected[:, k]
        assert min(np.abs(one - other).max(), np.abs(one + other).max()) < tolerance


class TestPrincipalComponents:
    @pytest.mark.parametrize(("n", "d"), [(8, 30), (30, 8), (20, 3000), (100, 50)])
    @pytest.mark.parametrize("share", [0.5, 0.9])
    @pytest.mark.parametrize("k", [1, 2, 5])
    def test_against_sklearn(self, n: int, d: int, share: float, k: int) -> None:
        binary = bits(n, d, share=share)
        expected = PCA(k, svd_solver="full").fit_transform(binary.double().numpy())
        up_to_sign(principal_components(binary, k), expected, 1e-7)

    def test_by_hand(self) -> None:
        # two rows that differ in four coordinates lie 2 apart, at -1 and 1 from their middle
        binary = torch.tensor([[True] * 4 + [True, False], [False] * 4 + [True, False]])
        found = principal_components(binary, 2)
        assert sorted(found[:, 0].tolist()) == pytest.approx([-1, 1])
        assert found[:, 1].tolist() == [0, 0]

    def test_all_components_keep_all_distances(self) -> None:
        binary = bits(7, 2000)
        found = principal_components(binary, 6)
        for i in range(7):
            for j in range(7):
                different = int((binary[i] != binary[j]).sum())
                assert ((found[i] - found[j]) ** 2).sum() == pytest.approx(different, rel=1e-12, abs=1e-9)

    @pytest.mark.parametrize("seed", range(5))
    def test_order_of_rows_is_irrelevant(self, seed: int) -> None:
        binary = bits(15, 200, seed)
        order = torch.randperm(15, generator=torch.Generator().manual_seed(seed))
        one, other = principal_components(binary, 2), principal_components(binary[order], 2)
        np.testing.assert_allclose(other, one[order.numpy()], atol=1e-9)

    @pytest.mark.parametrize("value", [True, False])
    def test_constant_masks(self, value: bool) -> None:
        found = principal_components(torch.full((9, 4000), value), 2)
        assert found.tolist() == [[0, 0]] * 9

    def test_equal_rows(self) -> None:
        found = principal_components(bits(1, 5000).expand(9, -1), 2)
        assert found.tolist() == [[0, 0]] * 9

    def test_more_components_than_there_are(self) -> None:
        found = principal_components(bits(3, 50), 5)
        assert found.shape == (3, 5)
        assert np.abs(found[:, :2]).max() > 1
        assert not found[:, 2:].any()

    def test_one_row(self) -> None:
        assert principal_components(bits(1, 20), 2).tolist() == [[0, 0]]


def test_kept_shares_by_hand() -> None:
    binary = torch.tensor([[1, 1, 0, 1, 1], [0, 1, 0, 0, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)
    layers = (Segment("a", (4,), 0), Segment("b", (1,), 4))
    assert kept_shares(binary, layers).tolist() == [[0.75, 1], [0.25, 1], [0, 0]]
    assert kept_shares(binary, (Segment("all but one", (2, 2), 1),)).tolist() == [[0.75], [0.5], [0]]


def cloud(n: int, centre: tuple[float, float] = (0, 0), spread: float = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(centre, spread, (n, 2))


def agree(labels: np.ndarray | None, truth: list[int]) -> None:
    assert labels is not None
    assert labels.tolist() in (truth, [1 - t for t in truth])


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clustered(points: np.ndarray, clusters: Clusters = "bic", seed: int = 0) -> np.ndarray | None:
    return two_clusters(points, clusters, draws(seed))


every = pytest.mark.parametrize("clusters", ["bic", "gap", "two"])


class TestTwoClusters:
    @every
    @pytest.mark.parametrize(("a", "b"), [(10, 10), (16, 4), (4, 16), (80, 21), (20, 81)])
    @pytest.mark.parametrize("scale", [1e-3, 1, 1e3])
    def test_clear_clusters(self, a: int, b: int, scale: float, clusters: Clusters) -> None:
        points = scale * np.concatenate([cloud(a), cloud(b, (12, 5), seed=1)])
        agree(clustered(points, clusters), [0] * a + [1] * b)

    @every
    def test_clusters_of_different_width(self, clusters: Clusters) -> None:
        points = np.concatenate([cloud(30), cloud(10, (9, 0), 0.01, seed=1)])
        agree(clustered(points, clusters), [0] * 30 + [1] * 10)

    @pytest.mark.parametrize("clusters", ["bic", "two"])
    @pytest.mark.parametrize("seed", range(5))
    def test_a_narrow_cluster_inside_a_wide_one(self, seed: int, clusters: Clusters) -> None:
        # no straight cut divides them: expectation maximisation has to converge
        points = np.concatenate([cloud(30, spread=3, seed=seed), cloud(30, (4, 0), 0.05, seed=seed + 50)])
        agree(clustered(points, clusters), [0] * 30 + [1] * 30)

    @pytest.mark.parametrize(("n", "most"), [(21, 5), (50, 0), (100, 0)])
    def test_one_cloud_is_seldom_two_by_bic(self, n: int, most: int) -> None:
        assert sum(clustered(cloud(n, seed=seed) * [3, 1]) is not None for seed in range(20)) <= most

    @pytest.mark.parametrize("seed", range(3))
    def test_one_cloud_is_one_by_gap(self, seed: int) -> None:
        assert clustered(cloud(30, seed=seed) * [3, 1], "gap") is None

    @pytest.mark.parametrize("seed", range(5))
    def test_two_never_asks(self, seed: int) -> None:
        assert clustered(cloud(21, seed=seed), "two") is not None

    @every
    @pytest.mark.parametrize("row", [(0.0, 0.0), (2.0, 2.0), (1.0, 2.0)])
    def test_equal_points(self, row: tuple[float, float], clusters: Clusters) -> None:
        assert clustered(np.array([row] * 12), clusters) is None

    @every
    @pytest.mark.parametrize(("a", "b"), [(10, 10), (9, 3), (3, 9), (20, 5)])
    def test_two_groups_of_equal_points(self, a: int, b: int, clusters: Clusters) -> None:
        points = np.array([(1.0, 0.5)] * a + [(-2.0, 0.5)] * b)
        agree(clustered(points, clusters), [0] * a + [1] * b)

    @every
    def test_equal_points_and_a_cloud(self, clusters: Clusters) -> None:
        points = np.concatenate([cloud(17), np.full((4, 2), 15.0)])
        agree(clustered(points, clusters), [0] * 17 + [1] * 4)

    @every
    @pytest.mark.parametrize("k", [1, 2, 3])
    def test_too_few_points(self, k: int, clusters: Clusters) -> None:
        few = 2 * (k + 1)  # a mixture needs k + 1 points a component
        points = np.repeat([[5.0] * k, [-5.0] * k], few // 2, axis=0)
        agree(clustered(points, clusters), [0] * (few // 2) + [1] * (few // 2))
        assert clustered(points[:-1], clusters) is None
        assert clustered(points[:1], clusters) is None

    @every
    def test_order_of_points_is_irrelevant(self, clusters: Clusters) -> None:
        found = 0
        for seed in range(6):
            rng = np.random.default_rng(seed)
            points = np.concatenate([cloud(12, seed=seed), cloud(8, (7, 1), seed=seed + 1)])
            order = rng.permutation(20)
            one, other = clustered(points, clusters), clustered(points[order], clusters)
            if one is None:
                assert other is None
            else:
                agree(other, one[order].tolist())
                found += 1
        assert found >= 4

    @every
    def test_points_are_unchanged(self, clusters: Clusters) -> None:
        points = np.concatenate([cloud(10), cloud(10, (9, 9), seed=1)])
        before = points.copy()
        clustered(points, clusters)
        np.testing.assert_array_equal(points, before)


def sklearns(points: np.ndarray, groups: list[np.ndarray]) -> GaussianMixture:
    """scikit-learn's mixture, started from the Gaussians of the groups."""
    k = points.shape[1]
    covariances = [np.cov(points[g].T, bias=True).reshape(k, k) + 1e-4 * np.eye(k) for g in groups]
    fit = GaussianMixture(
        len(groups),
        reg_covar=1e-4,
        max_iter=1000,
        tol=1e-4,
        weights_init=[g.mean() for g in groups],
        means_init=[points[g].mean(axis=0) for g in groups],
        precisions_init=np.linalg.inv(covariances),
    )
    return fit.fit(points)


class TestMixture:
    @pytest.mark.parametrize("k", [1, 2, 4])
    @pytest.mark.parametrize("apart", [0.0, 1.0, 3.0, 30.0])
    @pytest.mark.parametrize("spread", [0.0, 0.05, 1.0])
    def test_against_sklearn(self, k: int, apart: float, spread: float) -> None:
        rng = np.random.default_rng(0)
        points = np.concatenate([rng.normal(size=(60, k)), apart + spread * rng.normal(size=(25, k))])
        points = (points - points.mean(axis=0)) / points.std()
        everything = np.ones(len(points), dtype=bool)
        for groups in ([everything], *([cut, ~cut] for cut in map(best_cut, points.T))):
            found, expected = mixture(points, np.stack(groups)), sklearns(points, groups)
            joint = np.logaddexp.reduce(found, axis=0)
            np.testing.assert_allclose(joint, expected.score_samples(points), rtol=1e-7, atol=1e-7)
            np.testing.assert_allclose(np.exp(found - joint).T, expected.predict_proba(points), rtol=1e-6, atol=1e-7)
            assert found.argmax(axis=0).tolist() == expected.predict(points).tolist()

    @pytest.mark.parametrize("seed", range(8))
    @pytest.mark.parametrize("apart", [0.0, 2.5, 4.0])
    def test_the_number_of_clusters_is_sklearns_by_bic(self, seed: int, apart: float) -> None:
        points = np.concatenate([cloud(35, seed=seed), cloud(15, (apart, 0), 0.5, seed=seed + 9)])
        scaled = (points - points.mean(axis=0)) / (points - points.mean(axis=0)).std()
        cuts = [best_cut(column) for column in scaled.T]
        two = max((sklearns(scaled, [cut, ~cut]) for cut in cuts), key=lambda fit: float(fit.score(scaled)))
        one = sklearns(scaled, [np.ones(50, dtype=bool)])
        found = clustered(points)
        if one.bic(scaled) <= two.bic(scaled):
            assert found is None
        else:
            agree(found, two.predict(scaled).tolist())


def gaps_by_hand(points: np.ndarray, generator: torch.Generator, references: int) -> list[float]:
    """Gap(1) to Gap(9) as the docstring of ``best_number`` has it, in plain loops; k-means is scikit-learn's."""
    ranked = sorted(points.tolist(), key=lambda row: row[::-1])
    uniform = torch.rand(references, *points.shape, generator=generator, dtype=torch.float64).tolist()
    seed = int(torch.randint(2**31, (), generator=generator))
    columns = list(zip(*ranked, strict=True))
    box = [(min(column), max(column)) for column in columns]
    samples = [
        [[low + u * (high - low) for u, (low, high) in zip(row, box, strict=True)] for row in sample]
        for sample in uniform
    ]

    def within(rows: list[list[float]], k: int) -> float:
        labels = KMeans(k, random_state=seed).fit(np.array(rows)).labels_
        total = 0.0
        for label in range(k):
            members = [row for row, own in zip(rows, labels, strict=True) if own == label]
            centre = [sum(column) / len(members) for column in zip(*members, strict=True)]
            total += sum((v - c) ** 2 for row in members for v, c in zip(row, centre, strict=True))
        return total

    gaps = []
    for k in range(1, 10):
        mean = sum(within(sample, k) for sample in samples) / references
        gaps.append(math.log(mean) - math.log(within(ranked, k)))
    return gaps


class TestGapStatistic:
    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize(("n", "apart", "references"), [(14, 0, 4), (20, 8, 3), (25, 4, 5)])
    def test_as_published(self, seed: int, n: int, apart: float, references: int) -> None:
        points = np.concatenate([cloud(n - n // 3, seed=seed), cloud(n // 3, (apart, apart), seed=seed + 9)])
        gaps = gaps_by_hand(points, draws(seed), references)
        assert best_number(points, draws(seed), references) == 1 + gaps.index(max(gaps))

    @pytest.mark.parametrize("seed", range(3))
    def test_two_separate_clouds(self, seed: int) -> None:
        points = np.concatenate([cloud(20, seed=seed), cloud(10, (15, 5), seed=seed + 1)])
        assert best_number(points, draws(seed), 10) > 1

    def test_one_cloud_is_usually_one(self) -> None:
        assert sum(best_number(cloud(30, seed=seed), draws(seed), 10) == 1 for seed in range(5)) >= 4

    @pytest.mark.parametrize(("groups", "number"), [(2, 2), (3, 3), (9, 9)])
    def test_groups_of_equal_points(self, groups: int, number: int) -> None:
        points = np.repeat(np.random.default_rng(0).normal(size=(groups, 2)), 4, axis=0)
        noise = 1e-13 * np.random.default_rng(1).normal(size=points.shape)  # the rounding of principal components
        assert best_number(points + noise, draws(), 3) == number

    def test_order_of_points_is_irrelevant(self) -> None:
        for seed in range(3):
            points = np.concatenate([cloud(12, seed=seed), cloud(8, (3, 1), seed=seed + 1)])
            order = np.random.default_rng(seed).permutation(20)
            assert best_number(points, draws(), 5) == best_number(points[order], draws(), 5)

    def test_generator_decides(self) -> None:
        points = np.concatenate([cloud(12), cloud(8, (4, 1), seed=1)])
        found = [best_number(points, draws(seed), 1) for seed in range(8)]
        assert found == [best_number(points, draws(seed), 1) for seed in range(8)]
        assert len(set(found)) > 1
