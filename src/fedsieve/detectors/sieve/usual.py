"""What is usual among the clients of one round, and who is far from it."""

from math import log

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from fedsieve.detectors.sieve.evidence import JOINT, Evidence

_FAR = 5.0  # residual norm in units of the references' own, beyond which no data of a client's own are
_DEVIATIONS = 6.0  # and so many deviations of the clients above their median


def far(e: Evidence) -> Bool[Tensor, " n"]:
    """Whose residual is far outside, in the references' units and compared with the other clients."""
    norm = e.residual.clamp(min=1e-3).log()
    if e.longest is None or not e.informative.any():
        return torch.zeros_like(e.informative)
    known = norm[e.informative]
    limit = max(log(_FAR), float(known.median()) + _DEVIATIONS * lower_spread(known))
    return e.informative & (norm > limit)


def center(e: Evidence, rejected: Bool[Tensor, " n"]) -> tuple[float, float]:
    """Median and spread of the joint evidence of the clients that stay; the spread is at least the references'."""
    joint = e.columns[:, JOINT]
    rest = joint[e.informative & ~rejected]
    low, middle, high = _quantiles(rest if len(rest) >= 3 else joint, 0.1, 0.5, 0.85)
    return middle, max(1.0, (middle - low) / 1.28, (high - middle) / 1.04)


def lower_spread(values: Float64[Tensor, " n"]) -> float:
    """Standard deviation of normal values from their lower half, which malicious clients don't widen."""
    low, middle = _quantiles(values, 0.1, 0.5)
    return (middle - low) / 1.28


def _quantiles(values: Float64[Tensor, " n"], *shares: float) -> list[float]:
    found: list[float] = torch.quantile(values, values.new_tensor(shares)).tolist()
    return found
