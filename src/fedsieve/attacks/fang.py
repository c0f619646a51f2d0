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
from jaxtyping import Float
from torch import Tensor

from fedsieve.core.attack import AttackView
from fedsieve.core.errors import ParameterError
from fedsieve.core.linalg import check_fits_float32, column_blocks, krum_scores, pairwise_sq_distances
from fedsieve.core.traits import Traits


def honest_direction(x: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    """Sign of each column's sum: 1, -1 or 0.

    >>> honest_direction(torch.tensor([[1.0, -1.0, 1.0], [1.0, 0.0, -1.0]]))
    tensor([ 1., -1.,  0.])
    """
    return x.sum(dim=0, dtype=torch.float64).sign().to(x.dtype)


def beyond_extremes(x: Float[Tensor, "n d"], m: int, spread: float, generator: torch.Generator) -> Float[Tensor, "m d"]:
    """Full knowledge: below each column's minimum where its sum is positive, above its maximum where negative, else 0.

    The extreme is multiplied or divided by a factor drawn from [1, spread], whichever moves it away from the others.

    >>> x = torch.tensor([[1.0, -1.0], [3.0, -2.0]])
    >>> beyond_extremes(x, m=1, spread=1.0, generator=torch.Generator())  # at the extremes
    tensor([[ 1., -1.]])
    """
    direction = honest_direction(x)
    extreme = torch.where(direction > 0, x.amin(dim=0), x.amax(dim=0))
    factor = 1 + (spread - 1) * torch.rand(m, x.shape[1], generator=generator).to(x)
    moved = torch.where(direction * extreme > 0, extreme / factor, extreme * factor)
    return torch.where(direction == 0, 0, moved)


def beyond_deviations(x: Float[Tensor, "n d"], m: int, generator: torch.Generator) -> Float[Tensor, "m d"]:
    """Partial knowledge: the mean minus its sign times 3 to 4 standard deviations, drawn per coordinate.

    >>> beyond_deviations(torch.tensor([[5.0], [5.0]]), m=1, generator=torch.Generator())  # no deviation
    tensor([[5.]])
    """
    distance = 3 + torch.rand(m, x.shape[1], generator=generator).to(x)
    return x.mean(dim=0) - honest_direction(x) * x.std(dim=0, correction=0) * distance


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
    along = torch.zeros(len(benign), dtype=torch.float64, device=benign.device)
    sq_norms = torch.zeros_like(along)
    for block in column_blocks(benign):
        columns = benign[:, block].double()
        along += columns @ direction[block].double()
        sq_norms += columns.square().sum(dim=1)
    between = pairwise_sq_distances(benign)
    length = direction.double().square().sum()
    step = step_bound(between, sq_norms, copies, benign.shape[1])
    distances = torch.zeros(copies + len(benign), copies + len(benign), dtype=torch.float64, device=benign.device)
    distances[copies:, copies:] = between
    while threshold < step < math.inf:
        # |x_i + step s|^2: only these distances depend on the step
        to_crafted = (sq_norms + 2 * step * along + step**2 * length).clamp(min=0)
        distances[:copies, copies:] = to_crafted
        distances[copies:, :copies] = to_crafted[:, None]
        scores = krum_scores(distances, copies)
        if scores[0] <= scores[copies:].min():
            return step
        step /= 2
    return 0.0


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
    known = own if benign is None else torch.cat([own, benign])
    direction = honest_direction(known)
    if benign is not None and len(benign):
        step = largest_chosen_step(benign, direction, len(own), threshold)
    else:
        tries = (largest_chosen_step(own, direction, copies, threshold) for copies in range(1, len(own) + 1))
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
        noise = (2 * torch.rand(m, d, generator=view.generator) - 1).to(view.malicious_updates) * (
            self.radius / math.sqrt(d)
        )
        noise[0] = 0
        return first + noise
