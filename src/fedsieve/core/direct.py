"""The contract of the rules that are called as plain functions of a tensor, kept in one place by a decorator."""

import inspect
import operator
from collections.abc import Callable, Mapping
from functools import wraps
from math import isfinite
from numbers import Real
from types import NoneType
from typing import Any, ParamSpec, TypeVar, get_args, get_type_hints

import torch
from jaxtyping import Float
from torch import Tensor

from fedsieve.core.errors import ParameterError
from fedsieve.core.escaping import shown

_P = ParamSpec("_P")
_R = TypeVar("_R")

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)
_HALF = (torch.float16, torch.bfloat16)
# Where most rows have a larger value, lengths have no square in float64.
_LARGEST = 1e150
_ROWS_NAMED = 5


def direct(
    name: str, *, spreads: bool = False, drops: str = "aggregate"
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Decorator of a rule's plain function, whose first argument is the matrix of updates.

    - The arguments are what the annotations say, or one :class:`ParameterError` says which is not: tensors are dense
      floats of the annotated shape with at least one row and one column, finite, and on one device; integers are whole,
      numbers are real.
    - float16 and bfloat16 are computed in float32. Where float32 has too little range, the rule is computed in float64,
      and the result is clamped to the range of its type: finite updates have a finite result.
    - The result has the type of the updates, and no history of gradients.

    The defenses' classes call the mathematics behind the functions, which skips all that.

    Args:
        name: Of the rule, for error messages.
        spreads: Whether every value of the updates that is not finite makes one in the result; then rows are looked at
            only where there is one.
        drops: Function of the package that drops rows that are not finite.

    Example:
        >>> @direct("sum")
        ... def total(x: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
        ...     return x.sum(dim=0)
        >>> total(torch.tensor([[3e38], [3e38], [-3e38]]))
        tensor([3.0000e+38])
        >>> total(torch.tensor([[1.0], [torch.nan]]))
        Traceback (most recent call last):
        fedsieve.core.errors.ParameterError: sum: row 1 of x is not finite; fedsieve.aggregate drops such rows
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        signature, kinds = inspect.signature(function), get_type_hints(function)

        @wraps(function)
        def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            given = bound.arguments
            tensors = _check(name, given, kinds, drops)
            main, x = next(iter(tensors.items()))
            working = torch.float32 if x.dtype in _HALF else x.dtype
            generators = [(g, g.get_state()) for g in given.values() if isinstance(g, torch.Generator)]

            def run(dtype: torch.dtype) -> tuple[Any, bool]:
                given.update({key: value.to(dtype) for key, value in tensors.items()})
                with torch.no_grad():
                    found = function(*bound.args, **bound.kwargs)
                return found, all(finite(part) for part in _parts(found))

            for key, value in tensors.items():
                if key != main and not largest(value.to(working)) <= _LARGEST:
                    least = f"finite in {_type(working)} and at most {_LARGEST:.0e}"
                    raise ParameterError(f"{name}: {key} must be {least}")
            if not spreads and _wide(name, main, x.to(working), drops):
                working = torch.float64
            found, usable = run(working)
            if not usable:
                _wide(name, main, x.to(working), drops)
                for generator, state in generators:
                    generator.set_state(state)
                found, usable = run(torch.float64) if working != torch.float64 else (found, False)
                if not usable:
                    raise ParameterError(f"{name}: the result overflows float64; divide {main} by a constant")
            parts = [narrowed(part, x.dtype) for part in _parts(found)]
            result: Any = tuple(parts) if isinstance(found, tuple) else parts[0]
            return result  # type: ignore[no-any-return]

        return checked

    return decorate


def integer(what: str, value: Any) -> int:
    """A whole number.

    Raises:
        ParameterError: If ``value`` is a fraction, a bool, or no number; begins with ``what``.

    >>> integer("krum: f", torch.tensor(2))
    2
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ParameterError(f"{what} must be an integer, got {shown(value)}") from None


def _number(what: str, value: Any) -> float:
    value = value.item() if isinstance(value, Tensor) and not value.dim() else value
    try:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError
        return float(value)
    except (TypeError, OverflowError):
        raise ParameterError(f"{what} must be a number, got {shown(value)}") from None


def _check(name: str, given: dict[str, Any], kinds: Mapping[str, Any], drops: str) -> dict[str, Tensor]:
    """The arguments that are tensors, checked; other arguments are checked and converted in ``given``."""
    sizes: dict[str, int] = {}
    tensors: dict[str, Tensor] = {}
    for key, value in given.items():
        kind, *others = get_args(kinds[key]) or (kinds[key],)
        if value is None and NoneType in others:
            continue
        what = f"{name}: {key}"
        if isinstance(kind, type) and hasattr(kind, "dim_str"):
            hint = "" if tensors or isinstance(value, Tensor) else f"; fedsieve.{drops} takes arrays and lists"
            tensors[key] = x = floats(what, value, kind.dim_str, sizes, hint)
            first, device = next((k, t.device) for k, t in tensors.items())
            if x.device != device:
                raise ParameterError(f"{name}: {first} is on {device}, {key} on {x.device}; move them to one device")
        elif kind is int:
            given[key] = integer(what, value)
        elif kind is float:
            given[key] = _number(what, value)
        elif not isinstance(value, kind):
            raise ParameterError(f"{what} must be a {kind.__name__}, got {shown(value)}")
    return tensors


def floats(what: str, x: Any, dims: str, sizes: dict[str, int], hint: str = "") -> Tensor:
    """``x`` without its history of gradients, if it is a dense tensor of floats with the sizes that ``dims`` names.

    Args:
        what: Begins the error message.
        x: Anything.
        dims: Names of the sizes, such as ``"n d"``.
        sizes: Known sizes by name; those that are new, at least 1, are added.
        hint: Ends the error message.

    Raises:
        ParameterError: If it is something else, or on a device without values.

    >>> floats("updates", torch.ones(2, 3, dtype=torch.long), "n d", {})
    Traceback (most recent call last):
    fedsieve.core.errors.ParameterError: updates must be float16, bfloat16, float32 or float64 of shape ...
    """
    names = dims.split()
    dense = isinstance(x, Tensor) and x.layout == torch.strided and not x.is_nested and x.dtype in FLOATS
    known = [sizes.get(name) for name in names]
    if not dense or x.dim() != len(names) or any(k != s if k else s < 1 for k, s in zip(known, x.shape, strict=True)):
        said = ", ".join(name if size is None else str(size) for name, size in zip(names, known, strict=True))
        least = "" if all(known) else f" with {' and '.join(names)} at least 1"
        types = f"{', '.join(map(_type, FLOATS[:-1]))} or {_type(FLOATS[-1])}"
        raise ParameterError(f"{what} must be {types} of shape [{said}]{least}, got {described(x)}{hint}")
    if x.is_meta:
        raise ParameterError(f"{what} must hold values, got a tensor on the device meta")
    sizes.update(zip(names, x.shape, strict=True))
    plain: Tensor = x.detach().resolve_neg()
    return plain


def described(x: Any) -> str:
    """What a value is, for an error message.

    >>> described(torch.zeros(2, 3))
    'float32 of shape [2, 3]'
    """
    if not isinstance(x, Tensor):
        return type(x).__name__
    kind = "" if x.layout == torch.strided and not x.is_nested else "sparse or nested "
    return f"{kind}{_type(x.dtype)} of shape {'[...]' if x.is_nested else list(x.shape)}"


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def finite(x: Tensor) -> bool:
    """Whether all values are finite; many times faster than ``isfinite``.

    >>> finite(torch.tensor([1.0, torch.nan]))
    False
    """
    return not x.is_floating_point() or isfinite(largest(x))


def largest(x: Tensor) -> float:
    """The largest absolute value; NaN or inf where there is one."""
    least, most = torch.aminmax(x)
    return max(abs(float(least)), abs(float(most)))


def _wide(name: str, key: str, x: Float[Tensor, "n d"], drops: str) -> bool:
    """Whether sums over the rows may overflow the type of ``x``.

    Raises:
        ParameterError: If a row is not finite, or most are beyond what float64 has squares of.
    """
    limit = torch.finfo(x.dtype).max / (8 * len(x))
    if largest(x) <= min(limit, _LARGEST):  # one pass over the matrix, where nothing is the matter
        return False
    sizes = torch.maximum(x.amax(dim=1), -x.amin(dim=1))
    bad = (~sizes.isfinite()).nonzero().squeeze(1).tolist()
    if bad:
        rows = ", ".join(map(str, bad[:_ROWS_NAMED])) + (f" and {k} more" if (k := len(bad) - _ROWS_NAMED) > 0 else "")
        are = "row {} of {} is" if len(bad) == 1 else "rows {} of {} are"
        raise ParameterError(f"{name}: {are.format(rows, key)} not finite; fedsieve.{drops} drops such rows")
    middle = float(sizes.median())
    if middle > _LARGEST:
        raise ParameterError(
            f"{name}: the median row of {key} has values up to {middle:.3g}, float64 has squares of {_LARGEST:.0e} at "
            f"most; divide {key} by a constant"
        )
    return float(sizes.max()) > limit


def _parts(found: Any) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)


def narrowed(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in ``dtype``, clamped to its range; as it is where it has no floats."""
    if not x.is_floating_point() or x.dtype == dtype:
        return x
    most = torch.finfo(dtype).max
    return x.clamp(-most, most).to(dtype)
