"""ResNet20 for 32 x 32 images.

He, Zhang, Ren, Sun. Deep Residual Learning for Image Recognition. CVPR 2016. Section 4.2, n = 3.
"""

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from fedsieve.core.errors import ParameterError
from fedsieve.core.traits import Traits


class _Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm, and a shortcut without parameters (the paper's option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.extra = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        shortcut = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))
        return functional.relu(y + shortcut)


class ResNet20(nn.Module):
    """Three stages of three blocks with 16, 32 and 64 filters; 269,722 parameters for 3 channels, 10 classes.

    Args:
        input_shape: (channels, height, width), each side at least 4.
        n_classes: Outputs.
    """

    traits: ClassVar[Traits] = Traits(
        summary="Three stages of three residual blocks (16, 32, 64 filters), with BatchNorm",
        paper="He et al., Deep Residual Learning for Image Recognition, CVPR 2016",
        needs=("images",),
    )

    def __init__(self, input_shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__()
        if len(input_shape) != 3 or min(input_shape[1:]) < 4:
            raise ParameterError(
                f"resnet20 needs images of at least 4 x 4 pixels, got samples of shape {list(input_shape)}; "
                f"try mlp or logistic-regression"
            )
        self.conv1 = nn.Conv2d(input_shape[0], 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        stages = [(16, 16, 1), (16, 32, 2), (32, 64, 2)]
        self.blocks = nn.Sequential(
            *(
                _Block(inputs if i == 0 else outputs, outputs, stride if i == 0 else 1)
                for inputs, outputs, stride in stages
                for i in range(3)
            )
        )
        self.fc = nn.Linear(64, n_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits [k, n_classes] of images [k, channels, height, width]."""
        y = self.blocks(functional.relu(self.bn1(self.conv1(x))))
        return self.fc(y.mean(dim=(2, 3)))  # type: ignore[no-any-return]
