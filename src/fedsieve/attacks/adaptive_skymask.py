"""An adaptive attack on SkyMask: larger deviations where the client's binary mask stays the same.

No publication; SkyMask's authors leave adaptive attacks open (Yan et al., ECCV 2024, section V).

What it uses. A mask moves along (u_i - mean) * dL/dW: in each coordinate it falls for clients on the side of the mean
where the loss L rises and grows for the others, and a binary mask keeps the side, not the distance. An honest client is
on the side of rising loss in about half of the coordinates; there it can deviate further and keep its mask. Clusters of
masks depend on the number of coordinates that differ: a large deviation in few coordinates changes few entries.

Variant: each malicious client starts from its own honest update. With L the loss of the attacker's clean data, it adds
a vector along dL/dW at the mean of the known updates, on a share of those coordinates where its honest update is on the
side of rising loss, the steepest ones first. Shares and lengths (in median lengths of the known updates) are tried in a
simulation of the server's defense, whichever it is; the pair with the largest loss L of the resulting model is sent, or
the honest updates if none has a larger loss. With partial knowledge, random combinations of the malicious clients'
honest updates take the place of the benign ones in the simulation.
Departs: nothing, since nothing is published.
"""

import math
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fedsieve.attacks.stand_ins import stand_ins
from fedsieve.core.attack import AttackView
from fedsieve.core.errors import ParameterError
from fedsieve.core.traits import Traits


def hidden_push(
    own: Float[Tensor, "m d"], mean: Float[Tensor, " d"], slope: Float[Tensor, " d"], share: float
) -> Float[Tensor, "m d"]:
    """Unit vectors along ``slope``, limited to coordinates where a row deviates from ``mean`` in the slope's direction.

    >>> own, slope = torch.tensor([[1.0, 1.0, -1.0]]), torch.tensor([4.0, -9.0, -3.0])
    >>> hidden_push(own, torch.zeros(3), slope, share=1.0)
    tensor([[ 0.8000, -0.0000, -0.6000]])

    Args:
        own: Honest updates of the malicious clients.
        mean: Mean of the known updates.
        slope: Gradient of the loss.
        share: Of all coordinates, those used, in (0, 1]: the steepest that qualify, all if there are fewer. A row in
            which none qualifies is 0.
    """
    steepness = slope.abs() * ((own - mean) * slope > 0)
    k = max(1, round(share * own.shape[1]))
    chosen = steepness.topk(k, dim=1)
    push: Tensor = torch.zeros_like(own).scatter(1, chosen.indices, chosen.values) * slope.sign()
    lengths: Tensor = push.norm(dim=1, keepdim=True)
    return push / lengths.clamp(min=torch.finfo(push.dtype).tiny)


@dataclass(frozen=True)
class AdaptiveSkyMask:
    """Deviates where the client's mask is 0 anyway, as far as a simulation of the defense accepts.

    Attributes:
        shares: Shares of the coordinates to try, each in (0, 1].
        strengths: Lengths of the deviation to try, in median lengths of the known updates.
    """

    shares: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0)
    strengths: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0, 16.0, 64.0, 256.0)
    traits: ClassVar[Traits] = Traits(
        summary="Adaptive: deviates where an honest mask is 0 anyway, as far as a simulated defense accepts",
        needs=("defense",),
        breaks_at="partial knowledge with few malicious clients: the spread of the benign updates is hardly known",
        cost="a simulated defense per share and strength",
    )

    def __post_init__(self) -> None:
        if not self.shares or not all(0 < share <= 1 for share in self.shares):
            raise ParameterError(f"adaptive-skymask: shares must be in (0, 1], got {list(self.shares)}")
        if not self.strengths or not all(0 < strength < math.inf for strength in self.strengths):
            raise ParameterError(f"adaptive-skymask: strengths must be positive and finite, got {list(self.strengths)}")

    def craft(self, view: AttackView, /) -> Float[Tensor, "m d"]:
        """See :class:`fedsieve.core.attack.UpdateAttack`."""
        simulate, own, benign = view.simulate_defense, view.malicious_updates, view.benign_updates
        if simulate is None:
            raise ParameterError("adaptive-skymask must know the defense; grant it with knows_defense=true")
        if benign is None:  # drawn once, so that all candidates are compared in the same round
            benign = stand_ins(own, view.n_clients - len(own), view.generator)
        mean = view.known_updates.mean(dim=0)
        slope = view.root.gradient(view.global_params + mean)[1]
        unit = view.known_updates.norm(dim=1).median()

        def loss_after(rows: Float[Tensor, "m d"]) -> float:
            loss = view.root.loss(view.global_params + simulate(torch.cat([rows, benign])).update)
            return float(loss) if torch.isfinite(loss) else -torch.inf  # the server keeps a model that overflows

        best, largest = own, loss_after(own)
        for share, strength in product(self.shares, self.strengths):
            rows = own + strength * unit * hidden_push(own, mean, slope, share)
            loss = loss_after(rows)
            if loss > largest:
                best, largest = rows, loss
        return best.clone()
