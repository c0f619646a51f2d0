"""Masks that no other client can move: each is trained against the model as it was.

The paper trains all masks together, so every mask says on which side of the crowd a client stands; where the crowd is
malicious, or merely of two kinds, that says nothing of who is harmful (docs/skymask.md has the measurements). Here the
masked model of client i takes each parameter from the client or leaves it as it was: W + s(m_i) u_i, with s the sigmoid
and m_i = 0 at first, undecided. One step of gradient descent on the root data's loss L moves m_i by minus
s(1 - s) u_i dL/dW, so that binarised it keeps parameter k exactly if u_ik dL/dW_k < 0, whatever the learning rate. The
loss is the mean margin (fedsieve.losses.margin), which neither a skewed mix of labels nor what the model has wrong
already can turn around.

What the masks say, and what the server can measure beside them:

- **harm**: how the masks move on the whole, as the cosine of the update and the gradient. It is the rate at which the
  client makes the margin on clean data worse, and is compared with that of root models trained on wrong labels.
- **strangeness**: the length of what is left of the update when all that the root samples' own updates can explain is
  taken away; compared with what is left of updates that the server trained on root samples held out. Flipped labels,
  triggers, crafted vectors and anything scaled up are strange; samples of a class that the root data have are not.
- **opposition**: minus the cosine of the client's update and the server's own, of the whole model and of each layer;
  compared with what the root samples of a single class oppose the others at most.
- **copies**: how many entries of two clients' masks differ. Honest clients' samples differ, and so do at least some
  tenths of a percent of their masks; who crafts updates from others' updates sends the same mask several times over.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from fedsieve.ops import column_blocks
from fedsieve.types import Layout, Segment, Witnesses

# Layers of fewer parameters have no opposition of their own: too few numbers to tell it from noise.
_LEAST_LAYER = 256
# Masks that can be compared in fewer entries may agree by chance: then only equal updates are copies.
_LEAST_COMMON = 1000
_TINY = 1e-300


@dataclass(frozen=True)
class Masks:
    """What one round's masks show, in sums over the entries of each layer.

    Attributes:
        layers: Of the model.
        common: Entries in which neither of two clients' updates is 0.
        differing: Of these, those in which their masks differ.
        kept: Entries that a client's mask keeps.
        decided: Entries that it keeps or not: where neither update nor gradient is 0.
    """

    layers: tuple[Segment, ...]
    common: Float64[Tensor, "l n n"]
    differing: Float64[Tensor, "l n n"]
    kept: Float64[Tensor, "l n"]
    decided: Float64[Tensor, "l n"]


def masks_of(x: Float[Tensor, "n d"], gradient: Float[Tensor, " d"], layout: Layout) -> Masks:
    """Binary masks, never written down: a client keeps a parameter where its update goes against the gradient.

    Where two masks differ does not depend on the gradient: it turns both the same way.
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


def copies(x: Float[Tensor, "n d"], masks: Masks, rate: float) -> tuple[Bool[Tensor, " n"], Bool[Tensor, " n"]]:
    """Clients with the same mask as another, or the same update; and those with the same mask in one layer only.

    Masks are the same if less than ``rate`` of their entries differ. A layer counts if the two differ so much more
    elsewhere that, at a tenth of that, ten entries of the layer would differ. Nobody is a copy where everybody is:
    there is nobody to tell them from.
    """
    n = len(x)
    others = ~torch.eye(n, dtype=torch.bool, device=x.device)
    differing, common = masks.differing.sum(dim=0), masks.common.sum(dim=0)
    same = (differing <= rate * common) & (common >= _LEAST_COMMON) & others
    if int(common.max()) < _LEAST_COMMON:  # a small model: equal in every number, or different
        _, group, sizes = torch.unique(x, dim=0, return_inverse=True, return_counts=True)
        same |= (group[:, None] == group) & (sizes[group] > 1) & x.any(dim=1) & others
    in_layer = torch.zeros_like(same)
    for here, entries in zip(masks.differing, masks.common, strict=True):
        elsewhere = (differing - here) / (common - entries).clamp(min=1)
        in_layer |= (here <= rate * entries) & (entries * elsewhere >= 100) & others
    if bool((same | ~others).all()):
        same = torch.zeros_like(same)
    return same.any(dim=1), in_layer.any(dim=1)


