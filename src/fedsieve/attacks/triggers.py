"""The trigger of several backdoor attacks, and training data with it. Nothing here writes to its arguments."""

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from fedsieve.core.errors import ParameterError
from fedsieve.core.linalg import check_fits_float32


def mark(x: Tensor, size: int, value: float, stride: int) -> Tensor:
    """A copy of ``x`` with the trigger.

    >>> mark(torch.ones(1, 5), size=5, value=1.0, stride=2)
    tensor([[0., 1., 0., 1., 0.]])

    Args:
        x: Images [k, channels, height, width], or other samples [k, features].
        size: Images: side of a square in the top left corner, in pixels; one larger than the image covers it.
        value: Images: value of the square's pixels.
        stride: Other samples: every ``stride``-th feature becomes 0.
    """
    marked = x.clone()
    if x.dim() == 4:
        marked[:, :, :size, :size] = value
    else:
        marked[:, ::stride] = 0
    return marked


def with_poisoned_copies(
    x: Tensor,
    y: Int[Tensor, " k"],
    share: float,
    target: int,
    trigger: Callable[[Tensor], Tensor],
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """The samples, followed by copies of some of them with the trigger and the target class.

    >>> clean, generator = (torch.tensor([[1.0], [2.0]]), torch.tensor([0, 1])), torch.Generator()
    >>> with_poisoned_copies(*clean, 1.0, 7, torch.zeros_like, generator)
    (tensor([[1.],
            [2.],
            [0.],
            [0.]]), tensor([0, 1, 7, 7]))

    Args:
        x: Samples, [k, ...].
        y: Classes, [k].
        share: Copies per sample, rounded to one copy at least.
        target: Class of the copies.
        trigger: Puts the trigger on samples.
        generator: Draws which samples are copied.
    """
    copies = torch.randperm(len(y), generator=generator)[: max(1, round(share * len(y)))].to(y.device)
    return torch.cat([x, trigger(x[copies])]), torch.cat([y, torch.full_like(y[copies], target)])


def check_pattern(attack: str, share: float, size: int, stride: int, target: int, value: float | None = None) -> None:
    """Raise :class:`ParameterError`, with the name of ``attack``, where a parameter of the trigger is out of range."""
    if not 0 < share <= 1:
        raise ParameterError(f"{attack}: share must be in (0, 1], got {share}")
    if min(size, stride) < 1 or target < 0:
        raise ParameterError(
            f"{attack}: size and stride must be at least 1 and target at least 0, got {size}, {stride} and {target}"
        )
    check_fits_float32(attack, value=value)


def check_visible(attack: str, x: Tensor, marked: Tensor) -> None:
    """Raise :class:`ParameterError`, with the name of ``attack``, where samples ``x`` have the trigger already."""
    if torch.equal(x, marked):
        remedy = "set value or size" if x.dim() == 4 else "set stride"
        raise ParameterError(f"{attack}: each of the {len(x)} test samples looks as with the trigger; {remedy}")


def check_target(attack: str, target: int, n_classes: int) -> None:
    """Raise :class:`ParameterError`, with the name of ``attack``, where ``target`` is no class."""
    if target >= n_classes:
        raise ParameterError(f"{attack}: target must be below the {n_classes} classes, got {target}")


def check_effect(attack: str, parameters: object, x: Tensor) -> None:
    """Raise :class:`ParameterError` where a parameter of the trigger is set that has no effect on samples ``x``.

    Args:
        attack: Name for the error message.
        parameters: The attack; its class has the defaults.
        x: Samples, [k, ...].
    """
    images = x.dim() == 4
    unused, used = (("stride",), "size and value") if images else (("size", "value"), "stride")
    samples = f"{'images' if images else 'samples'} of shape {list(x.shape[1:])}"
    for name in unused:
        given = getattr(parameters, name)
        if given != getattr(type(parameters), name):
            raise ParameterError(f"{attack}: {name} has no effect on {samples}, got {given}; set {used} instead")
