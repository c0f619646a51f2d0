"""Measurements of one round: clients' updates and reference updates, compared with each other and with a gradient."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fedsieve.core.layout import Layout, Segment
from fedsieve.core.linalg import column_blocks
from fedsieve.detectors.sieve.reference import ReferenceUpdates

# Layers of fewer parameters have no cosine of their own: it could not be told from noise.
_LEAST_LAYER = 256
_TINY = 1e-300


@dataclass(frozen=True)
class Measurements:
    """Measurements of the n clients of one round, and of the reference updates.

    Attributes:
        gradient_alignment: Cosine of the update and the gradient of the margin loss, [n]; above 0 the update increases
            the loss to first order.
        residual_norm: Logarithm of the norm of the update's residual outside the span of the reference subsets, in
            units of the held-out references' residual norm, [n].
        statistics: Logarithm of the norm of the running statistics' change, in units of the largest such norm of a
            reference, [n]; None for a model without.
        negative_cosine: Minus the cosine of the update and the mean of the classes' references: of the whole model,
            then of each layer that is large enough, [n, parts].
        label_shifted: Mean gradient alignment of the label-shifted references.
        class_negative_cosine: The same as ``negative_cosine`` of each class's reference, [classes, parts].
    """

    gradient_alignment: Float64[Tensor, " n"]
    residual_norm: Float64[Tensor, " n"]
    statistics: Float64[Tensor, " n"] | None
    negative_cosine: Float64[Tensor, "n p"]
    label_shifted: Float64[Tensor, ""]
    class_negative_cosine: Float64[Tensor, "c p"]


def measure(
    x: Float[Tensor, "n d"], gradient: Float[Tensor, " d"], references: ReferenceUpdates, layout: Layout
) -> Measurements:
    """Measure all clients, so that no finite update overflows: in float64, or on rows scaled to length 1.

    Args:
        x: The clients' updates.
        gradient: Gradient of the margin loss at the global model.
        references: Reference updates of the same round.
        layout: The model's layout.
    """
    n, p = len(x), layout.n_parameters
    honest = references.by_class
    trusted = honest.mean(dim=0)
    known = torch.cat([x, honest, references.label_shifted])
    parts = [Segment("", (p,), 0), *(s for s in layout.layers if s.stop - s.start >= _LEAST_LAYER)]
    parts = parts[:1] if len(layout.layers) == 1 else parts
    cosines = torch.stack([_cosines(known[:, s.start : s.stop], trusted[s.start : s.stop]) for s in parts], dim=1)
    gradient_alignment = _cosines(known[:, :p], gradient[:p])
    statistics = None
    if p < x.shape[1]:
        own = torch.cat([honest, references.root[None], references.held_out])[:, p:]
        statistics = (_lengths(x[:, p:]).clamp(min=_TINY) / _lengths(own).max().clamp(min=_TINY)).log()
    return Measurements(
        gradient_alignment=gradient_alignment[:n],
        residual_norm=_residual_norm(x[:, :p], references, p),
        statistics=statistics,
        negative_cosine=-cosines[:n],
        label_shifted=gradient_alignment[n + len(honest) :].mean(),
        class_negative_cosine=-cosines[n : n + len(honest)],
    )


def _residual_norm(x: Float[Tensor, "n p"], references: ReferenceUpdates, p: int) -> Float64[Tensor, " n"]:
    """Logarithm of each row's residual norm outside the span of the reference subsets, in units of the held-out ones'.

    The residual of a held-out reference is taken outside the span of the other folds' subsets; the unit is the root
    mean square of these norms.
    """
    n, r = len(x), len(references.subsets)
    rows = torch.cat([x, references.held_out[:, :p], references.subsets[:, :p]])
    lengths = _lengths(rows).clamp(min=_TINY)
    products = torch.zeros(len(rows), r, dtype=torch.float64, device=x.device)
    scale = lengths.reciprocal()
    for block in column_blocks(rows):
        units = (rows[:, block].double() * scale[:, None]).float()
        products += (units @ units[-r:].T).double()
    gram = products[-r:]
    left = torch.cat(
        [
            _unexplained(products[:n], gram),
            *(
                _unexplained(products[n + k][None, others], gram[others][:, others])
                for k, fold in enumerate(torch.unique(references.folds))
                for others in [references.folds != fold]
            ),
        ]
    )
    squares: Tensor = left * lengths[: len(left)].square()
    unit = squares[n:].mean().clamp(min=_TINY)
    return ((squares[:n] / unit).clamp(min=_TINY).log() / 2).clamp(-50, 700)


def _unexplained(products: Float64[Tensor, "k r"], gram: Float64[Tensor, "r r"]) -> Float64[Tensor, " k"]:
    """Squared norm of the residual of k unit vectors outside the span of r others.

    Args:
        products: Inner products of the k and the r vectors.
        gram: Inner products of the r vectors.
    """
    if not len(gram):
        return products.new_ones(len(products))
    values, vectors = torch.linalg.eigh(gram)
    kept = values > 1e-5 * values[-1]  # the rest is rounding
    coordinates: Tensor = products @ (vectors[:, kept] / values[kept].sqrt())
    return (1 - coordinates.square().sum(dim=1)).clamp(min=1e-6)


def _lengths(x: Float[Tensor, "n k"]) -> Float64[Tensor, " n"]:
    squares = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for block in column_blocks(x):
        squares += x[:, block].double().square().sum(dim=1)
    return squares.sqrt()


def _cosines(x: Float[Tensor, "n k"], direction: Float[Tensor, " k"]) -> Float64[Tensor, " n"]:
    """Cosine of each row and ``direction``; 0 where either is 0."""
    along = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for block in column_blocks(x):
        along += x[:, block].double() @ direction[block].double()
    scale = _lengths(x) * direction.double().norm()
    return torch.where(scale > 0, along / torch.where(scale > 0, scale, 1), 0)
