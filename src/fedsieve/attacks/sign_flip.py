"""Sign flipping: send the honest update with the opposite sign.

Li, Xu, Chen, Giannakis, Ling. RSA: Byzantine-Robust Stochastic Aggregation Methods for Distributed Learning from
Heterogeneous Datasets. AAAI 2019; the reversed gradient is older (Damaskinos et al., ICML 2018).

Variant: each malicious client trains honestly and sends -factor times its own update.
Departs: Li et al. flip and enlarge the local model, not the update; here clients send updates.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from fedsieve.core.attack import AttackView
from fedsieve.core.errors import ParameterError
from fedsieve.core.linalg import check_fits_float32
from fedsieve.core.traits import Traits


def sign_flip(x: Float[Tensor, "m d"], factor: float = 1.0) -> Float[Tensor, "m d"]:
    """-factor times the honest updates ``x``.

    >>> import torch
    >>> sign_flip(torch.tensor([[1.0, -2.0]]), factor=3.0)
    tensor([[-3.,  6.]])
    """
    return -factor * x


@dataclass(frozen=True)
class SignFlip:
    """Each malicious client sends -factor times its honest update.

    Attributes:
        factor: Length of what is sent, in lengths of the honest update.
    """

    factor: float = 1.0
    traits: ClassVar[Traits] = Traits(
        summary="Each malicious client's own update with the opposite sign",
        paper="Li et al., RSA, AAAI 2019",
    )

    def __post_init__(self) -> None:
        if not self.factor > 0:
            raise ParameterError(f"sign-flip: factor must be positive, got {self.factor}")
        check_fits_float32("sign-flip", factor=self.factor)

    def craft(self, view: AttackView, /) -> Float[Tensor, "m d"]:
        """See :class:`fedsieve.core.attack.UpdateAttack`."""
        return sign_flip(view.malicious_updates, self.factor)
