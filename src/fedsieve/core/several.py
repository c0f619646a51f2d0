"""Several losses at once on root data: one forward pass for many gradients where the root data can do it."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from fedsieve.core.defense import Root
from fedsieve.core.loss import Loss, LossName


@runtime_checkable
class Several(Protocol):
    """Root data with methods for several losses or models at once; those of this package have them."""

    def losses(self, flats: Float[Tensor, "m d"], loss: LossName | Loss = "cross-entropy", /) -> Float[Tensor, " m"]:
        """A loss of each of several models."""
        ...

    def gradients(
        self, flat: Float[Tensor, " d"], losses: Sequence[LossName | Loss], /
    ) -> tuple[Float[Tensor, " l"], Float[Tensor, "l d"]]:
        """Several losses of one model, and the gradient of each."""
        ...


def losses(root: Root, flats: Float[Tensor, "m d"], loss: LossName | Loss = "cross-entropy") -> Float[Tensor, " m"]:
    """A loss of each of several models on the root data, m >= 1."""
    if isinstance(root, Several):
        return root.losses(flats, loss)
    return torch.stack([root.gradient(flat, loss)[0] for flat in flats])


def gradients(
    root: Root, flat: Float[Tensor, " d"], losses: Sequence[LossName | Loss]
) -> tuple[Float[Tensor, " l"], Float[Tensor, "l d"]]:
    """Several losses, l >= 1, of one model on the root data, and the gradient of each, 0 at running statistics."""
    if isinstance(root, Several):
        return root.gradients(flat, losses)
    values, slopes = zip(*(root.gradient(flat, loss) for loss in losses), strict=True)
    return torch.stack(values), torch.stack(slopes)
