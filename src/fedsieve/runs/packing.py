"""Converts a state to JSON and a dict of tensors, and back, so that a checkpoint needs no pickle."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fedsieve.core.errors import FedSieveError


def pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Convert ``value`` to JSON, in which tensors are references to ``tensors``.

    Args:
        value: Tensors, numbers, text and None in lists, tuples and dicts.
        name: Name of the value in error messages.
        tensors: Gets a copy of every tensor, by reference.

    Raises:
        FedSieveError: For a value of another type.
    """
    if isinstance(value, Tensor):
        key = str(len(tensors))
        # a contiguous copy, since the file format refuses shared memory and strides
        tensors[key] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": key}
    # no subclasses, such as a defaultdict: they would come back as what they are made of
    if type(value) is dict:  # as pairs, since JSON would turn client ids into text
        pairs = value.items()
        return {"dict": [[pack(k, f"a key of {name}", tensors), pack(v, f"{name}.{k}", tensors)] for k, v in pairs]}
    if type(value) in (list, tuple):
        kind = "list" if type(value) is list else "tuple"
        return {kind: [pack(v, f"{name}.{k}", tensors) for k, v in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise FedSieveError(
        f"can't checkpoint {name}: {type(value).__name__} is neither tensor, number, text, list, tuple nor dict"
    )


def unpack(tree: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """Inverse of :func:`pack`.

    Raises:
        ValueError, KeyError: If ``tree`` was not made by :func:`pack` with these ``tensors``.
    """
    ((kind, content),) = tree.items()
    match kind:
        case "tensor":
            return tensors[content]
        case "dict":
            return {unpack(k, tensors): unpack(v, tensors) for k, v in content}
        case "list":
            return [unpack(v, tensors) for v in content]
        case "tuple":
            return tuple(unpack(v, tensors) for v in content)
        case "value":
            return content
    raise ValueError(f"unknown kind {kind!r}")
