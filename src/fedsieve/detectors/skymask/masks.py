"""Mask training: equations 2 to 5 of the paper.

One real-valued mask per candidate model, all ones at first. The masked models are averaged per coordinate,
W~ = sum_i s(m_i) W_i / sum_i s(m_i) with s the sigmoid, and only the masks learn, by gradient descent on the root loss
of W~.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fedsieve.core.defense import Root
from fedsieve.core.direct import finite, largest
from fedsieve.core.layout import Layout
from fedsieve.core.linalg import column_blocks
from fedsieve.core.loss import LossName
from fedsieve.core.memory import blank
from fedsieve.detectors.skymask.fused import fused_step, is_fused

# The published code looks at the loss once, after this step, and stops there if it fell by less than this.
CODE_STOPS_AFTER, CODE_MIN_GAIN = 11, 1e-2
_ASKED_EVERY = 10
_BLOCK = 1 << 18  # entries of a block of columns; four matrices of it are in use at a time


def masked_mean(x: Float[Tensor, "n d"], masks: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    """Mean of the rows, per coordinate, weighted by the sigmoid of their masks (equation 2).

    >>> masked_mean(torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1))
    tensor([2.])
    """
    gates = masks.sigmoid()
    return (gates * x).sum(dim=0) / gates.sum(dim=0)


def mask_gradient(
    x: Float[Tensor, "n d"], masks: Float[Tensor, "n d"], outer: Float[Tensor, " d"]
) -> Float[Tensor, "n d"]:
    """Gradient of a loss with respect to the masks, given ``outer``, its gradient at :func:`masked_mean`.

    In closed form, dL/dm_i = s(m_i) (1 - s(m_i)) (x_i - masked mean) / sum_j s(m_j) * dL/d(masked mean).
    """
    gates = masks.sigmoid()
    total = gates.sum(dim=0)
    offset = x - (gates * x).sum(dim=0) / total
    return gates * (1 - gates) * offset * (outer / total)


def train_masks(
    candidates: Float[Tensor, "n d"], global_params: Float[Tensor, " d"], root: Root, **settings: Any
) -> tuple[Float[Tensor, "n d"], int]:
    """:func:`train_blocks` of one matrix, with the masks in one piece, [n, d]."""
    masks, steps = train_blocks([candidates], global_params, root, **settings)
    return torch.cat(masks, dim=1), steps


def train_blocks(
    candidates: Sequence[Float[Tensor, "_ d"]],
    global_params: Float[Tensor, " d"],
    root: Root,
    *,
    learning_rate: float,
    clip: float | None,
    max_steps: int,
    tolerance: float,
    loss: LossName = "cross-entropy",
    summed: bool = False,
    early_stop: bool = False,
) -> tuple[list[Float[Tensor, "n _"]], int]:
    """Train one mask per candidate.

    Works on updates instead of models: the masks' weights sum to 1, so W~ = global_params + masked mean of the
    updates, without the rounding that adding and subtracting the global model would bring. Each step is one backward
    pass through the model and one pass over updates and masks, in blocks of columns that stay in a CPU's cache and are
    contiguous, which is a quarter faster. With :func:`fused_step`, it is noted on the GPU that training has ended, and
    further steps change nothing: the CPU waits for an answer only every tenth step.

    Args:
        candidates: Updates, one row per mask, in one or more matrices.
        global_params: The model they are relative to.
        root: Gives the gradient of the root loss.
        learning_rate: γ in equation 4.
        clip: Bound on the absolute value of each coordinate of the mask gradient; None does not clip.
        max_steps: Most steps.
        tolerance: Converged when no gate (the sigmoid of a mask entry) moves by more than this in one step.
        loss: Which loss of the root data.
        summed: Whether the loss is the sum over the root samples, as in equation 3, instead of their mean.
        early_stop: Stop after step 11 if the loss fell by less than 0.01 in the first ten, as the published code does.

    Returns:
        The masks before the sigmoid, in blocks of columns, and the number of steps taken. Training ends where the root
        gradient is not finite; after 0 steps if it is not even at the mean of the candidates.
    """
    fused, n = is_fused(candidates[0]), sum(map(len, candidates))
    blocks = [slice(0, len(global_params))] if fused else list(column_blocks(candidates[0], max(1024, _BLOCK // n)))
    updates, masks = in_blocks(n, blocks, global_params), in_blocks(n, blocks, global_params)
    gates = [] if fused else in_blocks(n, blocks, global_params)
    for block, x, m in zip(blocks, updates, masks, strict=True):
        torch.cat([rows[:, block] for rows in candidates], out=x)
        m.fill_(1)
    for m, g in zip(masks, gates, strict=False):
        torch.sigmoid(m, out=g)
    mean = torch.cat([x.mean(dim=0) for x in updates])  # equal masks: the plain mean
    total = torch.full_like(mean, n) * mean.new_ones(()).sigmoid()
    scratch, widths = mean.new_empty(0 if fused else updates[0].numel()), [x.shape[1] for x in updates]
    parts = list(zip(updates, masks, gates, torch.split(mean, widths), torch.split(total, widths), strict=False))
    factor = len(root.data[1]) if summed else 1
    how: dict[str, float] = {"learning_rate": learning_rate, "clip": math.inf if clip is None else clip}
    active: Tensor | bool = True  # a tensor on the GPU, as is the number of steps
    steps: Tensor | int = 0
    first = None
    for step in range(1, max_steps + 1):
        value, outer = root.gradient(global_params + mean, loss)
        if summed:
            value, outer = value * factor, outer * factor
        first = value.clone() if first is None else first
        if fused:
            going = (torch.linalg.vector_norm(outer, torch.inf) < torch.inf) & active
            steps = steps + going
            active = going & fused_step(updates[0], masks[0], mean, total, outer, going, tolerance=tolerance, **how)
        elif finite(outer):
            steps, active = steps + 1, False  # one gate that moves is enough
            for (x, m, g, centre, sums), slope in zip(parts, torch.split(outer, widths), strict=True):
                asked, last = None if active else tolerance, step == max_steps
                active = plain_step(x, m, g, centre, sums, slope, scratch, tolerance=asked, last=last, **how)
        else:  # there is nothing to learn
            break
        if early_stop and step == CODE_STOPS_AFTER:
            active = ~(first - value < CODE_MIN_GAIN) & active
        if (not fused or step % _ASKED_EVERY == 0) and not active:
            break
    return masks, int(steps)


def in_blocks(n: int, blocks: Sequence[slice], like: Float[Tensor, " d"]) -> list[Float[Tensor, "n _"]]:
    """A matrix in blocks of columns, each contiguous; not filled."""
    flat = blank((n * len(like),), like)
    return [flat[n * block.start : n * block.stop].view(n, -1) for block in blocks]


def plain_step(
    x: Float[Tensor, "n d"],
    masks: Float[Tensor, "n d"],
    gates: Float[Tensor, "n d"],
    mean: Float[Tensor, " d"],
    total: Float[Tensor, " d"],
    outer: Float[Tensor, " d"],
    scratch: Float[Tensor, " m"],
    *,
    learning_rate: float,
    clip: float,
    tolerance: float | None,
    last: bool = False,
) -> bool:
    """A step of gradient descent for some columns, in place: :func:`mask_gradient`, then :func:`masked_mean`.

    Args:
        x: Updates.
        masks: Masks.
        gates: Their sigmoids: to read and write them takes less time than to compute them again.
        mean: Masked mean of the updates.
        total: Sums of the gates.
        outer: Gradient of the loss at the mean.
        scratch: Memory for a matrix like the updates: new memory for each block may take longer than its step.
        learning_rate: As in :func:`train_blocks`.
        clip: As there; infinite for none.
        tolerance: As there; None where nobody asks if a gate moved.
        last: Whether no step follows: then only the masks change.

    Returns:
        Whether a gate moved by more than the tolerance; True where nobody asks.
    """
    work = scratch[: x.numel()].view(x.shape)
    torch.sub(x, mean, out=work).mul_(outer / total)
    torch.ops.aten.sigmoid_backward.grad_input(work, gates, grad_input=work)
    if clip < math.inf:
        work.clamp_(-clip, clip)
    masks.sub_(work, alpha=learning_rate)
    if last:
        return True
    before = None if tolerance is None else gates.clone()
    torch.sigmoid(masks, out=gates)
    torch.sum(gates, dim=0, out=total)
    torch.sum(torch.mul(gates, x, out=work), dim=0, out=mean).div_(total)
    return before is None or tolerance is None or not largest(before.sub_(gates)) <= tolerance


def rows_without_overflow(
    x: Float[Tensor, "n d"], global_params: Float[Tensor, " d"], root: Root
) -> Bool[Tensor, " n"]:
    """The rows that are left when the longest are dropped, one by one, until the root gradient at their mean is finite.

    An update of 1e30 is finite, but the mean that contains it is a model without a finite loss, from which no mask
    learns anything.
    """
    rows = torch.ones(len(x), dtype=torch.bool, device=x.device)
    lengths, kept = None, x
    while len(kept) and not torch.isfinite(root.gradient(global_params + kept.mean(dim=0))[1]).all():
        if lengths is None:
            lengths = torch.linalg.vector_norm(x, dim=1, dtype=torch.float64)
        rows[torch.where(rows, lengths, -1).argmax()] = False
        kept = x[rows]
    return rows


def first_coordinates(x: Float[Tensor, "n d"], layout: Layout) -> Float[Tensor, "n d"]:
    """Updates in which each tensor is filled with the first coordinates of the whole update.

    This is how the published code cuts updates into tensors: its position in the flat update is never advanced, so that
    a tensor of k entries is coordinates 0 to k - 1, whatever the client sent for that tensor.
    """
    index = torch.cat([torch.arange(s.stop - s.start) for s in layout.segments])
    return x[:, index.to(x.device)]
