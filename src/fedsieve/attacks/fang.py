"""Directed deviation: move every coordinate against the honest direction, past the trimmed mean or Krum.

Fang, Cao, Jia, Gong. Local Model Poisoning Attacks to Byzantine-Robust Federated Learning. USENIX Security 2020.
The attacks on trimmed mean (and median) and on Krum, with its theorem 1.

Variant: on updates, not models, as in the authors' later code. s is the sign of the known honest updates' sum.
Trim, full knowledge: beyond the honest updates' minimum where s > 0 and their maximum where s < 0, by a factor drawn
from [1, spread]; partial: mu - s sigma U[3, 4] over the malicious clients' own honest updates (sigma with ddof 0).
Krum: -lambda s from every malicious client, with lambda halved from theorem 1's bound until Krum, with f the number of
crafted updates, selects one of them; partial: the malicious clients' own honest updates take the place of the benign
ones, and the number of crafted updates is the smallest, up to m, for which a lambda is found. If none is found above
``threshold``, all send the known updates' mean minus ``threshold`` s, as in SkyMask's published code.
Departs: s is the sign of the honest updates' sum, as in that code, not that of the aggregate without attack. With few
clients theorem 1's n - 2f - 1 is at least 1. A tie between a crafted and a benign update counts as selected.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fedsieve.attacks.columns import deviations, sum_signs
from fedsieve.core.attack import AttackView
from fedsieve.core.errors import ParameterError
from fedsieve.core.linalg import (
    check_fits_float32,
    column_blocks,
    inner_products,
    pairwise_sq_distances,
    row_norms,
    type_of_products,
)
from fedsieve.core.rows import both
from fedsieve.core.traits import Traits


def beyond_extremes(x: Float[Tensor, "n d"], m: int, spread: float, generator: torch.Generator) -> Float[Tensor, "m d"]:
    """Full knowledge: below each column's minimum where its sum is positive, above its maximum where negative, else 0.

    The extreme is multiplied or divided by a factor drawn from [1, spread], whichever moves it away from the others.

    >>> x = torch.tensor([[1.0, -1.0], [3.0, -2.0]])
    >>> beyond_extremes(x, m=1, spread=1.0, generator=torch.Generator())  # at the extremes
    tensor([[ 1., -1.]])
    """
    direction = sum_signs(x)
    extreme = torch.where(direction > 0, x.amin(dim=0), x.amax(dim=0))
    moved = torch.rand(m, x.shape[1], generator=generator).to(x).mul_(spread - 1).add_(1)
    for block in column_blocks(moved):
        way, end, factor = direction[block], extreme[block], moved[:, block]
        moved[:, block] = torch.where(way == 0, 0, torch.where(way * end > 0, end / factor, end * factor))
    return moved


def beyond_deviations(x: Float[Tensor, "n d"], m: int, generator: torch.Generator) -> Float[Tensor, "m d"]:
    """Partial knowledge: the mean minus its sign times 3 to 4 standard deviations, drawn per coordinate.

    >>> beyond_deviations(torch.tensor([[5.0], [5.0]]), m=1, generator=torch.Generator())  # no deviation
    tensor([[5.]])
    """
    distance = torch.rand(m, x.shape[1], generator=generator).to(x).add_(3)
    return x.mean(dim=0) - distance.mul_(sum_signs(x) * deviations(x))


def step_bound(sq_distances: Float[Tensor, "b b"], sq_norms: Float[Tensor, " b"], f: int, d: int) -> float:
    """Theorem 1: upper bound of lambda for f crafted updates -lambda s among b benign updates x_i.

    min_i (sum of the distances to the n - f - 2 nearest benign) / ((n - 2f - 1) sqrt d) + max_i |x_i| / sqrt d.

    >>> x = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    >>> step_bound(torch.cdist(x, x) ** 2, x.squeeze(1) ** 2, f=2, d=1)
    6.0

    Args:
        sq_distances: Squared distances of the benign updates.
        sq_norms: Their squared norms.
        f: Number of crafted updates.
        d: Number of coordinates.
    """
    b = len(sq_distances)
    nearest = sq_distances.sqrt().sort(dim=1).values[:, 1 : 1 + max(b - 2, 1)]  # the first is 0, to itself
    return float(nearest.sum(dim=1).min() / max(b - f - 1, 1) + sq_norms.max().sqrt()) / math.sqrt(d)


@dataclass(frozen=True)
class _Benign:
    """Benign updates x_i, as far as Krum's scores of them and of crafted ones, -lambda s, depend on them.

    Attributes:
        sq_distances: Squared distances between them, [b, b].
        ranked: Of each the squared distances to the others, ascending, [b, b - 1].
        sq_norms: Squared norms, [b].
        along: Inner products with s, [b].
        length: Squared norm of s.
        d: Number of coordinates.
    """

    sq_distances: Float64[Tensor, "b b"]
    ranked: Float64[Tensor, "b k"]
    sq_norms: Float64[Tensor, " b"]
    along: Float64[Tensor, " b"]
    length: Float64[Tensor, ""]
    d: int

    @classmethod
    def of(cls, benign: Float[Tensor, "b d"], direction: Float[Tensor, " d"]) -> "_Benign":
        norms, between = row_norms(benign), pairwise_sq_distances(benign)
        along = inner_products(benign, direction, type_of_products(benign, norms))
        ranked = between.clone().fill_diagonal_(torch.inf).sort(dim=1).values[:, :-1].contiguous()
        return cls(between, ranked, norms.square(), along, direction.double().square().sum(), benign.shape[1])

    def largest_step(self, copies: int, threshold: float) -> float:
        """See :func:`largest_chosen_step`."""
        step, steps = step_bound(self.sq_distances, self.sq_norms, copies, self.d), []
        while threshold < step < math.inf:
            steps.append(step)
            step /= 2
        lengths = torch.tensor(steps, dtype=torch.float64, device=self.along.device)[:, None]
        # |x_i + step s|^2: only these distances depend on the step, [steps, b]
        crafted = (self.sq_norms + 2 * lengths * self.along + lengths**2 * self.length).clamp(min=0)
        chosen = self._scores_of_crafted(crafted, copies) <= self._scores(crafted, copies).amin(dim=1)
        first = chosen.tolist()
        return steps[first.index(True)] if True in first else 0.0

    @property
    def _neighbours(self) -> int:
        """Krum's n - f - 2 with n = b + f; at least one."""
        return max(len(self.along) - 2, 1)

    def _scores_of_crafted(self, crafted: Float64[Tensor, "s b"], copies: int) -> Float64[Tensor, " s"]:
        """The other copies are the nearest neighbours, at distance 0."""
        return crafted.sort(dim=1).values[:, : max(self._neighbours - copies + 1, 0)].sum(dim=1)

    def _scores(self, crafted: Float64[Tensor, "s b"], copies: int) -> Float64[Tensor, "s b"]:
        """The nearest neighbours of a benign update: so many others, and copies of the crafted one."""
        nearer = torch.searchsorted(self.ranked, crafted.T.contiguous()).T
        taken = (self._neighbours - nearer).clamp(0, copies)
        sums = torch.cat([torch.zeros_like(self.along[:, None]), self.ranked.cumsum(dim=1)], dim=1)
        others = sums.gather(1, (self._neighbours - taken).T).T
        return others + torch.where(taken > 0, taken * crafted, 0)