@dataclass(frozen=True)
class Measurements:
    """What is measured of each client in one round, and what the server knows to compare it with.

    Attributes:
        harm: Cosine of the update and the loss's gradient; above 0 the client makes the margin worse.
        strangeness: Logarithm of the unexplained length, in units of the held-out witnesses'.
        statistics: Logarithm of the length of the running statistics' change, in units of the longest witness's; None
            where the model has none.
        opposition: Minus the cosine of the update and the witnesses' mean; of the whole model, then of each layer.
        lying: Mean harm of the lying witnesses.
        honest_opposition: Opposition of the witnesses of each class.
    """

    harm: Float64[Tensor, " n"]
    strangeness: Float64[Tensor, " n"]
    statistics: Float64[Tensor, " n"] | None
    opposition: Float64[Tensor, "n p"]
    lying: Float64[Tensor, ""]
    honest_opposition: Float64[Tensor, "c p"]


def measure(
    x: Float[Tensor, "n d"], gradient: Float[Tensor, " d"], witnesses: Witnesses, layout: Layout
) -> Measurements:
    """See :class:`Measurements`. In float64, or on rows of length 1, so that no finite update overflows."""
    n, p = len(x), layout.n_parameters
    honest = witnesses.honest
    trusted = honest.mean(dim=0)
    known = torch.cat([x, honest, witnesses.lying])
    parts = [Segment("", (p,), 0), *(s for s in layout.layers if s.stop - s.start >= _LEAST_LAYER)]
    parts = parts[:1] if len(layout.layers) == 1 else parts
    cosines = torch.stack([_cosines(known[:, s.start : s.stop], trusted[s.start : s.stop]) for s in parts], dim=1)
    harm = _cosines(known[:, :p], gradient[:p])
    statistics = None
    if p < x.shape[1]:
        own = torch.cat([honest, witnesses.model[None], witnesses.held_out])[:, p:]
        statistics = (_lengths(x[:, p:]).clamp(min=_TINY) / _lengths(own).max().clamp(min=_TINY)).log()
    return Measurements(
        harm=harm[:n],
        strangeness=_strangeness(x[:, :p], witnesses, p),
        statistics=statistics,
        opposition=-cosines[:n],
        lying=harm[n + len(honest) :].mean(),
        honest_opposition=-cosines[n : n + len(honest)],
    )


def _strangeness(x: Float[Tensor, "n p"], witnesses: Witnesses, p: int) -> Float64[Tensor, " n"]:
    """Logarithm of each row's length beyond the span of the witnesses' parts, relative to the held-out witnesses'.

    A held-out witness is explained by the parts of the other folds only; the unit is the root mean square of theirs.
    """
    n, r = len(x), len(witnesses.parts)
    rows = torch.cat([x, witnesses.held_out[:, :p], witnesses.parts[:, :p]])
    lengths = _lengths(rows).clamp(min=_TINY)
    products = torch.zeros(len(rows), r, dtype=torch.float64, device=x.device)
    scale = lengths.reciprocal()
    for block in column_blocks(rows):
        units = (rows[:, block].double() * scale[:, None]).float()
        products += (units @ units[-r:].T).double()
    gram = products[-r:]
    left = torch.cat(
        [
            _unexplained(products[:n], gram),
            *(
                _unexplained(products[n + k][None, others], gram[others][:, others])
                for k, fold in enumerate(torch.unique(witnesses.folds))
                for others in [witnesses.folds != fold]
            ),
        ]
    )
    squares: Tensor = left * lengths[: len(left)].square()
    unit = squares[n:].mean().clamp(min=_TINY)
    return ((squares[:n] / unit).clamp(min=_TINY).log() / 2).clamp(-50, 700)


def _unexplained(products: Float64[Tensor, "k r"], gram: Float64[Tensor, "r r"]) -> Float64[Tensor, " k"]:
    """Squared length, of rows of length 1, of what lies beyond the span of r others, given all inner products."""
    if not len(gram):
        return products.new_ones(len(products))
    values, vectors = torch.linalg.eigh(gram)
    kept = values > 1e-5 * values[-1]  # the rest is rounding
    coordinates: Tensor = products @ (vectors[:, kept] / values[kept].sqrt())
    return (1 - coordinates.square().sum(dim=1)).clamp(min=1e-6)


def _lengths(x: Float[Tensor, "n k"]) -> Float64[Tensor, " n"]:
    squares = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for block in column_blocks(x):
        squares += x[:, block].double().square().sum(dim=1)
    return squares.sqrt()


def _cosines(x: Float[Tensor, "n k"], direction: Float[Tensor, " k"]) -> Float64[Tensor, " n"]:
    """0 where either is 0."""
    along = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for block in column_blocks(x):
        along += x[:, block].double() @ direction[block].double()
    scale = _lengths(x) * direction.double().norm()
    return torch.where(scale > 0, along / torch.where(scale > 0, scale, 1), 0)
