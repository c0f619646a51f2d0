"""Randomness: every stream is named by (seed, purpose, round, client), so none depends on the order of work."""

import hashlib

import torch


def stream(seed: int, purpose: str, round: int = 0, client: int = 0) -> torch.Generator:
    """A fresh CPU generator for one purpose, the same on every machine.

    So a run can be resumed in any round, and sampling other clients changes nobody's batches. Streams of different
    names share a seed with probability 2^-32.
    """
    name = f"{seed}/{purpose}/{round}/{client}".encode()
    # torch's CPU generator seeds itself with 32 bits, so more would be dropped unseen
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name).digest()[:4], "big"))
