"""Running statistics of the accepted clients, combined robustly, in one place for all aggregators.

Defenses decide by parameters. An accepted client could therefore send any running statistics (means and variances of
normalisation layers), which the model takes in full.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fedsieve.core.defense import Aggregate
from fedsieve.core.linalg import column_blocks
from fedsieve.core.ranks import sorted_columns

# Below this number of clients, one malicious client may be half of them.
_FEWEST = 3


def robust_mean(x: Float[Tensor, "k s"]) -> Float[Tensor, " s"]:
    """Mean of each column after its values are clipped to the median plus or minus the median absolute deviation.

    Less than half of the rows, whatever they are, move no column farther than its median absolute deviation. Rows that
    scatter alike on both sides keep their mean.

    Args:
        x: Running statistics, [k, s], k >= 1, finite.

    >>> robust_mean(torch.tensor([[1.0], [2.0], [3.0], [4.0], [1e38]]))
    tensor([3.])
    """
    mean = torch.empty_like(x[0])
    for block in column_blocks(x):
        columns = x[:, block]
        centre = _median(columns)
        radius = _median((columns - centre).abs())
        mean[block] = centre + (columns - centre).clamp(-radius, radius).mean(dim=0)
    return mean


def _median(x: Float[Tensor, "k s"]) -> Float[Tensor, " s"]:
    ranked = sorted_columns(x)
    return ranked[(len(x) - 1) // 2] / 2 + ranked[len(x) // 2] / 2


def combined(statistics: Float[Tensor, "n s"], result: Aggregate) -> Float[Tensor, " s"]:
    """:func:`robust_mean` of the accepted clients' running statistics; 0 where no client is accepted.

    Where the aggregator accepts nobody as such, of those with a weight; where these are fewer than three, as with Krum,
    whose one update may be a malicious client's, of all.

    Where that is more than twice as long as the robust mean of all clients' statistics, it is the latter: half of a few
    accepted clients may be malicious. In turn, where most clients are malicious and rejected, the latter is theirs.
    """
    rows: Bool[Tensor, " n"] = result.weights > 0 if result.accepted is None else result.accepted
    count = int(rows.sum())
    if not count:
        return torch.zeros_like(statistics[0])
    everyone = robust_mean(statistics)
    if count == len(rows) or (result.accepted is None and count < _FEWEST):
        return everyone
    accepted = robust_mean(statistics[rows])
    return everyone if accepted.double().norm() > 2 * everyone.double().norm() else accepted
