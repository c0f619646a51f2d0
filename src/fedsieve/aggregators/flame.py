"""FLAME: clusters the local models by angle, clips the accepted updates, averages them and adds noise.

Nguyen, Rieger, Chen, Yalame, Möllering, Fereidooni, Marchal, Miettinen, Mirhoseini, Zeitouni, Koushanfar, Sadeghi,
Schneider. FLAME: Taming Backdoors in Federated Learning. USENIX Security 2022. Algorithm 1.

Variant: cosine distances between the local models, as Algorithm 1 has it; ``angles="updates"`` takes them between the
updates, as several later codes do. HDBSCAN with clusters of more than n / 2 points and one neighbour: as the distance
allowed between neighbours grows, the first connected group of more than half the clients is accepted. Benign clients
at the edge of that group are rejected, attack or not.
Departs: nothing.
"""

from dataclasses import dataclass
from math import isfinite
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from fedsieve.core.angles import cosine_distances
from fedsieve.core.clipping import clipped_mean
from fedsieve.core.clustering import hdbscan
from fedsieve.core.defense import Aggregate, ServerView, Updates
from fedsieve.core.direct import direct
from fedsieve.core.errors import ParameterError
from fedsieve.core.linalg import uniform_weights
from fedsieve.core.traits import Traits


@direct("flame")
def flame(
    x: Float[Tensor, "n d"],
    global_params: Float[Tensor, " d"] | None = None,
    noise: float = 0.001,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " d"]:
    """Mean of the largest group of updates by angle, clipped to the median length, with noise; Nguyen et al. 2022.

    Args:
        x: Client updates, [n, d], n >= 1.
        global_params: The model from which the clients trained, [d]. Angles are then those between the local models, as
            in algorithm 1; without it, between the updates.
        noise: λ: the noise's standard deviation as a multiple of the clipping bound.
        generator: Source of the noise; needed where ``noise`` is not 0.

    Returns:
        The aggregate, [d].

    Raises:
        ParameterError: If ``noise`` is negative or not finite, or needs a generator.

    >>> x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [93.0, 0.0], [0.0, -3.0], [0.0, -4.0]])  # the median length is 3
    >>> flame(x, noise=0.0)
    tensor([2., 0.])
    """
    check_noise(noise)
    if noise and generator is None:
        raise ParameterError(f"flame: noise={noise} needs a generator; hand one in, or set noise=0.0")
    return noisy_mean(x, majority(cosine_distances(x, global_params)), noise, generator)


def majority(distances: Float64[Tensor, "n n"]) -> Bool[Tensor, " n"]:
    """Which points are in the one cluster of more than half the points that HDBSCAN finds, [n]; others are outliers."""
    return hdbscan(distances, min_cluster_size=len(distances) // 2 + 1) >= 0


def mean_distance(distances: Float64[Tensor, "n n"], to: Bool[Tensor, " n"]) -> Float64[Tensor, " n"]:
    """Mean distance of each point to the other chosen points; 0 where there is none."""
    return distances[:, to].sum(dim=1) / (to.sum() - to.long()).clamp(min=1)


def noisy_mean(
    x: Float[Tensor, "n d"],
    accepted: Bool[Tensor, " n"],
    noise: float,
    generator: torch.Generator | None,
) -> Float[Tensor, " d"]:
    """Mean of the accepted rows, clipped to the median length, with noise."""
    mean, bound = clipped_mean(x, rows=accepted)
    if noise:
        mean += noise * bound * torch.randn(len(mean), generator=generator).to(mean)
    return mean


def check_noise(noise: float) -> None:
    """Raise :class:`ParameterError` where ``noise`` is negative or not finite."""
    if not (noise >= 0 and isfinite(noise)):
        raise ParameterError(f"flame: noise must be finite and at least 0, got {noise}")


@dataclass(frozen=True)
class FLAME:
    """Mean of the largest group's updates, clipped to the median length, with noise.

    Attributes:
        noise: λ: the noise's standard deviation as a multiple of the clipping bound. The published codes' 0.001 is for
            image classification.
        angles: Whether cosine distances are between the local ``models`` or their ``updates``.
    """

    noise: float = 0.001
    angles: Literal["models", "updates"] = "models"
    traits: ClassVar[Traits] = Traits(
        summary="Clusters models by angle, keeps the majority, clips to the median length, adds noise",
        paper="Nguyen et al., FLAME, USENIX Security 2022",
        breaks_at="n <= 2m",
        cost="O(n^2 d)",
    )

    def __post_init__(self) -> None:
        check_noise(self.noise)

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
        """See :class:`fedsieve.core.defense.Aggregator`."""
        x, p = updates.parameters, updates.layout.n_parameters
        distances = cosine_distances(x, view.global_params[:p] if self.angles == "models" else None)
        accepted = majority(distances)
        update = noisy_mean(x, accepted, self.noise, view.generator)
        scores = mean_distance(distances, accepted).to(x.dtype)
        return Aggregate(update, uniform_weights(accepted, x.dtype), accepted, scores)
