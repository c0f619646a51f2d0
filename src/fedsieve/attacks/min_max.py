"""Min-Max and Min-Sum: the largest deviation from the benign mean within the benign updates' own spread.

Shejwalkar, Houmansadr. Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for Federated
Learning. NDSS 2021. Equations 8 (Min-Max) and 9 (Min-Sum).

Variant: every malicious client sends v = mu - gamma p, over the honest updates v_i the attacker knows (with partial
knowledge, those of the malicious clients), with p the unit vector of mu (``unit-vector``), its sign (``sign``) or the
updates' standard deviation (``std``), and the largest gamma for which, in Min-Max,
max_i |v - v_i| <= max_ij |v_i - v_j|; in Min-Sum, sum_i |v - v_i|^2 <= max_i sum_j |v_i - v_j|^2, or <= min_i of the
same (``bound``), as in the published code.
Departs: gamma is solved for instead of searched by halving steps. |mu - gamma p - v_i|^2 <= R^2 is a quadratic
inequality in gamma for each i, so that the largest common gamma is the smallest of the larger roots: exact, and not
limited by the initial value of the search, as it is in the published code. Min-Sum's is one such inequality.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fedsieve.attacks.columns import deviations
from fedsieve.core.attack import AttackView
from fedsieve.core.linalg import column_blocks, pairwise_sq_distances
from fedsieve.core.traits import Traits

Deviation = Literal["unit-vector", "sign", "std"]
Bound = Literal["max", "min"]


def deviation(x: Float[Tensor, "n d"], kind: Deviation) -> Float[Tensor, " d"]:
    """The direction p: unit vector or sign of the mean, or the standard deviation (ddof 1; 0 for one row).

    >>> x = torch.tensor([[2.0, 4.0], [4.0, 4.0]])
    >>> deviation(x, "unit-vector"), deviation(x, "sign"), deviation(x, "std")
    (tensor([0.6000, 0.8000]), tensor([1., 1.]), tensor([1.4142, 0.0000]))
    """
    mean = x.mean(dim=0)
    match kind:
        case "unit-vector":
            norm = mean.norm()
            return torch.where(norm > 0, mean / norm, mean)
        case "sign":
            return mean.sign()
        case "std":
            return deviations(x, correction=1) if len(x) > 1 else torch.zeros_like(mean)


def offsets_from_mean(
    x: Float[Tensor, "n d"], direction: Float[Tensor, " d"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Inner products of a_i = mean - x_i with ``direction``, and squared norms of a_i, in float64.

    >>> offsets_from_mean(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([1.0, 0.0]))
    (tensor([ 1., -1.], dtype=torch.float64), tensor([1., 1.], dtype=torch.float64))
    """
    along = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    sq_norms, ones = torch.zeros_like(along), torch.ones_like(along)
    for block in column_blocks(x):
        columns = x[:, block].double()
        offsets = ones @ columns / len(x) - columns
        along += offsets @ direction[block].double()
        sq_norms += offsets.square_().sum(dim=1)
    return along, sq_norms


def largest_step(
    x: Float[Tensor, "n d"], direction: Float[Tensor, " d"], sq_radius: float | Float[Tensor, ""]
) -> float:
    """The largest gamma >= 0 with |mean - gamma direction - x_i|^2 <= sq_radius for every row i; 0 if none.

    With a_i = mean - x_i: gamma^2 |p|^2 - 2 gamma <a_i, p> + |a_i|^2 - R^2 <= 0.

    >>> largest_step(torch.tensor([[1.0], [-1.0]]), torch.ones(1), sq_radius=9.0)
    2.0
    """
    square = direction.double().square().sum()
    half, sq_norms = offsets_from_mean(x, direction)
    room = half**2 - square * (sq_norms - sq_radius)
    # with room < 0, even the nearest point of the line is too far from some row
    none = (square == 0) | (room < 0).any()
    return max(0.0, float(torch.where(none, 0, ((half + room.sqrt()) / square).min())))


def largest_step_in_sum(x: Float[Tensor, "n d"], direction: Float[Tensor, " d"], bound: Bound) -> float:
    """The largest gamma >= 0 with sum_i |mean - gamma direction - x_i|^2 <= max_i (or min_i) sum_j |x_i - x_j|^2.

    With a_i = mean - x_i, which sum to 0, and S the sum of their squared norms, the left side is
    n gamma^2 |p|^2 + S and the right side is n |a_i|^2 + S, so that gamma |p| = |a_i|.

    >>> largest_step_in_sum(torch.tensor([[1.0], [-1.0]]), torch.ones(1), "max")
    1.0
    """
    square = direction.double().square().sum()
    _, sq_norms = offsets_from_mean(x, direction)
    return float(torch.where(square == 0, 0, ((sq_norms.max() if bound == "max" else sq_norms.min()) / square).sqrt()))


def min_max(x: Float[Tensor, "n d"], kind: Deviation = "unit-vector") -> Float[Tensor, " d"]:
    """The Min-Max update: no farther from any of the honest updates ``x`` than two of these are from each other.

    >>> min_max(torch.tensor([[0.0, 1.0], [0.0, -1.0], [3.0, 0.0]]))  # 3 - sqrt(10), 0
    tensor([-0.1623,  0.0000])
    """
    direction = deviation(x, kind)
    return x.mean(dim=0) - largest_step(x, direction, pairwise_sq_distances(x).max()) * direction


def min_sum(x: Float[Tensor, "n d"], kind: Deviation = "unit-vector", bound: Bound = "max") -> Float[Tensor, " d"]:
    """The Min-Sum update: its sum of squared distances to the honest updates ``x`` is no larger than one of theirs.

    >>> min_sum(torch.tensor([[0.0, 1.0], [0.0, -1.0], [3.0, 0.0]]))
    tensor([-1.,  0.])
    """
    direction = deviation(x, kind)
    return x.mean(dim=0) - largest_step_in_sum(x, direction, bound) * direction


@dataclass(frozen=True)
class MinMax:
    """All malicious clients send the Min-Max update.

    Attributes:
        deviation: The direction p.
    """

    deviation: Deviation = "unit-vector"
    traits: ClassVar[Traits] = Traits(
        summary="The largest deviation that stays within the benign updates' diameter",
        paper="Shejwalkar and Houmansadr, Manipulating the Byzantine, NDSS 2021",
        breaks_at="one known update, which is sent unchanged",
    )

    def craft(self, view: AttackView, /) -> Float[Tensor, "m d"]:
        """See :class:`fedsieve.core.attack.UpdateAttack`."""
        return min_max(view.known_updates, self.deviation).expand(len(view.malicious_updates), -1).clone()


@dataclass(frozen=True)
class MinSum:
    """All malicious clients send the Min-Sum update.

    Attributes:
        deviation: The direction p.
        bound: The benign update whose sum of squared distances is the bound: the farthest from the others (``max``,
            the paper) or the nearest to them (``min``, the published code, and SkyMask's experiments).
    """

    deviation: Deviation = "unit-vector"
    bound: Bound = "max"
    traits: ClassVar[Traits] = Traits(
        summary="The largest deviation with a benign update's sum of squared distances",
        paper="Shejwalkar and Houmansadr, Manipulating the Byzantine, NDSS 2021",
        breaks_at="one known update, which is sent unchanged",
    )

    def craft(self, view: AttackView, /) -> Float[Tensor, "m d"]:
        """See :class:`fedsieve.core.attack.UpdateAttack`."""
        sent = min_sum(view.known_updates, self.deviation, self.bound)
        return sent.expand(len(view.malicious_updates), -1).clone()
