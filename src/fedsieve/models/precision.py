"""In which precision local training computes; everything else of a round is computed in full."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from fedsieve.core.errors import ParameterError

# tf32: products of float32 numbers cut to ten bits of mantissa, summed in float32; of a GPU only.
# bfloat16: products and what layers pass on have seven bits of mantissa; weights, their gradients, losses and running
# statistics stay float32 (torch's autocast); of a CPU only, and worth it on one that has AMX.
Precision = Literal["float32", "tf32", "bfloat16"]
_DEVICES = {"tf32": "cuda", "bfloat16": "cpu"}


def check_precision(precision: Precision, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
    """Raise :class:`ParameterError` where weights of this type on this device can't be trained in a precision."""
    if _DEVICES.get(precision, device.type) != device.type:
        wanted = {"cuda": "a GPU", "cpu": "a CPU"}[_DEVICES[precision]]
        others = ["float32", *(name for name, kind in _DEVICES.items() if kind == device.type)]
        raise ParameterError(
            f"local.precision={precision} needs {wanted}, and the device is {device}; there it can be "
            f"{' or '.join(others)}"
        )
    if precision != "float32" and dtype == torch.float64:
        raise ParameterError(
            f"local.precision={precision} is for models in float32, and this one is in float64; use module.float(), "
            "or leave the setting out: a float64 model is trained in float64"
        )


@contextmanager
def computed_in(precision: Precision, device: torch.device) -> Iterator[None]:
    """Within, products and convolutions are computed in ``precision``, whatever is set outside."""
    if device.type != "cuda":
        if precision != "bfloat16" and not torch.is_autocast_enabled(device.type):
            yield
            return
        # without a cache of cast weights, since weights change in place between passes
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False):
            yield
        return
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before
