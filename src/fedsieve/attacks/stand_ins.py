"""Random updates in place of benign ones that an attacker may not see."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def stand_ins(own: Float[Tensor, "m d"], b: int, generator: torch.Generator) -> Float[Tensor, "b d"]:
    """Random updates in place of unknown benign ones, with the mean and the covariance of the rows of ``own``.

    Each is the mean plus a combination of the centred rows with independent weights from N(0, 1 / (m - 1)). One row has
    no covariance; every coordinate then has the row's value as mean and its absolute value as standard deviation.

    >>> stand_ins(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), 4, torch.Generator())[:, 1]
    tensor([5., 5., 5., 5.])
    """
    m, d = own.shape
    mean = own.mean(dim=0)
    if m == 1:
        return mean + torch.randn(b, d, generator=generator).to(own) * mean.abs()
    return mean + torch.randn(b, m, generator=generator).to(own) @ (own - mean) / math.sqrt(m - 1)
