"""Copycat: each malicious client sends a copy of a benign client's update.

No publication; it turns a search for near-duplicates against those who are copied, and multiplies their weight.

Variant: with the benign clients of the round in the order of their ids, malicious client k, counted from 0, copies
benign client k (``victims="distinct"``; from the first one again if there are fewer), the first one (``one``), or
client k of the ``group_size`` whose updates are nearest to each other (``group``): an attacker can't see whose data are
of one class, but clients of one class send similar updates. That group is the client with the smallest sum of squared
distances to its nearest others, and these. ``layer`` copies one layer and leaves the client's own update elsewhere;
``jitter`` adds Gaussian noise to each copy; ``factor`` multiplies it. In a round without benign clients there is nobody
to copy, and the malicious clients send their own updates.
Departs: nothing, since nothing is published.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fedsieve.attacks.noise import parameter_coordinates, with_noise
from fedsieve.core.attack import AttackView
from fedsieve.core.errors import ParameterError
from fedsieve.core.layout import Layout
from fedsieve.core.linalg import check_fits_float32, pairwise_sq_distances
from fedsieve.core.traits import Traits

Victims = Literal["distinct", "one", "group"]


def nearest_group(x: Float[Tensor, "n d"], size: int) -> Int[Tensor, " k"]:
    """Rows of the ``size`` updates nearest to each other (all if there are fewer), ascending.

    They are the row with the smallest sum of squared distances to its ``size - 1`` nearest others, and these.

    >>> nearest_group(torch.tensor([[0.0], [9.0], [5.0], [8.0]]), size=2)
    tensor([1, 3])
    """
    nearest = pairwise_sq_distances(x).topk(min(size, len(x)), dim=1, largest=False)
    return nearest.indices[nearest.values.sum(dim=1).argmin()].sort().values


def layer_coordinates(layout: Layout, layer: int | str | None) -> Bool[Tensor, " d"]:
    """Which coordinates belong to a layer, its running statistics included.

    >>> layout = Layout.of({"conv1.weight": torch.zeros(2), "conv1.bias": torch.zeros(1), "fc.weight": torch.zeros(1)})
    >>> layer_coordinates(layout, "fc"), layer_coordinates(layout, 0)
    (tensor([False, False, False,  True]), tensor([ True,  True,  True, False]))

    Args:
        layout: What the coordinates mean.
        layer: Name of a module ("conv1" of "conv1.weight"), or its number in the model, from 0 or, from the end, from
            -1; None: all.

    Raises:
        ParameterError: If there is no such layer.
    """
    modules = [s.name.rpartition(".")[0] or s.name for s in layout.segments]
    names = list(dict.fromkeys(modules))
    if layer is None:
        wanted = set(names)
    elif layer in names:
        wanted = {layer}
    elif isinstance(layer, int) and -len(names) <= layer < len(names):
        wanted = {names[layer]}
    else:
        known = ", ".join(f"{k} {name}" for k, name in enumerate(names))
        raise ParameterError(f"copycat: the model has no layer {layer!r}; it has {known}")
    sizes = torch.tensor([s.stop - s.start for s in layout.segments])
    return torch.tensor([module in wanted for module in modules]).repeat_interleave(sizes)


@dataclass(frozen=True)
class Copycat:
    """Sends copies of benign clients' updates.

    Attributes:
        victims: Which benign clients are copied: ``distinct`` ones, ``one``, or a ``group`` with similar updates.
        group_size: Clients in the group; None: as many as there are malicious clients in the round.
        layer: Name or number of the only layer that is copied; None: the whole update.
        jitter: Length of the noise on each copy, as a share of the copy's; none at 0.
        factor: What each copy is multiplied by.
    """

    victims: Victims = "distinct"
    group_size: int | None = None
    layer: int | str | None = None
    jitter: float = 0.0
    factor: float = 1.0
    traits: ClassVar[Traits] = Traits(
        summary="Each malicious client sends a copy of a benign client's update",
        needs=("benign updates",),
    )

    def __post_init__(self) -> None:
        if self.group_size is not None and self.victims != "group":
            raise ParameterError(
                f"copycat: group_size has no effect with victims={self.victims}, got {self.group_size}; "
                "set victims=group"
            )
        if self.group_size is not None and self.group_size < 1:
            raise ParameterError(f"copycat: group_size must be at least 1, got {self.group_size}")
        if not 0 <= self.jitter < math.inf:
            raise ParameterError(f"copycat: jitter must be at least 0 and finite, got {self.jitter}")
        if not 0 < abs(self.factor) < math.inf:
            raise ParameterError(f"copycat: factor must be finite and not 0, got {self.factor}")
        check_fits_float32("copycat", jitter=self.jitter, factor=self.factor)

    def check_layout(self, layout: Layout, /) -> None:
        """See :class:`fedsieve.core.attack.Fitted`."""
        layer_coordinates(layout, self.layer)

    def craft(self, view: AttackView, /) -> Float[Tensor, "m d"]:
        """See :class:`fedsieve.core.attack.UpdateAttack`."""
        own, benign = view.malicious_updates, view.benign_updates
        if benign is None:
            raise ParameterError("copycat must see the benign updates; grant them with knowledge=full")
        where = layer_coordinates(view.layout, self.layer)
        if not len(benign):
            return own.clone()
        if view.benign_ids is not None and bool((view.benign_ids.diff() < 0).any()):
            benign = benign[view.benign_ids.argsort()]
        chosen = self.chosen(benign, len(own))
        copies = benign[chosen[torch.arange(len(own)) % len(chosen)]]
        if self.jitter:
            copies = with_noise(copies, self.jitter, where & parameter_coordinates(view.layout), view.generator)
        return torch.where(where.to(own.device), self.factor * copies, own)

    def chosen(self, benign: Float[Tensor, "b d"], m: int) -> Int[Tensor, " k"]:
        """Rows of the benign clients that ``m`` malicious ones copy in turn; at most m of them."""
        match self.victims:
            case "one":
                return torch.zeros(1, dtype=torch.long)
            case "group":
                return nearest_group(benign, self.group_size or m)
            case "distinct":
                return torch.arange(min(m, len(benign)))
