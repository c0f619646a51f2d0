"""Gaussian noise in place of an update.

Blanchard, El Mhamdi, Guerraoui, Stainer. Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent.
NeurIPS 2017.

Variant: every malicious client sends independent draws from N(0, std^2); std is 200, as in the paper.
Departs: nothing.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fedsieve.core.attack import AttackView
from fedsieve.core.errors import ParameterError
from fedsieve.core.linalg import check_fits_float32
from fedsieve.core.traits import Traits


def gaussian(x: Float[Tensor, "m d"], std: float, generator: torch.Generator) -> Float[Tensor, "m d"]:
    """Independent draws from N(0, std^2) in the shape and type of ``x``.

    >>> gaussian(torch.zeros(2, 3), 200.0, torch.Generator()).shape
    torch.Size([2, 3])
    """
    return torch.randn(x.shape, generator=generator).to(x).mul_(std)


@dataclass(frozen=True)
class Gaussian:
    """Each malicious client sends noise of its own.

    Attributes:
        std: Standard deviation of every coordinate.
    """

    std: float = 200.0
    traits: ClassVar[Traits] = Traits(
        summary="Gaussian noise in place of an update",
        paper="Blanchard et al., Machine Learning with Adversaries, NeurIPS 2017",
    )

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ParameterError(f"gaussian: std must be positive, got {self.std}")
        check_fits_float32("gaussian", std=self.std)

    def craft(self, view: AttackView, /) -> Float[Tensor, "m d"]:
        """See :class:`fedsieve.core.attack.UpdateAttack`."""
        return gaussian(view.malicious_updates, self.std, view.generator)
