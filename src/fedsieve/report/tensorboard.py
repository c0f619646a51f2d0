"""Scalars for TensorBoard. Needs tensorboard (``pip install fedsieve[tensorboard]``)."""

import time
from functools import partial
from pathlib import Path
from typing import Any

from fedsieve.core.errors import FedSieveError
from fedsieve.core.escaping import printable
from fedsieve.core.records import RoundRecord

_SCALARS = {
    "accuracy/test": "test_accuracy",
    "loss/test": "test_loss",
    "attack/success": "attack_success_rate",
    "detection/false_positive_rate": "false_positive_rate",
    "detection/false_negative_rate": "false_negative_rate",
    "server/update_norm": "update_norm",
}


class TensorBoard:
    """Writes the scalars of each record to an event file below a run directory.

    Args:
        directory: The run directory.

    Raises:
        FedSieveError: If tensorboard is not installed.
    """

    def __init__(self, directory: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise FedSieveError("--tensorboard needs tensorboard: pip install fedsieve[tensorboard]") from error
        self._folder = directory / "tensorboard"
        self._open = partial(SummaryWriter, str(self._folder))
        self._writer: Any = None

    def show(self, record: RoundRecord) -> None:
        """Write one round; the first call hides what an earlier run wrote for this round and later ones."""
        if self._writer is None:
            # files are read by name, which starts with the second they were made in: an earlier run's must come first
            while any(f".tfevents.{int(time.time()):010d}." in path.name for path in self._folder.glob("events.*")):
                time.sleep(0.05)
            self._writer = self._open(purge_step=record.round)
        for name, field in _SCALARS.items():
            if (value := getattr(record, field)) is not None:
                self._writer.add_scalar(name, value, record.round)
        if record.rejected is not None:
            self._writer.add_scalar("detection/rejected", len(record.rejected), record.round)
        for phase, seconds in record.seconds.items():
            self._writer.add_scalar(f"seconds/{printable(phase)}", seconds, record.round)

    def close(self) -> None:
        """Write what is buffered and close the file."""
        if self._writer is not None:
            self._writer.close()
