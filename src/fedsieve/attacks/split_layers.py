"""Split layers: each malicious client attacks some layers and sends its honest update in the others.

No publication; SkyMask's authors leave it open (Yan et al., ECCV 2024, section V).

Variant: another attack crafts updates for all malicious clients, and each of them sends its row in its own layers; in
the others it sends the update that it trained, on poisoned data if the inner attack poisons data. The layers are cut
into ``groups`` contiguous groups of about equal size, or one per malicious client of the round if these are fewer. The
groups are assigned to the malicious clients in turn, in the order of their ids among the malicious clients, so that all
layers are attacked in every round. Running statistics belong to the layer that has them.
Departs: nothing, since nothing is published.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from fedsieve.attacks.fang import FangTrim
from fedsieve.core.attack import (
    Attack,
    AttackView,
    Crafted,
    PoisonView,
    Task,
    Triggered,
    UpdateAttack,
    craft,
    identity,
    parts,
    poison,
    triggered,
)
from fedsieve.core.errors import ParameterError
from fedsieve.core.layout import Layout
from fedsieve.core.linalg import check_fits_float32
from fedsieve.core.traits import Traits


def layer_of_each(layout: Layout) -> Int[Tensor, " d"]:
    """Number of each coordinate's layer: the module of its tensor ("conv1" of "conv1.weight").

    >>> layout = Layout.of({"conv1.weight": torch.zeros(2), "conv1.bias": torch.zeros(1), "fc.weight": torch.zeros(1)})
    >>> layer_of_each(layout)
    tensor([0, 0, 0, 1])
    """
    modules = [s.name.rpartition(".")[0] for s in layout.segments]
    numbers = {module: k for k, module in enumerate(dict.fromkeys(modules))}
    sizes = torch.tensor([s.stop - s.start for s in layout.segments])
    return torch.tensor([numbers[module] for module in modules]).repeat_interleave(sizes)


def contiguous_groups(sizes: Sequence[int], n_groups: int) -> list[int]:
    """The group of each of ``sizes``: contiguous, none empty, with about equal sums.

    A group ends where the next size would take its sum farther above an equal share of the remaining sum than the sum
    is below it now.

    >>> contiguous_groups([10, 1, 1, 1], 2)
    [0, 1, 1, 1]
    """
    found: list[int] = []
    group, filled, left = 0, 0, sum(sizes)
    for i, size in enumerate(sizes):
        behind = n_groups - 1 - group
        full = filled + size / 2 > left / (behind + 1)
        if i and behind and (full or len(sizes) - i == behind):
            group, filled, left = group + 1, 0, left - filled
        found.append(group)
        filled += size
    return found


def own_coordinates(layout: Layout, members: Int[Tensor, " m"], groups: int | None) -> Bool[Tensor, "m d"]:
    """Which coordinates each malicious client attacks; each coordinate is attacked by at least one.

    >>> own_coordinates(Layout.of({"a.w": torch.zeros(2), "b.w": torch.zeros(1)}), torch.tensor([4, 2]), None)
    tensor([[False, False,  True],
            [ True,  True, False]])

    Args:
        layout: What the coordinates mean.
        members: Index of each row's client among the malicious ones, [m].
        groups: Number of groups; None: one per layer. At most the layers and at most m.
    """
    layers = layer_of_each(layout)
    sizes = layers.bincount().tolist()
    n_groups = min(len(sizes), len(members), groups or len(sizes))
    group = torch.tensor(contiguous_groups(sizes, n_groups))[layers]
    rank = members.argsort().argsort()
    return rank[:, None] % n_groups == group.to(rank.device)


def _innermost(attack: Attack) -> Iterator[Attack]:
    """The attacks that an attack comes down to: itself, or those of all that it is made of."""
    inner = parts(attack)
    for part in inner:
        yield from _innermost(part)
    if not inner:
        yield attack


@dataclass(frozen=True)
class SplitLayers:
    """An update attack whose layers are divided among the malicious clients.

    Attributes:
        attack: Crafts the updates; one that only poisons data is refused, in an attack that is made of others too.
        groups: Number of groups that the layers are cut into, at most one per layer; None: one per layer.
        factor: What the deviation from the client's own update is multiplied by.
    """

    attack: Attack = field(default_factory=FangTrim)
    groups: int | None = None
    factor: float = 1.0
    parts: ClassVar[Mapping[str, Any]] = {"attack": "fang-trim"}
    traits: ClassVar[Traits] = Traits(
        summary="Another attack, each malicious client in other layers",
    )

    def __post_init__(self) -> None:
        for inner in _innermost(self.attack):
            if not isinstance(inner, UpdateAttack):
                within = "" if inner is self.attack else f", in {type(self.attack).__name__},"
                raise ParameterError(
                    f"split-layers: {type(inner).__name__}{within} only poisons data, so that splitting has no effect; "
                    "take an attack that crafts updates"
                )
        if self.groups is not None and self.groups < 1:
            raise ParameterError(f"split-layers: groups must be at least 1, got {self.groups}")
        if not self.factor > 0:
            raise ParameterError(f"split-layers: factor must be positive, got {self.factor}")
        check_fits_float32("split-layers", factor=self.factor)

    def poison(self, x: Tensor, y: Tensor, view: PoisonView, /) -> tuple[Tensor, Tensor]:
        """See :class:`fedsieve.core.attack.DataAttack`."""
        return poison(self.attack, x, y, view)

    def craft(self, view: AttackView, /) -> Crafted:
        """See :class:`fedsieve.core.attack.UpdateAttack`; the memory is the inner attack's."""
        own = view.malicious_updates
        crafted = craft(self.attack, view, f"split-layers: {type(self.attack).__name__}")
        rows = crafted.updates
        if self.factor != 1:
            rows = own + self.factor * (rows - own)
        rows = torch.where(own_coordinates(view.layout, view.members, self.groups).to(own.device), rows, own)
        return Crafted(rows, crafted.memory)

    def identity(self, member: int, round: int, /) -> int:
        """See :class:`fedsieve.core.attack.Identities`; that of the inner attack."""
        return identity(self.attack, member, round)

    def triggered(self, x: Tensor, y: Int[Tensor, " k"], task: Task, /) -> Triggered | None:
        """See :class:`fedsieve.core.attack.Backdoor`; samples of the inner attack."""
        return triggered(self.attack, x, y, task)
