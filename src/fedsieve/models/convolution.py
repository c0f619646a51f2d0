"""Two-dimensional convolutions of many clients on a GPU, each client with weights of its own.

cuDNN computes them as one grouped convolution, which runs at a tenth of a GPU's speed. Here the windows of all samples
are copied into rows, and one batched matrix product does the rest, forwards and backwards. Where the numbers of
channels are multiples of 8, cuDNN's kernels are better than the copies: such layers stay grouped convolutions, whose
gradient with respect to the input is computed in channels-last memory, where cuDNN needs a third of the time.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

# Values of the copied windows that are held at once; a layer with more is computed in parts.
_MOST_VALUES = 1 << 29
Pair = tuple[int, int]


class ByClient(TorchFunctionMode):
    """Within, :func:`torch.conv2d` is :func:`conv2d` where that can compute it.

    Batch normalisation is torch's own, since cuDNN's asks for copies in channels-last memory, which
    :func:`torch.vmap` can't make.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.batch_norm:
            with torch.backends.cudnn.flags(enabled=False):
                return func(*args, **kwargs)
        if func is torch.conv2d:
            x, weight, bias, stride, padding, dilation, groups = _arguments(*args, **kwargs)
            simple = groups == 1 and _pair(dilation) == (1, 1) and not isinstance(padding, str)
            if simple and x.dim() == 4:
                return conv2d(x, weight, bias, _pair(stride), _pair(padding))
        return func(*args, **kwargs)


def conv2d(
    x: Float[Tensor, "b i h w"],
    weight: Float[Tensor, "o i k l"],
    bias: Float[Tensor, " o"] | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
) -> Float[Tensor, "b o p q"]:
    """:func:`torch.conv2d` with one group and no dilation, made for :func:`torch.vmap` with weights of each client.

    The result does not lie in contiguous memory.
    """
    # an index in place of squeeze would cost a copy in the backward pass
    given = x.unsqueeze(0), weight.unsqueeze(0)
    out: Tensor = _Convolution.apply(*given, stride, padding).squeeze(0)  # type: ignore[no-untyped-call]
    return out if bias is None else out + bias[:, None, None]


def _arguments(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor | None, Any, Any, Any, int]:
    return input, weight, bias, stride, padding, dilation, groups


def _pair(value: Any) -> Pair:
    first, *rest = value if isinstance(value, Iterable) else (value,)
    return int(first), int(rest[0] if rest else first)


