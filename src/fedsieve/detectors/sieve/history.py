"""The client history: measurements averaged over rounds, by client id, with their standard errors.

Measurements of an update that was trained on one batch of 32 samples are noisy. So they are averaged over rounds, older
ones with less weight, and a client is rejected only if a lower confidence bound of its mean is above the limit.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from fedsieve.core.clustering import best_cut

# The prior variance weighs as much as this many rounds of the client's own measurements.
_PRIOR_ROUNDS = 4
_LEAST_GROUP = 3
_APART, _APART_FEW = 3.6, 40.0


def remember(
    old: Mapping[str, Tensor] | None,
    ids: Int[Tensor, " n"],
    values: Float64[Tensor, "n f"],
    memory: float,
    forget_after: int,
) -> dict[str, Tensor]:
    """Add one round to the client history; ``old`` is not changed.

    Args:
        old: The history so far; None before the first round.
        ids: Client ids of the round, [n].
        values: Measurements of each client, [n, f].
        memory: Factor on the weight of a client's earlier measurements each time it takes part again, in [0, 1].
        forget_after: Rounds after which a client that does not come back is forgotten.

    Returns:
        ``ids`` of all clients remembered, ascending, [k]; ``weights``, the sums of weights and of squared weights,
        [k, 2]; ``sums``, the weighted sums of measurements and of their squares, [k, 2, f]; ``absent``, the rounds
        since each was last seen, [k].
    """
    if old is None:
        old = {"ids": ids[:0], "weights": values.new_zeros(0, 2), "sums": values.new_zeros(0, 2, values.shape[1])}
        old["absent"] = ids[:0]
    recent = old["absent"] < forget_after
    old = {name: of_clients[recent] for name, of_clients in old.items()}
    known = torch.unique(torch.cat([old["ids"], ids]))
    weights, sums = values.new_zeros(len(known), 2), values.new_zeros(len(known), 2, values.shape[1])
    before, now = torch.searchsorted(known, old["ids"]), torch.searchsorted(known, ids)
    weights[before], sums[before] = old["weights"], old["sums"]
    weights[now] = weights[now] * weights.new_tensor([memory, memory**2]) + 1
    sums[now] = sums[now] * memory + torch.stack([values, values.square()], dim=1)
    absent = torch.zeros_like(known)
    absent[before] = old["absent"] + 1
    absent[now] = 0
    return {"ids": known, "weights": weights, "sums": sums, "absent": absent}


def estimates(
    history: Mapping[str, Tensor], ids: Int[Tensor, " n"], prior: Float64[Tensor, " f"]
) -> tuple[Float64[Tensor, "n f"], Float64[Tensor, "n f"]]:
    """Weighted means of the clients' measurements over their rounds, and the standard errors of these means.

    Args:
        history: From :func:`remember`.
        ids: Client ids to look up, [n].
        prior: Prior variance of one round's measurement, [f]; weighs as much as four rounds.

    Returns:
        Means and standard errors, [n, f] each.
    """
    rows = torch.searchsorted(history["ids"], ids)
    total, squares = history["weights"][rows, :1], history["weights"][rows, 1:]
    rounds = total.square() / squares  # effective number: of equally weighted rounds with the same error
    mean = history["sums"][rows, 0] / total
    spread = (history["sums"][rows, 1] / total - mean.square()).clamp(min=0)
    variance = (spread * rounds + _PRIOR_ROUNDS * prior) / (rounds - 1 + _PRIOR_ROUNDS)
    return mean, (variance / rounds).sqrt()


def outlying_group(
    means: Float64[Tensor, " n"], errors: Float64[Tensor, " n"], limit: float, deviations: float
) -> Bool[Tensor, " n"]:
    """Find an upper group of clients that is separate from the others and whose mean exceeds ``limit`` with confidence.

    The clients are cut into two groups where the sum of squares within groups is least. They count as two groups if
    each has at least three members, and if the two means are 3.6 + 40 / n times as far apart as the root mean square
    distance of members to their group's mean. For n from 8 to 200, n draws from one normal distribution count as two
    groups in less than 1 % of trials, n draws from a uniform distribution in at most 6 %.

    Args:
        means: Mean measurement of each client, [n].
        errors: Their standard errors, [n].
        limit: Limit of the upper group's mean.
        deviations: Standard errors by which the upper group's mean must exceed the limit.

    Returns:
        The members of the upper group, [n]; none if there is no such group.
    """
    none = torch.zeros(len(means), dtype=torch.bool, device=means.device)
    if len(means) < 2 * _LEAST_GROUP or means.max() == means.min():
        return none
    upper = torch.from_numpy(best_cut(means.cpu().numpy())).to(means.device)
    if min(int(upper.sum()), int((~upper).sum())) < _LEAST_GROUP:
        return none
    high, low = means[upper], means[~upper]
    within = (high.var(correction=0) + low.var(correction=0)) / 2
    apart = (high.mean() - low.mean()).square() >= (_APART + _APART_FEW / len(means)) ** 2 * within
    error = (high.var() / len(high)).sqrt() + errors[upper].square().mean().sqrt() / len(high) ** 0.5
    return upper if bool(apart & (high.mean() - deviations * error > limit)) else none


def average(old: Mapping[str, Any] | None, values: Mapping[str, Tensor], memory: float) -> dict[str, Any]:
    """Add one round to weighted sums of the references' measurements; ``old`` is not changed.

    Args:
        old: The sums so far; None before the first round.
        values: Measurements of the round, by name.
        memory: Factor on the weight of earlier rounds.

    Returns:
        Weighted sums by the same names, and ``rounds``, the sum of weights, by which they are divided for the means.
    """
    if old is None:
        return {**{name: value.clone() for name, value in values.items()}, "rounds": 1.0}
    return {
        **{name: memory * old[name] + value for name, value in values.items()},
        "rounds": memory * old["rounds"] + 1.0,
    }
