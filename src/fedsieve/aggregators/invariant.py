"""Invariant Aggregator: the trimmed mean of the coordinates on whose sign the clients agree, 0 elsewhere.

Wang, Dimitriadis, Koyejo, Tople. Invariant Aggregator for Defending against Federated Backdoor Attacks.
AISTATS 2024. Algorithm 1.

With v the sum of a coordinate's signs, the coordinate is kept if |v| / n > tau, and is then the mean of all clients'
values without the smallest and the largest; a coordinate that is not kept is 0. A value of 0 adds nothing to v and
still counts in n.

Variant: ``preset="paper"`` has the CIFAR-10 values, tau 0.2 and alpha 0.25, trims ceil(alpha n) values at either end
and masks at |v| / n = tau. ``preset="code"`` has those of the published code, tau 0.6 and alpha 0.45, keeps the ranks
int(alpha n) to int((1 - alpha) n) of the values, and keeps a coordinate at |v| / n = tau.
Departs: |v| is compared with tau n in exact arithmetic; in floating point, 4 of 20 votes may or may not exceed 0.2.
Where trimming would leave nothing (the published code divides by zero there), the one or two middle values stay.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fedsieve.core.defense import Aggregate, ServerView, Updates
from fedsieve.core.direct import direct
from fedsieve.core.errors import ParameterError
from fedsieve.core.linalg import column_blocks
from fedsieve.core.ranks import mean_of_ranks
from fedsieve.core.traits import Traits

Preset = Literal["paper", "code"]
_PRESETS: dict[Preset, tuple[float, float, bool]] = {"paper": (0.2, 0.25, True), "code": (0.6, 0.45, False)}


@direct("invariant")
def invariant(
    x: Float[Tensor, "n d"], tau: float = 0.2, trim: float = 0.25, strict: bool = True
) -> Float[Tensor, " d"]:
    """Trimmed mean of the columns whose signs agree, 0 elsewhere; Wang et al. 2024, algorithm 1.

    Args:
        x: Client updates, [n, d], n >= 1.
        tau: A column is kept if the absolute sum of its signs exceeds this share of n; in [0, 1].
        trim: Share of the values that is trimmed at each end, rounded up to whole values; in [0, 0.5). The paper's
            alpha.
        strict: Whether a column at exactly ``tau`` is set to 0, as in the paper.

    Returns:
        The aggregate, [d].

    Raises:
        ParameterError: If a parameter is out of range.

    >>> x = torch.tensor([[1.0, 1.0], [2.0, -1.0], [4.0, 2.0], [93.0, -2.0]])
    >>> invariant(x)
    tensor([3., 0.])
    """
    check_shares(tau, trim, "trim")
    kept = agreed(x, votes_needed(len(x), tau, strict))
    return masked_trimmed_mean(x, kept, *kept_ranks(len(x), trim, "paper"))[0]


def votes_needed(n: int, tau: float, strict: bool) -> int:
    """The fewest votes v with v / n > ``tau``, or >= ``tau`` if not ``strict``; n + 1 if there is no such number."""
    bound = Fraction(str(tau)) * n
    return floor(bound) + 1 if strict else ceil(bound)


def agreed(x: Float[Tensor, "n d"], votes: int) -> Bool[Tensor, " d"]:
    """Columns in which the absolute sum of the signs is at least ``votes``."""
    mask = torch.empty(x.shape[1], dtype=torch.bool, device=x.device)
    for block in column_blocks(x):
        mask[block] = x[:, block].sign().sum(dim=0).abs() >= votes  # whole numbers: exact
    return mask


def kept_ranks(n: int, alpha: float, preset: Preset) -> tuple[int, int]:
    """First rank that trimming leaves, in ascending order from 0, and one past the last."""
    cut = Fraction(str(alpha)) * n
    if preset == "paper":
        start, stop = ceil(cut), n - ceil(cut)
    else:  # the published code ranks old - new, this file new - old: the same values, counted from the other end
        start, stop = n - floor(n - cut), n - floor(cut)
    return (start, stop) if start < stop else ((n - 1) // 2, n // 2 + 1)


def masked_trimmed_mean(
    x: Float[Tensor, "n d"], kept: Bool[Tensor, " d"], start: int, stop: int
) -> tuple[Float[Tensor, " d"], Float[Tensor, " n"]]:
    """Mean of ranks ``start`` to ``stop`` (exclusive) of the kept columns, 0 elsewhere; and each row's weight in it.

    Only kept columns count for the weights. If there is none, all is 0: the model stays as it is.
    """
    mean, weights = mean_of_ranks(x, start, stop, counted=kept)
    return torch.where(kept & weights.any(), mean, 0), weights


def check_shares(tau: float | None, trimmed: float | None, name: str) -> None:
    """Raise :class:`ParameterError` where tau or the trimmed share, called ``name``, is out of range."""
    if tau is not None and not 0 <= tau <= 1:
        raise ParameterError(f"invariant: tau must be in [0, 1], got {tau}")
    if trimmed is not None and not 0 <= trimmed < 0.5:
        raise ParameterError(f"invariant: {name} must be in [0, 0.5), got {trimmed}")


@dataclass(frozen=True)
class Invariant:
    """Trimmed mean of the coordinates whose signs agree.

    Attributes:
        preset: How trimming is rounded, and the values of ``tau``, ``alpha`` and ``strict`` where they are None.
        tau: A coordinate is kept if the absolute sum of its signs exceeds this share of n; in [0, 1]. Needs ``mask``.
        alpha: Share of the values that is trimmed at either end; in [0, 0.5). Needs ``trim``.
        strict: Whether a coordinate at exactly ``tau`` is set to 0. Needs ``mask``.
        mask: False keeps every coordinate: the trimmed mean alone.
        trim: False averages all values: the mask alone.
    """

    preset: Preset = "paper"
    tau: float | None = None
    alpha: float | None = None
    strict: bool | None = None
    mask: bool = True
    trim: bool = True
    traits: ClassVar[Traits] = Traits(
        summary="Trimmed mean of the coordinates on whose sign the clients agree, 0 elsewhere",
        paper="Wang et al., Invariant Aggregator, AISTATS 2024",
        breaks_at="m malicious clients can mask coordinates on which all others agree if tau >= 1 - 2m / n, and keep "
        "coordinates on which the others are split if tau < m / n; at equality as strict decides",
        cost="O(nd log n)",
    )

    def __post_init__(self) -> None:
        check_shares(self.tau, self.alpha, "alpha")
        if not (self.mask or self.trim):
            raise ParameterError("invariant: mask=False and trim=False leave the plain mean; use the defense mean")
        if not self.trim and self.alpha is not None:
            raise ParameterError(f"invariant: alpha={self.alpha} has no effect with trim=False; it needs trim=True")
        for name in ("tau", "strict"):
            if not self.mask and getattr(self, name) is not None:
                value = getattr(self, name)
                raise ParameterError(f"invariant: {name}={value} has no effect with mask=False; it needs mask=True")
        if self.preset != "paper" and not self.trim and None not in (self.tau, self.strict):
            raise ParameterError(
                f"invariant: preset={self.preset} has no effect with tau, strict and trim=False; it needs trim=True"
            )

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
        """See :class:`fedsieve.core.defense.Aggregator`."""
        x, n = updates.parameters, len(updates.matrix)
        tau, alpha, strict = _PRESETS[self.preset]
        alpha = alpha if self.alpha is None else self.alpha
        kept = torch.ones(x.shape[1], dtype=torch.bool, device=x.device)
        if self.mask:
            tau = tau if self.tau is None else self.tau
            kept = agreed(x, votes_needed(n, tau, strict if self.strict is None else self.strict))
        start, stop = kept_ranks(n, alpha, self.preset) if self.trim else (0, n)
        return Aggregate(*masked_trimmed_mean(x, kept, start, stop))