class _Convolution(torch.autograd.Function):
    """Of several clients, [c, b, i, h, w] with [c, o, i, k, l]; :func:`torch.vmap` adds clients."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
        return _forward(x, weight, stride, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        of_input = ctx.needs_input_grad[0]
        x, weight = ctx.saved_tensors
        slope, of_weight = _backward(outer, x, weight, ctx.stride, ctx.padding, of_input)
        return slope if of_input else None, of_weight, None, None

    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> tuple[Tensor, int]:
        n = info.batch_size
        x, weight = (_first(t, dim, n).flatten(0, 1) for t, dim in zip((x, weight), dims[:2], strict=True))
        out: Tensor = _Convolution.apply(x, weight, stride, padding)  # type: ignore[no-untyped-call]
        return out.reshape(n, -1, *out.shape[1:]), 0


def _first(x: Tensor, dim: int | None, n: int) -> Tensor:
    """The tensor with the clients in the first dimension; the same for all where it has none."""
    return x.expand(n, *x.shape) if dim is None else x.movedim(dim, 0)


def _forward(
    x: Float[Tensor, "c b i h w"], weight: Float[Tensor, "c o i k l"], stride: Pair, padding: Pair
) -> Float[Tensor, "c b o p q"]:
    c, b = x.shape[:2]
    o, i, k, l = weight.shape[1:]  # noqa: E741
    if _shared(weight):
        out = torch.conv2d(x.flatten(0, 1), weight[0], None, stride, padding)
        return out.view(c, b, *out.shape[1:])
    if _stays_grouped(i, o):
        out = torch.conv2d(_side_by_side(x), weight.reshape(-1, i, k, l), None, stride, padding, groups=c)
        return out.view(b, c, o, *out.shape[2:]).transpose(0, 1)
    p, q = _size(x.shape[3], k, stride[0], padding[0]), _size(x.shape[4], l, stride[1], padding[1])
    factors = weight.permute(0, 3, 4, 2, 1).reshape(c, -1, o)  # rows in the order of the windows' values
    out = x.new_empty(c, b * p * q, o)
    for part in _parts(c, b * p * q * factors.shape[1]):
        torch.bmm(_windows(x[part], (k, l), stride, padding), factors[part], out=out[part])
    return out.view(c, b, p, q, o).permute(0, 1, 4, 2, 3)


def _backward(
    outer: Float[Tensor, "c b o p q"],
    x: Float[Tensor, "c b i h w"],
    weight: Float[Tensor, "c o i k l"],
    stride: Pair,
    padding: Pair,
    of_input: bool,
) -> tuple[Float[Tensor, "c *rest"], Float[Tensor, "c o i k l"]]:
    """Gradients of input (empty where it is not wanted) and weight."""
    c, b, i, h, w = x.shape
    o, _, k, l = weight.shape[1:]  # noqa: E741
    p, q = outer.shape[3:]
    if _stays_grouped(i, o) and not _shared(weight):
        given = _side_by_side(outer), _side_by_side(x), weight.reshape(-1, i, k, l)
        of_weight = _grouped(given, stride, padding, c, 1)
        if not of_input:
            return x.new_empty(c, 0), of_weight.view_as(weight)
        last = [t.contiguous(memory_format=torch.channels_last) for t in given]
        slope = _grouped(last, stride, padding, c, 0)
        return slope.reshape(b, c, i, h, w).transpose(0, 1), of_weight.view_as(weight)
    rows = outer.permute(0, 1, 3, 4, 2).reshape(c, b * p * q, o)
    factors = weight.permute(0, 1, 3, 4, 2).reshape(c, o, -1)
    of_weight = x.new_empty(c, factors.shape[2], o)
    if of_input and _shared(weight):
        slope = _grouped((outer.flatten(0, 1), x.flatten(0, 1), weight[0]), stride, padding, 1, 0).view_as(x)
        of_input = False
    elif of_input:
        slope = x.new_zeros(c, b, h + 2 * padding[0], w + 2 * padding[1], i)
    else:
        slope = x.new_empty(c, 0)
    for part in _parts(c, b * p * q * factors.shape[2]):
        windows = _windows(x[part], (k, l), stride, padding)
        torch.bmm(windows.transpose(1, 2), rows[part], out=of_weight[part])
        if of_input:
            # reuses the memory of the windows
            back = torch.bmm(rows[part], factors[part], out=windows).view(-1, b, p, q, k, l, i)
            for m in range(k):
                for n in range(l):
                    at = slope[part, :, m : m + stride[0] * p : stride[0], n : n + stride[1] * q : stride[1]]
                    at += back[:, :, :, :, m, n]
    if of_input:
        slope = slope[:, :, padding[0] : padding[0] + h, padding[1] : padding[1] + w].permute(0, 1, 4, 2, 3)
    return slope, of_weight.view(c, k, l, i, o).permute(0, 4, 3, 1, 2)


def _stays_grouped(inputs: int, outputs: int) -> bool:
    """Whether cuDNN has good kernels for a grouped convolution with these channels; 2 to 4 are those of images."""
    return outputs % 8 == 0 and (inputs % 8 == 0 or 2 <= inputs <= 4)


def _shared(weight: Float[Tensor, "c o i k l"]) -> bool:
    """Whether several clients have the same weights, in the same memory: one ordinary convolution does for all."""
    return len(weight) > 1 and weight.stride(0) == 0


def _side_by_side(x: Float[Tensor, "c b i h w"]) -> Float[Tensor, "b ci h w"]:
    """The channels of all clients as those of one image, as grouped convolutions have them."""
    return x.transpose(0, 1).reshape(x.shape[1], -1, *x.shape[3:])


def _grouped(given: Sequence[Tensor], stride: Pair, padding: Pair, groups: int, of: int) -> Tensor:
    """The gradient with respect to the input (0) or the weight (1) of a grouped convolution."""
    mask = [k == of for k in range(3)]
    backward = torch.ops.aten.convolution_backward
    found: list[Tensor] = backward(*given, None, stride, padding, (1, 1), False, (0, 0), groups, mask)
    return found[of]


def _windows(x: Float[Tensor, "c b i h w"], size: Pair, stride: Pair, padding: Pair) -> Float[Tensor, "c bpq kli"]:
    """The values under the kernel at every position, one row per position."""
    if any(padding):
        x = torch.nn.functional.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    windows = x.unfold(3, size[0], stride[0]).unfold(4, size[1], stride[1])
    c, b, i, p, q, k, l = windows.shape  # noqa: E741
    return windows.permute(0, 1, 3, 4, 5, 6, 2).reshape(c, b * p * q, k * l * i)


def _size(side: int, kernel: int, stride: int, padding: int) -> int:
    return (side + 2 * padding - kernel) // stride + 1


def _parts(c: int, values: int) -> list[slice]:
    """The clients in parts whose windows, of ``values`` each, are few enough."""
    step = max(1, _MOST_VALUES // max(1, values))
    return [slice(start, start + step) for start in range(0, c, step)]
