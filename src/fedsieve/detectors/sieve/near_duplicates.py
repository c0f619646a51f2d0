"""Binary masks in closed form, and clients whose masks are nearly the same."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from fedsieve.core.layout import Layout, Segment
from fedsieve.core.linalg import column_blocks

# Two masks with fewer entries in common may agree by chance: then only equal updates are near-duplicates.
_LEAST_COMMON = 1000


@dataclass(frozen=True)
class Masks:
    """Numbers of mask entries, by layer, in one round; the masks themselves are not stored.

    Attributes:
        layers: Layers of the model.
        common: Number of entries where neither of two clients' updates is 0, [layers, n, n].
        differing: Number of these where the two masks differ, [layers, n, n].
        kept: Number of entries that a client's mask keeps, [layers, n].
        decided: Number of entries where neither update nor gradient is 0, [layers, n].
    """

    layers: tuple[Segment, ...]
    common: Float64[Tensor, "l n n"]
    differing: Float64[Tensor, "l n n"]
    kept: Float64[Tensor, "l n"]
    decided: Float64[Tensor, "l n"]


def masks_of(x: Float[Tensor, "n d"], gradient: Float[Tensor, " d"], layout: Layout) -> Masks:
    """Count entries of binary masks; a client's mask keeps a parameter where its update is opposite to the gradient.

    With the masked model W + s(m) u (u the update, s the sigmoid, m = 0 at first), one step of gradient descent moves m
    in the direction -u dL/dW, so that the binarised mask is 1 exactly where u dL/dW < 0, for any learning rate. Whether
    two clients' masks differ in an entry depends on the signs of their updates alone.
    """
    layers, n = layout.layers, len(x)
    common = torch.zeros(len(layers), n, n, dtype=torch.float64, device=x.device)
    agreement = torch.zeros_like(common)
    kept = torch.zeros(len(layers), n, dtype=torch.float64, device=x.device)
    decided = torch.zeros_like(kept)
    for k, layer in enumerate(layers):
        columns = x[:, layer.start : layer.stop]
        slope = gradient[layer.start : layer.stop].sign().to(torch.float32)
        for block in column_blocks(columns):
            signs = columns[:, block].sign().to(torch.float32)  # counts below 2^24 are exact
            filled = signs.abs()
            agreement[k] += signs @ signs.T
            common[k] += filled @ filled.T if not filled.all() else filled.shape[1]
            moved = filled @ slope[block].abs()
            decided[k] += moved
            kept[k] += (moved - signs @ slope[block]) / 2
    return Masks(layers, common, (common - agreement) / 2, kept, decided)


def near_duplicates(
    x: Float[Tensor, "n d"], masks: Masks, rate: float
) -> tuple[Bool[Tensor, " n"], Bool[Tensor, " n"]]:
    """Find clients whose masks are nearly the same.

    Two masks are near-duplicates if at most ``rate`` of their common entries differ. They are near-duplicates in a
    layer if at most ``rate`` of the layer's common entries differ although, at the rate at which the masks differ in
    the other layers, at least 100 would. Where all clients are near-duplicates of each other, none counts as one.

    Args:
        x: The clients' updates.
        masks: Counts for the same updates.
        rate: Share of entries that may differ.

    Returns:
        Clients with a near-duplicate mask or an equal update, [n]; clients with one in a single layer, [n].
    """
    n = len(x)
    others = ~torch.eye(n, dtype=torch.bool, device=x.device)
    differing, common = masks.differing.sum(dim=0), masks.common.sum(dim=0)
    same = (differing <= rate * common) & (common >= _LEAST_COMMON) & others
    if int(common.max()) < _LEAST_COMMON:  # a small model: compare the numbers themselves
        _, group, sizes = torch.unique(x, dim=0, return_inverse=True, return_counts=True)
        same |= (group[:, None] == group) & (sizes[group] > 1) & x.any(dim=1) & others
    in_layer = torch.zeros_like(same)
    for here, entries in zip(masks.differing, masks.common, strict=True):
        elsewhere = (differing - here) / (common - entries).clamp(min=1)
        in_layer |= (here <= rate * entries) & (entries * elsewhere >= 100) & others
    if bool((same | ~others).all()):
        same = torch.zeros_like(same)
    return same.any(dim=1), in_layer.any(dim=1)
