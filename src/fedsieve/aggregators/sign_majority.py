"""signSGD with majority vote: a step of the same size in every coordinate, in the direction of most clients.

Bernstein, Zhao, Azizzadenesheli, Anandkumar. signSGD with Majority Vote is Communication Efficient and Fault
Tolerant. ICLR 2019. Algorithm 1, without momentum.

Variant: the step is ``step * sign(sum of the clients' signs)``; a tied vote gives 0.
Departs: clients vote with the sign of their update, not of one gradient. Without ``step``, its size is the median over
clients of their mean absolute coordinate, so that it follows the scale of the round; the paper has a learning rate.
"""

from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fedsieve.core.defense import Aggregate, ServerView, Updates
from fedsieve.core.direct import direct
from fedsieve.core.errors import ParameterError
from fedsieve.core.linalg import column_blocks, many_columns, middle, room_for_blocks
from fedsieve.core.traits import Traits


@direct("sign-majority")
def sign_majority(x: Float[Tensor, "n d"], step: float | None = None) -> Float[Tensor, " d"]:
    """The majority's sign in each column times the step size; Bernstein et al. 2019, algorithm 1.

    Args:
        x: Client updates, [n, d], n >= 1.
        step: Step size per coordinate; None takes the median over rows of their mean absolute value.

    Returns:
        The aggregate, [d]; 0 where the vote is tied.

    Raises:
        ParameterError: If ``step`` is not finite and positive.

    >>> sign_majority(torch.tensor([[1.0, 2.0], [1.0, -2.0], [-93.0, -2.0]]), step=0.1)
    tensor([ 0.1000, -0.1000])
    """
    check_step(step)
    return majority(x)[0] * step_size(x, step)


def majority(x: Float[Tensor, "n d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, " n"]]:
    """The sign that most rows have in each column, 0 if tied; and each row's weight in it, summing to 1.

    Every column's weight is spread evenly over the rows that have the majority's sign; a tied column has no weight.
    """
    outcome, weights, ones = torch.empty_like(x[0]), x.new_zeros(len(x)), x.new_ones(len(x))
    room, many = room_for_blocks(x, 1)[0], many_columns(x)
    for block in column_blocks(x):
        signs = torch.sign(x[:, block], out=room[:, : block.stop - block.start])
        votes = ones @ signs
        torch.sign(votes, out=outcome[block])
        weights += _shares(signs, votes, outcome[block], exact=not many)
    total = weights.sum()
    return outcome, torch.where(total > 0, weights / total, 0)


def _shares(
    signs: Float[Tensor, "n w"], votes: Float[Tensor, " w"], outcome: Float[Tensor, " w"], exact: bool
) -> Float[Tensor, " n"]:
    """Each row's share of these columns, without rounding if ``exact``; may overwrite the signs."""
    flat = signs.reshape(-1)
    if not exact and float(flat @ flat) == len(flat):  # no zeros: every sign is the majority's or its opposite
        each = outcome / (len(signs) + votes.abs())  # half of 1 / winners
        return (signs @ each + outcome @ each).clamp_(min=0)
    winners = signs.mul_(outcome).clamp_(min=0)  # 1 where the sign is the majority's, else 0
    return winners @ (1 / winners.sum(dim=0).clamp(min=1))


def typical_size(x: Float[Tensor, "n d"]) -> float:
    """Median over the rows of their mean absolute value."""
    size = float(middle(_absolute_sums(x, x.dtype))) / x.shape[1]
    return size if isfinite(size) else float(middle(_absolute_sums(x, torch.float64))) / x.shape[1]


def _absolute_sums(x: Float[Tensor, "n d"], dtype: torch.dtype) -> Float64[Tensor, " n"]:
    """Sum of absolute values of each row; in ``dtype`` within a block of columns."""
    sums = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    room = room_for_blocks(x, 1)[0]
    for block in column_blocks(x):
        sums += torch.abs(x[:, block], out=room[:, : block.stop - block.start]).sum(dim=1, dtype=dtype)
    return sums


def step_size(x: Float[Tensor, "n d"], step: float | None) -> float:
    """``step``, or the typical size of the rows if it is None."""
    return typical_size(x) if step is None else step


def check_step(step: float | None) -> None:
    """Raise :class:`ParameterError` where ``step`` is not finite and positive."""
    if step is not None and not (step > 0 and isfinite(step)):
        raise ParameterError(f"sign-majority: step must be finite and positive, got {step}")


@dataclass(frozen=True)
class SignMajority:
    """One step of the same size in every coordinate, in the direction of most clients.

    Attributes:
        step: Step size per coordinate; None takes the median over clients of their mean absolute coordinate.
    """

    step: float | None = None
    traits: ClassVar[Traits] = Traits(
        summary="signSGD: a step of one size per coordinate, in the direction of most clients",
        paper="Bernstein et al., signSGD with Majority Vote, ICLR 2019",
        breaks_at="n <= 2m",
        cost="O(nd)",
    )

    def __post_init__(self) -> None:
        check_step(self.step)

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
        """See :class:`fedsieve.core.defense.Aggregator`."""
        outcome, weights = majority(updates.parameters)
        return Aggregate(outcome * step_size(updates.parameters, self.step), weights)
