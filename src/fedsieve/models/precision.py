"""In which precision local training computes; everything else of a round is computed in full."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from fedsieve.core.errors import ParameterError

# tf32: products of float32 numbers cut to ten bits of mantissa, summed in float32; of a GPU only.
Precision = Literal["float32", "tf32"]


def check_precision(precision: Precision, device: torch.device) -> None:
    """Raise :class:`ParameterError` where a device does not have a precision."""
    if precision == "tf32" and device.type != "cuda":
        raise ParameterError(f"local.precision=tf32 needs a GPU, and the device is {device}; float32 is the other one")


@contextmanager
def computed_in(precision: Precision, device: torch.device) -> Iterator[None]:
    """Within, products and convolutions on a GPU are computed in ``precision``, whatever is set outside."""
    if device.type != "cuda":
        yield
        return
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before
