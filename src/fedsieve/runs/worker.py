"""A process that runs one cell of a sweep after another, each event reported through a pipe.

SIGTERM and SIGHUP are interruptions: the run writes its checkpoint and the process ends. It interrupts itself in the
same way when the process that started it has died, so nobody has to look for processes that were left behind.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from fedsieve.config.experiment import Experiment
from fedsieve.config.imports import new_process
from fedsieve.runs.cell import CellRunner
from fedsieve.runs.events import Event
from fedsieve.runs.signals import interruptible

# How long an interrupted process may write its checkpoint before it is killed.
_SECONDS_TO_SAVE = 30


class Worker:
    """The process, as the one that started it sees it. Mutable: knows which cell it runs.

    Args:
        runner: Runs a cell.
        threads: Number of threads of each run.
        device: Where ``runner`` computes.

    Raises:
        OSError: If no process can be started.
    """

    def __init__(self, runner: CellRunner, threads: int, device: str) -> None:
        self.device = device
        context = multiprocessing.get_context("spawn")
        self.busy: Experiment | None = None
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, runner, threads), daemon=True)
        try:
            with _without_keyboard(), new_process():
                self.process.start()
        except OSError:
            self.connection.close()
            raise
        finally:
            theirs.close()  # so that reading fails once the process is dead

    def give(self, experiment: Experiment, out: Path) -> None:
        """Let it run ``experiment`` below ``out``. If it is dead, receiving its next event fails."""
        self.busy = experiment
        with suppress(OSError):
            self.connection.send((experiment, out / experiment.key))

    def dismiss(self) -> None:
        """Tell it to end, after the checkpoint of the cell that it runs."""
        if self.busy:
            self.process.terminate()
        self.connection.close()

    def end(self) -> str:
        """Wait until it has ended; how it did."""
        self.process.join(_SECONDS_TO_SAVE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()
        code = self.process.exitcode or 0
        number = -code if code < 0 else code - 128
        with suppress(ValueError):
            return f"was ended by {signal.Signals(number).name}"
        return f"ended with code {code}"


@contextmanager
def _without_keyboard() -> Iterator[None]:
    """Processes that are started in the block get no Ctrl-C; the terminal sends it to them too, while they import."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(connection: Connection, runner: CellRunner, threads: int) -> None:
    torch.set_num_threads(threads)
    with interruptible() as interruption:
        threading.Thread(target=_end_with_parent, daemon=True).start()

        def report(event: Event) -> None:
            interruption.check()
            try:
                connection.send(event)
            except OSError:  # nobody listens any more; that is no error of the cell
                raise KeyboardInterrupt from None

        try:
            while True:
                runner(*connection.recv(), report=report)
        except KeyboardInterrupt:
            sys.exit(interruption.code if interruption.number else 0)
        except (EOFError, OSError):  # from receiving: there are no more cells
            pass


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
