"""Weak differential privacy: norm clipping, the mean, and a small amount of Gaussian noise.

Sun, Kairouz, Suresh, McMahan. Can You Really Backdoor Federated Learning? 2019; arXiv 1911.07963.

Variant: the noise is added once, to the aggregate. It is too small for a privacy guarantee.
Departs: the noise's standard deviation is ``noise`` times the clipping bound over n, so that one setting fits every
model and number of clients; the paper's is fixed, which is ``sigma`` (it has 0.025). Without ``max_norm``, the bound is
the median length of the round's updates.
"""

from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fedsieve.core.clipping import check_max_norm, clipped_mean
from fedsieve.core.defense import Aggregate, ServerView, Updates
from fedsieve.core.direct import direct
from fedsieve.core.errors import ParameterError
from fedsieve.core.linalg import uniform_weights
from fedsieve.core.traits import Traits

_NOISE = 0.05


@direct("weak-dp")
def weak_dp(
    x: Float[Tensor, "n d"],
    max_norm: float | None = None,
    noise: float | None = None,
    sigma: float | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " d"]:
    """Mean of the clipped updates, with Gaussian noise; Sun et al. 2019.

    Args:
        x: Client updates, [n, d], n >= 1.
        max_norm: Clipping bound; None takes the median length of the updates.
        noise: The noise's standard deviation as a multiple of the clipping bound over n; None takes 0.05.
        sigma: The standard deviation itself, instead of ``noise``.
        generator: Source of the noise; needed where ``noise`` or ``sigma`` is not 0.

    Returns:
        The aggregate, [d].

    Raises:
        ParameterError: If a parameter is out of range or without effect, or a generator is needed.

    >>> weak_dp(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, -93.0]]), noise=0.0)
    tensor([ 1.0000, -0.6667])
    """
    check_parameters(max_norm, noise, sigma)
    if generator is None and (sigma if sigma is not None else noise) != 0:
        raise ParameterError("weak-dp: the noise needs a generator; hand one in, or set noise=0.0")
    return noisy_mean(x, max_norm, noise, sigma, generator)


def noisy_mean(
    x: Float[Tensor, "n d"],
    max_norm: float | None,
    noise: float | None,
    sigma: float | None,
    generator: torch.Generator | None,
) -> Float[Tensor, " d"]:
    """Mean of the clipped rows with noise; see :func:`weak_dp`."""
    mean, bound = clipped_mean(x, max_norm)
    deviation = (_NOISE if noise is None else noise) * bound / len(x) if sigma is None else sigma
    if deviation:
        mean += deviation * torch.randn(len(mean), generator=generator).to(x)
    return mean


def check_parameters(max_norm: float | None, noise: float | None, sigma: float | None) -> None:
    """Raise :class:`ParameterError` where a parameter is out of range or has no effect."""
    check_max_norm("weak-dp", max_norm)
    for name, value in (("noise", noise), ("sigma", sigma)):
        if value is not None and not (value >= 0 and isfinite(value)):
            raise ParameterError(f"weak-dp: {name} must be finite and at least 0, got {value}")
    if noise is not None and sigma is not None:
        raise ParameterError(f"weak-dp: noise={noise} has no effect with sigma={sigma}; give one of the two")


@dataclass(frozen=True)
class WeakDP:
    """Mean of the clipped updates, with Gaussian noise.

    Attributes:
        max_norm: Clipping bound; None takes the median length of the round's updates.
        noise: The noise's standard deviation as a multiple of the clipping bound over n; None takes 0.05. Not with
            ``sigma``.
        sigma: The standard deviation itself, instead of ``noise``.
    """

    max_norm: float | None = None
    noise: float | None = None
    sigma: float | None = None
    traits: ClassVar[Traits] = Traits(
        summary="Mean of updates clipped to the median length, with Gaussian noise",
        paper="Sun et al., Can You Really Backdoor Federated Learning?, 2019",
        breaks_at="nothing stated; m malicious clients of n move the mean by m / n of the clipping bound",
        cost="O(nd)",
    )

    def __post_init__(self) -> None:
        check_parameters(self.max_norm, self.noise, self.sigma)

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
        """See :class:`fedsieve.core.defense.Aggregator`."""
        x = updates.parameters
        update = noisy_mean(x, self.max_norm, self.noise, self.sigma, view.generator)
        everyone = torch.ones(len(x), dtype=torch.bool, device=x.device)
        return Aggregate(update, uniform_weights(everyone, x.dtype))
