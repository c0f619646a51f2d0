"""SparseFed: clips the updates, sums them over rounds, and applies only the largest coordinates of the sum.

Panda, Mahloujifar, Bhagoji, Chakraborty, Mittal. SparseFed: Mitigating Model Poisoning Attacks in Federated Learning
with Sparsification. AISTATS 2022. Algorithm 1.

Each round, momentum <- rho momentum + mean of the clipped updates, and memory <- memory + momentum. The coordinates of
the memory that are largest in absolute value are the step; there, memory and momentum are set to 0.

Variant: momentum is set to 0 where the memory is, as in the published code. Ties go to the lowest coordinate.
Departs: ``keep`` is a share of the model's coordinates; the published code has a number, 50,000 for a ResNet9. Without
``max_norm``, the bound is the median length of the round's updates; the paper's is fixed.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fedsieve.core.clipping import check_max_norm, clipped_mean
from fedsieve.core.defense import Aggregate, ServerView, Updates
from fedsieve.core.direct import direct
from fedsieve.core.errors import ParameterError
from fedsieve.core.linalg import uniform_weights
from fedsieve.core.traits import Traits

_RHO = 0.9


@direct("sparsefed")
def sparsefed(
    x: Float[Tensor, "n d"],
    momentum: Float[Tensor, " d"] | None = None,
    memory: Float[Tensor, " d"] | None = None,
    *,
    keep: float = 0.1,
    max_norm: float | None = None,
    rho: float | None = None,
) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"], Float[Tensor, " d"]]:
    """One round of SparseFed; Panda et al. 2022, algorithm 1.

    Args:
        x: Client updates, [n, d], n >= 1.
        momentum: Momentum of the last round, [d]; None in the first round.
        memory: Memory of the last round, [d]; None in the first round.
        keep: Share of the coordinates that the step may change; in (0, 1].
        max_norm: Clipping bound; None takes the median length of the updates.
        rho: Factor on the momentum, in [0, 1); None takes 0.9. Without effect, and so an error, if ``keep`` is 1.

    Returns:
        The step, and momentum and memory for the next round, each [d].

    Raises:
        ParameterError: If a parameter is out of range or without effect.

    >>> x = torch.tensor([[4.0, 3.0, 1.0]])
    >>> step, momentum, memory = sparsefed(x, keep=0.3)
    >>> step, memory
    (tensor([4., 0., 0.]), tensor([0., 3., 1.]))
    >>> sparsefed(x, momentum, memory, keep=0.3, rho=0.5)[0]
    tensor([0.0000, 7.5000, 0.0000])
    """
    check_parameters(keep, max_norm, rho, "rho")
    return sparse_step(clipped_mean(x, max_norm)[0], momentum, memory, keep, rho)


def sparse_step(
    mean: Float[Tensor, " d"],
    momentum: Float[Tensor, " d"] | None,
    memory: Float[Tensor, " d"] | None,
    keep: float,
    rho: float | None,
) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"], Float[Tensor, " d"]]:
    """Step, momentum and memory from the mean of the clipped updates; see :func:`sparsefed`."""
    momentum = mean if momentum is None else (_RHO if rho is None else rho) * momentum + mean
    memory = momentum if memory is None else memory + momentum
    moved = largest(memory, ceil(Fraction(str(keep)) * len(mean)))
    return torch.where(moved, memory, 0), torch.where(moved, 0, momentum), torch.where(moved, 0, memory)


def largest(x: Float[Tensor, " d"], k: int) -> Bool[Tensor, " d"]:
    """The ``k`` coordinates of largest absolute value, the lowest ones where they tie; none that is 0."""
    if k == 0:
        return torch.zeros_like(x, dtype=torch.bool)
    sizes = x.abs()
    smallest = sizes.topk(k).values.min()
    above, tied = sizes > smallest, sizes == smallest
    return (above | (tied & (tied.cumsum(dim=0) <= k - above.sum()))) & (sizes > 0)


def check_parameters(keep: float, max_norm: float | None, rho: float | None, name: str) -> None:
    """Raise :class:`ParameterError` where a parameter is out of range or has no effect; ``rho`` is called ``name``."""
    if not 0 < keep <= 1:
        raise ParameterError(f"sparsefed: keep must be in (0, 1], got {keep}")
    check_max_norm("sparsefed", max_norm)
    if rho is not None and not 0 <= rho < 1:
        raise ParameterError(f"sparsefed: {name} must be in [0, 1), got {rho}")
    if rho is not None and keep == 1:
        raise ParameterError(f"sparsefed: {name}={rho} has no effect with keep=1; it needs keep below 1")


@dataclass(frozen=True)
class SparseFed:
    """The largest coordinates of the clipped updates' sum over rounds; the other coordinates wait for later rounds.

    Attributes:
        keep: Share of the coordinates that a round may change; in (0, 1].
        max_norm: Clipping bound; None takes the median length of the round's updates.
        momentum: rho, in [0, 1); None takes 0.9. Not with ``keep=1``, where no momentum is left after a round.
    """

    keep: float = 0.1
    max_norm: float | None = None
    momentum: float | None = None
    traits: ClassVar[Traits] = Traits(
        summary="Clips updates, applies the largest coordinates of their sum over rounds and stores the others",
        paper="Panda et al., SparseFed, AISTATS 2022",
        needs=("state",),
        breaks_at="nothing stated; m malicious clients of n move the mean by m / n of the clipping bound",
        cost="O(nd), memory O(d)",
    )

    def __post_init__(self) -> None:
        check_parameters(self.keep, self.max_norm, self.momentum, "momentum")

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
        """See :class:`fedsieve.core.defense.Aggregator`."""
        x, state = updates.parameters, view.state or {}
        update, _ = clipped_mean(x, self.max_norm)
        step, momentum, memory = sparse_step(
            update, state.get("momentum"), state.get("memory"), self.keep, self.momentum
        )
        everyone = torch.ones(len(x), dtype=torch.bool, device=x.device)
        weights = uniform_weights(everyone, x.dtype)
        return Aggregate(step, weights, state={"memory": memory, "momentum": momentum})
