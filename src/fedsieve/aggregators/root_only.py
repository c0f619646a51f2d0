"""Root data alone: the update that the server trains on its own clean data, whatever the clients send.

No publication. A baseline: a defense with root data that is no better than this has no use for its clients.

Variant: parameters and running statistics are those of the root update.
Departs: weights say what share a client has, and those of a round that moves the model sum to 1. They are equal here,
and mean nothing. As for every defense, a round in which no update passes the screening leaves the model as it is.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedsieve.core.defense import Aggregate, ServerView, Updates
from fedsieve.core.errors import MissingDataError
from fedsieve.core.linalg import uniform_weights
from fedsieve.core.traits import Traits


@dataclass(frozen=True)
class RootOnly:
    """The root update; the server takes its running statistics as they are."""

    traits: ClassVar[Traits] = Traits(
        summary="The server's own update, from root data alone; no client counts (an unpublished baseline)",
        needs=("root data",),
        breaks_at="few root data, or far from the clients' data",
        cost="O(d)",
    )

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
        """See :class:`fedsieve.core.defense.Aggregator`."""
        if view.root is None:
            raise MissingDataError("root-only needs root data, and the server has none")
        x = updates.matrix
        everyone = torch.ones(len(x), dtype=torch.bool, device=x.device)
        return Aggregate(view.root.update().to(x, copy=True), uniform_weights(everyone, x.dtype))
