"""Clipping of updates to a bound on their length, and the mean of the clipped."""

from math import isfinite

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fedsieve.core.errors import ParameterError
from fedsieve.core.linalg import clip_factors, many_columns, middle, row_norms, scaled_rows, weighted_sum


def check_max_norm(defense: str, max_norm: float | None) -> None:
    """Raise :class:`ParameterError`, in the name of ``defense``, where a clipping bound is not finite and positive."""
    if max_norm is not None and not (max_norm > 0 and isfinite(max_norm)):
        raise ParameterError(f"{defense}: max_norm must be finite and positive, got {max_norm}")


def clip_updates(x: Float[Tensor, "n d"], max_norm: float | None) -> tuple[Float[Tensor, "n d"], float]:
    """Rows clipped to ``max_norm``, or to their median length if it is None; and that bound.

    >>> clip_updates(torch.tensor([[1.0], [2.0], [-93.0]]), None)
    (tensor([[ 1.],
            [ 2.],
            [-2.]]), 2.0)
    """
    norms = row_norms(x)
    bound = float(middle(norms)) if max_norm is None else max_norm
    return scaled_rows(x, clip_factors(norms, bound)), bound


def clipped_mean(
    x: Float[Tensor, "n d"], max_norm: float | None = None, rows: Bool[Tensor, " n"] | None = None
) -> tuple[Float[Tensor, " d"], float]:
    """Mean of :func:`clip_updates`, of the chosen rows if there is a choice, and the bound. 0 if no row is chosen.

    Of many columns from norms and one product with the matrix: no clipped row is written.

    >>> clipped_mean(torch.tensor([[1.0], [2.0], [-93.0]]), rows=torch.tensor([True, False, True]))
    (tensor([-0.5000]), 2.0)
    """
    norms = row_norms(x)
    bound = float(middle(norms)) if max_norm is None else max_norm
    factors, rows = clip_factors(norms, bound), torch.ones_like(norms, dtype=torch.bool) if rows is None else rows
    if x.device.type == "cpu" and not many_columns(x):  # the same to the bit as clipping, then averaging
        total = scaled_rows(x[rows], factors[rows]).sum(dim=0)
    else:
        total = weighted_sum(x, factors * rows)
    return total / rows.sum().clamp(min=1), bound
