"""Rows put together, copied only where that has to be."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


def both(first: Float[Tensor, "m d"], second: Float[Tensor, "b d"]) -> Float[Tensor, "n d"]:
    """The rows of both, one after the other; a view where they are neighbours in one matrix.

    >>> rows = torch.tensor([[1.0], [2.0], [3.0]])
    >>> both(rows[:1], rows[1:]).data_ptr() == rows.data_ptr(), both(rows[1:], rows[:1])
    (True, tensor([[2.],
            [3.],
            [1.]]))
    """
    (m, d), whole = first.shape, first._base
    follows = second.storage_offset() == first.storage_offset() + m * d
    if follows and whole is not None and whole is second._base and first.is_contiguous() and second.is_contiguous():
        return whole.as_strided((m + len(second), d), (d, 1), first.storage_offset())
    return torch.cat([first, second])


def stacked(rows: Sequence[Shaped[Tensor, "*shape"]]) -> Shaped[Tensor, "k *shape"]:
    """At least one row as a matrix, or tensors of one shape as one more dimension; a view of one alone.

    >>> row = torch.tensor([1.0, 2.0])
    >>> stacked([row]).data_ptr() == row.data_ptr(), stacked([row, row]).shape
    (True, torch.Size([2, 2]))
    """
    return torch.stack(list(rows)) if len(rows) > 1 else rows[0][None]


def flattened(tensors: Iterable[Shaped[Tensor, "k ..."]], like: Float[Tensor, "k d"]) -> Float[Tensor, "k s"]:
    """Row i of all these tensors, one after the other; without any, no columns beside the rows of ``like``.

    >>> flattened([torch.ones(2, 1), torch.zeros(2, 1, 2)], torch.empty(2, 9))
    tensor([[1., 0., 0.],
            [1., 0., 0.]])
    """
    rows = [tensor.reshape(len(like), -1) for tensor in tensors]
    return torch.cat(rows, dim=1) if rows else like.new_empty(len(like), 0)
