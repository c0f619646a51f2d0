"""How the training samples are split among the clients.

Every partition returns disjoint sets of at least one sample each, or raises.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from fedsieve.core.errors import ParameterError
from fedsieve.core.traits import Traits


@runtime_checkable
class Partition(Protocol):
    """Splits the samples among the clients."""

    traits: ClassVar[Traits]

    def __call__(
        self,
        y: Int[Tensor, " N"],
        owners: Int[Tensor, " N"] | None,
        n_clients: int,
        n_classes: int,
        generator: torch.Generator,
        /,
    ) -> list[Int[Tensor, " k"]]:
        """Indices into ``y`` of each client's samples: disjoint, none empty.

        Args:
            y: Classes of the samples.
            owners: Natural client of each sample, if the data has any.
            n_clients: Number of clients.
            n_classes: Number of classes.
            generator: The only source of randomness.

        Raises:
            ParameterError: If the samples can't be split among so many clients.
        """
        ...


@dataclass(frozen=True)
class IID:
    """Every client gets an equal part of a random permutation."""

    traits: ClassVar[Traits] = Traits(summary="Equal random parts")

    def __call__(
        self,
        y: Int[Tensor, " N"],
        owners: Int[Tensor, " N"] | None,
        n_clients: int,
        n_classes: int,
        generator: torch.Generator,
        /,
    ) -> list[Int[Tensor, " k"]]:
        """See :class:`Partition`."""
        parts = torch.tensor_split(torch.randperm(len(y), generator=generator), n_clients)
        return _none_empty(list(parts), len(y), "iid")


@dataclass(frozen=True)
class Groups:
    """C groups, one for each class: a sample joins the group of its class with probability q, else another group.

    Fang et al., USENIX Security 2020; FLTrust; SkyMask section IV-A1. Clients are assigned to groups at random and
    evenly (sizes of groups differ by at most one), as in FLTrust; each group's samples are split evenly among its
    clients. q = 1 / C is IID. With fewer clients than classes, clients have several groups each, all of their samples.

    Attributes:
        q: Degree of non-IID, in [0, 1].
    """

    q: float = 0.5
    traits: ClassVar[Traits] = Traits(
        summary="C groups, each mostly of one class; every client draws from one group",
        paper="Fang et al., Local Model Poisoning Attacks, USENIX Security 2020",
    )

    def __post_init__(self) -> None:
        if not 0 <= self.q <= 1:
            raise ParameterError(f"groups: q must be in [0, 1], got {self.q}")

    def __call__(
        self,
        y: Int[Tensor, " N"],
        owners: Int[Tensor, " N"] | None,
        n_clients: int,
        n_classes: int,
        generator: torch.Generator,
        /,
    ) -> list[Int[Tensor, " k"]]:
        """See :class:`Partition`."""
        stays = torch.rand(len(y), generator=generator) < self.q
        other = (y + torch.randint(1, n_classes, (len(y),), generator=generator)) % n_classes
        group = torch.where(stays, y, other)
        parts: list[Tensor] = [y[:0]] * n_clients
        dealt = torch.randperm(n_clients, generator=generator)
        for k in range(n_classes):
            members = torch.nonzero(group == k).squeeze(1)
            members = members[torch.randperm(len(members), generator=generator)]
            clients = dealt[k::n_classes] if k < n_clients else dealt[[k % n_clients]]
            for client, part in zip(clients.tolist(), torch.tensor_split(members, len(clients)), strict=True):
                parts[client] = torch.cat([parts[client], part])
        return _none_empty(parts, len(y), "groups")


@dataclass(frozen=True)
class Dirichlet:
    """Each class is split among the clients in proportions drawn from a Dirichlet distribution.

    Hsu, Qi, Brown. Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification.
    2019. In the form of Yurochkin et al. (ICML 2019), which draws proportions for each class; drawn again, up to 1,000
    times, until every client has ``min_samples``.

    Attributes:
        alpha: Concentration, positive; the smaller, the farther from IID.
        min_samples: Fewest samples of a client.
    """

    alpha: float = 0.5
    min_samples: int = 10
    traits: ClassVar[Traits] = Traits(
        summary="Class proportions per client from a Dirichlet distribution",
        paper="Hsu et al., Measuring the Effects of Non-Identical Data Distribution, 2019",
    )

    def __post_init__(self) -> None:
        if self.alpha <= 0 or self.min_samples < 1:
            raise ParameterError(
                f"dirichlet: alpha must be positive and min_samples at least 1, got {self.alpha} and {self.min_samples}"
            )

    def __call__(
        self,
        y: Int[Tensor, " N"],
        owners: Int[Tensor, " N"] | None,
        n_clients: int,
        n_classes: int,
        generator: torch.Generator,
        /,
    ) -> list[Int[Tensor, " k"]]:
        """See :class:`Partition`."""
        if len(y) < n_clients * self.min_samples:
            raise ParameterError(
                f"dirichlet: {len(y)} samples can't give {n_clients} clients {self.min_samples} each; "
                f"fewer clients or a smaller min_samples"
            )
        random = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        classes = [torch.nonzero(y == k).squeeze(1) for k in range(n_classes)]
        for _ in range(1000):
            shares = random.dirichlet([self.alpha] * n_clients, size=n_classes)
            cuts = [
                (share.cumsum()[:-1] * len(members)).astype(int) for share, members in zip(shares, classes, strict=True)
            ]
            sizes = sum(np.diff(cut, prepend=0, append=len(m)) for cut, m in zip(cuts, classes, strict=True))
            if np.min(sizes) >= self.min_samples:
                break
        else:
            raise ParameterError(
                f"dirichlet: no draw of 1,000 gave each of {n_clients} clients {self.min_samples} samples at "
                f"alpha={self.alpha}; fewer clients, a larger alpha or a smaller min_samples"
            )
        parts: list[list[Tensor]] = [[] for _ in range(n_clients)]
        for members, cut in zip(classes, cuts, strict=True):
            shuffled = members[torch.randperm(len(members), generator=generator)]
            for client, part in enumerate(torch.tensor_split(shuffled, cut.tolist())):
                parts[client].append(part)
        return [torch.cat(part) for part in parts]


@dataclass(frozen=True)
class Natural:
    """Every client has the samples of one natural client (a person, a device), drawn at random if there are more."""

    traits: ClassVar[Traits] = Traits(summary="One client per person or device that the data comes from")

    def __call__(
        self,
        y: Int[Tensor, " N"],
        owners: Int[Tensor, " N"] | None,
        n_clients: int,
        n_classes: int,
        generator: torch.Generator,
        /,
    ) -> list[Int[Tensor, " k"]]:
        """See :class:`Partition`."""
        if owners is None:
            raise ParameterError("natural: this dataset has no natural clients; try groups, iid or dirichlet")
        names = torch.unique(owners)
        if n_clients > len(names):
            raise ParameterError(
                f"natural: the data has {len(names)} natural clients, {n_clients} asked for; "
                f"try --clients {len(names)}, or another partition (groups, iid, dirichlet)"
            )
        if n_clients < len(names):
            names = names[torch.randperm(len(names), generator=generator)[:n_clients]]
        return [torch.nonzero(owners == name).squeeze(1) for name in names]


def _none_empty(parts: list[Tensor], n_samples: int, name: str) -> list[Tensor]:
    empty = sum(len(part) == 0 for part in parts)
    if empty:
        raise ParameterError(
            f"{name}: {n_samples} samples leave {empty} of {len(parts)} clients with none; use fewer clients"
        )
    return parts
