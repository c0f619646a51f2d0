"""A checkpoint as bytes: a safetensors file with the state, what it belongs to, and a checksum over every byte.

The header's metadata hold ``run`` (JSON: :class:`Stamp` and the state, whose tensors are stored beside it) and
``sha256``: that of the whole file with zeros in place of these 64 digits.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fedsieve.core.errors import CorruptDataError, FedSieveError
from fedsieve.core.escaping import shown
from fedsieve.federation.server import ServerState
from fedsieve.federation.simulation import SimulationState
from fedsieve.runs.packing import pack, unpack

_SERVER = tuple(f.name for f in fields(ServerState))
_ZEROS = b"0" * 64
# quotes inside the other metadata are escaped, so this is found in one place only
_SEAL = re.compile(rb'"sha256":"([0-9a-f]{64})"')


@dataclass(frozen=True)
class Stamp:
    """What a checkpoint belongs to.

    Attributes:
        settings: All of the experiment, by name.
        round: Number of rounds that have been run.
        records: SHA-256 of the lines of these rounds.
    """

    settings: Mapping[str, Any]
    round: int
    records: str


def encode(state: SimulationState, stamp: Stamp) -> bytes:
    """The content of a checkpoint's file.

    Raises:
        FedSieveError: If the state holds what can't be kept.
    """
    tensors: dict[str, Tensor] = {}
    tree = pack_state(state, tensors)
    return sealed({**vars(stamp), "state": tree}, tensors)


def sealed(run: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """JSON and tensors in one file, so that all parts of a state are of the same round.

    Raises:
        FedSieveError: If a tensor is of a type that can't be kept.
    """
    metadata = {"run": json.dumps(run), "sha256": _ZEROS.decode()}
    try:
        content = safetensors.torch.save(dict(tensors), metadata)
    except (SafetensorError, LookupError, RuntimeError, TypeError, ValueError) as error:  # a type that it can't store
        raise FedSieveError(f"can't checkpoint the state: {error}") from error
    found = _SEAL.search(content)
    assert found is not None
    return content[: found.start(1)] + _checksum(content, found).encode() + content[found.end(1) :]


def decode(content: bytes, device: torch.device) -> tuple[Stamp, SimulationState]:
    """What :func:`encode` was given, tensors on ``device``.

    Raises:
        CorruptDataError: If a byte has changed, or :func:`encode` of this version has not made it.
    """
    run, tensors = opened(content, device)
    with this_version():
        state = unpack(run.pop("state"), tensors)
        stamp, server = Stamp(**run), ServerState(**state["server"])
        _check(stamp, server)
        return stamp, SimulationState(server, state["personal"], state["adversary"])


def opened(content: bytes, device: torch.device) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What :func:`sealed` was given, tensors on ``device``.

    Raises:
        CorruptDataError: If a byte has changed, or :func:`sealed` has not made it.
    """
    found = _SEAL.search(content)
    if found is None:
        raise CorruptDataError("it is not a FedSieve checkpoint, or one of another version")
    if _checksum(content, found) != found[1].decode():
        raise CorruptDataError("it is damaged: its checksum is wrong")
    with this_version():
        length = int.from_bytes(content[:8], "little")
        run = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["run"])
        return run, {name: tensor.to(device) for name, tensor in safetensors.torch.load(content).items()}


@contextmanager
def this_version() -> Iterator[None]:
    """Turn what reading a checkpoint of another version ends in into one line.

    Raises:
        CorruptDataError: For any such error of the block.
    """
    try:
        yield
    except (SafetensorError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise CorruptDataError(f"it is not a FedSieve checkpoint of this version: {shown(error)}") from error


def _check(stamp: Stamp, server: ServerState) -> None:
    """Raise TypeError for what nobody but a forger writes, before it ends in a traceback elsewhere."""
    whole = all(type(number) is int for number in (stamp.round, server.round))
    if not (whole and isinstance(stamp.settings, dict) and isinstance(stamp.records, str)):
        raise TypeError("it does not say what it belongs to")
    if not (isinstance(server.params, Tensor) and isinstance(server.optimizer, dict)):
        raise TypeError("it holds no state of a server")


def pack_state(state: SimulationState, tensors: dict[str, Tensor]) -> Any:
    """A state as JSON, with references to ``tensors``.

    Raises:
        FedSieveError: If the state holds what can't be kept.
    """
    server = {name: getattr(state.server, name) for name in _SERVER}
    try:
        return pack({"server": server, "personal": state.personal, "adversary": state.adversary}, "state", tensors)
    except (RecursionError, RuntimeError) as error:  # a list in itself, a sparse tensor
        raise FedSieveError(f"can't checkpoint the state: {str(error).splitlines()[0]}") from error


def _checksum(content: bytes, seal: re.Match[bytes]) -> str:
    view, result = memoryview(content), hashlib.sha256()
    for part in (view[: seal.start(1)], _ZEROS, view[seal.end(1) :]):
        result.update(part)
    return result.hexdigest()
