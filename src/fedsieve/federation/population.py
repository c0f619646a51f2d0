"""All registered clients in a few bytes each: who is malicious, and whose data are made when they are asked for."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from operator import index
from types import MappingProxyType
from typing import SupportsIndex

import numpy as np
from jaxtyping import Int, Shaped
from torch import Tensor

from fedsieve.data.parts import Parts, Split
from fedsieve.federation.clients import ClientData

_OVERHEAD = 4096  # bytes of a client's two tensors, about, however few samples they hold


class Members:
    """Client ids in an order of their own; a client's place is found at once. Equal to a tuple of the same ids.

    Args:
        ids: Distinct client ids.
        n_clients: Number of all clients; ids are below it.

    >>> import torch
    >>> members = Members(torch.tensor([7, 2]), n_clients=10)
    >>> list(members), members.index(2), 3 in members, members == (7, 2)
    ([7, 2], 1, False, True)
    """

    def __init__(self, ids: Int[Tensor, " m"], n_clients: int) -> None:
        self.ids = ids.clone()
        self._places = np.full(n_clients, -1, np.int32)
        self._places[ids.numpy()] = np.arange(len(ids), dtype=np.int32)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, k: SupportsIndex) -> int:
        return int(self.ids[index(k)])

    def __iter__(self) -> Iterator[int]:
        return iter(self.ids.tolist())

    def __contains__(self, client: object) -> bool:
        return isinstance(client, int) and 0 <= client < len(self._places) and bool(self._places[client] >= 0)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Members | tuple) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Members({list(self)})"

    def index(self, client: int) -> int:
        """Place of a client; ValueError if it is none of them."""
        if client not in self:
            raise ValueError(f"client {client} is none of the {len(self)} members")
        return int(self._places[client])


class _Made:
    """Client data by id, made when they are asked for; the last ones used are kept. Mutable: a cache.

    Args:
        ids: All clients there are.
        make: Makes the data of a client, the same each time.
        most_bytes: Data that are kept, at most.
    """

    def __init__(self, ids: Collection[int], make: Callable[[int], ClientData], most_bytes: int) -> None:
        self._ids, self._make, self._most = ids, make, most_bytes
        self._kept: OrderedDict[int, ClientData] = OrderedDict()
        self._bytes = 0

    def __getitem__(self, client: int) -> ClientData:
        found = self._kept.get(client)
        if found is not None:
            self._kept.move_to_end(client)
            return found
        if client not in self._ids:
            raise KeyError(client)
        found = self._kept[client] = self._make(client)
        self._bytes += _size(found)
        while self._bytes > self._most:
            self._bytes -= _size(self._kept.popitem(last=False)[1])
        return found

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[int]:
        return iter(self._ids)

    def __contains__(self, client: object) -> bool:
        return client in self._ids

    def get(self, client: int, default: ClientData | None = None) -> ClientData | None:
        """The data of a client, or ``default`` if there is no such client."""
        return self[client] if client in self._ids else default

    def keys(self) -> Collection[int]:
        """The clients' ids."""
        return self._ids

    def values(self) -> Iterator[ClientData]:
        """The clients' data, one after the other."""
        return (self[client] for client in self._ids)

    def items(self) -> Iterator[tuple[int, ClientData]]:
        """Ids and data, one after the other."""
        return ((client, self[client]) for client in self._ids)


def made_when_asked(
    ids: Collection[int], make: Callable[[int], ClientData], most_bytes: int
) -> Mapping[int, ClientData]:
    """Client data by id: made when they are asked for, and kept until others of ``most_bytes`` were used after them.

    >>> import torch
    >>> data = made_when_asked(range(1_000_000), lambda k: ClientData(torch.ones(1, 4), torch.tensor([k])), 1 << 20)
    >>> len(data), data[999_999].y
    (1000000, tensor([999999]))

    Args:
        ids: All clients there are.
        make: Makes the data of a client, the same each time.
        most_bytes: Data that are kept, at most.
    """
    return MappingProxyType(_Made(ids, make, most_bytes))


def dealt(parts: Parts, x: Shaped[Tensor, "N *shape"], y: Int[Tensor, " N"]) -> Callable[[int], ClientData]:
    """What returns a client's samples: of a :class:`Split`, views of one tensor in the order of the clients.

    Args:
        parts: Rows of each client.
        x: All training samples.
        y: Their classes.
    """
    if isinstance(parts, Split):
        x, y = x[parts.pool.to(x.device)], y[parts.pool.to(y.device)]

        def part(client: int) -> ClientData:
            place = parts.place(client)
            return ClientData(x[place], y[place])

        return part

    def drawn(client: int) -> ClientData:
        rows = parts[client].to(x.device)
        return ClientData(x[rows], y[rows])

    return drawn


def _size(data: ClientData) -> int:
    return data.x.nbytes + data.y.nbytes + _OVERHEAD
