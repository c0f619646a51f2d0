"""Whether a model fits into memory, before any of it is allocated."""

import inspect
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedsieve.core.errors import ParameterError

# A round needs at least the updates [n, d], the same after the attack, and what an aggregator makes of them.
_COPIES = 3


def check_size(
    name: str, factory: Callable[..., nn.Module], arguments: Mapping[str, Any], clients: int, memory: int | None = None
) -> None:
    """Raise :class:`ParameterError`, with the numbers, if a round with this model can't fit into memory.

    The module is built without memory, on torch's meta device; one that can't be is not checked.

    Args:
        name: Name of the model.
        factory: Builds the module.
        arguments: Of ``factory``; those that it does not take are left out.
        clients: Number of clients in a round.
        memory: Bytes there are; by default :func:`available_memory`.
    """
    sizes = size_of(factory, arguments, clients)
    there = memory or available_memory()
    if sizes and (needed := sizes[1]) > there:
        raise ParameterError(
            f"model {name} has {sizes[0]:,} parameters: a round with {clients:,} clients needs at least "
            f"{needed / 1e9:,.1f} GB, there are {there / 1e9:,.1f} GB; make the model smaller, or clients_per_round"
        )


def size_of(factory: Callable[..., nn.Module], arguments: Mapping[str, Any], clients: int) -> tuple[int, int] | None:
    """Number of a model's parameters, and bytes that a round needs at least; None if it can't be built without memory.

    Args:
        factory: Builds the module, on torch's meta device.
        arguments: Of ``factory``; those that it does not take are left out.
        clients: Number of clients in a round.
    """
    try:
        taken = {k: v for k, v in arguments.items() if k in inspect.signature(factory).parameters}
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            tensors = list(factory(**taken).parameters())
        d, n_bytes = sum(t.numel() for t in tensors), sum(t.numel() * t.element_size() for t in tensors)
    except Exception:  # it reads its own tensors, or can't be built at all: then building it says so
        return None
    return d, n_bytes * (1 + _COPIES * clients)


def available_memory() -> int:
    """Bytes of memory that this process may use: the machine's, or what its container is limited to."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # no such limit
            found.append(int(Path(limit).read_text()))
    return min(found)
