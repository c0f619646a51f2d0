"""The SkyMask paper's CNN for Fashion-MNIST: two convolutional and two linear layers (section IV-A2)."""

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from fedsieve.core.errors import ParameterError
from fedsieve.core.traits import Traits


class CNN(nn.Module):
    """Two 3x3 convolutions of 30 and 50 filters, ReLU and 2x2 max pooling each; two linear layers.

    139,960 parameters on 28 x 28 images of 10 classes.

    Args:
        input_shape: (channels, height, width), each side at least 10.
        n_classes: Outputs.
        hidden: Units between the linear layers.
    """

    traits: ClassVar[Traits] = Traits(
        summary="Two 3x3 convolutions (30, 50 filters), two linear layers (100 hidden units)",
        paper="Yan et al., SkyMask, ECCV 2024",
        needs=("images",),
    )

    def __init__(self, input_shape: tuple[int, ...], n_classes: int, hidden: int = 100) -> None:
        super().__init__()
        if len(input_shape) != 3 or min(input_shape[1:]) < 10:
            raise ParameterError(
                f"cnn needs images of at least 10 x 10 pixels, got samples of shape {list(input_shape)}; "
                f"try mlp or logistic-regression"
            )
        channels, height, width = input_shape
        self.conv1 = nn.Conv2d(channels, 30, 3)
        self.conv2 = nn.Conv2d(30, 50, 3)
        self.fc1 = nn.Linear(50 * _pooled(height) * _pooled(width), hidden)
        self.fc2 = nn.Linear(hidden, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [k, n_classes] of images [k, channels, height, width]."""
        # pooled first, ReLU has a fourth of the values, and results and gradients are the same
        x = functional.relu(functional.max_pool2d(self.conv1(x), 2))
        x = functional.relu(functional.max_pool2d(self.conv2(x), 2))
        return self.fc2(functional.relu(self.fc1(x.flatten(1))))  # type: ignore[no-any-return]


def _pooled(side: int) -> int:
    """Pixels of a side of ``side`` pixels after two unpadded 3x3 convolutions, each with 2x2 pooling.

    >>> _pooled(28)
    5
    """
    return ((side - 2) // 2 - 2) // 2
