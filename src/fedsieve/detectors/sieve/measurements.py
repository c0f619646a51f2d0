"""Measurements of one round: the part of each update that references explain, its residual, and alignments."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from fedsieve.detectors.sieve.cosines import lengths_and_cosines
from fedsieve.detectors.sieve.reference import ReferenceUpdates

_TINY = 1e-300
_ROUNDING = 1e-5  # share of the largest eigenvalue below which a direction of the span is rounding


@dataclass(frozen=True)
class Measurements:
    """The n updates of one round against reference updates of the same round; on the CPU.

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

    @property
    def alike(self) -> Float64[Tensor, "n n"]:
        """How much of each residual every other one is: squared cosines, 0 where they point apart."""
        return self.residual_cosines.clamp(min=0).square()


def measure(x: Float[Tensor, "n p"], gradients: Float[Tensor, "2 p"], references: ReferenceUpdates) -> Measurements:
    """Measure all clients. Everything follows from lengths and cosines; the result is on the CPU.

    Args:
        x: The clients' updates, parameters only.
        gradients: Of the margin loss and of the cross-entropy of the root data at the global model.
        references: Reference updates of the same round.
    """
    n, h, r = len(x), len(references.held_out), len(references.subsets)
    lengths, cosines = lengths_and_cosines(x, torch.cat([gradients, references.held_out]), references.subsets)
    own, steep, held, subset = slice(0, n), slice(n, n + 2), slice(n + 2, n + 2 + h), slice(n + 2 + h, n + 2 + h + r)
    inner = cosines[subset, subset]
    basis, held_explained = _project(inner, cosines[held, subset], references.others)
    coordinates, of_gradients = cosines[own, subset] @ basis, cosines[steep, subset] @ basis
    explained = coordinates.norm(dim=1).clamp(max=1)
    size = lengths[own]
    # the mean of a class's references, up to a factor
    share = lengths[subset] / lengths[subset].max().clamp(min=_TINY)
    means = (references.classes == torch.unique(references.classes)[:, None]) * share
    mean_lengths = ((means @ inner) * means).sum(dim=1).clamp(min=0).sqrt()
    of_means = (means @ cosines[subset, steep] / mean_lengths.clamp(min=_TINY)[:, None]).clamp(-1, 1)
    return Measurements(
        length=size,
        explained=explained * size,
        residual=_rest(explained) * size,
        held_explained=held_explained * lengths[held],
        held_residual=_rest(held_explained) * lengths[held],
        held_length=lengths[held],
        basis=torch.where(lengths[subset] > _TINY, 1 / lengths[subset], 0)[:, None] * basis,
        coordinates=coordinates * size[:, None],
        inner=cosines[own, own] * size[:, None] * size,
        slopes=cosines[own, steep] * size[:, None] * lengths[steep],
        alignment=cosines[own, steep],
        class_alignment=of_means,
        gradient_lengths=lengths[steep],
        gradient_coordinates=of_gradients * lengths[steep][:, None],
    )


def _project(
    gram: Float64[Tensor, "r r"], held: Float64[Tensor, "h r"], others: Bool[Tensor, "h r"]
) -> tuple[Float64[Tensor, "r k"], Float64[Tensor, " h"]]:
    """Orthonormal vectors of the span of r unit vectors, and how much of each held-out unit vector is in its span.

    Args:
        gram: Inner products of the r vectors.
        held: The held-out vectors' inner products with them.
        others: Which of the r vectors a held-out one is projected onto.

    Returns:
        Coefficients of the vectors of the span, and lengths of the held-out vectors' projections.
    """
    factor, failed = torch.linalg.cholesky_ex(gram)
    if not failed and len(held):
        vectors = torch.linalg.solve_triangular(factor, torch.eye(len(gram)).double(), upper=False).T
        inverse = vectors @ vectors.T
        # the largest eigenvalue is at most the largest row sum, 1 over the least at most the inverse's Frobenius norm
        if _ROUNDING * gram.abs().sum(dim=1).max() * inverse.norm() < 1:
            return vectors, _without(inverse, held, ~others)
    lengths = [(row[rest] @ _basis(gram[rest][:, rest])).norm() for row, rest in zip(held, others, strict=True)]
    return _basis(gram), torch.stack(lengths).clamp(max=1) if lengths else gram.new_zeros(0)


def _without(
    inverse: Float64[Tensor, "r r"], held: Float64[Tensor, "h r"], left_out: Bool[Tensor, "h r"]
) -> Float64[Tensor, " h"]:
    """Lengths of unit vectors' projections onto the spans of independent vectors without some of them.

    As with the squares that a regression explains without some of its regressors: leaving these out costs
    ``c' B⁻¹ c``, with their coefficients c and their block B of the inverse Gram matrix.

    Args:
        inverse: The inverse of the Gram matrix of the r vectors.
        held: Inner products of h unit vectors with them.
        left_out: Which are left out, for each of the h.
    """
    coefficients = held @ inverse
    most = int(left_out.sum(dim=1).max())
    rows = left_out.int().argsort(dim=1, descending=True, stable=True)[:, :most]  # and some others where fewer are
    really = left_out.gather(1, rows)
    both = really[:, :, None] & really[:, None, :]
    blocks = torch.where(both, inverse[rows[:, :, None], rows[:, None, :]], torch.eye(most).double())
    own = coefficients.gather(1, rows) * really
    cost = (own * torch.linalg.solve(blocks, own[:, :, None])[:, :, 0]).sum(dim=1)
    squares: Tensor = (held * coefficients).sum(dim=1) - cost
    return squares.clamp(0, 1).sqrt()


def _rest(explained: Float64[Tensor, " k"]) -> Float64[Tensor, " k"]:
    """Length of the part of unit vectors outside a span, from that inside; never quite 0, which would be rounding."""
    return (1 - explained.square()).clamp(min=1e-6).sqrt()


def _basis(gram: Float64[Tensor, "r r"]) -> Float64[Tensor, "r k"]:
    """Coefficients of orthonormal vectors of the span of r vectors, from their inner products."""
    values, vectors = torch.linalg.eigh(gram)
    kept = values > _ROUNDING * values[-1]
    basis: Tensor = vectors[:, kept] / values[kept].sqrt()
    return basis
