"""Where a round's updates lie along their two principal components, for pictures."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy import ndarray
from torch import Tensor

from fedsieve.core.clustering import gram_components, one_blas_thread
from fedsieve.core.linalg import centred_gram
from fedsieve.core.seeding import stream

# Updates whose inner products with each other are computed; of all with all they would take longer than the round.
MOST = 100


@dataclass(frozen=True)
class Cloud:
    """Updates to be drawn. Above :data:`MOST` of them, the components are those of so many, drawn anew each round.

    Attributes:
        x: The updates, finite, [n, d].
        rows: Those of the components, ascending; all n, or m of them.
        some: These updates.
        gram: Their inner products with each other, centred.
    """

    x: Float[Tensor, "n d"]
    rows: list[int]
    some: Float[Tensor, "m d"]
    gram: Float64[Tensor, "m m"]

    @classmethod
    def of(cls, x: Float[Tensor, "n d"], round: int) -> "Cloud":
        """The updates of a round, which counts from 0."""
        rows, some, n = list(range(len(x))), x, len(x)
        if n > MOST:
            rows = sorted(torch.randperm(n, generator=stream(0, "positions", round))[:MOST].tolist())
            some = x[rows]
        gram = torch.zeros(0, 0, dtype=torch.float64, device=x.device)  # where every update was dropped
        if rows:
            gram = centred_gram(some, torch.ones(len(rows), dtype=torch.bool, device=x.device))
        return cls(x, rows, some, gram)

    def positions(self, gram: Float64[Tensor, "m m"]) -> Float64[ndarray, "n 2"]:
        """Coordinates of the updates; 0 along a component that they don't have, not finite where products overflow.

        Args:
            gram: ``self.gram`` on the CPU.
        """
        if not torch.isfinite(gram).all():
            return np.full((len(self.x), 2), np.nan)
        scale = gram.diagonal().sum()
        if not scale > 0:
            return np.zeros((len(self.x), 2))
        with one_blas_thread():
            found = gram_components(gram / scale, 2) * float(scale.sqrt())
        if self.some is self.x:
            return found
        squares = (found**2).sum(axis=0)
        weights = torch.from_numpy(np.divide(found, squares, out=np.zeros_like(found), where=squares > 0))
        axes = weights.T.to(self.x) @ self.some
        along = (self.x @ axes.T).double().cpu().numpy()
        placed: ndarray = along - along[self.rows].mean(axis=0)
        return placed
