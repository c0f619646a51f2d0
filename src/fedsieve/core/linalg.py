"""Pure tensor functions that more than one method needs. None of them writes to its arguments."""

from collections.abc import Iterator
from math import isfinite

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Shaped
from torch import Tensor

from fedsieve.core.errors import ParameterError
from fedsieve.core.layout import Layout, Segment

# Two float32 blocks of this size fit a core's cache, so that a sequence of elementwise steps reads memory once.
_BLOCK_BYTES = 1 << 21


def column_blocks(x: Shaped[Tensor, "n d"]) -> Iterator[slice]:
    """Slices that cut ``x`` into blocks of columns: cache-sized on a CPU, a few hundred MB on a GPU.

    A block has fewer than 2^24 columns, so that counts of its columns are exact in float32.
    """
    budget = _BLOCK_BYTES if x.device.type == "cpu" else 1 << 28
    width = min(max(1024, budget // (max(1, len(x)) * max(4, x.element_size()))), (1 << 24) - 1)
    for start in range(0, x.shape[1], width):
        yield slice(start, min(start + width, x.shape[1]))


def sorted_columns(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Each column in ascending order, as a new tensor."""
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64):
        # numpy's vectorised sort is over ten times faster than torch's here; it has no bfloat16
        return torch.from_numpy(np.sort(x.detach().resolve_neg().numpy(), axis=0))
    return x.sort(dim=0).values


def uniform_weights(rows: Bool[Tensor, " n"], dtype: torch.dtype) -> Float[Tensor, " n"]:
    """Equal weights over the chosen rows, summing to 1; all 0 if no row is chosen."""
    return rows.to(dtype) / max(1, int(rows.sum()))


def row_norms(x: Float[Tensor, "n d"]) -> Float64[Tensor, " n"]:
    """Euclidean norms, [n]; in float64, where no float32 row overflows."""
    squares = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for block in column_blocks(x):  # several times faster than conversion inside the norm
        squares += torch.linalg.vector_norm(x[:, block].double(), dim=1).square()
    return squares.sqrt()


def middle(values: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """The median; of an even number of values, the mean of the two in the middle.

    >>> middle(torch.tensor([1.0, 2.0, 4.0, 93.0]))
    tensor(3.)
    """
    ranked, n = values.sort().values, len(values)
    return (ranked[(n - 1) // 2] + ranked[n // 2]) / 2


def clip_rows(x: Float[Tensor, "n d"], bound: float) -> Float[Tensor, "n d"]:
    """The rows, those longer than ``bound`` scaled down to that length; a new tensor.

    >>> clip_rows(torch.tensor([[3.0, 4.0], [30.0, 40.0]]), bound=10.0)
    tensor([[3., 4.],
            [6., 8.]])
    """
    norms, clipped = row_norms(x), x.clone()
    for row in (norms > bound).nonzero().squeeze(1):
        # in float64: float32 may not hold the scale even where it holds the product
        clipped[row] = x[row].double() * (bound / norms[row])
    return clipped


def check_max_norm(defense: str, max_norm: float | None) -> None:
    """Raise :class:`ParameterError`, in the name of ``defense``, where a clipping bound is not finite and positive."""
    if max_norm is not None and not (max_norm > 0 and isfinite(max_norm)):
        raise ParameterError(f"{defense}: max_norm must be finite and positive, got {max_norm}")


def check_fits_float32(owner: str, **numbers: float | None) -> None:
    """Raise :class:`ParameterError`, in the name of ``owner``, where a number is beyond float32; None passes.

    Multiplied with updates it would be infinite, and make NaN of every 0 among them.
    """
    largest = torch.finfo(torch.float32).max
    for name, number in numbers.items():
        if number is not None and not abs(number) <= largest:
            raise ParameterError(
                f"{owner}: {name} must be at most {largest:.2g} in absolute value, the limit of float32, got {number}"
            )


def clip_updates(x: Float[Tensor, "n d"], max_norm: float | None) -> tuple[Float[Tensor, "n d"], float]:
    """Rows clipped to ``max_norm``, or to their median length if it is None; and that bound.

    >>> clip_updates(torch.tensor([[1.0], [2.0], [-93.0]]), None)
    (tensor([[ 1.],
            [ 2.],
            [-2.]]), 2.0)
    """
    bound = float(middle(row_norms(x))) if max_norm is None else max_norm
    return clip_rows(x, bound), bound


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
    mean, parts = torch.empty_like(x[0]), x.new_zeros(len(x))
    for block in column_blocks(x):
        ranked = sorted_columns(x[:, block])
        mean[block] = ranked[start:stop].mean(dim=0)
        kept = ((x[:, block] >= ranked[start]) & (x[:, block] <= ranked[stop - 1])).to(x.dtype)
        weight = 1 / kept.sum(dim=0)
        parts += kept @ (weight if counted is None else weight * counted[block])
    total = parts.sum()
    return mean, parts / total if total > 0 else parts


def shorter_majority(x: Float[Tensor, "n d"]) -> Bool[Tensor, " n"]:
    """The shortest n // 2 + 1 rows and those as long as the last of them.

    If more than half of the rows are benign, no chosen row is longer than the longest benign one.
    """
    norms = row_norms(x)
    return norms <= norms.sort().values[len(x) // 2]


def centred_gram(x: Float[Tensor, "n d"], rows: Bool[Tensor, " n"]) -> Float64[Tensor, "n n"]:
    """Inner products of all rows after the mean of the chosen ones is subtracted; in float64."""
    gram = torch.zeros(len(x), len(x), dtype=torch.float64, device=x.device)
    for block in column_blocks(x):
        columns = x[:, block].double()
        columns = columns - columns[rows].mean(dim=0)
        gram += columns @ columns.T
    return gram


def pairwise_sq_distances(x: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    """Squared Euclidean distances between rows, in float64.

    From the Gram matrix of the centred rows, one matrix product. Centring avoids cancellation between rows that are
    close to each other and far from 0. The centre is the mean of the shorter majority: with a huge row in it, the
    distances between the others would be lost to rounding.
    """
    gram = centred_gram(x, shorter_majority(x))
    squares = gram.diagonal()
    distances = (squares[:, None] + squares[None, :] - 2 * gram).clamp_(min=0).fill_diagonal_(0)
    return distances.nan_to_num_(nan=torch.inf, posinf=torch.inf)  # of rows whose square overflows float64


def cosine_distances(x: Float[Tensor, "n d"], origin: Float[Tensor, " d"] | None = None) -> Float64[Tensor, "n n"]:
    """1 - cosine of the angle between rows, after ``origin`` is added to each if it is given; in float64.

    Computed as half the squared distance between the rows scaled to length 1, which stays exact for nearly parallel
    rows; distances within rounding error are 0. Two rows of zeros are at distance 0, a row of zeros and any other at 1.

    >>> cosine_distances(torch.tensor([[1.0, 0.0], [0.0, 5.0]]))
    tensor([[0., 1.],
            [1., 0.]], dtype=torch.float64)
    """

    def rows(block: slice) -> Tensor:
        return x[:, block].double() if origin is None else x[:, block].double() + origin[block].double()

    squares = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for block in column_blocks(x):
        squares += rows(block).square().sum(dim=1)
    zero = squares == 0
    scale = torch.where(zero, 0, squares.rsqrt())[:, None]
    gram = torch.zeros(len(x), len(x), dtype=torch.float64, device=x.device)
    for block in column_blocks(x):
        columns = rows(block) * scale
        columns = columns - columns.mean(dim=0)
        gram += columns @ columns.T
    squares = gram.diagonal()
    # some BLAS libraries do not compute both halves alike
    distances = (squares[:, None] + squares[None, :]) / 2 - (gram + gram.T) / 2
    distances = torch.where(distances > max(1e-13 * float(distances.max()), 1e-26), distances, 0)
    return torch.where(zero[:, None] != zero[None, :], 1, distances).fill_diagonal_(0)


def median_clipped_mean(x: Float[Tensor, "n d"], rows: Bool[Tensor, " n"]) -> tuple[Float[Tensor, " d"], float]:
    """Mean of the chosen rows, each clipped to the median length of all; and that length. 0 if no row is chosen."""
    bound = float(middle(row_norms(x)))
    return clip_rows(x[rows], bound).mean(dim=0) if rows.any() else torch.zeros_like(x[0]), bound


def krum_scores(sq_distances: Float[Tensor, "n n"], f: int) -> Float[Tensor, " n"]:
    """Krum's scores: each row's sum of squared distances to its n - f - 2 nearest others.

    At least one neighbour counts; the score of a single row is 0.
    """
    n = len(sq_distances)
    neighbours = min(max(n - f - 2, 1), n - 1)
    others = sq_distances.clone().fill_diagonal_(torch.inf)
    return others.sort(dim=1).values[:, :neighbours].sum(dim=1)


def lowest(scores: Float[Tensor, " n"], k: int) -> Bool[Tensor, " n"]:
    """Which rows have the ``k`` lowest scores (>= 0); ties with the last of them, to rounding, are included.

    >>> lowest(torch.tensor([3.0, 1.0, 2.0, 2.0]), k=2)
    tensor([False,  True,  True,  True])
    """
    return scores <= scores.sort().values[min(k, len(scores)) - 1] * (1 + 1e-9)


def output_layer(layout: Layout) -> tuple[Segment, Segment | None]:
    """Weight [classes, features] and bias [classes] of a model's last layer.

    The weight is the last parameter of at least two dimensions, one row per class; without one, the last parameter.
    The bias is the parameter right behind it, if it has as many entries as there are classes; else None.
    """
    parameters = [s for s in layout.segments if s.start < layout.n_parameters]
    k = max((k for k, s in enumerate(parameters) if len(s.shape) >= 2), default=len(parameters) - 1)
    behind = parameters[k + 1] if k + 1 < len(parameters) else None
    weight = parameters[k]
    return weight, behind if behind is not None and behind.shape == weight.shape[:1] else None
