"""Measurements of one round: the part of each update that references explain, its residual, and alignments."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fedsieve.core.linalg import column_blocks, row_norms
from fedsieve.detectors.sieve.reference import ReferenceUpdates

_TINY = 1e-300
_ROUNDING = 1e-5  # share of the largest eigenvalue below which a direction of the span is rounding


@dataclass(frozen=True)
class Measurements:
    """The n updates of one round against reference updates of the same round.

    The span is that of the reference subsets; ``explained`` and ``residual`` are the lengths of an update's projection
    onto it and of the rest. A held-out reference is projected onto the span of the subsets that share no sample with
    it.

    Attributes:
        length: Length of each update, [n].
        explained: Length of the part in the span, [n].
        residual: Length of the rest, [n].
        held_explained: The same of the held-out references, [h].
        held_residual: The same of the held-out references, [h].
        held_length: Length of the held-out references, [h].
        basis: Coefficients of the span's orthonormal vectors in terms of the subsets, [r, k].
        coordinates: The updates' inner products with these vectors, [n, k].
        inner: Inner products of the updates, [n, n].
        slopes: Inner products of the updates and the gradients of two root losses, margin and cross-entropy, [n, 2].
        alignment: The same as cosines, [n, 2]; above 0 an update raises the loss to first order.
        class_alignment: These cosines of the mean reference of each class, [c, 2].
        gradient_lengths: Lengths of the two gradients, [2].
        gradient_coordinates: The gradients' inner products with the span's vectors, [2, k].
    """

    length: Float64[Tensor, " n"]
    explained: Float64[Tensor, " n"]
    residual: Float64[Tensor, " n"]
    held_explained: Float64[Tensor, " h"]
    held_residual: Float64[Tensor, " h"]
    held_length: Float64[Tensor, " h"]
    basis: Float64[Tensor, "r k"]
    coordinates: Float64[Tensor, "n k"]
    inner: Float64[Tensor, "n n"]
    slopes: Float64[Tensor, "n 2"]
    alignment: Float64[Tensor, "n 2"]
    class_alignment: Float64[Tensor, "c 2"]
    gradient_lengths: Float64[Tensor, " 2"]
    gradient_coordinates: Float64[Tensor, "2 k"]

    @property
    def residual_cosines(self) -> Float64[Tensor, "n n"]:
        """Cosines of the residuals; 0 where an update is 0."""
        scale = self.residual.clamp(min=_TINY)
        inner = self.inner - self.coordinates @ self.coordinates.T
        return (inner / scale[:, None] / scale).clamp(-1, 1) * (self.length > 0)


def measure(x: Float[Tensor, "n p"], gradients: Float[Tensor, "2 p"], references: ReferenceUpdates) -> Measurements:
    """Measure all clients; products of rows scaled to length 1, so that no finite update overflows.

    Args:
        x: The clients' updates, parameters only.
        gradients: Of the margin loss and of the cross-entropy of the root data at the global model.
        references: Reference updates of the same round.
    """
    n, h, r = len(x), len(references.held_out), len(references.subsets)
    rows = torch.cat([x, gradients, references.held_out, references.subsets, references.by_class])
    norms = row_norms(rows)
    lengths = norms.clamp(min=_TINY)
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=x.device)
    scale = lengths.reciprocal()
    for block in column_blocks(rows):
        units = (rows[:, block].double() * scale[:, None]).float()
        gram += (units @ units.T).double()
    own, steep, held, subset, classes = (
        slice(start, start + size)
        for start, size in zip((0, n, n + 2, n + 2 + h, n + 2 + h + r), (n, 2, h, r, len(rows)), strict=True)
    )
    products, inner = gram[:, subset], gram[subset, subset]
    basis = _basis(inner)
    coordinates, of_gradients = products[own] @ basis, products[steep] @ basis
    explained = coordinates.norm(dim=1).clamp(max=1)
    apart = [
        (products[held][k, rest] @ _basis(inner[rest][:, rest])).norm().clamp(max=1)
        for k, rest in enumerate(references.others)
    ]
    held_explained = torch.stack(apart) if apart else gram.new_zeros(0)
    size = lengths[own]
    return Measurements(
        length=norms[own],
        explained=explained * size,
        residual=_rest(explained) * size,
        held_explained=held_explained * lengths[held],
        held_residual=_rest(held_explained) * lengths[held],
        held_length=norms[held],
        basis=torch.where(lengths[subset] > _TINY, 1 / lengths[subset], 0)[:, None] * basis,
        coordinates=coordinates * size[:, None],
        inner=gram[own, own] * size[:, None] * size,
        slopes=gram[own, steep] * size[:, None] * lengths[steep],
        alignment=gram[own, steep],
        class_alignment=gram[classes, steep],
        gradient_lengths=norms[steep],
        gradient_coordinates=of_gradients * lengths[steep][:, None],
    )


def _rest(explained: Float64[Tensor, " k"]) -> Float64[Tensor, " k"]:
    """Length of the part of unit vectors outside a span, from that inside; never quite 0, which would be rounding."""
    return (1 - explained.square()).clamp(min=1e-6).sqrt()


def _basis(gram: Float64[Tensor, "r r"]) -> Float64[Tensor, "r k"]:
    """Coefficients of orthonormal vectors of the span of r vectors, from their inner products."""
    values, vectors = torch.linalg.eigh(gram)
    kept = values > _ROUNDING * values[-1]
    basis: Tensor = vectors[:, kept] / values[kept].sqrt()
    return basis
