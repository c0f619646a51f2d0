"""Which samples each client has, in a few bytes a client: a client's rows are found when they are asked for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Parts that have no sample in common: the rows of all clients in one tensor, client after client.

    >>> parts = Split.of(torch.tensor([7, 8, 9]), torch.tensor([1, 0, 1]), n_clients=2)
    >>> parts[0], parts[1]
    (tensor([8]), tensor([7, 9]))

    Attributes:
        pool: Rows of client 0, then those of client 1, and so on, [p].
        ends: Where each client's rows end in ``pool``, ascending, [n].
    """

    pool: Int[Tensor, " p"]
    ends: Int[Tensor, " n"]

    @classmethod
    def of(cls, rows: Int[Tensor, " p"], owner: Int[Tensor, " p"], n_clients: int) -> "Split":
        """The parts in which row k belongs to client ``owner[k]``; a client's rows stay in their order."""
        return cls(rows[owner.argsort(stable=True)], owner.bincount(minlength=n_clients).cumsum(0))

    @classmethod
    def listed(cls, parts: Sequence[Int[Tensor, " _"]]) -> "Split":
        """The parts that are given one by one."""
        return cls(torch.cat([*parts]), torch.tensor([len(part) for part in parts]).cumsum(0))

    @property
    def sizes(self) -> Int[Tensor, " n"]:
        """Number of samples of each client."""
        return self.ends.diff(prepend=self.ends.new_zeros(1))

    def place(self, client: int) -> slice:
        """Where the client's rows are in ``pool``."""
        return slice(int(self.ends[client - 1]) if client else 0, int(self.ends[client]))

    def within(self, rows: Int[Tensor, " N"]) -> "Split":
        """The same parts, of samples that are the given rows of a larger set."""
        return Split(rows[self.pool], self.ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, client: int) -> Int[Tensor, " k"]:
        return self.pool[self.place(client)]

    def __iter__(self) -> Iterator[Int[Tensor, " k"]]:
        return iter(torch.tensor_split(self.pool, self.ends[:-1]))


@dataclass(frozen=True)
class Draws:
    """Parts that are drawn with replacement, each from a stream of its own, so that they take no memory.

    Two clients may have the same sample. A client has the same rows whenever it is asked for, whoever else is asked.

    >>> parts = Draws(torch.arange(60_000), n_clients=1_000_000, samples=3, seed=5)
    >>> parts[999_999].tolist() == parts[999_999].tolist() != parts[0].tolist()
    True

    Attributes:
        pool: Rows that are drawn from, [p]; class after class where ``classes`` are given.
        n_clients: Number of clients.
        samples: Number of samples of each client.
        seed: Of all clients' streams.
        classes: Where classes are drawn first: their sizes, which sum to p, [c].
        concentration: Parameters of the Dirichlet distribution of each client's class shares, positive, [c].
    """

    pool: Int[Tensor, " p"]
    n_clients: int
    samples: int
    seed: int
    classes: Int[np.ndarray, " c"] | None = None
    concentration: Float64[np.ndarray, " c"] | None = None

    @property
    def sizes(self) -> Int[Tensor, " n"]:
        """Number of samples of each client."""
        return torch.tensor([self.samples]).expand(self.n_clients)

    def within(self, rows: Int[Tensor, " N"]) -> "Draws":
        """The same parts, of samples that are the given rows of a larger set."""
        return Draws(rows[self.pool], self.n_clients, self.samples, self.seed, self.classes, self.concentration)

    def __len__(self) -> int:
        return self.n_clients

    def __getitem__(self, client: int) -> Int[Tensor, " k"]:
        if not 0 <= client < self.n_clients:
            raise IndexError(f"client {client} is none of 0 to {self.n_clients - 1}")
        # 128 bits of state: with 32, as in core.seeding, a hundred pairs of a million clients would draw alike
        random = np.random.default_rng((self.seed, client))
        if self.classes is None or self.concentration is None:
            return self.pool[torch.from_numpy(random.integers(len(self.pool), size=self.samples))]
        drawn = random.choice(len(self.classes), self.samples, p=random.dirichlet(self.concentration))
        starts = self.classes.cumsum() - self.classes
        return self.pool[torch.from_numpy(starts[drawn] + random.integers(self.classes[drawn]))]

    def __iter__(self) -> Iterator[Int[Tensor, " k"]]:
        return (self[client] for client in range(self.n_clients))


Parts = Split | Draws
