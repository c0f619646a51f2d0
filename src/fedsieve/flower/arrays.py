"""The named arrays that a server sends, and the model's vector that the defenses work on.

Parameters stand first in the vector, then running statistics; all other arrays, such as BatchNorm's counters and frozen
parameters, are no part of it and stay as they were sent.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from jaxtyping import Float
from torch import Tensor, nn

from fedsieve.core.errors import ParameterError
from fedsieve.core.layout import Layout
from fedsieve.models.flat import FlatModel

NUMPY = "numpy.ndarray"  # how Flower says that an array's data are a .npy file
_STATISTICS = ("running_mean", "running_var")
_FLOATS = (np.float16, np.float32, np.float64)
_SHOWN = 3  # names in an error message


@dataclass(frozen=True)
class Expected:
    """What an array of a reply has to be.

    Attributes:
        dtype: Type of its numbers.
        shape: Its shape.
        header: The first bytes of its data, where Flower wrote them on a machine like this one.
        fortran: Whether its numbers then lie column by column.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    header: bytes
    fortran: bool

    @property
    def kind(self) -> tuple[np.dtype, tuple[int, ...]]:
        """Type and shape."""
        return self.dtype, self.shape

    @property
    def size(self) -> int:
        """Bytes of its numbers."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Arrays:
    """Where each array of a model lies in its vector.

    Attributes:
        layout: Of the vector; with a module, by its own names.
        dtype: Type of the vector: the module's, else float64 if an array is, else float32.
        expected: What every array of a reply has to be, by name, in the order of those that were sent.
        names: Name of the array of each segment of the layout.
        tied: Further arrays that are a segment's, by name: tied weights.
        network: The architecture; None without a module.
        device: Of the vector.
    """

    layout: Layout
    dtype: torch.dtype
    expected: Mapping[str, Expected]
    names: Mapping[str, str]
    tied: Mapping[str, str] = field(default_factory=dict)
    network: FlatModel | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def of(cls, sent: ArrayRecord, module: nn.Module | None = None) -> "Arrays":
        """The layout of the arrays that a server sends.

        With a module, they are its state dict, by name, or as a list of arrays in its order. Without one, every array
        of floating-point numbers is a parameter, unless its name ends in ``running_mean`` or ``running_var``.

        Raises:
            ParameterError: If there is nothing to aggregate, or the arrays are not those of the module.
        """
        expected = {name: _expected(name, array) for name, array in sent.items()}
        if module is not None:
            return _of_module(expected, sent, module)
        floats = {name: e for name, e in expected.items() if e.dtype.kind == "f"}
        if not any(e.size for e in floats.values()):
            raise ParameterError(
                f"the model has no floating-point numbers that can be aggregated, only {_listed(expected)}; "
                "Defended takes no trees or counts"
            )
        statistics = {name for name in floats if name.endswith(_STATISTICS)}
        if statistics == set(floats):
            raise ParameterError(f"the model has no parameters, only running statistics: {_listed(statistics)}")
        shapes = {name: torch.empty(e.shape, device="meta") for name, e in floats.items()}
        layout = Layout.of(
            {name: t for name, t in shapes.items() if name not in statistics},
            {name: t for name, t in shapes.items() if name in statistics},
        )
        widest = torch.float64 if any(e.dtype == np.float64 for e in floats.values()) else torch.float32
        return cls(layout, widest, expected, {name: name for name in floats})

    def vector(self, sent: ArrayRecord) -> Float[Tensor, " d"]:
        """The model as a vector; the arrays are the server's own.

        Raises:
            ParameterError: If these are other arrays than those the layout was made of, or not finite.
        """
        found = {name: _expected(name, array) for name, array in sent.items()}
        if {k: (e.dtype, e.shape) for k, e in found.items()} != {
            k: (e.dtype, e.shape) for k, e in self.expected.items()
        }:
            raise ParameterError("the arrays have other names, shapes or types than those of the rounds before")
        flat = torch.empty(self.layout.size, dtype=self.dtype)
        for s in self.layout.segments:
            flat[s.start : s.stop] = torch.from_numpy(np.array(sent[self.names[s.name]].numpy()).reshape(-1))
            if not torch.isfinite(flat[s.start : s.stop]).all():
                raise ParameterError(f"the server's own model is not finite: array {s.name}")
        return flat.to(self.device)

    def record(self, flat: Float[Tensor, " d"], sent: ArrayRecord) -> ArrayRecord | None:
        """The vector as arrays with the names, types and order of those sent; None if their types can't hold it."""
        host, made = flat.detach().cpu(), {}
        for s in self.layout.segments:
            with np.errstate(over="ignore"):
                values = host[s.start : s.stop].numpy().reshape(s.shape).astype(self.expected[self.names[s.name]].dtype)
            if not np.isfinite(values).all():
                return None
            made[self.names[s.name]] = Array(values)
        made |= {name: made[self.names[segment]] for name, segment in self.tied.items()}
        return ArrayRecord({name: made.get(name, array) for name, array in sent.items()})


