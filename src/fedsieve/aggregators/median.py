"""Coordinate-wise median.

Yin, Chen, Kannan, Bartlett. Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates.
ICML 2018. Definition 1.

Variant: of an even number of values, the mean of the two in the middle.
Departs: nothing.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from fedsieve.core.defense import Aggregate, ServerView, Updates
from fedsieve.core.direct import direct
from fedsieve.core.ranks import mean_of_ranks
from fedsieve.core.traits import Traits


@direct("median")
def median(x: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    """Median of each column; Yin et al. 2018, definition 1.

    Args:
        x: Client updates, [n, d], n >= 1.

    Returns:
        The aggregate, [d]; for even n, the mean of the two middle values.

    >>> import torch
    >>> median(torch.tensor([[1.0, 2.0], [2.0, 2.0], [93.0, 2.0]]))
    tensor([2., 2.])
    """
    return median_and_weights(x)[0]


def median_and_weights(x: Float[Tensor, "n d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, " n"]]:
    """Median of each column, and each row's weight in it; see :func:`fedsieve.core.linalg.mean_of_ranks`."""
    return mean_of_ranks(x, (len(x) - 1) // 2, len(x) // 2 + 1)


@dataclass(frozen=True)
class Median:
    """Median of each coordinate."""

    traits: ClassVar[Traits] = Traits(
        summary="Per coordinate, the median",
        paper="Yin et al., Byzantine-Robust Distributed Learning, ICML 2018",
        breaks_at="n <= 2m",
        cost="O(nd log n)",
    )

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
        """See :class:`fedsieve.core.defense.Aggregator`."""
        return Aggregate(*median_and_weights(updates.parameters))
