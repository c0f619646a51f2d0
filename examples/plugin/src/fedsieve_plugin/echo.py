"""Echo: all malicious clients send the update of one benign client, so that it is over-represented.

Karimireddy, He, Jaggi. Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing. ICLR 2022.

Variant: the copied client is a parameter.
Departs: the paper chooses the client whose updates are farthest along their direction of largest variance.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from fedsieve import AttackView, Traits


@dataclass(frozen=True)
class Echo:
    """Sends a benign client's update; with partial knowledge, a malicious client's honest one.

    Attributes:
        client: Index of the copied client among the visible ones of the round, modulo their number.
    """

    client: int = 0
    traits: ClassVar[Traits] = Traits(
        summary="All malicious clients send the update of one benign client",
        paper="Karimireddy et al., Byzantine-Robust Learning on Heterogeneous Datasets, ICLR 2022",
    )

    def craft(self, view: AttackView, /) -> Float[Tensor, "m d"]:
        """The chosen update, once per malicious client."""
        visible = view.benign_updates
        if visible is None or not len(visible):
            visible = view.malicious_updates
        return visible[self.client % len(visible)].expand(len(view.malicious_updates), -1).clone()
