"""Pure tensor functions that more than one rule needs. Nothing here writes to its arguments."""

from collections.abc import Iterator
from math import isfinite

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Shaped
from torch import Tensor

from fedsieve.types import Layout, ParameterError, Segment

# Two float32 blocks of this many bytes fit a core's cache, so a chain of elementwise steps reads memory once.
_BLOCK_BYTES = 1 << 21


def column_blocks(x: Shaped[Tensor, "n d"]) -> Iterator[slice]:
    """Slices that cut ``x`` into blocks of columns: cache-sized on a CPU, a few hundred MB on a GPU.

    No block has 2^24 columns, so that float32 can count in it.
    """
    budget = _BLOCK_BYTES if x.device.type == "cpu" else 1 << 28
    width = min(max(1024, budget // (max(1, len(x)) * max(4, x.element_size()))), (1 << 24) - 1)
    for start in range(0, x.shape[1], width):
        yield slice(start, min(start + width, x.shape[1]))


def sorted_columns(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Each column in ascending order, as a new tensor."""
    if x.device.type == "cpu":  # numpy's vectorised sort is over ten times faster than torch's here
        return torch.from_numpy(np.sort(x.detach().numpy(), axis=0))
    return x.sort(dim=0).values


def uniform_weights(rows: Bool[Tensor, " n"], dtype: torch.dtype) -> Float[Tensor, " n"]:
    """Equal weights over the chosen rows that sum to 1; all 0 if none is."""
    return rows.to(dtype) / max(1, int(rows.sum()))


def row_norms(x: Float[Tensor, "n d"]) -> Float64[Tensor, " n"]:
    """Euclidean norms in float64, which no float32 row overflows."""
    squares = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for block in column_blocks(x):  # several times faster than to have the norm convert as it goes
        squares += torch.linalg.vector_norm(x[:, block].double(), dim=1).square()
    return squares.sqrt()


def middle(values: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """The median; of an even number of values, the mean of the two in the middle."""
    ranked, n = values.sort().values, len(values)
    return (ranked[(n - 1) // 2] + ranked[n // 2]) / 2


def clip_rows(x: Float[Tensor, "n d"], bound: float) -> Float[Tensor, "n d"]:
    """The rows, each longer than ``bound`` scaled down to that length; a new tensor."""
    norms, clipped = row_norms(x), x.clone()
    for row in (norms > bound).nonzero().squeeze(1):
        # in float64: the scale may be beyond float32's reach where the product is not
        clipped[row] = x[row].double() * (bound / norms[row])
    return clipped


def check_max_norm(defense: str, max_norm: float | None) -> None:
    """Raise :class:`ParameterError`, in the name of ``defense``, where a clipping bound makes no sense."""
    if max_norm is not None and not (max_norm > 0 and isfinite(max_norm)):
        raise ParameterError(f"{defense}: max_norm must be finite and positive, got {max_norm}")


def clip_updates(
    x: Float[Tensor, "n d"], n_parameters: int, max_norm: float | None
) -> tuple[Float[Tensor, "n d"], float]:
    """Parameters clipped to ``max_norm``, or to their median length if that is None; and the bound that was used.

    Running statistics are clipped as a vector of their own, always to its median length: their scale has nothing to
    do with the parameters', and left alone they would be a way in for an update of any length.
    """

    def median(part: Tensor) -> float:
        return float(middle(row_norms(part)))

    bound = median(x[:, :n_parameters]) if max_norm is None else max_norm
    clipped = clip_rows(x[:, :n_parameters], bound)
    if n_parameters < x.shape[1]:
        statistics = x[:, n_parameters:]
        clipped = torch.cat([clipped, clip_rows(statistics, median(statistics))], dim=1)
    return clipped, bound


def mean_of_ranks(
    x: Float[Tensor, "n d"], start: int, stop: int, counted: Bool[Tensor, " d"] | None = None
) -> tuple[Float[Tensor, " d"], Float[Tensor, " n"]]:
    """Mean of the ``start``-th to the ``stop``-th smallest value (exclusive) of each column, from 0.

    Also each row's part in it, summing to 1: every column's weight is spread evenly over the values that lie in the
    kept range, tied ones included. With ``counted``, only these columns count for the parts (all 0 if none does).
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
    """The shortest n // 2 + 1 rows, and those as long as the last of them; none is longer than an honest majority's."""
    norms = row_norms(x)
    return norms <= norms.sort().values[len(x) // 2]


def centred_gram(x: Float[Tensor, "n d"], rows: Bool[Tensor, " n"]) -> Float64[Tensor, "n n"]:
    """Inner products of all rows, seen from the mean of the chosen ones; in float64."""
    gram = torch.zeros(len(x), len(x), dtype=torch.float64, device=x.device)
    for block in column_blocks(x):
        columns = x[:, block].double()
        columns = columns - columns[rows].mean(dim=0)
        gram += columns @ columns.T
    return gram


def pairwise_sq_distances(x: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    """Squared Euclidean distances between rows, in float64.

    From the Gram matrix of the centred rows: one matrix product instead of n^2 d work, and centring keeps near
    neighbours of a far-off point from cancelling to rounding noise. The centre is that of the shorter majority: one
    huge row in it would carry it away, and the distances of all others would drown.
    """
    gram = centred_gram(x, shorter_majority(x))
    squares = gram.diagonal()
    distances = (squares[:, None] + squares[None, :] - 2 * gram).clamp_(min=0).fill_diagonal_(0)
    return distances.nan_to_num_(nan=torch.inf, posinf=torch.inf)  # of rows whose square float64 can't hold


def cosine_distances(x: Float[Tensor, "n d"], origin: Float[Tensor, " d"] | None = None) -> Float64[Tensor, "n n"]:
    """1 - cosine of the angle between rows, seen from ``-origin`` if that is given; in float64.

    Half the squared distance between the rows scaled to length 1, so that nearly parallel rows don't cancel to rounding
    noise; what is no more than that is 0. Two rows of zeros are at distance 0, a row of zeros and any other at 1.
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
    # not every BLAS computes both halves alike
    distances = (squares[:, None] + squares[None, :]) / 2 - (gram + gram.T) / 2
    distances = torch.where(distances > max(1e-13 * float(distances.max()), 1e-26), distances, 0)
    return torch.where(zero[:, None] != zero[None, :], 1, distances).fill_diagonal_(0)


def median_clipped_mean(
    x: Float[Tensor, "n d"], rows: Bool[Tensor, " n"], n_parameters: int
) -> tuple[Float[Tensor, " d"], float]:
    """Mean of the chosen rows, each shortened to the median length of all; and that length. 0 if no row is chosen.

    Length is that of the first ``n_parameters`` coordinates; the others are averaged as they are.
    """
    bound = float(middle(row_norms(x[:, :n_parameters])))
    kept, mean = x[rows], torch.zeros_like(x[0])
    if len(kept):
        mean[:n_parameters] = clip_rows(kept[:, :n_parameters], bound).mean(dim=0)
        mean[n_parameters:] = kept[:, n_parameters:].mean(dim=0)
    return mean, bound


def krum_scores(sq_distances: Float[Tensor, "n n"], f: int) -> Float[Tensor, " n"]:
    """Sum of each row's squared distances to its n - f - 2 nearest others (at least one; 0 if there is no other)."""
    n = len(sq_distances)
    neighbours = min(max(n - f - 2, 1), n - 1)
    others = sq_distances.clone().fill_diagonal_(torch.inf)
    return others.sort(dim=1).values[:, :neighbours].sum(dim=1)


def lowest(scores: Float[Tensor, " n"], k: int) -> Bool[Tensor, " n"]:
    """Which have the k least scores, of scores >= 0; those tied with the last of them, to rounding, as well."""
    return scores <= scores.sort().values[min(k, len(scores)) - 1] * (1 + 1e-9)


def output_layer(layout: Layout) -> tuple[Segment, Segment | None]:
    """Weight [classes, features] and bias [classes] of a model's last layer.

    The weight is the last parameter of at least two dimensions, its rows the classes; without one, the last parameter.
    The bias is the parameter right behind it, if it has as many entries as there are rows; else None.
    """
    parameters = [s for s in layout.segments if s.start < layout.n_parameters]
    k = max((k for k, s in enumerate(parameters) if len(s.shape) >= 2), default=len(parameters) - 1)
    behind = parameters[k + 1] if k + 1 < len(parameters) else None
    weight = parameters[k]
    return weight, behind if behind is not None and behind.shape == weight.shape[:1] else None
