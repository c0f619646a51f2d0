"""Losses: functions of logits [k, c] and classes [k]."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
LossName = Literal["cross-entropy", "batch"]  # of fedsieve.models.losses

_RECORDABLE = "_recordable"


def recordable(loss: Loss) -> Loss:
    """Mark a loss that depends on its arguments alone and never waits for the device: a GPU may record it."""
    setattr(loss, _RECORDABLE, True)
    return loss


def is_recordable(loss: Loss) -> bool:
    """Whether the loss is marked by :func:`recordable`."""
    return bool(getattr(loss, _RECORDABLE, False))
