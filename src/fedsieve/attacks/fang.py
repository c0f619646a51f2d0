"""Directed deviation: push every coordinate against the way it would go, past the trimmed mean and past Krum.

Fang, Cao, Jia, Gong. Local Model Poisoning Attacks to Byzantine-Robust Federated Learning. USENIX Security 2020.
The attacks on trimmed mean (and median) and on Krum, with its theorem 1.

Variant: on updates, not models, as in the authors' later code. s is the sign of the known honest updates' sum.
Trim, full knowledge: just beyond the honest updates' extreme on the far side of s, a factor drawn from [1, spread]
away; partial: mu - s sigma U[3, 4] over the malicious clients' own honest updates (sigma with ddof 0).
Krum: -lambda s from every malicious client, with lambda halved from theorem 1's bound until Krum, f being the number of
crafted updates, picks one of them; partial: the malicious clients' own honest updates stand for the benign ones, and
crafted updates join one by one, up to m, where fewer find no lambda. Where none is found above ``threshold``, all send
the known updates' mean less ``threshold`` s, as in SkyMask's published code.
Departs: s is the sign of the honest updates' sum, as in that code, not of what the rule would make of them. With few
clients theorem 1's n - 2f - 1 is held at 1 at least. A tie between a crafted and a benign update counts as picked.
Needs: the benign updates; with partial knowledge, the malicious clients' own honest ones.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fedsieve.ops import column_blocks, krum_scores, pairwise_sq_distances
from fedsieve.types import AttackView, ParameterError, PoisonView, Traits


def honest_direction(x: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    """1 where the updates raise a coordinate on average, -1 where they lower it, else 0."""
    return x.sum(dim=0, dtype=torch.float64).sign().to(x.dtype)


def beyond_extremes(x: Float[Tensor, "n d"], m: int, spread: float, generator: torch.Generator) -> Float[Tensor, "m d"]:
    """Below the smallest value where the updates rise, above the largest where they fall; 0 where neither.

    The extreme is multiplied or divided by a factor from [1, spread], whichever leads away from the rest.
    """
    direction = honest_direction(x)
    extreme = torch.where(direction > 0, x.amin(dim=0), x.amax(dim=0))
    factor = 1 + (spread - 1) * torch.rand(m, x.shape[1], generator=generator).to(x)
    moved = torch.where(direction * extreme > 0, extreme / factor, extreme * factor)
    return torch.where(direction == 0, 0, moved)


def beyond_deviations(x: Float[Tensor, "n d"], m: int, generator: torch.Generator) -> Float[Tensor, "m d"]:
    """Three to four standard deviations from the mean, against its sign."""
    distance = 3 + torch.rand(m, x.shape[1], generator=generator).to(x)
    return x.mean(dim=0) - honest_direction(x) * x.std(dim=0, correction=0) * distance


def step_bound(sq_distances: Float[Tensor, "b b"], sq_norms: Float[Tensor, " b"], f: int, d: int) -> float:
    """Theorem 1: no longer step along a sign vector can be Krum's choice, f crafted updates among b benign ones.

    min_i (sum of the distances to the n - f - 2 nearest benign) / ((n - 2f - 1) sqrt d) + max_i |x_i| / sqrt d.
    """
    b = len(sq_distances)
    nearest = sq_distances.sqrt().sort(dim=1).values[:, 1 : 1 + max(b - 2, 1)]  # the first is itself
    return float(nearest.sum(dim=1).min() / max(b - f - 1, 1) + sq_norms.max().sqrt()) / math.sqrt(d)


def largest_chosen_step(
    benign: Float[Tensor, "b d"], direction: Float[Tensor, " d"], copies: int, threshold: float
) -> float:
    """The first lambda of theorem 1's bound, its half and so on for which Krum picks -lambda direction.

    0 if there is none above ``threshold``. Krum sees ``copies`` of it and the benign updates, and f is ``copies``.
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
        # |x_i + step s|^2: only these distances change from step to step
        to_crafted = (sq_norms + 2 * step * along + step**2 * length).clamp(min=0)
        distances[:copies, copies:] = to_crafted
        distances[copies:, :copies] = to_crafted[:, None]
        scores = krum_scores(distances, copies)
        if scores[0] <= scores[copies:].min():
            return step
        step /= 2
    return 0.0


@dataclass(frozen=True)
class FangTrim:
    """Malicious clients send, in every coordinate, what the trimmed mean would have to trim.

    Attributes:
        spread: The largest factor between the honest updates' extreme and a malicious value (b in the paper).
    """

    spread: float = 2.0
    traits: ClassVar[Traits] = Traits(
        summary="Just beyond the honest updates' extremes, against their mean",
        paper="Fang et al., Local Model Poisoning Attacks, USENIX Security 2020",
        needs=("updates",),
    )

    def __post_init__(self) -> None:
        if not self.spread > 1:
            raise ParameterError(f"fang-trim: spread must be above 1, got {self.spread}")

    def poison(self, x: Tensor, y: Tensor, view: PoisonView, /) -> tuple[Tensor, Tensor]:
        """See :class:`fedsieve.types.Attack`."""
        return x, y

    def craft(self, view: AttackView, /) -> Float[Tensor, "m d"]:
        """See :class:`fedsieve.types.Attack`."""
        if view.others is None:
            return beyond_deviations(view.own, len(view.own), view.generator)
        return beyond_extremes(view.known, len(view.own), self.spread, view.generator)


@dataclass(frozen=True)
class FangKrum:
    """Malicious clients send one update against the honest mean that Krum would choose.

    Attributes:
        threshold: Lambda below which the search gives up.
        radius: How far from the first malicious update the others may lie, at random; 0: they equal it.
    """

    threshold: float = 1e-5
    radius: float = 0.0
    traits: ClassVar[Traits] = Traits(
        summary="The same step in every coordinate, against the honest mean, that Krum picks",
        paper="Fang et al., Local Model Poisoning Attacks, USENIX Security 2020",
        needs=("updates",),
    )

    def __post_init__(self) -> None:
        if not self.threshold > 0:
            raise ParameterError(f"fang-krum: threshold must be positive, got {self.threshold}")
        if not self.radius >= 0:
            raise ParameterError(f"fang-krum: radius must be at least 0, got {self.radius}")

    def poison(self, x: Tensor, y: Tensor, view: PoisonView, /) -> tuple[Tensor, Tensor]:
        """See :class:`fedsieve.types.Attack`."""
        return x, y

    def craft(self, view: AttackView, /) -> Float[Tensor, "m d"]:
        """See :class:`fedsieve.types.Attack`."""
        m, d = view.own.shape
        direction = honest_direction(view.known)
        if view.others is not None and len(view.others):
            step = largest_chosen_step(view.others, direction, m, self.threshold)
        else:
            tries = (largest_chosen_step(view.own, direction, copies, self.threshold) for copies in range(1, m + 1))
            step = next((found for found in tries if found > 0), 0.0)
        first = -step * direction if step else view.known.mean(dim=0) - self.threshold * direction
        noise = (2 * torch.rand(m, d, generator=view.generator) - 1).to(view.own) * (self.radius / math.sqrt(d))
        noise[0] = 0
        return first + noise
