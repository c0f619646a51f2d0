"""Multinomial logistic regression: one linear layer."""

from math import prod
from typing import ClassVar

from torch import Tensor, nn

from fedsieve.core.traits import Traits


class LogisticRegression(nn.Module):
    """One linear layer on the flattened sample. All weights start at 0, which suits a convex loss.

    Args:
        input_shape: Shape of one sample, any.
        n_classes: Outputs.
    """

    traits: ClassVar[Traits] = Traits(summary="One linear layer on the flattened sample")

    def __init__(self, input_shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(prod(input_shape), n_classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [k, n_classes] of samples [k, ...]."""
        return self.linear(x.flatten(1))  # type: ignore[no-any-return]
