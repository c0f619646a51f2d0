"""Gaussian noise of a given length, which several attacks send or add. Nothing here writes to its arguments."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fedsieve.core.layout import Layout
from fedsieve.core.linalg import row_norms


def parameter_coordinates(layout: Layout) -> Bool[Tensor, " d"]:
    """Which coordinates are trained; the others are running statistics, where noise could make a variance negative."""
    return torch.arange(layout.size) < layout.n_parameters


def noise_of_length(
    like: Float[Tensor, "m d"], lengths: Float[Tensor, " m"], where: Bool[Tensor, " d"], generator: torch.Generator
) -> Float[Tensor, "m d"]:
    """Independent Gaussian rows, each scaled to exactly its length; in the type of ``like``.

    >>> where = torch.tensor([True, True, False])
    >>> noise = noise_of_length(torch.zeros(2, 3), torch.tensor([5.0, 0.0]), where, torch.Generator())
    >>> noise.norm(dim=1).round(decimals=3), noise[:, 2]
    (tensor([5., 0.]), tensor([0., 0.]))

    Args:
        like: Of the shape and type of the result.
        lengths: Euclidean norm of each row, 0 or more.
        where: Coordinates that are drawn; the others are 0.
        generator: The only source of randomness.
    """
    drawn = torch.randn(like.shape, generator=generator).to(like).masked_fill_(~where.to(like.device), 0)
    norms: Tensor = drawn.norm(dim=1, keepdim=True)
    return drawn.div_(norms.clamp(min=torch.finfo(like.dtype).tiny)).mul_(lengths.to(like)[:, None])


def with_noise(
    x: Float[Tensor, "m d"], share: float, where: Bool[Tensor, " d"], generator: torch.Generator
) -> Float[Tensor, "m d"]:
    """The rows of ``x`` plus Gaussian noise of ``share`` times their own length, both taken over ``where``.

    Args:
        x: Updates.
        share: Length of the noise, as a share of the row's.
        where: Coordinates that count for the length and get noise.
        generator: The only source of randomness.
    """
    lengths = row_norms(torch.where(where.to(x.device), x, 0))
    return noise_of_length(x, share * lengths, where, generator).add_(x)
