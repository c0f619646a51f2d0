"""SIGTERM and SIGHUP interrupt a process as Ctrl-C does, so that Slurm, Docker or a closed ssh cost no round."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


class Interruption:
    """Handler of these signals: raises KeyboardInterrupt once, and ignores all that come after it.

    Mutable: ``number`` is that of the signal that has come, 0 so far.
    """

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Called by Python when a signal has come."""
        if not self.number:  # what is being saved then is saved undisturbed
            self.number = number
            raise KeyboardInterrupt

    @property
    def code(self) -> int:
        """The exit code: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
        return 128 + (self.number or signal.SIGINT)

    def check(self) -> None:
        """Raise again what was raised in a finalizer, where Python drops it."""
        if self.number:
            raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Handle the signals in the block. Those that are ignored, as under ``nohup``, stay so."""
    interruption, before = Interruption(), {}
    for number in (getattr(signal, name) for name in _NAMES if hasattr(signal, name)):
        if signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, interruption)
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
