"""What a server remembers of its clients: measurements that add up over rounds, and what can be said for sure.

A single round says little of a client that trained on a batch of 32; thirty rounds say much. Measurements are kept by
client id, older ones counting less, and judged by a lower confidence bound of their mean, so that patience, not
luck, convicts.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from fedsieve.clustering import best_cut

# The prior variance weighs as much as this many rounds of the client's own.
_PRIOR_ROUNDS = 4
_LEAST_GROUP = 3
_APART, _APART_FEW = 3.6, 40.0


def remember(
    old: Mapping[str, Tensor] | None, ids: Int[Tensor, " n"], values: Float64[Tensor, "n f"], memory: float
) -> dict[str, Tensor]:
    """The ledger with one round more.

    Args:
        old: The ledger of the rounds before, or None.
        ids: Who took part.
        values: What was measured of each.
        memory: What a client's measurement still counts when it takes part again, in [0, 1].
    """
    if old is None:
        old = {"ids": ids[:0], "weights": values.new_zeros(0, 2), "sums": values.new_zeros(0, 2, values.shape[1])}
    known = torch.unique(torch.cat([old["ids"], ids]))
    weights, sums = values.new_zeros(len(known), 2), values.new_zeros(len(known), 2, values.shape[1])
    before, now = torch.searchsorted(known, old["ids"]), torch.searchsorted(known, ids)
    weights[before], sums[before] = old["weights"], old["sums"]
    # of the weights: their sum and that of their squares; of the values: the weighted sum and that of their squares
    weights[now] = weights[now] * weights.new_tensor([memory, memory**2]) + 1
    sums[now] = sums[now] * memory + torch.stack([values, values.square()], dim=1)
    return {"ids": known, "weights": weights, "sums": sums}


def estimates(
    ledger: Mapping[str, Tensor], ids: Int[Tensor, " n"], prior: Float64[Tensor, " f"]
) -> tuple[Float64[Tensor, "n f"], Float64[Tensor, "n f"]]:
    """Each client's mean of each measurement over its rounds, and the standard error of that.

    Args:
        ledger: From :func:`remember`.
        ids: Whose.
        prior: Variance of one round's measurement, as far as is known beforehand.
    """
    rows = torch.searchsorted(ledger["ids"], ids)
    total, squares = ledger["weights"][rows, :1], ledger["weights"][rows, 1:]
    rounds = total.square() / squares  # as many equally weighted ones would say as much
    mean = ledger["sums"][rows, 0] / total
    scatter = (ledger["sums"][rows, 1] / total - mean.square()).clamp(min=0) * rounds  # (rounds - 1) times the variance
    variance = (scatter + _PRIOR_ROUNDS * prior) / (rounds - 1 + _PRIOR_ROUNDS)
    return mean, (variance / rounds).sqrt()


def set_apart(
    means: Float64[Tensor, " n"], errors: Float64[Tensor, " n"], limit: float, deviations: float
) -> Bool[Tensor, " n"]:
    """The upper of two groups of clients, if there are two and the upper one's mean is surely beyond the limit.

    Many clients that do the same are surer together than each alone. There are two groups if, cut where the squares
    within are least, their means lie 3.6 + 40 / n times as far apart as either's members do from its mean (by root
    mean squares), and each has three members or more. Of n draws from one normal distribution, less than 1 % come so
    far apart, and of draws from a uniform one 6 %, for any n from 8 to 200.
    """
    nobody = torch.zeros(len(means), dtype=torch.bool, device=means.device)
    if len(means) < 2 * _LEAST_GROUP or means.max() == means.min():
        return nobody
    upper = torch.from_numpy(best_cut(means.cpu().numpy())).to(means.device)
    if min(int(upper.sum()), int((~upper).sum())) < _LEAST_GROUP:
        return nobody
    high, low = means[upper], means[~upper]
    within = (high.var(correction=0) + low.var(correction=0)) / 2
    apart = (high.mean() - low.mean()).square() >= (_APART + _APART_FEW / len(means)) ** 2 * within
    error = (high.var() / len(high)).sqrt() + errors[upper].square().mean().sqrt() / len(high) ** 0.5
    return upper if bool(apart & (high.mean() - deviations * error > limit)) else nobody


def average(old: Mapping[str, Any] | None, values: Mapping[str, Tensor], memory: float) -> dict[str, Any]:
    """Running weighted sums of what the server measures of itself in every round; divide by ``rounds`` for the mean."""
    if old is None:
        return {**{name: value.clone() for name, value in values.items()}, "rounds": 1.0}
    return {
        **{name: memory * old[name] + value for name, value in values.items()},
        "rounds": memory * old["rounds"] + 1.0,
    }
