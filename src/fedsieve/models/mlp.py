"""A multilayer perceptron with ReLU."""

from itertools import pairwise
from math import prod
from typing import ClassVar

from torch import Tensor, nn

from fedsieve.core.errors import ParameterError
from fedsieve.core.traits import Traits


class MLP(nn.Module):
    """Linear layers with ReLU between them, on the flattened sample.

    Args:
        input_shape: Shape of one sample, any.
        n_classes: Outputs.
        hidden: Units of each hidden layer.
    """

    traits: ClassVar[Traits] = Traits(summary="Linear layers with ReLU between them (64 hidden units)")

    def __init__(self, input_shape: tuple[int, ...], n_classes: int, hidden: tuple[int, ...] = (64,)) -> None:
        super().__init__()
        if not hidden or min(hidden) < 1:
            raise ParameterError(f"mlp: hidden must list layer sizes of at least 1, got {list(hidden)}")
        sizes = [prod(input_shape), *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], n_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [k, n_classes] of samples [k, ...]."""
        return self.layers(x)  # type: ignore[no-any-return]
