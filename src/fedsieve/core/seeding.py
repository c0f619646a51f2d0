"""Random streams, each named by (seed, purpose, round, client), so that none depends on the order of computation."""

import hashlib

import torch


def stream(seed: int, purpose: str, round: int = 0, client: int = 0) -> torch.Generator:
    """A new CPU generator that depends on the arguments alone and is the same on every machine.

    A run can therefore be resumed in any round, and a client's batches do not depend on which other clients take part.
    Two streams of different names have the same numbers with probability 2^-32.

    >>> int(torch.randint(100, (), generator=stream(0, "batches", round=3, client=5)))
    69
    """
    name = f"{seed}/{purpose}/{round}/{client}".encode()
    # torch's CPU generator uses 32 bits of a seed
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name).digest()[:4], "big"))
