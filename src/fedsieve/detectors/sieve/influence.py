"""Bounded influence: how much of each accepted update counts.

Nothing here rejects anybody. It limits what a client that was not rejected can do in one round.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from fedsieve.detectors.sieve.evidence import Evidence
from fedsieve.detectors.sieve.measurements import Measurements
from fedsieve.detectors.sieve.reference import ReferenceUpdates

_FULL = 0.25  # share of the references' mean length from which on an update has its full weight
_PROVEN = 10  # rounds after which a client's weight is not lower for being new
_ALIKE = 1.5  # times the usual number of similar updates, beyond which updates share their weight
_USUAL = 0.25  # quantile of that number over the clients which is usual
_DOUBTFUL, _HOPELESS = 2.0, 4.0  # deviations from which on a client loses weight, and has none


@dataclass(frozen=True)
class Limited:
    """Accepted updates after limiting: row i is ``scale[i] * x[i] + explained[i] @ basis - slope[i] * gradient``.

    Attributes:
        scale: Factor on the update itself, [n].
        explained: Coordinates of a multiple of its explained part, [n, k].
        slope: Factor on the gradient of the margin loss that is taken away, [n].
        bound: No limited update is longer than this.
    """

    scale: Float64[Tensor, " n"]
    explained: Float64[Tensor, "n k"]
    slope: Float64[Tensor, " n"]
    bound: float


def limit(m: Measurements, e: Evidence, unusual: Bool[Tensor, " n"]) -> Limited:
    """Limit each update's length by the server's reference updates.

    The explained part is cut to the longest of a held-out reference, the residual to the length beyond which 5 % of the
    references are; to more where nine in ten clients have been longer lately. Clients in ``unusual`` keep the explained
    part only: root data vouch for that, and not for the rest. What raises the root data's margin loss to first order is
    taken away, if root data can be trusted.

    Args:
        m: Measurements of the round.
        e: Evidence of the round.
        unusual: Clients that stand apart without being rejected, [n].
    """
    if e.longest is None:  # nothing to compare with: no client counts for more than the median one
        middle = float(m.length.median())
        scale = (middle / m.length.clamp(min=1e-300)).clamp(max=1)
        return Limited(scale, torch.zeros_like(m.coordinates), torch.zeros_like(scale), middle)
    kept = (e.limit / (e.cut * e.residual).clamp(min=1e-12)).clamp(max=1)
    kept[unusual] = 0
    cut = (e.stretch * e.cut).clamp(max=1)
    scale, inside = cut * kept, cut * (1 - kept)
    slope = torch.zeros_like(scale)
    if e.trusted and m.gradient_lengths[0] > 0:
        rising = scale * m.slopes[:, 0] + inside * (m.coordinates @ m.gradient_coordinates[0])
        slope = rising.clamp(min=0) / m.gradient_lengths[0] / m.gradient_lengths[0]  # whose square may underflow
    bound = e.stretch * float(np.hypot(e.longest, e.limit * e.longest_unit))
    return Limited(scale, inside[:, None] * m.coordinates, slope, bound)


def weigh(
    m: Measurements,
    e: Evidence,
    counted: Bool[Tensor, " n"],
    limited: Limited,
    rounds: Int[Tensor, " n"],
    doubt: Float64[Tensor, " n"],
) -> tuple[Float64[Tensor, " n"], float]:
    """Weights of the clients, each at most 1, and the weight that is missing.

    An update much shorter than the references has less weight, an empty one none. Clients whose residuals are similar
    beyond what is usual in the round share the weight of the usual number. A client that has not taken part as often as
    half of the others, up to ten rounds, has less. So has one whose evidence in this round is more than two deviations
    above the clients' median, and none from four on.

    Args:
        m: Measurements of the round.
        e: Evidence of the round.
        counted: Whom to give a weight above 0, [n].
        limited: The limited updates.
        rounds: In how many rounds each client's update said something, [n].
        doubt: Deviations of each client's joint evidence above the clients' median, [n].

    Returns:
        The weights, [n], and how much less than 1 each they are in total for other reasons than short updates.
    """
    size = (m.length / (_FULL * e.usual)).clamp(max=1) if e.usual > 0 else (m.length > 0).double()
    others = counted.double()
    apart = counted & (limited.scale > 0)
    if apart.any():
        alike = m.alike
        similar = 1 + (alike * apart).sum(dim=1) - alike.diagonal() * apart
        most = _ALIKE * torch.quantile(similar[apart], _USUAL)
        others = others * torch.where(apart, (most / similar).clamp(max=1).square(), 1)
    taken = rounds.double()
    proven = taken.median().clamp(max=_PROVEN)
    others = others * ((1 + taken) / (1 + proven)).clamp(max=1)
    others = others * ((_HOPELESS - doubt) / (_HOPELESS - _DOUBTFUL)).clamp(0, 1)
    weights = size * others * e.informative
    return weights, float((1 - others * e.informative).sum())


def combine(
    x: Float[Tensor, "n p"],
    limited: Limited,
    weights: Float64[Tensor, " n"],
    missing: float,
    m: Measurements,
    gradient: Float[Tensor, " p"],
    references: ReferenceUpdates,
) -> Float64[Tensor, " p"]:
    """Weighted mean of the limited updates and the root model's update, which stands in for missing weight.

    It has at most half of the sum of weights, and its length is at most the updates' bound.

    Args:
        x: The clients' updates, parameters only.
        limited: Their limits.
        weights: From :func:`weigh`.
        missing: From :func:`weigh`.
        m: Measurements of the round.
        gradient: Of the margin loss.
        references: Reference updates of the round.
    """
    total = float(weights.sum())
    stand_in = min(missing, total)
    rows = (weights * limited.scale).to(x)
    subsets = (m.basis @ (weights @ limited.explained)).to(x)
    update = (rows @ x).double() + (subsets @ references.subsets).double()
    update -= float(weights @ limited.slope) * gradient.double()
    root = references.root.double()
    root = root * (limited.bound / root.norm().clamp(min=1e-300)).clamp(max=1)
    mean: Tensor = (update + stand_in * root) / max(total + stand_in, 1e-300)
    return mean
