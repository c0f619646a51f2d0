"""Norm clipping: scales down the updates that are longer than a bound.

Sun, Kairouz, Suresh, McMahan. Can You Really Backdoor Federated Learning? 2019; arXiv 1911.07963.

Variant: a pre-aggregator; without an aggregator behind it, the mean follows, as in the paper.
Departs: without ``max_norm``, the bound is the median length of the round's updates, so that it follows the training;
the paper's is fixed.
Running statistics pass unchanged.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fedsieve.core.clipping import check_max_norm, clip_updates, clipped_mean
from fedsieve.core.defense import Aggregate, Aggregator, PreAggregated, ServerView, Updates
from fedsieve.core.direct import direct
from fedsieve.core.linalg import uniform_weights
from fedsieve.core.traits import Traits


@direct("norm-clipping")
def norm_clipping(x: Float[Tensor, "n d"], max_norm: float | None = None) -> Float[Tensor, "n d"]:
    """The updates, each longer than the bound scaled down to its length; Sun et al. 2019.

    Args:
        x: Client updates, [n, d], n >= 1.
        max_norm: The bound, in the unit of ``x``; None takes the median length of the updates.

    Returns:
        The clipped updates, [n, d].

    Raises:
        ParameterError: If ``max_norm`` is not finite and positive.

    >>> import torch
    >>> norm_clipping(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-30.0, 40.0]]))
    tensor([[ 1.0000,  0.0000],
            [ 0.0000,  2.0000],
            [-1.2000,  1.6000]])
    """
    check_max_norm("norm-clipping", max_norm)
    return clip_updates(x, max_norm)[0]


@dataclass(frozen=True)
class NormClipping:
    """Scales down the updates that are longer than a bound.

    Attributes:
        max_norm: The bound; None takes the median length of the round's updates.
    """

    max_norm: float | None = None
    traits: ClassVar[Traits] = Traits(
        summary="Scales every update down to at most the median length, for the aggregator that follows or the mean",
        paper="Sun et al., Can You Really Backdoor Federated Learning?, 2019",
        breaks_at="nothing stated; before the mean, m malicious clients of n move it by m / n of the clipping bound",
        cost="O(nd)",
    )

    def __post_init__(self) -> None:
        check_max_norm("norm-clipping", self.max_norm)

    def preaggregate(self, updates: Updates, view: ServerView, /) -> PreAggregated:
        """See :class:`fedsieve.core.defense.PreAggregator`."""
        clipped, statistics = clip_updates(updates.parameters, self.max_norm)[0], updates.statistics
        return PreAggregated(
            updates.with_matrix(torch.cat([clipped, statistics], dim=1) if statistics.shape[1] else clipped)
        )

    def with_mean(self) -> Aggregator:
        """See :class:`fedsieve.aggregators.chain.Averaging`."""
        return ClippedMean(self.max_norm)


@dataclass(frozen=True)
class ClippedMean:
    """Norm clipping and the mean behind it, which writes no clipped update; not registered.

    Attributes:
        max_norm: The bound; None takes the median length of the round's updates.
    """

    max_norm: float | None = None

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
        """See :class:`fedsieve.core.defense.Aggregator`."""
        x, statistics = updates.parameters, updates.statistics
        update, _ = clipped_mean(x, self.max_norm)
        everyone = torch.ones(len(x), dtype=torch.bool, device=x.device)
        return Aggregate(torch.cat([update, statistics.mean(dim=0)]), uniform_weights(everyone, x.dtype))