def _expected(name: str, array: Array) -> Expected:
    if array.stype != NUMPY:
        raise ParameterError(f"array {name} is serialised as {array.stype!r}; only {NUMPY!r} can be read")
    found = array.numpy()
    if found.dtype.kind == "c" or (found.dtype.kind == "f" and found.dtype not in _FLOATS):
        raise ParameterError(f"array {name} is {found.dtype}; float16, float32 and float64 can be aggregated")
    fortran = found.flags.f_contiguous and not found.flags.c_contiguous
    return Expected(found.dtype, tuple(found.shape), array.data[: len(array.data) - found.nbytes], fortran)


def _of_module(expected: Mapping[str, Expected], sent: ArrayRecord, module: nn.Module) -> Arrays:
    """The layout of a module's state dict, with what doesn't train as it was sent."""
    state = module.state_dict(keep_vars=True)
    names = dict(zip(state, state, strict=True))
    if list(sent) == [str(k) for k in range(len(state))] and not set(sent) <= set(state):
        names = dict(zip(state, sent, strict=True))  # a list of arrays, which have numbers for names
    missing, extra = [n for n in names.values() if n not in sent], [n for n in sent if n not in names.values()]
    if missing or extra:
        raise ParameterError(
            f"the arrays are not those of {type(module).__name__}: "
            + "; ".join(
                f"{what} {_listed(found)}" for what, found in (("missing", missing), ("unknown", extra)) if found
            )
        )
    for own, name in names.items():
        if tuple(state[own].shape) != expected[name].shape:
            raise ParameterError(
                f"array {name} has shape {list(expected[name].shape)}, {own} of {type(module).__name__} has "
                f"{list(state[own].shape)}"
            )
    flat, _ = FlatModel.of(module)
    trained = {s.name for s in flat.layout.segments}
    if odd := [names[n] for n in trained if expected[names[n]].dtype.kind != "f"]:
        raise ParameterError(f"array {odd[0]} is {expected[odd[0]].dtype}, but trains in {type(module).__name__}")
    owner = {id(t): own for own, t in state.items() if own in trained}
    tied = {names[own]: owner[id(t)] for own, t in state.items() if own not in trained and id(t) in owner}
    constants = {
        own: torch.from_numpy(np.array(sent[names[own]].numpy())).to(t) if own in names else t
        for own, t in flat.constants.items()
    }
    first = state[flat.layout.segments[0].name]
    return Arrays(
        flat.layout,
        first.dtype,
        expected,
        {own: names[own] for own in trained},
        tied,
        FlatModel(flat.module, flat.layout, constants, type(module).__name__),
        first.device,
    )


def _listed(names: object) -> str:
    found = list(names)  # type: ignore[call-overload]
    return ", ".join(found[:_SHOWN]) + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
