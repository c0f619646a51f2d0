"""A step of mask training in one pass over the matrices, as a Triton kernel: for float32 on CUDA devices."""

from functools import cache
from typing import no_type_check

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # comes with torch for CUDA, on most systems
    triton = None

_ROWS, _COLUMNS = 8, 128  # of the tile that a program works on at a time


if triton is not None:

    @triton.jit(do_not_specialize=["n"])
    @no_type_check
    def _kernel(
        x, masks, mean, total, outer, active, moved, n, d, rate, clip, tolerance,
        ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    ):  # fmt: skip
        """One block of columns: see fused_step."""
        column = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
        inside = (column < d) & tl.load(active)
        centre = tl.load(mean + column, mask=inside, other=0.0)
        scale = tl.load(outer + column, mask=inside, other=0.0) / tl.load(total + column, mask=inside, other=1.0)
        gates = tl.zeros([ROWS, COLUMNS], tl.float32)
        gated = tl.zeros([ROWS, COLUMNS], tl.float32)
        moves = tl.zeros([ROWS, COLUMNS], tl.int32)
        for start in range(0, n, ROWS):
            row = start + tl.arange(0, ROWS)
            here = (row < n)[:, None] & inside[None, :]
            at = row[:, None].to(tl.int64) * d + column[None, :]
            value = tl.load(x + at, mask=here, other=0.0)
            mask = tl.load(masks + at, mask=here, other=0.0)
            gate = tl.sigmoid(mask)
            gradient = (value - centre[None, :]) * scale[None, :] * (1 - gate) * gate
            gradient = tl.where(gradient > clip, clip, tl.where(gradient < -clip, -clip, gradient))
            mask = mask - rate * gradient
            tl.store(masks + at, mask, mask=here)
            after = tl.where(here, tl.sigmoid(mask), 0.0)
            gates += after
            gated += after * value
            still = tl.abs(after - gate) <= tolerance
            moves = tl.where(here & (still == 0), 1, moves)
        summed = tl.sum(gates, axis=0)
        tl.store(total + column, summed, mask=inside)
        tl.store(mean + column, tl.sum(gated, axis=0) / summed, mask=inside)
        if tl.max(tl.max(moves, axis=1), axis=0) > 0:
            tl.store(moved, 1)


def fused_step(
    x: Float32[Tensor, "n d"],
    masks: Float32[Tensor, "n d"],
    mean: Float32[Tensor, " d"],
    total: Float32[Tensor, " d"],
    outer: Float32[Tensor, " d"],
    active: Bool[Tensor, ""],
    *,
    learning_rate: float,
    clip: float,
    tolerance: float,
) -> Bool[Tensor, ""]:
    """:func:`fedsieve.detectors.skymask.masks.plain_step`: reads updates and masks once, and writes the masks once.

    Sums have a fixed order, so that equal inputs give equal results.

    Args:
        x: Updates; contiguous, like all tensors here.
        masks: Masks.
        mean: Masked mean of the updates.
        total: Sums of the masks' sigmoids.
        outer: Gradient of the loss at the mean.
        active: Whether training goes on; else nothing changes.
        learning_rate: As in ``plain_step``.
        clip: As there.
        tolerance: As there.

    Returns:
        Whether a gate moved by more than the tolerance.
    """
    moved = torch.zeros_like(active)
    numbers = *x.shape, learning_rate, clip, tolerance
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        grid = (triton.cdiv(x.shape[1], _COLUMNS),)
        _kernel[grid](x, masks, mean, total, outer.contiguous(), active, moved, *numbers, _ROWS, _COLUMNS)
    return moved


def is_fused(x: Float[Tensor, "n d"]) -> bool:
    """Whether :func:`fused_step` can be used: on CUDA devices, in float32, where Triton is there and compiles."""
    return x.is_cuda and x.dtype == torch.float32 and _compiles(x.device)


@cache
def _compiles(device: torch.device) -> bool:
    """Whether the kernel runs on this device; it needs Triton, and Triton needs a C compiler."""
    if triton is None:
        return False
    x, row = torch.ones(2, 3, device=device), torch.ones(3, device=device)
    on = torch.ones((), dtype=torch.bool, device=device)
    try:
        fused_step(x, x.clone(), row, row.clone(), row, on, learning_rate=1.0, clip=1.0, tolerance=0.0)
    except Exception:  # whatever it is that is missing: torch's own operations give the same numbers
        return False
    return True
