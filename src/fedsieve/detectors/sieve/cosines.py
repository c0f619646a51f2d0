"""Lengths and cosines of many long rows: all that Sieve asks of updates, in one pass over them and one small matrix."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fedsieve.core.linalg import row_norms

_CHUNK = 2048  # columns whose products are summed in the rows' own type; sums over chunks are in float64
_CHUNKS = 64  # that are multiplied at once, in one launch
# Lengths between which no product of two rows overflows, or is so small that digits are lost.
_PLAIN = {torch.float32: (1e-12, 1e18), torch.float64: (1e-120, 1e150)}


def lengths_and_cosines(*parts: Float[Tensor, "_ p"]) -> tuple[Float64[Tensor, " m"], Float64[Tensor, "m m"]]:
    """Euclidean lengths of the rows of all parts, in order, and their cosines; both on the CPU.

    Exact to the rounding of the rows' type for all finite rows: where a product of two could overflow or underflow, all
    are scaled to length 1 first, which takes two more passes over them. The cosine of a row of zeros and any row is 0.

    Args:
        *parts: Matrices of the same float type and device; in float64 with squares that are finite.

    >>> lengths, cosines = lengths_and_cosines(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[0.0, -2.0]]))
    >>> lengths
    tensor([5., 0., 2.], dtype=torch.float64)
    >>> cosines[:, 2]
    tensor([-0.8000,  0.0000,  1.0000], dtype=torch.float64)
    """
    gram = _inner_products(parts)
    lengths = gram.diagonal().clamp(min=0).sqrt()
    least, most = _PLAIN[parts[0].dtype]
    if not ((lengths > least) & (lengths < most)).all():
        norms = [row_norms(part) for part in parts]
        lengths = torch.cat(norms).cpu()
        if ((lengths > 0) & ~((lengths > least) & (lengths < most))).any():
            return lengths, _inner_products(parts, [torch.where(of > 0, 1 / of, 0) for of in norms])
    scale = torch.where(lengths > 0, 1 / lengths, 0)
    return lengths, gram * scale[:, None] * scale


def _inner_products(
    parts: Sequence[Float[Tensor, "_ p"]], scales: Sequence[Float64[Tensor, " _"]] | None = None
) -> Float64[Tensor, "m m"]:
    """Inner products of all rows, each first multiplied with its scale if there are scales; on the CPU."""
    stops = list(accumulate(len(part) for part in parts))
    places = [slice(stop - len(part), stop) for part, stop in zip(parts, stops, strict=True)]
    gram = torch.zeros(stops[-1], stops[-1], dtype=torch.float64, device=parts[0].device)
    for start in range(0, parts[0].shape[1], _CHUNKS * _CHUNK):
        columns = [part[:, start : start + _CHUNKS * _CHUNK] for part in parts]
        if scales is not None:
            columns = [(rows.double() * scale[:, None]).to(rows) for rows, scale in zip(columns, scales, strict=True)]
        for k, (one, here) in enumerate(zip(columns, places, strict=True)):
            for other, there in zip(columns[k:], places[k:], strict=True):
                gram[here, there] += _products(one, other)
    gram = gram.cpu()
    return gram.triu() + gram.triu(1).T


def _products(one: Float[Tensor, "a w"], other: Float[Tensor, "b w"]) -> Float64[Tensor, "a b"]:
    """Inner products of the rows of two blocks of columns; long sums in float32 would lose digits."""
    count = one.shape[1] // _CHUNK
    cut = count * _CHUNK
    ones, others = (rows[:, :cut].view(len(rows), count, _CHUNK).transpose(0, 1) for rows in (one, other))
    rest: Tensor = one[:, cut:] @ other[:, cut:].T
    return rest.double() + (ones @ others.mT).sum(dim=0, dtype=torch.float64)
