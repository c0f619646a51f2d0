"""Clusters of masks: principal components, one cluster or two, a mixture of two Gaussians."""

import warnings
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float64
from numpy import ndarray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from fedsieve.core.clustering import best_cut, gram_components
from fedsieve.core.linalg import column_blocks

# How one cluster is told from two; see two_clusters.
Clusters = Literal["bic", "gap", "two"]
_MOST_CLUSTERS = 9


def principal_components(binary: Bool[Tensor, "n d"], n_components: int) -> Float64[ndarray, "n k"]:
    """Coordinates of the rows along their leading principal components; zero columns where there are fewer.

    Computed from the Gram matrix, whose entries count the ones that two rows have in common and so are exact.
    """
    gram = torch.zeros(len(binary), len(binary), dtype=torch.float64, device=binary.device)
    for block in column_blocks(binary):
        ones = binary[:, block].float()
        gram += ones @ ones.T  # integers below 2^24: exact in float32
    return gram_components(gram, n_components)


def two_clusters(
    points: Float64[ndarray, "n k"], clusters: Clusters, generator: torch.Generator, references: int = 10
) -> ndarray | None:
    """Labels 0 and 1 of a mixture of two Gaussians, [n], or None if the points are one cluster.

    Expectation maximisation starts from the best cut of each coordinate in turn, and the most likely result is taken:
    nothing is drawn at random, so neither a seed nor the order of the points matters. Points that are all equal are one
    cluster, and so are fewer than 2 (k + 1) points.

    ``bic`` needs enough points: it finds two clusters in a fifth of samples of 21 points from one normal distribution,
    and in none of 40 samples of 50 points.

    Args:
        points: At least one.
        clusters: When there are two clusters: ``bic`` if the BIC of two Gaussians is smaller than that of one, ``gap``
            if :func:`best_number` is more than 1, ``two`` always.
        generator: For the reference draws of ``gap``.
        references: Number of reference draws of ``gap``.
    """
    n, k = points.shape
    centred = points - points.mean(axis=0)
    if n < 2 * (k + 1) or not np.ptp(points, axis=0).any():
        return None
    if clusters == "gap" and best_number(points, generator, references) == 1:
        return None
    scaled = centred / centred.std()
    one = _mixture([scaled])
    starts = [best_cut(column) for column in scaled.T if np.ptp(column) > 0]
    two = max((_mixture([scaled[cut], scaled[~cut]], scaled) for cut in starts), key=lambda fit: fit.score(scaled))
    if clusters == "bic" and one.bic(scaled) <= two.bic(scaled):
        return None
    labels: ndarray = two.predict(scaled)
    return labels if labels.min() != labels.max() else None


def best_number(points: Float64[ndarray, "n k"], generator: torch.Generator, references: int) -> int:
    """The number of clusters, 1 to 9, with the largest gap statistic, as SkyMask's published code once computed it.

    Gap(k) = log(mean over the references of W(k)) - log(W(k) of the points). W(k) is the sum of squared distances of
    the points to their cluster's mean, for k clusters found by k-means. A reference has as many points, drawn uniformly
    from the bounding box of the points; all k share the same references. Tibshirani, Walther and Hastie (JRSS B 2001)
    have the mean of the logarithms instead, and take the smallest k within one standard error.

    Args:
        points: Not all equal.
        generator: For the references, and for the seed of k-means.
        references: Number of references.
    """
    # equal masks lie at the same point only to rounding, and the order of the clients must not matter
    points = np.round(points / np.abs(points).max(), 9)
    points = points[np.lexsort(points.T)]
    distinct = len(np.unique(points, axis=0))
    if distinct <= _MOST_CLUSTERS:  # W is 0 there, and the gap infinite
        return distinct
    low, high = points.min(axis=0), points.max(axis=0)
    draws = torch.rand(references, *points.shape, generator=generator, dtype=torch.float64).numpy()
    seed = int(torch.randint(2**31, (), generator=generator))
    drawn = low + draws * (high - low)
    gaps = []
    for k in range(1, _MOST_CLUSTERS + 1):
        within = float(KMeans(k, random_state=seed).fit(points).inertia_)
        expected = np.mean([KMeans(k, random_state=seed).fit(sample).inertia_ for sample in drawn])
        gaps.append(float(np.log(expected) - np.log(within)))
    return 1 + int(np.argmax(gaps))


def _mixture(groups: list[ndarray], points: ndarray | None = None) -> GaussianMixture:
    """One Gaussian per group; with ``points``, expectation maximisation on these from there."""
    points = groups[0] if points is None else points
    k = points.shape[1]
    # equal rows have no variance: the floor, small against the points' scale of 1, keeps the covariance regular
    floor = 1e-4
    covariances = [np.cov(g.T, bias=True).reshape(k, k) + floor * np.eye(k) for g in groups]
    mixture = GaussianMixture(
        len(groups),
        reg_covar=floor,
        max_iter=1000,
        tol=1e-4,
        weights_init=[len(g) / len(points) for g in groups],
        means_init=[g.mean(axis=0) for g in groups],
        precisions_init=np.linalg.inv(covariances),
    )
    with warnings.catch_warnings():  # a fit that has not converged after all these steps is still a candidate
        warnings.simplefilter("ignore", ConvergenceWarning)
        return mixture.fit(points)
