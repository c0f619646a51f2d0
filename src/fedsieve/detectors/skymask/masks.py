"""Mask training: equations 2 to 5 of the paper.

One real-valued mask per candidate model, all ones at first. The masked models are averaged per coordinate,
W~ = sum_i s(m_i) W_i / sum_i s(m_i) with s the sigmoid, and only the masks learn, by gradient descent on the root loss
of W~.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fedsieve.core.defense import LossName, Root
from fedsieve.core.layout import Layout
from fedsieve.core.linalg import column_blocks

# The published code looks at the loss once, after this step, and stops there if it fell by less than this.
CODE_STOPS_AFTER, CODE_MIN_GAIN = 11, 1e-2


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
    candidates: Float[Tensor, "n d"],
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
) -> tuple[Float[Tensor, "n d"], int]:
    """Train one mask per candidate.

    Works on updates instead of models: the masks' weights sum to 1, so W~ = global_params + masked mean of the
    updates, without the rounding that adding and subtracting the global model would bring. Each step is one backward
    pass through the model and one pass over the two matrices, in blocks of columns that stay in the cache.

    Args:
        candidates: Updates, one row per mask.
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
        The masks before the sigmoid, [n, d], and the number of steps taken.
    """
    masks = torch.ones_like(candidates)
    blocks = list(column_blocks(candidates))
    mean = candidates.mean(dim=0)  # equal masks: the plain mean
    total = torch.full_like(mean, len(candidates)) * mean.new_ones(()).sigmoid()
    factor = len(root.data[1]) if summed else 1
    first = None
    for step in range(1, max_steps + 1):
        value, outer = root.gradient(global_params + mean, loss)
        if summed:
            value, outer = value * factor, outer * factor
        first = value if first is None else first
        if not torch.isfinite(outer).all():  # nothing to learn from; the masks stay as they are
            break
        moved = torch.zeros((), device=masks.device, dtype=masks.dtype)
        for block in blocks:
            # the same as mask_gradient and masked_mean, in place: a third of the memory traffic
            x, m = candidates[:, block], masks[:, block]
            gates = m.sigmoid()
            gradient = (x - mean[block]).mul_(outer[block] / total[block])
            gradient = torch.ops.aten.sigmoid_backward(gradient, gates)
            if clip is not None:
                gradient = gradient.clamp_(-clip, clip)
            new_gates = m.sub_(gradient, alpha=learning_rate).sigmoid()
            moved = torch.maximum(moved, gates.sub_(new_gates).abs_().max())
            total[block] = new_gates.sum(dim=0)
            mean[block] = new_gates.mul_(x).sum(dim=0) / total[block]
        if moved <= tolerance or (early_stop and step == CODE_STOPS_AFTER and first - value < CODE_MIN_GAIN):
            break
    return masks, step


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