def largest_chosen_step(
    benign: Float[Tensor, "b d"], direction: Float[Tensor, " d"], copies: int, threshold: float
) -> float:
    """The first lambda among theorem 1's bound, its half, its quarter, ... for which Krum selects -lambda direction.

    >>> largest_chosen_step(torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.ones(1), copies=2, threshold=1e-5)
    0.375

    Args:
        benign: Benign updates.
        direction: Sign vector.
        copies: Number of crafted updates, and Krum's f.
        threshold: Below it the search ends.

    Returns:
        Lambda; 0 if there is none above ``threshold``.
    """
    return _Benign.of(benign, direction).largest_step(copies, threshold)


def fang_krum(
    own: Float[Tensor, "m d"], benign: Float[Tensor, "b d"] | None = None, threshold: float = 1e-5
) -> Float[Tensor, " d"]:
    """The update that all m malicious clients send so that Krum selects it.

    >>> fang_krum(torch.tensor([[2.5], [2.5]]), torch.tensor([[1.0], [2.0], [3.0], [4.0]]))
    tensor([-0.3750])

    Args:
        own: The malicious clients' honest updates.
        benign: The benign clients' updates; None with partial knowledge.
        threshold: Below it the search for lambda ends.
    """
    known = own if benign is None else both(own, benign)
    direction = sum_signs(known)
    if benign is not None and len(benign):
        step = _Benign.of(benign, direction).largest_step(len(own), threshold)
    else:
        seen = _Benign.of(own, direction)
        tries = (seen.largest_step(copies, threshold) for copies in range(1, len(own) + 1))
        step = next((found for found in tries if found > 0), 0.0)
    return -step * direction if step else known.mean(dim=0) - threshold * direction


