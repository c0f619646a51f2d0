"""Hiding harm from a defense that compares updates with root updates: parts of vectors, and slopes of root losses."""

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from fedsieve.core.loss import Loss


def lowered_margin(c: int) -> Loss:
    """A loss: minus the mean margin of class ``c``, which Sieve's aggregate never lowers to first order."""

    def loss(logits: Float[Tensor, "k c"], y: Int[Tensor, " k"]) -> Float[Tensor, ""]:
        centred = logits - logits.mean(dim=1, keepdim=True)
        classes = torch.unique(y)
        return torch.stack([centred[y == k, c].mean() for k in classes]).mean() - centred[y == c, c].mean()

    return loss


def leading(rows: Float64[Tensor, "r p"], share: float) -> Float64[Tensor, "k p"]:
    """Orthonormal directions with at least ``share`` of the rows' squared lengths, the fewest that do.

    >>> leading(torch.tensor([[0.0, 3.0], [0.1, 0.0]], dtype=torch.float64), 0.9).abs()
    tensor([[0., 1.]], dtype=torch.float64)
    """
    _, sizes, directions = torch.linalg.svd(rows, full_matrices=False)
    held = sizes.square().cumsum(0) / sizes.square().sum().clamp(min=1e-300)
    first: Tensor = directions[: 1 + int((held < share).sum())]
    return first


def pieces(row: Float64[Tensor, " p"], m: int, share: float, generator: torch.Generator) -> Float64[Tensor, "m p"]:
    """Unit vectors with the entries of ``row`` on a random ``share`` of the coordinates, another for each, else 0.

    The shares of successive rows begin 1 / m of the coordinates apart, so that all are used if ``share`` is 1 / m.
    """
    p = len(row)
    rank = torch.randperm(p, generator=generator).to(row.device)
    starts = torch.arange(m, device=row.device)[:, None] * p // m
    chosen = row * ((rank + starts) % p < max(1, round(share * p)))
    lengths: Tensor = chosen.norm(dim=1, keepdim=True)
    return chosen / lengths.clamp(min=1e-300)


def with_cosines(
    rows: Float64[Tensor, "m p"], slopes: Float64[Tensor, "2 p"], cosines: Float64[Tensor, "m 2"]
) -> Float64[Tensor, "m p"]:
    """The rows after steps along ``slopes`` with which their cosines with these are at most ``cosines``, nearly."""
    lengths, gram = slopes.norm(dim=1), slopes @ slopes.T
    gram = gram + 1e-9 * torch.eye(len(gram)).to(gram) * gram.diagonal().max().clamp(min=1e-300)
    for _ in range(4):  # a step makes the rows longer, too
        missing = (cosines * rows.norm(dim=1, keepdim=True) * lengths - rows @ slopes.T).clamp(max=0)
        rows = rows + torch.linalg.solve(gram, missing.T).T @ slopes
    return rows
