"""Clustering of a few hundred clients, on the CPU in float64; results do not depend on the order of the clients."""

from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int
from numpy import ndarray
from threadpoolctl import ThreadpoolController
from torch import Tensor


def hdbscan(distances: Float64[Tensor, "n n"], min_cluster_size: int) -> Int[Tensor, " n"]:
    """HDBSCAN: the cluster of each point, from 0, or -1 for outliers. All points may form one cluster.

    McInnes, Healy, Astels. hdbscan: Hierarchical density based clustering. JOSS 2017. With one neighbour for a core
    point, which is single linkage; the tree is condensed to clusters of ``min_cluster_size``, selected by excess of
    mass.

    Args:
        distances: Distances between points.
        min_cluster_size: Fewest points of a cluster, at least 2.

    >>> x = torch.tensor([0.0, 1.0, 2.0, 50.0, 51.0, 52.0], dtype=torch.float64)
    >>> hdbscan((x[:, None] - x).abs(), 2)
    tensor([0, 0, 0, 1, 1, 1])
    """
    if len(distances) == 1:
        return torch.zeros(1, dtype=torch.long, device=distances.device)
    from sklearn.cluster import HDBSCAN

    # the tree is in inverse distances; those of equal points must be finite, or excesses of mass would be inf - inf
    apart = np.maximum(distances.cpu().numpy(), 1e-100)
    model = HDBSCAN(
        min_cluster_size=min_cluster_size, min_samples=1, metric="precomputed", allow_single_cluster=True, copy=True
    )
    return torch.from_numpy(model.fit(apart).labels_.astype(np.int64)).to(distances.device)


def one_blas_thread() -> AbstractContextManager[Any]:
    """Context in which numpy's BLAS has one thread: on small matrices more do not help, and they slow torch's down."""
    limited: AbstractContextManager[Any] = _thread_pools().limit(limits=1, user_api="blas")
    return limited


@cache
def _thread_pools() -> ThreadpoolController:
    return ThreadpoolController()


def gram_components(gram: Float64[Tensor, "n n"], n_components: int) -> Float64[ndarray, "n k"]:
    """Coordinates of points along their leading principal components, from their inner products.

    The sign of a component is such that the sum of the cubes of its coordinates is not negative, so it does not depend
    on the order of the points.

    Args:
        gram: Inner products of the points; they need not be centred.
        n_components: Number of components, k; columns beyond the rank of the centred points are 0.

    >>> x = torch.tensor([[0.0], [1.0], [5.0]], dtype=torch.float64)
    >>> gram_components(x @ x.T, 2).round(6).tolist()
    [[-2.0, 0.0], [-1.0, 0.0], [3.0, 0.0]]
    """
    gram = gram - gram.mean(dim=0)
    gram = gram - gram.mean(dim=1, keepdim=True)
    values, vectors = np.linalg.eigh(gram.cpu().numpy())
    coordinates = np.zeros((len(values), n_components))
    for k in range(min(n_components, len(values))):
        if values[-1 - k] > 1e-9 * max(values[-1], 1):
            column = vectors[:, -1 - k] * np.sqrt(values[-1 - k])
            coordinates[:, k] = column if (column**3).sum() >= 0 else -column
    return coordinates


def best_cut(values: Float64[ndarray, " n"]) -> ndarray:
    """Which values are in the upper part of the split in two with the least sum of squares within the parts.

    Args:
        values: At least two, not all equal.

    >>> best_cut(np.array([9.0, 1.0, 8.0, 0.0])).tolist()
    [True, False, True, False]
    """
    ranked = np.sort(values)
    left = np.arange(1, len(values))
    sums = ranked.cumsum()
    # the least sum of squares within the parts is the largest between them
    between = sums[:-1] ** 2 / left + (sums[-1] - sums[:-1]) ** 2 / (len(values) - left)
    above: ndarray = values > ranked[between.argmax()]
    return above
