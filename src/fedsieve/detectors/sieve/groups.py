"""Groups of values that stand apart from the others: attackers who do the same thing."""

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from fedsieve.core.clustering import best_cut

_LEAST_GROUP = 3
_APART, _APART_FEW = 3.6, 40.0
_MIDDLE = 1 / 3  # of the upper group's size: the most values in the middle third between the two means
_LEAST_WITHIN = 0.5  # deviations within groups, at least: half of the references' own
_OUTSIDE = 3.0  # standard deviations of the lower group above its mean, below which nobody is in the upper one


def separate_groups(
    values: Float64[Tensor, " n"], least: float, minority: float
) -> tuple[Bool[Tensor, " n"], Bool[Tensor, " n"]]:
    """Find upper groups of values that are separate from the rest, the uppermost first.

    The values are cut in two where the sum of squares within the parts is least. They count as two groups if each has
    at least three members; if the means are 3.6 + 40 / n times as far apart as the root mean square distance of
    members to their group's mean (n from 8 to 200 draws from one normal distribution are so in less than 1 % of
    trials); if few values lie between (a long tail has no gap); and if the upper mean is above ``least``. Members of
    the upper group are those more than three standard deviations above the lower one's mean. Then the rest is cut
    again.

    Args:
        values: Evidence against each client, or against each of several updates.
        least: The upper group's mean must be above this.
        minority: Groups of at most this share of all values are told apart from larger ones.

    Returns:
        Members of large groups, and of small ones, [n] each.

    >>> values = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 9.0, 9.1, 9.2], dtype=torch.float64)
    >>> separate_groups(values, least=2.0, minority=0.15)[0]
    tensor([False, False, False, False, False,  True,  True,  True])
    """
    n, left = len(values), torch.ones_like(values, dtype=torch.bool)
    large, small = torch.zeros_like(left), torch.zeros_like(left)
    while int(left.sum()) >= 2 * _LEAST_GROUP:
        rows = left.nonzero().squeeze(1)
        upper = _upper(values[rows], least)
        if not upper.any():
            break
        low = values[rows][~upper]
        members = rows[upper & (values[rows] > low.mean() + _OUTSIDE * low.std(correction=0))]
        (large if int(upper.sum()) > minority * n else small)[members] = True
        left[rows[upper]] = False
    return large, small


def _upper(values: Float64[Tensor, " n"], least: float) -> Bool[Tensor, " n"]:
    """The upper of two separate groups; none if there is one group."""
    none = torch.zeros_like(values, dtype=torch.bool)
    if values.max() == values.min():
        return none
    upper = torch.from_numpy(best_cut(values.cpu().numpy())).to(values.device)
    high, low = values[upper], values[~upper]
    if min(len(high), len(low)) < _LEAST_GROUP or high.mean() <= least:
        return none
    # copies of one update have no variance, which says nothing of how far honest ones lie apart
    within = ((high.var(correction=0) + low.var(correction=0)) / 2).clamp(min=_LEAST_WITHIN**2)
    gap = high.mean() - low.mean()
    middle = (values > low.mean() + gap / 3) & (values < high.mean() - gap / 3)
    apart = gap.square() >= (_APART + _APART_FEW / len(values)) ** 2 * within
    return upper if bool(apart) and int(middle.sum()) <= _MIDDLE * len(high) else none
