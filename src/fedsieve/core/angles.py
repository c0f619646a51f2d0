"""Angles between updates, or between the models that they make of a global model."""

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from fedsieve.core.linalg import (
    CANCELS,
    column_blocks,
    inner_products,
    many_columns,
    row_norms,
    sq_distances,
    type_of_products,
)


def cosine_distances(x: Float[Tensor, "n d"], origin: Float[Tensor, " d"] | None = None) -> Float64[Tensor, "n n"]:
    """1 - cosine of the angle between rows, after ``origin`` is added to each if it is given; in float64.

    Computed as half the squared distance between the rows scaled to length 1, which stays exact for nearly parallel
    rows; distances within rounding error are 0. Two rows of zeros are at distance 0, a row of zeros and any other at 1.

    Of many float32 columns on a CPU from the rows' distances and lengths, (|a - b|^2 - (|a| - |b|)^2) / (2 |a| |b|),
    exact to about 1e-7: no origin, however long, blurs it. Parallel rows of different lengths are compared as above.

    >>> cosine_distances(torch.tensor([[1.0, 0.0], [0.0, 5.0]]))
    tensor([[0., 1.],
            [1., 0.]], dtype=torch.float64)
    """
    found = _cosine_distances_by_lengths(x, origin) if many_columns(x) else None
    return _cosine_distances_of_units(x, origin) if found is None else found


def _cosine_distances_of_units(
    x: Float[Tensor, "n d"], origin: Float[Tensor, " d"] | None, of: Int[Tensor, " m"] | slice = slice(None)
) -> Float64[Tensor, "m m"]:
    def rows(block: slice) -> Tensor:
        return x[of, block].double() if origin is None else x[of, block].double() + origin[block].double()

    squares = torch.zeros(len(x[of, :0]), dtype=torch.float64, device=x.device)
    for block in column_blocks(x):
        squares += rows(block).square().sum(dim=1)
    zero = squares == 0
    scale = torch.where(zero, 0, squares.rsqrt())[:, None]
    gram = torch.zeros(len(scale), len(scale), dtype=torch.float64, device=x.device)
    for block in column_blocks(x):
        columns = rows(block) * scale
        columns = columns - columns.mean(dim=0)
        gram += columns @ columns.T
    squares = gram.diagonal()
    # some BLAS libraries do not compute both halves alike
    return _of_cosines((squares[:, None] + squares[None, :]) / 2 - (gram + gram.T) / 2, zero)


def _of_cosines(distances: Float64[Tensor, "n n"], zero: Bool[Tensor, " n"]) -> Float64[Tensor, "n n"]:
    """The distances, 0 within rounding error; ``zero`` are rows of zeros."""
    distances = torch.where(distances > (1e-13 * distances.max()).clamp(min=1e-26), distances, 0)
    return torch.where(zero[:, None] != zero[None, :], 1, distances).fill_diagonal_(0)


def _cosine_distances_by_lengths(
    x: Float[Tensor, "n d"], origin: Float[Tensor, " d"] | None
) -> Float64[Tensor, "n n"] | None:
    """None where float32 has too little range, or where a row and the origin cancel."""
    norms = row_norms(x)
    squares, known = norms.square(), norms
    if origin is not None:
        length = row_norms(origin[None])
        known, apart = torch.cat([norms, length]), squares + length.square()
        squares = apart + 2 * inner_products(x, origin, torch.float32)
        if not (squares > 1e-3 * apart).all():
            return None
    if type_of_products(x, known) != torch.float32:
        return None
    zero, lengths, distances = squares == 0, squares.sqrt(), sq_distances(x, norms)
    found = distances - (lengths[:, None] - lengths).square()
    near = (found < CANCELS * distances) & ~zero & ~zero[:, None]
    found = torch.where(zero | zero[:, None], 0, found / (2 * lengths[:, None] * lengths))
    rows = near.any(dim=1).nonzero().squeeze(1)
    if len(rows):
        pairs = rows[:, None], rows
        found[pairs] = torch.where(near[pairs], _cosine_distances_of_units(x, origin, rows), found[pairs])
    return _of_cosines(found, zero)
