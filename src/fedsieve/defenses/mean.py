"""The plain mean: no defense, and the yardstick of every one.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas. Communication-Efficient Learning of Deep Networks from
Decentralized Data. AISTATS 2017. Algorithm 1.

Variant: every client counts the same.
Departs: the paper weighs by local samples, a number that only the client knows and a malicious one would inflate.
Needs: nothing. Breaks at: one malicious client. Cost: O(n d).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedsieve.ops import uniform_weights
from fedsieve.types import Aggregate, ServerView, Traits, Updates


@dataclass(frozen=True)
class Mean:
    """Average all updates."""

    traits: ClassVar[Traits] = Traits(
        summary="Average of all updates (FedAvg): no defense",
        paper="McMahan et al., Communication-Efficient Learning of Deep Networks, AISTATS 2017",
        cost="O(nd)",
    )

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
        """See :class:`fedsieve.types.Defense`."""
        everyone = torch.ones(len(updates.matrix), dtype=torch.bool, device=updates.matrix.device)
        return Aggregate(updates.matrix.mean(dim=0), uniform_weights(everyone, updates.matrix.dtype))
