"""RFA: the geometric median of the updates, by the smoothed Weiszfeld algorithm.

Pillutla, Kakade, Harchaoui. Robust Aggregation for Federated Learning. IEEE Transactions on Signal Processing 2022.
Algorithm 2.

Variant: every client counts the same. Every iterate is a weighted mean of the updates, so only the weights are
iterated, from the updates' inner products; iterations are cheap and run to convergence, where the paper stops at 3.
Departs: starts from the mean of the shorter majority of the updates (the paper's start is free): from the mean of all,
one huge update would cost an iteration for every factor n of its length. An update whose squared length exceeds float64
is at infinite distance and has no weight.
"""

from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fedsieve.core.defense import Aggregate, ServerView, Updates
from fedsieve.core.direct import direct
from fedsieve.core.errors import ParameterError
from fedsieve.core.linalg import centred_gram, shorter_majority, uniform_weights, weighted_sum
from fedsieve.core.traits import Traits


@direct("geometric-median")
def geometric_median(
    x: Float[Tensor, "n d"], iterations: int = 100, smoothing: float = 1e-6, tolerance: float = 1e-10
) -> Float[Tensor, " d"]:
    """The point with the least sum of distances to the updates; Pillutla et al. 2022, algorithm 2.

    Args:
        x: Client updates, [n, d], n >= 1.
        iterations: Most iterations; the paper has 3.
        smoothing: ν: a smaller distance counts as this much, in the unit of ``x``.
        tolerance: Iterations end when no weight changes by more than this share of itself.

    Returns:
        The aggregate, [d].

    Raises:
        ParameterError: If a parameter is out of range.

    >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [500.0, 500.0]])
    >>> geometric_median(x)
    tensor([0.7887, 0.7887])
    """
    check_parameters(iterations, smoothing, tolerance)
    return weighted_sum(x, median_weights(x, iterations, smoothing, tolerance))


def median_weights(
    x: Float[Tensor, "n d"], iterations: int, smoothing: float, tolerance: float
) -> Float64[Tensor, " n"]:
    """Weights of the rows in their geometric median; parameters as in :func:`geometric_median`."""
    short = shorter_majority(x)
    gram, start = centred_gram(x, short).cpu(), uniform_weights(short, torch.float64).cpu()
    near, weights = gram.diagonal().isfinite(), torch.zeros_like(start)
    weights[near] = weiszfeld(gram[near][:, near], start[near], smoothing, iterations, tolerance)
    return weights.to(x.device)


def weiszfeld(
    gram: Float64[Tensor, "n n"], start: Float64[Tensor, " n"], smoothing: float, iterations: int, tolerance: float
) -> Float64[Tensor, " n"]:
    """Weights of n points in their smoothed geometric median.

    Args:
        gram: The points' inner products, relative to any origin near the median.
        start: Weights of the points in the first iterate; sum to 1.
        smoothing: ν: a smaller distance counts as this much.
        iterations: Most iterations.
        tolerance: Stops when no weight changes by more than this share of itself.
    """
    weights, squares = start, gram.diagonal()
    for _ in range(iterations):
        products = gram @ weights
        distances = (squares - 2 * products + weights @ products).clamp(min=0).sqrt()  # to the iterate
        pulls = 1 / distances.clamp(min=smoothing)
        before, weights = weights, pulls / pulls.sum()
        if ((weights - before).abs() <= tolerance * weights).all():
            break
    return weights


def check_parameters(iterations: int, smoothing: float, tolerance: float) -> None:
    """Raise :class:`ParameterError` where a parameter is out of range."""
    if iterations < 1:
        raise ParameterError(f"geometric-median: iterations must be at least 1, got {iterations}")
    if not (smoothing > 0 and isfinite(smoothing)):
        raise ParameterError(f"geometric-median: smoothing must be positive and finite, got {smoothing}")
    if not (tolerance >= 0 and isfinite(tolerance)):
        raise ParameterError(f"geometric-median: tolerance must be finite and not negative, got {tolerance}")


@dataclass(frozen=True)
class GeometricMedian:
    """The point with the least sum of distances to the updates.

    Attributes:
        iterations: Most iterations.
        smoothing: ν: a smaller distance counts as this much, in the updates' own unit.
        tolerance: Iterations end when no weight changes by more than this share of itself.
    """

    iterations: int = 100
    smoothing: float = 1e-6
    tolerance: float = 1e-10
    traits: ClassVar[Traits] = Traits(
        summary="RFA: the point with the least sum of distances to the updates",
        paper="Pillutla et al., Robust Aggregation for Federated Learning, IEEE TSP 2022",
        breaks_at="n <= 2m",
        cost="O(n^2 d)",
    )

    def __post_init__(self) -> None:
        check_parameters(self.iterations, self.smoothing, self.tolerance)

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
        """See :class:`fedsieve.core.defense.Aggregator`."""
        settings = (self.iterations, self.smoothing, self.tolerance)
        weights = median_weights(updates.parameters, *settings)
        median = weighted_sum(updates.parameters, weights)
        return Aggregate(median, weights.to(median.dtype))
