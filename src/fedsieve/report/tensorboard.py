"""Scalars for TensorBoard. Needs tensorboard (``pip install fedsieve[tensorboard]``)."""

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
    """Writes one event file; give it each record, and close it."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise FedSieveError("--tensorboard needs tensorboard: pip install fedsieve[tensorboard]") from error
        self._writer: Any = SummaryWriter(str(folder))

    def show(self, record: RoundRecord) -> None:
        """One round more."""
        for name, field in _SCALARS.items():
            if (value := getattr(record, field)) is not None:
                self._writer.add_scalar(name, value, record.round)
        if record.rejected is not None:
            self._writer.add_scalar("detection/rejected", len(record.rejected), record.round)
        for phase, seconds in record.seconds.items():
            self._writer.add_scalar(f"seconds/{phase}", seconds, record.round)

    def close(self) -> None:
        """Flush what is there."""
        self._writer.close()
