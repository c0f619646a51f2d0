"""Taking the batches of many clients at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from fedsieve.core.rows import stacked

Samples = tuple[Tensor, Tensor]  # samples [k, ...] and their classes [k]


@dataclass(frozen=True)
class Batches:
    """The data of one chunk of clients, from which batches are taken.

    Attributes:
        clients: Samples and classes of each client.
        pool: On a GPU, all of them, one client after another, so that one operation takes the batches of all clients;
            copying them costs less than an operation a client.
        starts: Where each client's samples start in the pool, [c]; empty without one.
    """

    clients: Sequence[Samples]
    pool: Samples | None
    starts: Int[Tensor, " c"]

    @classmethod
    def of(cls, clients: Sequence[Samples]) -> "Batches":
        """The data of these clients, at least one."""
        if clients[0][0].device.type != "cuda" or len(clients) == 1:
            return cls(clients, None, torch.empty(0, dtype=torch.long))
        x, y = zip(*clients, strict=True)
        starts = torch.tensor([0, *map(len, y[:-1])]).cumsum(0)
        return cls(clients, (torch.cat(x), torch.cat(y)), starts)

    def take(self, members: Sequence[int], rows: Sequence[Int[Tensor, " b"]]) -> Samples:
        """Samples [m, b, ...] and classes [m, b] of one batch of each member.

        Args:
            members: Positions of clients in the chunk.
            rows: Of each member's own data, on the CPU, all equally many.
        """
        if self.pool is not None:
            x, y = self.pool
            index = (torch.stack(list(rows)) + self.starts[list(members), None]).to(x.device, non_blocking=True)
            return x[index], y[index]
        own = [self.clients[k] for k in members]
        if rows[0].numel() == 1 < len(own) and all(y.numel() == 1 for _, y in own):  # most reference updates: all of it
            return torch.stack([x for x, _ in own]), torch.stack([y for _, y in own])
        at = [row.to(x.device) for row, (x, _) in zip(rows, own, strict=True)]
        x = stacked([x[row] for (x, _), row in zip(own, at, strict=True)])
        return x, stacked([y[row] for (_, y), row in zip(own, at, strict=True)])
