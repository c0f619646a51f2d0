"""Groups of values that stand apart from the others: attackers who do the same thing."""

import numpy as np
import torch
from jaxtyping import Bool, Float64
from numpy import ndarray
from torch import Tensor

from fedsieve.core.clustering import best_cut
from fedsieve.detectors.sieve.evidence import Evidence
from fedsieve.detectors.sieve.measurements import Measurements

_LEAST_GROUP = 3
_APART, _APART_FEW = 3.6, 40.0
_MIDDLE = 1 / 3  # of the upper group's size: the most values in the middle third between the two means
_LEAST_WITHIN = 0.5  # deviations within groups, at least: half of the references' own
_COPIED = -6.0  # mean evidence of residual norm; honest clients' is above -5 even where each has one class
_ALIKE = 0.25  # mean squared cosine of residuals, above which clients who stay are no witnesses against most others
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
    known = values.cpu().numpy()  # on so few numbers, an operation of torch takes several times as long
    left = np.arange(len(known))
    large, small = (np.zeros(len(known), dtype=bool) for _ in range(2))
    while len(left) >= 2 * _LEAST_GROUP:
        upper = _upper(known[left], least)
        if not upper.any():
            break
        low = known[left[~upper]]
        members = left[upper & (known[left] > low.mean() + _OUTSIDE * low.std())]
        (large if upper.sum() > minority * len(known) else small)[members] = True
        left = left[~upper]
    return torch.from_numpy(large).to(values.device), torch.from_numpy(small).to(values.device)


def _upper(values: Float64[ndarray, " n"], least: float) -> Bool[ndarray, " n"]:
    """The upper of two separate groups; none if there is one group."""
    none = np.zeros(len(values), dtype=bool)
    if values.max() == values.min():
        return none
    upper = best_cut(values)
    high, low = values[upper], values[~upper]
    if min(len(high), len(low)) < _LEAST_GROUP or high.mean() <= least:
        return none
    # copies of one update have no variance, which says nothing of how far honest ones lie apart
    within = max((high.var() + low.var()) / 2, _LEAST_WITHIN**2)
    gap = high.mean() - low.mean()
    middle = (values > low.mean() + gap / 3) & (values < high.mean() - gap / 3)
    apart = gap**2 >= (_APART + _APART_FEW / len(values)) ** 2 * within
    return upper if apart and middle.sum() <= _MIDDLE * len(high) else none


def credible(m: Measurements, e: Evidence, rest: Bool[Tensor, " n"], others: Bool[Tensor, " n"]) -> bool:
    """Whether those who stay could be honest clients, so that all others, who are more, stand apart from them.

    They could not if root data explain their updates altogether, as they do no client's own; nor if these are nearly
    the same, and those of the others are not.
    """
    if not e.columns[rest, 0].mean() > _COPIED:
        return False
    alike = m.alike

    def among(chosen: Tensor) -> float:
        pairs, k = alike[chosen][:, chosen], int(chosen.sum())
        return float((pairs.sum() - pairs.diagonal().sum()) / max(k * (k - 1), 1))

    return among(rest) <= max(_ALIKE, 2 * among(others))
