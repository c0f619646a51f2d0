"""Running a user's module so that its outputs follow from its inputs: nothing that it does outlasts the call."""

import copy
import random
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import mtrand
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fedsieve.core.errors import ParameterError

_NUMPY = np.random.MT19937(0)  # stands in for the state of numpy's global generator, which is slow to copy
_NOT_THE_USERS = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]), "<")  # "<" starts generated code


# Set while a call is recorded that draws nothing: generators can't be seeded then, and need not be.
_unseeded = False


@contextmanager
def unseeded() -> Iterator[None]:
    """Within, :func:`seeded` leaves all generators as they are."""
    global _unseeded
    before, _unseeded = _unseeded, True
    try:
        yield
    finally:
        _unseeded = before


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's, numpy's and Python's global generators start from ``seed``, and afterwards go on where they were.

    Args:
        seed: In 0 to 2^32 - 1.
        device: Of the tensors; its generator is one of them.
    """
    if _unseeded:
        yield
        return
    drawn_from = list(generators(device))
    kept = [generator.get_state() for generator in drawn_from]
    python, numpy = random.getstate(), mtrand.get_bit_generator()
    try:
        for generator in drawn_from:
            generator.manual_seed(seed)
        random.seed(seed)
        mtrand.set_bit_generator(_NUMPY)
        np.random.seed(seed)  # noqa: NPY002
        yield
    finally:
        mtrand.set_bit_generator(numpy)
        random.setstate(python)
        for generator, state in zip(drawn_from, kept, strict=True):
            generator.set_state(state)


def random_states(device: torch.device) -> list[Any]:
    """The states of the generators that :func:`seeded` seeds; equal as long as nothing is drawn."""
    torchs = [generator.get_state().tolist() for generator in generators(device)]
    return [*torchs, random.getstate(), str(np.random.get_state(legacy=False)["state"])]  # noqa: NPY002


def generators(device: torch.device) -> Iterator[torch.Generator]:
    """Torch's global generators that a computation on ``device`` may draw from."""
    yield torch.default_generator
    if device.type == "cuda":
        yield torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """What is assigned to attributes of the module or of its layers is undone afterwards."""
    kept = [(vars(layer), vars(layer).copy()) for layer in module.modules()]
    try:
        yield
    finally:
        for now, before in kept:
            now.clear()
            now.update(before)


def copied(module: nn.Module) -> nn.Module:
    """A deep copy, also of a module that holds results of its last forward pass (old weight norm, attention maps).

    Raises:
        ParameterError: If something in it can't be copied, or has no shape yet (lazy layers).
    """
    lazy = next((name for name, tensor in tensors_of(module).items() if is_lazy(tensor)), None)
    if lazy:
        raise ParameterError(f"{type(module).__name__}: {lazy} has no shape yet; call the module on samples first")
    results = [
        value
        for layer in module.modules()
        for value in vars(layer).values()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    try:
        return copy.deepcopy(module, {id(value): value.detach().clone() for value in results})
    except Exception as error:
        raise ParameterError(f"{type(module).__name__} can't be copied: {reason(error)}") from error


def logits_of(output: Any, dtype: torch.dtype) -> Tensor:
    """The logits in what a module returned, in ``dtype``.

    A tensor is taken as it is; otherwise the only element of a tuple or list, or what is named ``logits`` in a mapping
    or an object, as Hugging Face's models return it.

    Raises:
        TypeError: If that is no floating-point tensor.
    """
    found = output
    if isinstance(output, Mapping):
        found = output.get("logits")
    elif isinstance(output, tuple | list) and len(output) == 1:
        found = output[0]
    elif not isinstance(output, Tensor):
        found = getattr(output, "logits", None)
    if isinstance(found, Tensor) and found.is_floating_point():
        return found if found.dtype == dtype else found.to(dtype)
    raise TypeError(
        f"forward returned {_described(output)}; a floating-point tensor of logits was expected, alone or as logits "
        "in a dictionary or an object"
    )


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with {', '.join(str(k) for k in value) or 'nothing'}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)} ({', '.join(_described(v) for v in value)})"
    return "None" if value is None else f"a {type(value).__name__}"


def reason(error: Exception) -> str:
    """An error in one line: its first line, its type if that says anything, and where in the user's code it arose."""
    text = next(iter(str(error).strip().splitlines()), "")
    if type(error) not in (RuntimeError, ValueError, TypeError) or not text:
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    standard = Path(copy.__file__).parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if not frame.filename.startswith(_NOT_THE_USERS) and path.parent != standard:
            return f"{text} ({path.name}, line {frame.lineno})"
    return text


def complete(module: nn.Module, samples: Tensor) -> nn.Module:
    """The module, after a forward pass in evaluation mode if that gives it parameters or buffers that it has not."""
    lazy = any(is_lazy(tensor) for tensor in tensors_of(module).values())
    after = (module if lazy else copied(module)).eval()  # torch can't copy a lazy one
    try:
        with torch.no_grad():
            after(samples)
    except Exception:
        if lazy:
            raise
        return module  # its first use says what is wrong
    return after if tensors_of(after).keys() != tensors_of(module).keys() else module


def channels_last(x: Tensor) -> Tensor:
    """A four-dimensional tensor in channels-last memory."""
    # with one channel both orders are the same in memory, and torch would keep the strides of the other one
    _, c, h, w = x.shape
    return x.contiguous(memory_format=torch.channels_last).as_strided(x.shape, (h * w * c, 1, w * c, c))


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """All parameters, then all buffers, by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def tied(module: nn.Module) -> bool:
    """Whether a tensor has several names in the module."""
    both = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return len({id(tensor) for _, tensor in both}) < len(both)


def unfit(module: nn.Module, vector: Mapping[str, Tensor]) -> str:
    """Why these tensors of the module can't be one vector to train, or ""."""
    scripted = next((n for n, layer in module.named_modules() if isinstance(layer, torch.jit.ScriptModule)), None)
    if scripted is not None:
        return f"{scripted or 'it'} is TorchScript; use the module that was scripted"
    if not any(isinstance(tensor, nn.Parameter) for tensor in vector.values()):
        return "it has no trainable parameter"
    types = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in vector.items()}
    first = next(iter(types))
    for name, found in types.items():
        if found not in ("float32", "float64"):
            return f"{name} is {found}, and updates are aggregated in float32 or float64; use module.float()"
        if found != types[first]:
            return f"{first} is {types[first]} and {name} is {found}, and one vector has one type; use module.float()"
    return ""
