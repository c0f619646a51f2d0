"""No attack: the malicious clients train and send as benign clients do."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from fedsieve.core.attack import AttackView
from fedsieve.core.traits import Traits


@dataclass(frozen=True)
class NoAttack:
    """Malicious clients send their honest updates."""

    traits: ClassVar[Traits] = Traits(summary="No attack: every client is benign")

    def craft(self, view: AttackView, /) -> Float[Tensor, "m d"]:
        """See :class:`fedsieve.core.attack.UpdateAttack`."""
        return view.malicious_updates
