"""An adaptive attack on SkyMask: harm where a binary mask can't show it.

No publication; SkyMask's authors leave adaptive attacks open (Yan et al., ECCV 2024, section V).

What it uses. A mask learns along (u_i - mean) * dL/dW: in each coordinate it sinks for the clients on the harmful side
of the mean and rises for the others, and binarising keeps the side, not the distance. Two things follow. A client that
is on the harmful side anyway, as every honest client is in about half of the coordinates, can go further that way and
its mask stays what an honest mask would be. And clusters of masks see how many coordinates differ, not how much: a
push concentrated on few coordinates costs few bits, however far it goes.

Variant: each malicious client starts from its own honest update. With L the loss of the attacker's own clean data, it
pushes along dL/dW at the mean of the known updates, on a share of those coordinates where its honest update lies on the
harmful side already, the steepest ones first. Shares and lengths (in median lengths of the known updates) are
tried in a rehearsal of the server's defense; the pair after which the attacker's own clean loss is highest is sent, or
the honest updates, if nothing beats them.
Departs: nothing, since nothing is published. It rehearses whichever defense the server runs, so it adapts to any.
Needs: to know the defense; clean data, the malicious clients' own. With partial knowledge, the malicious clients' own
honest updates stand for the benign ones.
"""

from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fedsieve.types import AttackView, ParameterError, PoisonView, Traits


def hidden_push(
    own: Float[Tensor, "m d"], mean: Float[Tensor, " d"], slope: Float[Tensor, " d"], share: float
) -> Float[Tensor, "m d"]:
    """Unit vectors along ``slope``, on a share of all coordinates, where a row lies uphill of ``mean`` already.

    The steepest such coordinates of each row are taken; all of them, if there are fewer. A row with none stays zero.
    """
    steepness = slope.abs() * ((own - mean) * slope > 0)
    k = max(1, round(share * own.shape[1]))
    chosen = steepness.topk(k, dim=1)
    push: Tensor = torch.zeros_like(own).scatter(1, chosen.indices, chosen.values) * slope.sign()
    lengths: Tensor = push.norm(dim=1, keepdim=True)
    return push / lengths.clamp(min=torch.finfo(push.dtype).tiny)


@dataclass(frozen=True)
class AdaptiveSkyMask:
    """Pushes uphill where the own mask is 0 anyway, as far as a rehearsal of the defense lets through.

    Attributes:
        shares: Of all coordinates, those pushed; each in (0, 1].
        strengths: Lengths of the push, in median lengths of the known updates.
    """

    shares: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0)
    strengths: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0, 16.0, 64.0, 256.0)
    traits: ClassVar[Traits] = Traits(
        summary="Adaptive: pushes where an honest mask is 0 anyway, as far as a rehearsal of the defense allows",
        needs=("updates", "defense"),
    )

    def __post_init__(self) -> None:
        if not self.shares or not all(0 < share <= 1 for share in self.shares):
            raise ParameterError(f"adaptive-skymask: shares must be in (0, 1], got {list(self.shares)}")
        if not self.strengths or not all(strength > 0 for strength in self.strengths):
            raise ParameterError(f"adaptive-skymask: strengths must be positive, got {list(self.strengths)}")

    def poison(self, x: Tensor, y: Tensor, view: PoisonView, /) -> tuple[Tensor, Tensor]:
        """See :class:`fedsieve.types.Attack`."""
        return x, y

    def craft(self, view: AttackView, /) -> Float[Tensor, "m d"]:
        """See :class:`fedsieve.types.Attack`."""
        if view.rehearse is None:
            raise ParameterError("adaptive-skymask must know the defense; grant it with knows_defense=true")
        benign = view.own if view.others is None else view.others
        mean = view.known.mean(dim=0)
        slope = view.root.gradient(view.global_params + mean)[1]
        unit = view.known.norm(dim=1).median()

        def harm(rows: Float[Tensor, "m d"]) -> float:
            assert view.rehearse is not None
            loss = view.root.loss(view.global_params + view.rehearse(torch.cat([rows, benign])).update)
            return float(loss) if torch.isfinite(loss) else -torch.inf  # the server keeps a model that overflows

        best, most = view.own, harm(view.own)
        for share, strength in product(self.shares, self.strengths):
            rows = view.own + strength * unit * hidden_push(view.own, mean, slope, share)
            found = harm(rows)
            if found > most:
                best, most = rows, found
        return best.clone()
