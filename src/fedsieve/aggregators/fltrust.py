"""FLTrust: mean of the updates, weighted by their cosine to an update that the server trains on its own clean data.

Cao, Fang, Liu, Gong. FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping. NDSS 2021.
Equations 2 to 4, Algorithm 2.

Variant: trust = ReLU of the cosine to the root update; every update is scaled to the root update's norm.
Departs: a client whose update is zero has no direction, so no trust (the paper does not say).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fedsieve.core.defense import Aggregate, ServerView, Updates
from fedsieve.core.direct import direct
from fedsieve.core.errors import MissingDataError
from fedsieve.core.linalg import inner_products, row_norms, type_of_products, weighted_sum
from fedsieve.core.traits import Traits


@direct("fltrust")
def fltrust(x: Float[Tensor, "n d"], root_update: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    """Mean of the updates scaled to the root update's norm, weighted by trust; Cao et al. 2021, equation 4.

    Args:
        x: Client updates, [n, d], n >= 1.
        root_update: Update that the server trained on its own clean data, [d].

    Returns:
        The aggregate, [d]; 0 if no client has trust.

    >>> fltrust(torch.tensor([[0.0, 2.0], [9.0, 0.0], [-93.0, 0.0]]), torch.tensor([1.0, 1.0]))
    tensor([0.7071, 0.7071])
    """
    lengths = row_norms(x)
    return rescaled_mean(x, lengths, shares(trust_scores(x, lengths, root_update)), root_update)


def trust_scores(
    x: Float[Tensor, "n d"], lengths: Float64[Tensor, " n"], root: Float[Tensor, " d"]
) -> Float[Tensor, " n"]:
    """ReLU of each row's cosine to ``root``, [n]; 0 for a row of zeros. In float64, where no float32 row overflows."""
    length = row_norms(root[None])
    dots = inner_products(x, root, type_of_products(x, torch.cat([lengths, length])))
    norms = lengths * length  # inf for a float64 row whose square overflows, which gets no trust
    return torch.where((norms > 0) & norms.isfinite(), dots / norms, 0).clamp(min=0).to(x.dtype)


def shares(trust: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Trust scores divided by their sum; all 0 if no client has trust."""
    total = trust.sum()
    return torch.where(total > 0, trust / total, 0)


def rescaled_mean(
    x: Float[Tensor, "n d"], lengths: Float64[Tensor, " n"], weights: Float[Tensor, " n"], root: Float[Tensor, " d"]
) -> Float[Tensor, " d"]:
    """Weighted mean of the rows, each scaled to the norm of ``root``; rows of weight 0 are left out."""
    return weighted_sum(x, torch.where(weights > 0, weights.double() * row_norms(root[None]) / lengths, 0))


@dataclass(frozen=True)
class FLTrust:
    """Mean of the updates scaled to the root update's norm, weighted by trust."""

    traits: ClassVar[Traits] = Traits(
        summary="Mean weighted by each update's cosine to the server's own update",
        paper="Cao et al., FLTrust, NDSS 2021",
        needs=("root data",),
        breaks_at="root data far from the clients' data",
        cost="O(nd)",
    )

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
        """See :class:`fedsieve.core.defense.Aggregator`."""
        if view.root is None:
            raise MissingDataError("fltrust needs root data, and the server has none")
        x, p, root = updates.parameters, updates.layout.n_parameters, view.root.update()
        lengths = row_norms(x)
        trust = trust_scores(x, lengths, root[:p])
        weights = shares(trust)
        return Aggregate(rescaled_mean(x, lengths, weights, root[:p]), weights, scores=1 - trust)
