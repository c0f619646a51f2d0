"""Pure tensor functions that more than one method needs. None of them writes to its arguments."""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Float64, Int, Shaped
from torch import Tensor

from fedsieve.core.errors import ParameterError
from fedsieve.core.memory import blank

# Two float32 blocks of this size fit a core's cache, so that a sequence of elementwise steps reads memory once.
_BLOCK_BYTES = 1 << 21
# From this many float32 columns on, a CPU adds up in float32 within a block of columns and in float64 over the blocks:
# three times as fast, and rounding errors average out to about 1e-8. With fewer columns float64 costs nothing.
_MANY = 1 << 13
# Columns that are added up in float32: products, whose matrix routines add up partial sums, and squares.
_LONG, _SHORT = 1 << 12, 1 << 9
# Products of two numbers between its inverse and this are far within the range of float32.
_ORDINARY = 1e15
# Distances are computed again in float64 where their square is less than this share of the two rows' squares together.
CANCELS = 1 / 16
_ALL = slice(None)


def column_blocks(x: Shaped[Tensor, "n d"], most: int = (1 << 24) - 1) -> Iterator[slice]:
    """Slices that cut ``x`` into blocks of columns: cache-sized on a CPU, a few hundred MB on a GPU.

    A block has at most ``most`` columns: fewer than 2^24, so that counts of its columns are exact in float32.
    """
    budget = _BLOCK_BYTES if x.device.type == "cpu" else 1 << 28
    width = min(max(1024, budget // (max(1, len(x)) * max(4, x.element_size()))), most)
    for start in range(0, x.shape[1], width):
        yield slice(start, min(start + width, x.shape[1]))


def room_for_blocks(x: Shaped[Tensor, "n d"], k: int) -> Shaped[Tensor, "k n w"]:
    """Memory for ``k`` matrices of the size of a block of columns, to be used for one block after the other.

    The operating system clears memory that is allocated anew, which takes longer than most elementwise steps.
    """
    return x.new_empty(k, len(x), max((block.stop - block.start for block in column_blocks(x)), default=0))


def uniform_weights(rows: Bool[Tensor, " n"], dtype: torch.dtype) -> Float[Tensor, " n"]:
    """Equal weights over the chosen rows, summing to 1; all 0 if no row is chosen."""
    return rows.to(dtype) / rows.sum().clamp(min=1)


def row_norms(x: Float[Tensor, "n d"]) -> Float64[Tensor, " n"]:
    """Euclidean norms, [n]; in float64, where no float32 row overflows."""
    if not many_columns(x):
        return _norms_in_float64(x)
    whole = x.shape[1] - x.shape[1] % _SHORT
    parts = torch.linalg.vector_norm(x[:, :whole].view(len(x), -1, _SHORT), dim=2).double()
    norms: Tensor = torch.linalg.vector_norm(torch.cat([parts, _norms_in_float64(x[:, whole:])[:, None]], dim=1), dim=1)
    odd = (~_ordinary(norms)).nonzero().squeeze(1)
    if len(odd):  # squares of their values may be beyond float32, or not finite
        norms[odd] = _norms_in_float64(x, odd)
    return norms


def _norms_in_float64(x: Float[Tensor, "n d"], of: Int[Tensor, " m"] | slice = _ALL) -> Float64[Tensor, " m"]:
    squares = torch.zeros(len(x[of, :0]), dtype=torch.float64, device=x.device)
    for block in column_blocks(x):  # several times faster than conversion inside the norm
        squares += torch.linalg.vector_norm(x[of, block].double(), dim=1).square()
    return squares.sqrt()


def many_columns(x: Float[Tensor, "n d"]) -> bool:
    """Whether sums over the columns are in float32 within blocks of them."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and x.shape[1] >= _MANY


def _ordinary(norms: Float64[Tensor, " n"]) -> Bool[Tensor, " n"]:
    return (norms > 1 / _ORDINARY) & (norms < _ORDINARY)


def type_of_products(x: Float[Tensor, "n d"], norms: Float64[Tensor, " m"]) -> torch.dtype:
    """The type in which inner products of rows of these norms are added up within a block of columns."""
    return torch.float32 if many_columns(x) and bool((_ordinary(norms) | (norms == 0)).all()) else torch.float64


def inner_products(x: Float[Tensor, "n d"], v: Float[Tensor, " d"], dtype: torch.dtype) -> Float64[Tensor, " n"]:
    """Inner product of each row with ``v``, added up in ``dtype`` within a block of columns."""
    dots = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for block in column_blocks(x, _LONG):
        dots += x[:, block].to(dtype) @ v[block].to(dtype)
    return dots


def weighted_sum(x: Float[Tensor, "n d"], weights: Float64[Tensor, " n"]) -> Float[Tensor, " d"]:
    """The sum of the rows, each times its weight; in float64 where a weight is beyond the range of float32.

    >>> weighted_sum(torch.tensor([[1.0, 2.0], [3e38, 0.0]]), torch.tensor([1.0, 1e-38], dtype=torch.float64))
    tensor([4., 2.])
    """
    sizes = weights.abs()
    if x.dtype == torch.float64 or (
        x.dtype == torch.float32 and bool(((sizes == 0) | ((sizes > 1e-30) & (sizes < 1e30))).all())
    ):
        total: Tensor = weights.to(x.dtype) @ x
        return total
    total = torch.empty_like(x[0])
    for block in column_blocks(x):
        total[block] = (weights @ x[:, block].double()).to(x.dtype)
    return total


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
    return scaled_rows(x, clip_factors(row_norms(x), bound))


def clip_factors(norms: Float64[Tensor, " n"], bound: float) -> Float64[Tensor, " n"]:
    """What rows of these norms are multiplied with: 1 up to ``bound``, less beyond."""
    return torch.where(norms > bound, bound / norms, 1)


def scaled_rows(x: Float[Tensor, "n d"], factors: Float64[Tensor, " n"]) -> Float[Tensor, "n d"]:
    """The rows times their factors, a new tensor."""
    if many_columns(x) and factors.min() > 1e-30:
        return torch.mul(x, factors.to(x.dtype)[:, None], out=blank(x.shape, x))
    scaled = torch.empty_like(x)
    for block in column_blocks(x):  # in float64: float32 may not hold the factor even where it holds the product
        scaled[:, block] = x[:, block].double() * factors[:, None]
    return scaled


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


def shorter_majority(x: Float[Tensor, "n d"]) -> Bool[Tensor, " n"]:
    """The shortest n // 2 + 1 rows and those as long as the last of them.

    If more than half of the rows are benign, no chosen row is longer than the longest benign one.
    """
    return _shorter_majority(row_norms(x))


def _shorter_majority(norms: Float64[Tensor, " n"]) -> Bool[Tensor, " n"]:
    norms = norms.nan_to_num(nan=torch.inf)  # of a model that is not finite any more
    return norms <= norms.sort().values[len(norms) // 2]


def centred_gram(x: Float[Tensor, "n d"], rows: Bool[Tensor, " n"]) -> Float64[Tensor, "n n"]:
    """Inner products of all rows after the mean of the chosen ones is subtracted; in float64.

    Of many float32 columns on a CPU exact to about 1e-8 of the product of the two rows' norms.
    """
    dtype = type_of_products(x, row_norms(x)) if many_columns(x) else torch.float64
    return _gram(x, rows.nonzero().squeeze(1), dtype)


def _gram(
    x: Float[Tensor, "n d"], centre: Int[Tensor, " k"], dtype: torch.dtype, of: Int[Tensor, " m"] | slice = _ALL
) -> Float64[Tensor, "m m"]:
    """Inner products of all rows, or ``of`` these, less the mean of the rows ``centre``."""
    m, short = len(x[of, :0]), dtype == torch.float32
    share = torch.zeros(len(x), dtype=dtype, device=x.device).index_fill(0, centre, 1 / len(centre))
    gram = torch.zeros(m, m, dtype=torch.float64, device=x.device)
    for block in column_blocks(x, _LONG) if short else column_blocks(x):
        columns = x[:, block].to(dtype)
        # the product is faster; the mean of equal rows is these rows to the bit, so that they are at distance 0
        columns = columns[of] - (share @ columns if short else columns[centre].mean(dim=0))
        gram += columns @ columns.T
    return gram


def _distances(gram: Float64[Tensor, "n n"]) -> Float64[Tensor, "n n"]:
    """Squared distances of the points with these inner products."""
    squares = gram.diagonal()
    distances = (squares[:, None] + squares[None, :] - 2 * gram).clamp_(min=0).fill_diagonal_(0)
    return distances.nan_to_num_(nan=torch.inf, posinf=torch.inf)  # of rows whose square overflows float64


def pairwise_sq_distances(x: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    """Squared Euclidean distances between rows, in float64.

    From the Gram matrix of the centred rows, one matrix product. Centring avoids cancellation between rows that are
    close to each other and far from 0. The centre is the mean of the shorter majority: with a huge row in it, the
    distances between the others would be lost to rounding.

    Of many float32 columns on a CPU exact to about 1e-7; rows close to each other are compared in float64.
    """
    return sq_distances(x, row_norms(x))


def sq_distances(x: Float[Tensor, "n d"], norms: Float64[Tensor, " n"]) -> Float64[Tensor, "n n"]:
    """:func:`pairwise_sq_distances` of rows of these norms."""
    centre = _shorter_majority(norms).nonzero().squeeze(1)
    dtype = type_of_products(x, norms)
    gram = _gram(x, centre, dtype)
    distances = _distances(gram)
    if dtype == torch.float64:
        return distances
    distances = (distances + distances.T) / 2  # some BLAS libraries do not compute both halves alike
    squares = gram.diagonal()[:, None] + gram.diagonal()
    near = (distances < CANCELS * squares).fill_diagonal_(False)
    rows = near.any(dim=1).nonzero().squeeze(1)
    if len(rows):
        pairs = rows[:, None], rows
        distances[pairs] = torch.where(near[pairs], _distances(_gram(x, centre, torch.float64, rows)), distances[pairs])
        # equal rows are equally far from every other, as Krum's ties need it
        first = ((distances <= 1e-13 * squares) | torch.eye(len(x), dtype=torch.bool)).int().argmax(dim=1)
        distances = torch.where(near, distances, distances[first][:, first])
    return distances


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
