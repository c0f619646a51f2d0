"""Inner product manipulation (IPM): make the inner product of the aggregate and the honest mean negative.

Xie, Koyejo, Gupta. Fall of Empires: Breaking Byzantine-Tolerant SGD by Inner Product Manipulation. UAI 2019.

Variant: every malicious client sends -epsilon times the mean of the honest updates the attacker knows. Of n clients,
m malicious, the plain mean becomes (n - m - epsilon m) / n times the honest mean: smaller with any epsilon, reversed
with epsilon > (n - m) / m. An epsilon below 1 is for aggregators that remove outliers: the update lies near the honest
ones, and where the coordinate-wise median or Krum selects it, the model moves in the opposite direction.
Departs: the malicious clients' own honest updates count in the mean; with partial knowledge it is theirs alone.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from fedsieve.core.attack import AttackView
from fedsieve.core.errors import ParameterError
from fedsieve.core.linalg import check_fits_float32
from fedsieve.core.traits import Traits


def ipm(x: Float[Tensor, "n d"], epsilon: float = 0.5) -> Float[Tensor, " d"]:
    """-epsilon times the mean of the honest updates ``x``.

    >>> import torch
    >>> ipm(torch.tensor([[1.0, 0.0], [3.0, -4.0]]))
    tensor([-1.,  1.])
    """
    return -epsilon * x.mean(dim=0)


@dataclass(frozen=True)
class IPM:
    """All malicious clients send a negative multiple of the honest mean.

    Attributes:
        epsilon: Factor on the mean; above (n - m) / m it reverses the plain average.
    """

    epsilon: float = 0.5
    traits: ClassVar[Traits] = Traits(
        summary="A small multiple of the honest mean with the opposite sign",
        paper="Xie et al., Fall of Empires, UAI 2019",
        breaks_at="epsilon < (n - m) / m against the plain mean, which is then only shortened",
    )

    def __post_init__(self) -> None:
        if not self.epsilon > 0:
            raise ParameterError(f"ipm: epsilon must be positive, got {self.epsilon}")
        check_fits_float32("ipm", epsilon=self.epsilon)

    def craft(self, view: AttackView, /) -> Float[Tensor, "m d"]:
        """See :class:`fedsieve.core.attack.UpdateAttack`."""
        return ipm(view.known_updates, self.epsilon).expand(len(view.malicious_updates), -1).clone()
