"""Centered clipping: the last aggregate plus the mean of the clients' clipped deviations from it.

Karimireddy, He, Jaggi. Learning from History for Byzantine Robust Optimization. ICML 2021. Equation 3.

Variant: the clipping radius is the median length of the deviations.
Departs: the paper's radius is a constant, and it clips clients' momenta.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedsieve import Aggregate, ServerView, Traits, Updates


@dataclass(frozen=True)
class CenteredClipping:
    """Clips each update's deviation from the last round's aggregate to the median length, and averages.

    Attributes:
        iterations: Number of repetitions in a round, each from the last result.
    """

    iterations: int = 3
    traits: ClassVar[Traits] = Traits(
        summary="The last round's aggregate plus the mean of the clipped deviations from it",
        paper="Karimireddy et al., Learning from History, ICML 2021",
        needs=("state",),
        cost="O(nd)",
    )

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
        """Aggregate n updates; the aggregate is the state for the next round."""
        x = updates.matrix
        centre = torch.zeros_like(x[0]) if view.state is None else view.state
        for _ in range(self.iterations):
            offsets = x - centre
            lengths = offsets.norm(dim=1, keepdim=True)
            centre = centre + (offsets * (lengths.median() / lengths.clamp(min=1e-12)).clamp(max=1)).mean(dim=0)
        return Aggregate(centre, torch.full_like(x[:, 0], 1 / len(x)), state=centre)
