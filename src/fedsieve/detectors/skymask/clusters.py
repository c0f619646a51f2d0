"""Clusters of masks: principal components, one cluster or two, a mixture of two Gaussians."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Shaped
from numpy import ndarray
from torch import Tensor
from torch.nn.functional import pad

from fedsieve.core.clustering import best_cut, gram_components
from fedsieve.core.layout import Segment
from fedsieve.core.linalg import column_blocks

# How one cluster is told from two; see two_clusters.
Clusters = Literal["bic", "gap", "two"]
_MOST_CLUSTERS = 9
_CHUNK = 1024  # columns of one matrix product on a GPU
# Of expectation maximisation: most steps, the change of the log likelihood at which it ends, and the least variance.
_MOST_STEPS, _TOLERANCE, _FLOOR = 1000, 1e-4, 1e-4


def principal_components(binary: Bool[Tensor, "n d"], n_components: int) -> Float64[ndarray, "n k"]:
    """Coordinates of the rows along their leading principal components; zero columns where there are fewer.

    Computed from the Gram matrix, whose entries count the ones that two rows have in common and so are exact.
    """
    gram = torch.zeros(len(binary), len(binary), dtype=torch.float64, device=binary.device)
    for block in column_blocks(binary):
        ones = binary[:, block].float()
        if ones.is_cuda:  # one product of a few long rows would leave most of a GPU idle
            ones = pad(ones, (0, -ones.shape[1] % _CHUNK)).view(len(ones), -1, _CHUNK).transpose(0, 1)
        counts = ones @ ones.mT  # integers below 2^24: exact in float32
        gram += counts.sum(dim=0, dtype=torch.float64) if ones.is_cuda else counts
    return gram_components(gram, n_components)


def kept_shares(binary: Bool[Tensor, "n d"], layers: Sequence[Segment]) -> Float[Tensor, "n l"]:
    """Share of each layer's entries that are True."""
    parts = [binary[:, s.start : s.stop] for s in layers]
    if binary.is_cuda:
        counts = torch.stack([part.sum(dim=1) for part in parts], dim=1)
    else:  # ten times as fast
        counts = torch.from_numpy(np.stack([np.count_nonzero(part.numpy(), axis=1) for part in parts], axis=1))
    return counts / torch.tensor([s.stop - s.start for s in layers], device=binary.device)


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
    cuts = [best_cut(column) for column in scaled.T if np.ptp(column) > 0]
    two = max((mixture(scaled, np.stack([cut, ~cut])) for cut in cuts), key=_log_likelihood)
    if clusters == "bic" and _bic(mixture(scaled, np.ones((1, n))), k) <= _bic(two, k):
        return None
    labels: ndarray = two.argmax(axis=0)
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
    from sklearn.cluster import KMeans

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


def mixture(points: Float64[ndarray, "n k"], shares: Shaped[ndarray, "c n"]) -> Float64[ndarray, "c n"]:
    """Expectation maximisation for a mixture of c Gaussians.

    The covariances get 1e-4 on the diagonal, and the iteration ends when the mean log likelihood changes by less than
    1e-4, or after 1000 steps. scikit-learn's ``GaussianMixture`` has the same iteration; on a hundred points it spends
    most of its time on checks.

    Args:
        points: The points.
        shares: How far each point belongs to each component at first, in [0, 1]; they sum to 1 over the components.

    Returns:
        Logarithms of each component's density at the points times the component's weight.
    """
    before, found = -np.inf, _log_densities(points, shares)
    for _ in range(_MOST_STEPS):
        joint = np.logaddexp.reduce(found, axis=0)
        found = _log_densities(points, np.exp(found - joint))
        now = joint.mean()
        if abs(now - before) < _TOLERANCE:
            break
        before = now
    return found


def _log_densities(points: Float64[ndarray, "n k"], shares: Shaped[ndarray, "c n"]) -> Float64[ndarray, "c n"]:
    """Logarithms of weight times density of the Gaussians that fit the points best, given their shares."""
    k = points.shape[1]
    counts = shares.sum(axis=1) + 10 * np.finfo(float).eps
    means = shares @ points / counts[:, None]
    apart = points.T - means[:, :, None]  # [c, k, n]
    covariances = (shares[:, None] * apart) @ apart.swapaxes(1, 2) / counts[:, None, None]
    # equal rows have no variance: the floor, small against the points' scale of 1, keeps the covariance regular
    lower = np.linalg.cholesky(covariances + _FLOOR * np.eye(k))
    squares = (np.linalg.solve(lower, apart) ** 2).sum(axis=1)
    volume = np.log(np.diagonal(lower, axis1=1, axis2=2)).sum(axis=1) + k / 2 * math.log(2 * math.pi)
    found: ndarray = -squares / 2 + (np.log(counts / counts.sum()) - volume)[:, None]
    return found


def _log_likelihood(mixed: Float64[ndarray, "c n"]) -> float:
    """Mean log likelihood of the points under a mixture."""
    return float(np.logaddexp.reduce(mixed, axis=0).mean())


def _bic(mixed: Float64[ndarray, "c n"], k: int) -> float:
    """Bayesian information criterion of a mixture in k dimensions: the lower the better."""
    c, n = mixed.shape
    parameters: float = c * (1 + k + k * (k + 1) / 2) - 1
    return float(parameters * math.log(n) - 2 * n * _log_likelihood(mixed))
