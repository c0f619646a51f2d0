"""Scalars for TensorBoard. Needs tensorboard (``pip install fedsieve[tensorboard]``)."""

from functools import partial
from pathlib import Path
from typing import Any

from fedsieve.types import FedSieveError, RoundRecord

_SCALARS = {
    "accuracy/test": "test_accuracy",
    "loss/test": "test_loss",
    "attack/success": "attack_success_rate",
    "detection/false_positive_rate": "false_positive_rate",
    "detection/false_negative_rate": "false_negative_rate",
    "server/update_norm": "update_norm",
}


class TensorBoard:
    """Writes one event file below a run directory; give it each record, and close it.

    Args:
        directory: The run directory.

    Raises:
        FedSieveError: Without tensorboard.
    """

    def __init__(self, directory: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise FedSieveError("--tensorboard needs tensorboard: pip install fedsieve[tensorboard]") from error
        self._open = partial(SummaryWriter, str(directory / "tensorboard"))
        self._writer: Any = None

    def show(self, record: RoundRecord) -> None:
        """One round more; the first takes the place of what an earlier run wrote of it and of later ones."""
        if self._writer is None:
            self._writer = self._open(purge_step=record.round)
        for name, field in _SCALARS.items():
            if (value := getattr(record, field)) is not None:
                self._writer.add_scalar(name, value, record.round)
        if record.rejected is not None:
            self._writer.add_scalar("detection/rejected", len(record.rejected), record.round)
        for phase, seconds in record.seconds.items():
            self._writer.add_scalar(f"seconds/{phase}", seconds, record.round)

    def close(self) -> None:
        """Flush what is there."""
        if self._writer is not None:
            self._writer.close()
