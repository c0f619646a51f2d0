"""Sums over clients, coordinate by coordinate, in float64; several times faster than torch's on a CPU, and equal."""

import torch
from jaxtyping import Float
from torch import Tensor

from fedsieve.core.linalg import column_blocks


def sum_signs(x: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    """Sign of each column's sum: 1, -1 or 0.

    >>> sum_signs(torch.tensor([[1.0, -1.0, 1.0], [1.0, 0.0, -1.0]]))
    tensor([ 1., -1.,  0.])
    """
    signs, ones = torch.empty_like(x[0]), torch.ones(len(x), dtype=torch.float64, device=x.device)
    for block in column_blocks(x):
        signs[block] = (ones @ x[:, block].double()).sign()
    return signs


def deviations(x: Float[Tensor, "n d"], correction: int = 0) -> Float[Tensor, " d"]:
    """Standard deviation of each column.

    >>> deviations(torch.tensor([[1.0], [3.0]])), deviations(torch.tensor([[1.0], [3.0]]), correction=1)
    (tensor([1.]), tensor([1.4142]))

    Args:
        x: Values; more rows than ``correction``.
        correction: The sum of squares is divided by n minus this.
    """
    found, ones = torch.empty_like(x[0]), torch.ones(len(x), dtype=torch.float64, device=x.device)
    for block in column_blocks(x):
        columns = x[:, block].double()
        offsets = columns - ones @ columns / len(x)
        found[block] = (ones @ offsets.square_() / (len(x) - correction)).sqrt()
    return found