@dataclass(frozen=True)
class FangTrim:
    """Malicious clients send values beyond the honest updates' extremes, in every coordinate.

    Attributes:
        spread: Full knowledge only: largest factor between the extreme and a malicious value (b in the paper).
    """

    spread: float = 2.0
    traits: ClassVar[Traits] = Traits(
        summary="Just beyond the honest updates' extremes, against their mean",
        paper="Fang et al., Local Model Poisoning Attacks, USENIX Security 2020",
        breaks_at="partial knowledge with one malicious client: its honest update is sent",
    )

    def __post_init__(self) -> None:
        if not self.spread > 1:
            raise ParameterError(f"fang-trim: spread must be above 1, got {self.spread}")
        check_fits_float32("fang-trim", spread=self.spread)

    def craft(self, view: AttackView, /) -> Float[Tensor, "m d"]:
        """See :class:`fedsieve.core.attack.UpdateAttack`."""
        if view.benign_updates is None:
            if self.spread != FangTrim.spread:
                raise ParameterError(
                    f"fang-trim: spread has no effect with partial knowledge, got {self.spread}; "
                    "leave it out, or set knowledge=full"
                )
            return beyond_deviations(view.malicious_updates, len(view.malicious_updates), view.generator)
        return beyond_extremes(view.known_updates, len(view.malicious_updates), self.spread, view.generator)


@dataclass(frozen=True)
class FangKrum:
    """Malicious clients send one update, against the honest mean, that Krum selects.

    Attributes:
        threshold: Lambda below which the search ends.
        radius: Largest distance of the other malicious updates from the first, drawn at random; 0: all are equal.
    """

    threshold: float = 1e-5
    radius: float = 0.0
    traits: ClassVar[Traits] = Traits(
        summary="The same step in every coordinate, against the honest mean, that Krum selects",
        paper="Fang et al., Local Model Poisoning Attacks, USENIX Security 2020",
    )

    def __post_init__(self) -> None:
        if not self.threshold > 0:
            raise ParameterError(f"fang-krum: threshold must be positive, got {self.threshold}")
        if not self.radius >= 0:
            raise ParameterError(f"fang-krum: radius must be at least 0, got {self.radius}")
        check_fits_float32("fang-krum", threshold=self.threshold, radius=self.radius)

    def craft(self, view: AttackView, /) -> Float[Tensor, "m d"]:
        """See :class:`fedsieve.core.attack.UpdateAttack`."""
        m, d = view.malicious_updates.shape
        first = fang_krum(view.malicious_updates, view.benign_updates, self.threshold)
        noise = torch.rand(m, d, generator=view.generator).mul_(2).sub_(1).to(view.malicious_updates)
        noise.mul_(self.radius / math.sqrt(d))[0] = 0
        return noise.add_(first)
