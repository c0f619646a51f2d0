"""Tolpegin's detector: two clusters in the principal components of the clients' output layers; the larger stays.

Tolpegin, Truex, Gursoy, Liu. Data Poisoning Attacks Against Federated Learning Systems. ESORICS 2020. Section 5.

Variant: the update of the whole output layer is examined, because the flipped class is seldom known; ``label`` takes
the row of one class, as the paper does for the source class. Each coordinate is standardised, then reduced to two
principal components. ``layer="all"`` takes all parameters, as later comparisons do.
Departs: (1) The paper examines the updates of many rounds at once, at the end; here each round is decided by itself.
(2) The paper leaves the split to visual inspection; here it is k-means with two clusters, of which the larger stays. It
finds two clusters without an attack as well, and then rejects benign clients. Of two clusters of equal size, neither
stays; fewer than three clients, and equal updates of all clients, are accepted. (3) The row of a class includes its
bias.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from numpy import ndarray
from torch import Tensor

from fedsieve.core.clustering import best_cut, gram_components, one_blas_thread
from fedsieve.core.defense import Detection, ServerView, Updates
from fedsieve.core.direct import direct
from fedsieve.core.errors import ParameterError
from fedsieve.core.layout import Layout, output_layer
from fedsieve.core.linalg import column_blocks
from fedsieve.core.traits import Traits


def output_rows(x: Float[Tensor, "n d"], layout: Layout, label: int | None) -> Float[Tensor, "n p"]:
    """The part of each update that belongs to the output layer: weights, then biases; all, or those of one class.

    Raises:
        ParameterError: If there is no class ``label``.
    """
    parts = [x[:, s.start : s.stop] for s in output_layer(layout) if s is not None]
    if label is None:
        return torch.cat(parts, dim=1)
    classes = (*output_layer(layout)[0].shape, 1)[0]
    if label >= classes:
        raise ParameterError(f"tolpegin: label must be below {classes}, the number of classes, got {label}")
    return torch.cat([part.reshape(len(x), classes, -1)[:, label] for part in parts], dim=1)


def standardised_gram(x: Float[Tensor, "n p"]) -> Float64[Tensor, "n n"]:
    """Inner products of the rows after each column is shifted to mean 0 and scaled to variance 1.

    Columns without variance are 0.
    """
    gram = torch.zeros(len(x), len(x), dtype=torch.float64, device=x.device)
    for block in column_blocks(x):
        columns = x[:, block].double()
        columns = columns / columns.abs().amax(dim=0).clamp(min=1e-300)  # or squares could overflow
        columns = columns - columns.mean(dim=0)
        spread = columns.square().mean(dim=0).sqrt()
        # less than this is the rounding of a column whose values are all equal
        columns = columns * torch.where(spread > 1e-12, 1 / spread, 0)
        gram += columns @ columns.T
    return gram


def two_means(points: Float64[ndarray, "n k"]) -> ndarray | None:
    """Cluster points by k-means with two clusters: which are in the second one, [n]; None if all points are equal.

    Lloyd's iterations start from the best cut along each coordinate in turn, and the result with the least inertia is
    taken: nothing is drawn at random, so neither a seed nor the order of the points matters.

    >>> two_means(np.array([[0.0], [1.0], [5.0], [6.0]]))
    array([False, False,  True,  True])
    """
    found = [_lloyd(points, best_cut(column)) for column in points.T if np.ptp(column) > 0]
    return min(found, key=lambda labels: _inertia(points, labels)) if found else None


def _lloyd(points: ndarray, labels: ndarray) -> ndarray:
    for _ in range(300):  # each iteration lowers the inertia, so that the labels converge long before
        near, far = (((points - points[side].mean(axis=0)) ** 2).sum(axis=1) for side in (labels, ~labels))
        moved = near < far
        if (moved == labels).all() or moved.all() or not moved.any():
            break
        labels = moved
    return labels


def _inertia(points: ndarray, labels: ndarray) -> float:
    return sum(float(((points[side] - points[side].mean(axis=0)) ** 2).sum()) for side in (labels, ~labels))


@direct("tolpegin", drops="detect")
def tolpegin(x: Float[Tensor, "n p"]) -> Bool[Tensor, " n"]:
    """Which rows are in the larger of two clusters of their first two principal components, columns standardised.

    Fewer than three rows and rows that are all equal are all accepted; of two clusters of equal size, neither is.

    >>> tolpegin(torch.tensor([[0.0], [1.0], [1.0], [6.0]]))
    tensor([ True,  True,  True, False])
    """
    return _larger_cluster(x)[0]


def _larger_cluster(x: Float[Tensor, "n p"]) -> tuple[Bool[Tensor, " n"], Float64[Tensor, " n"]]:
    """Which rows stay, as in :func:`tolpegin`, and each row's distance to the centre of the larger cluster.

    The distance is 0 where there are no two clusters, and to the centre of all rows where they are of equal size.
    """
    gram = standardised_gram(x)
    with one_blas_thread():
        points = gram_components(gram, 2)
    labels = two_means(points) if len(x) > 2 else None
    if labels is None:
        everyone = torch.ones(len(x), dtype=torch.bool, device=x.device)
        return everyone, torch.zeros(len(x), dtype=torch.float64, device=x.device)
    second = 2 * int(labels.sum())
    larger = labels if second > len(x) else ~labels
    tie = second == len(x)
    distances = np.linalg.norm(points - points[larger | tie].mean(axis=0), axis=1)
    return torch.from_numpy(larger & (not tie)).to(x.device), torch.from_numpy(distances).to(x.device)


@dataclass(frozen=True)
class Tolpegin:
    """Keeps the larger of two clusters of output layers.

    Attributes:
        label: The class whose labels are assumed to be flipped; only its row of the output layer is examined. None
            examines all rows.
        layer: Which part of an update is examined: the ``output`` layer or ``all`` parameters.
    """

    label: int | None = None
    layer: Literal["output", "all"] = "output"
    traits: ClassVar[Traits] = Traits(
        summary="Two clusters in the principal components of the output layer's updates: keeps the larger",
        paper="Tolpegin et al., Data Poisoning Attacks Against Federated Learning Systems, ESORICS 2020",
        breaks_at="n <= 2m. Without attack it rejects benign clients",
        cost="O(n^2 p + n^3), p the coordinates examined",
    )

    def __post_init__(self) -> None:
        if self.label is not None and self.label < 0:
            raise ParameterError(f"tolpegin: label must be at least 0, got {self.label}")
        if self.label is not None and self.layer == "all":
            raise ParameterError(f"tolpegin: label={self.label} has no effect with layer=all; it needs layer=output")

    def detect(self, updates: Updates, view: ServerView, /) -> Detection:
        """See :class:`fedsieve.core.defense.Detector`."""
        whole = self.layer == "all"
        x = updates.parameters if whole else output_rows(updates.matrix, updates.layout, self.label)
        accepted, distances = _larger_cluster(x)
        return Detection(accepted, scores=distances.to(x.dtype))
