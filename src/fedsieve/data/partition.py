"""How the training samples are split among the clients.

Every partition but ``bootstrap`` gives each client samples that no other client has. Every client has at least one
sample, or the partition raises.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from fedsieve.core.errors import ParameterError
from fedsieve.core.traits import Traits
from fedsieve.data.parts import Draws, Parts, Split


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
    ) -> Parts | Sequence[Int[Tensor, " k"]]:
        """Indices into ``y`` of each client's samples: disjoint, none empty.

        A list of tensors, or something shorter: :class:`fedsieve.data.parts.Split` is faster and smaller.

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
    ) -> Split:
        """See :class:`Partition`."""
        rows = torch.randperm(len(y), generator=generator)
        clients = torch.arange(n_clients)
        return _none_empty(Split.of(rows, clients.repeat_interleave(_even(len(y), n_clients)), n_clients), "iid")


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
    ) -> Split:
        """See :class:`Partition`."""
        stays = torch.rand(len(y), generator=generator) < self.q
        other = (y + torch.randint(1, n_classes, (len(y),), generator=generator)) % n_classes
        group = torch.where(stays, y, other)
        rows, owners_of = [], []
        dealt = torch.randperm(n_clients, generator=generator)
        for k in range(n_classes):
            members = torch.nonzero(group == k).squeeze(1)
            rows.append(members[torch.randperm(len(members), generator=generator)])
            clients = dealt[k::n_classes] if k < n_clients else dealt[[k % n_clients]]
            owners_of.append(clients.repeat_interleave(_even(len(members), len(clients))))
        return _none_empty(Split.of(torch.cat(rows), torch.cat(owners_of), n_clients), "groups")


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
    ) -> Split:
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
        rows, owners_of, clients = [], [], torch.arange(n_clients)
        for members, cut in zip(classes, cuts, strict=True):
            rows.append(members[torch.randperm(len(members), generator=generator)])
            counts = np.diff(cut, prepend=0, append=len(members))
            owners_of.append(clients.repeat_interleave(torch.from_numpy(counts)))
        return Split.of(torch.cat(rows), torch.cat(owners_of), n_clients)


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
    ) -> Split:
        """See :class:`Partition`."""
        if owners is None:
            raise ParameterError("natural: this dataset has no natural clients; try groups, iid or dirichlet")
        names, number = torch.unique(owners, return_inverse=True)
        if n_clients > len(names):
            raise ParameterError(
                f"natural: the data has {len(names)} natural clients, {n_clients} asked for; "
                f"try --clients {len(names)}, or another partition (groups, iid, dirichlet, bootstrap)"
            )
        client = torch.arange(len(names))
        if n_clients < len(names):
            client = torch.full_like(client, -1)
            client[torch.randperm(len(names), generator=generator)[:n_clients]] = torch.arange(n_clients)
        rows = (client[number] >= 0).nonzero().squeeze(1)
        return Split.of(rows, client[number[rows]], n_clients)


@dataclass(frozen=True)
class Bootstrap:
    """Every client draws samples of its own with replacement, so that there may be more clients than samples.

    A client's samples are drawn when it takes part, the same each time, from a stream of its own: a million clients
    take no more memory than a hundred. Two clients may have some samples in common, and a client one of them twice.
    With ``alpha``, each client first draws its class shares q from a Dirichlet distribution around those of the data,
    q ~ Dir(alpha p), and then the class of each sample from q: Hsu, Qi, Brown. Measuring the Effects of Non-Identical
    Data Distribution for Federated Visual Classification. 2019.

    Attributes:
        samples: Number of samples of each client, at most that of all there are.
        alpha: Concentration, positive; the smaller, the farther from IID. None: IID.
    """

    samples: int = 100
    alpha: float | None = None
    traits: ClassVar[Traits] = Traits(
        summary="Every client draws samples with replacement; for more clients than samples",
        paper="Hsu et al., Measuring the Effects of Non-Identical Data Distribution, 2019",
    )

    def __post_init__(self) -> None:
        if self.samples < 1 or not (self.alpha is None or 0 < self.alpha < math.inf):
            raise ParameterError(
                "bootstrap: samples must be at least 1 and alpha positive and finite, "
                f"got {self.samples} and {self.alpha}"
            )

    def __call__(
        self,
        y: Int[Tensor, " N"],
        owners: Int[Tensor, " N"] | None,
        n_clients: int,
        n_classes: int,
        generator: torch.Generator,
        /,
    ) -> Draws:
        """See :class:`Partition`; not disjoint."""
        if self.samples > len(y):
            raise ParameterError(f"bootstrap: samples is {self.samples}, more than the {len(y)} there are to draw from")
        seed = int(torch.randint(2**62, (), generator=generator))
        if self.alpha is None:
            return Draws(torch.arange(len(y)), n_clients, self.samples, seed)
        sizes = y.bincount().numpy()
        sizes = sizes[sizes > 0]
        return Draws(
            y.argsort(stable=True), n_clients, self.samples, seed, sizes, self.alpha * sizes / float(sizes.sum())
        )


def _even(n: int, parts: int) -> Int[Tensor, " parts"]:
    """Sizes of ``parts`` parts of n things, as even as can be, the larger ones first."""
    return torch.full((parts,), n // parts) + (torch.arange(parts) < n % parts)


def _none_empty(parts: Split, name: str) -> Split:
    empty = int((parts.sizes == 0).sum())
    if empty:
        raise ParameterError(
            f"{name}: {len(parts.pool)} samples leave {empty} of {len(parts)} clients with none; "
            "use fewer clients, or partition bootstrap, in which clients have samples in common"
        )
    return parts
