"""Weighs clients by their numbers of samples, in the mean, up to a bound: FedAvg as its paper has it, made safer.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas. Communication-Efficient Learning of Deep Networks from
Decentralized Data. AISTATS 2017. Algorithm 1.

Departs: the server can't verify a number that a client reports, and a malicious client would inflate it. No client
counts for more than ``cap`` times the median number. With 3, a fifth of the clients has less than half of the weight
whatever it reports, if the others report about the same.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64, Int, Real
from torch import Tensor

from fedsieve.aggregators.chain import Chain
from fedsieve.aggregators.mean import Mean
from fedsieve.core.defense import Aggregate, Aggregator, ServerView, Updates
from fedsieve.core.errors import ParameterError

CAP = 3.0  # times the median, unless another is asked for

SamplesOf = Callable[[Int[Tensor, " n"]], Tensor]  # numbers of samples [n], at least 0, of clients by their ids


def capped_weights(samples: Real[Tensor, " n"], cap: float = CAP) -> Float64[Tensor, " n"]:
    """Weight of each client: its number of samples, or ``cap`` times the median number if that is less.

    Args:
        samples: Of the clients that the median is taken of, each at least 0. Of two medians it is the lower one.
        cap: At least 1.

    Raises:
        ParameterError: If a number is below 0, or ``cap`` below 1.

    >>> capped_weights(torch.tensor([10, 20, 30, 10**9]), cap=2.0)
    tensor([10., 20., 30., 40.], dtype=torch.float64)
    """
    if not cap >= 1:
        raise ParameterError(f"weight_cap is a multiple of the median number of samples, at least 1, got {cap}")
    if len(samples) and not samples.min() >= 0:
        raise ParameterError(f"numbers of samples are at least 0, got {float(samples.min()):g}")
    if not len(samples):
        return samples.double()
    middle = samples.double().sort().values[(len(samples) - 1) // 2]
    return samples.double().clamp(max=float(cap * middle))


@dataclass(frozen=True)
class WeightedMean:
    """Mean of all updates, each with its client's weight; not registered, made by :func:`weighted`.

    The median is that of the clients whose updates reach it, so that rejected ones have no say. Where nobody has a
    sample, all count the same.

    Attributes:
        samples_of: Numbers of samples that clients report; called with ids on the CPU.
        cap: See :func:`capped_weights`.
    """

    samples_of: SamplesOf
    cap: float = CAP

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
        """See :class:`fedsieve.core.defense.Aggregator`."""
        x = updates.matrix
        weights = capped_weights(self.samples_of(updates.client_ids.cpu()), self.cap)
        total = weights.sum()
        shares = (weights / total if total > 0 else torch.full_like(weights, 1 / len(weights))).to(x)
        return Aggregate(shares @ x, shares)


def weighted(defense: Aggregator, samples_of: SamplesOf, cap: float = CAP) -> Aggregator:
    """The defense with the mean at its end weighted.

    Args:
        defense: The mean, or a chain that ends in it.
        samples_of: See :class:`WeightedMean`.
        cap: See :func:`capped_weights`.

    Raises:
        ParameterError: For any other defense.
    """
    check_weighable(defense)
    mean = WeightedMean(samples_of, cap)
    return replace(defense, aggregator=mean) if isinstance(defense, Chain) else mean


def check_weighable(defense: Aggregator, name: str = "") -> None:
    """See that clients can be weighted with this defense.

    Args:
        defense: The defense.
        name: Its name, for the error message.

    Raises:
        ParameterError: If it does not end in the mean: only there a weight has a meaning that is not the rule's own.
    """
    last = defense.aggregator if isinstance(defense, Chain) else defense
    if not isinstance(last, Mean):
        raise ParameterError(
            f"weighting samples needs the mean, alone or behind detectors and pre-aggregators (mean, skymask, "
            f"norm-clipping,mean), but {name or type(defense).__name__} ends in {type(last).__name__}, which decides "
            "by itself how much a client counts; set weighting=equal or another defense"
        )
