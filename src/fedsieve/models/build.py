"""Makes a module from its factory and the data it is for."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedsieve.models.forward import complete, seeded


def arguments(
    factory: Callable[..., nn.Module],
    input_shape: tuple[int, ...],
    n_classes: int,
    parameters: Mapping[str, Any],
    vocabulary: tuple[str, ...] = (),
) -> dict[str, Any]:
    """What :func:`build_module` calls the factory with, by name."""
    offered = {"input_shape": input_shape, "n_classes": n_classes, "vocabulary": vocabulary}
    return {k: v for k, v in offered.items() if k in inspect.signature(factory).parameters} | dict(parameters)


def build_module(
    factory: Callable[..., nn.Module],
    input_shape: tuple[int, ...],
    n_classes: int,
    generator: torch.Generator,
    parameters: Mapping[str, Any],
    vocabulary: tuple[str, ...] = (),
    samples: Tensor | None = None,
) -> nn.Module:
    """A module with initial weights drawn from ``generator``; global generators are left unchanged.

    Args:
        factory: Called with those of ``input_shape``, ``n_classes`` and ``vocabulary`` that are arguments of it, and
            with ``parameters``.
        input_shape: Shape of one sample.
        n_classes: Number of classes.
        generator: Seeds the initialisation.
        parameters: The model's own parameters.
        vocabulary: Words by token id, for text.
        samples: Given to a module that makes parameters only when it sees samples (lazy layers), [k, *input_shape].
    """
    given = arguments(factory, input_shape, n_classes, parameters, vocabulary)
    with seeded(int(torch.randint(2**31, (), generator=generator)), torch.device("cpu")):
        module = factory(**given)
        return module if samples is None else complete(module, samples)
