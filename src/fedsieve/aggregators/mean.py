"""The plain mean (FedAvg): no defense, the baseline of every comparison.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas. Communication-Efficient Learning of Deep Networks from
Decentralized Data. AISTATS 2017. Algorithm 1.

Variant: every client counts the same.
Departs: the paper weighs clients by their number of samples, which the server cannot verify and a malicious client
would inflate.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fedsieve.core.defense import Aggregate, ServerView, Updates
from fedsieve.core.direct import direct
from fedsieve.core.linalg import uniform_weights
from fedsieve.core.traits import Traits


@direct("mean", spreads=True)
def mean(x: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    """Mean of all updates; McMahan et al. 2017, algorithm 1, with equal weights.

    Args:
        x: Client updates, [n, d], n >= 1.

    Returns:
        The aggregate, [d].

    >>> mean(torch.tensor([[1.0, 2.0], [2.0, 2.0], [93.0, 2.0]]))
    tensor([32.,  2.])
    """
    return x.mean(dim=0)


@dataclass(frozen=True)
class Mean:
    """Mean of all updates."""

    traits: ClassVar[Traits] = Traits(
        summary="Average of all updates (FedAvg): no defense",
        paper="McMahan et al., Communication-Efficient Learning of Deep Networks, AISTATS 2017",
        breaks_at="one malicious client",
        cost="O(nd)",
    )

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
        """See :class:`fedsieve.core.defense.Aggregator`."""
        x = updates.matrix
        everyone = torch.ones(len(x), dtype=torch.bool, device=x.device)
        return Aggregate(x.mean(dim=0), uniform_weights(everyone, x.dtype))
