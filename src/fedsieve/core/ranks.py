"""Sorted columns of a matrix of updates, and means of their ranks."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fedsieve.core.linalg import column_blocks, room_for_blocks


def sorted_columns(x: Float[Tensor, "n d"], room: Float[Tensor, "n w"] | None = None) -> Float[Tensor, "n d"]:
    """Each column in ascending order, as a new tensor or written to ``room``, which has as many columns or more."""
    ranked = torch.empty_like(x) if room is None else room[:, : x.shape[1]]
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64):
        # numpy's vectorised sort is over ten times faster than torch's here; it has no bfloat16
        ranked.copy_(x.detach()).numpy().sort(axis=0)
        return ranked
    return ranked.copy_(x.sort(dim=0).values)


def mean_of_ranks(
    x: Float[Tensor, "n d"], start: int, stop: int, counted: Bool[Tensor, " d"] | None = None
) -> tuple[Float[Tensor, " d"], Float[Tensor, " n"]]:
    """Mean of the ``start``-th to the ``stop``-th smallest value (exclusive) of each column, and each row's weight.

    Args:
        x: Values, [n, d].
        start: First rank of a column that is averaged, from 0.
        stop: One past the last.
        counted: Columns that count for the weights, [d]; None counts all.

    Returns:
        The mean, [d], and the weights, [n]: every column's weight is spread evenly over the values that lie in the
        averaged range, ties included. They sum to 1, or are all 0 if no column counts.

    >>> mean_of_ranks(torch.tensor([[1.0], [2.0], [4.0], [93.0]]), 1, 3)
    (tensor([3.]), tensor([0.0000, 0.5000, 0.5000, 0.0000]))
    """
    mean, parts, ones = torch.empty_like(x[0]), x.new_zeros(len(x)), x.new_ones(len(x))
    room = room_for_blocks(x, 3)
    for block in column_blocks(x):
        ranked = sorted_columns(x[:, block], room[0])
        mean[block] = ranked[start:stop].mean(dim=0)
        kept = within(x[:, block], ranked[start], ranked[stop - 1], room[1:])
        weight = 1 / (ones @ kept)
        parts += kept @ (weight if counted is None else weight * counted[block])
    total = parts.sum()
    return mean, torch.where(total > 0, parts / total, 0)


def within(
    x: Float[Tensor, "n d"], least: Float[Tensor, " d"], most: Float[Tensor, " d"], room: Float[Tensor, "2 n w"]
) -> Float[Tensor, "n d"]:
    """1 where a value is from ``least`` to ``most`` of its column, else 0; written to ``room``, as floats."""
    above, below = room[:, :, : x.shape[1]]
    return torch.ge(x, least, out=above).mul_(torch.le(x, most, out=below))
