"""Runs a grid of experiments in worker processes; a failed cell does not stop the others.

Every cell has a run directory named by its experiment's key. The process that runs a cell holds a lock on it, which the
operating system releases when the process ends for any reason. An interrupted cell resumes from its checkpoint.
"""

import multiprocessing
import os
import signal
from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from fedsieve.config.experiment import Experiment
from fedsieve.runs.cell import CellRunner, run_cell, split, write_error
from fedsieve.runs.events import Displays, Event, Watch

# A cell is tried again after its worker died: memory that was short then may be free now.
_TRIES = 2


def sweep(
    experiments: Sequence[Experiment],
    out: Path,
    data: Path,
    device: str,
    jobs: int,
    watch: Watch,
    displays: Displays = (),
) -> dict[str, str]:
    """Run every experiment that is not finished, ``jobs`` at a time, each in a process with a share of the cores.

    Args:
        experiments: The cells.
        out: Run directories go here, by key.
        data: Folder of the datasets.
        device: Where to compute.
        jobs: Number of worker processes.
        watch: Called with every event.
        displays: Show every round of every cell.

    Returns:
        By key, ``""`` for cells that are finished, and the error for the others.
    """
    results, waiting = split(experiments, out, watch)
    threads = max(1, (os.cpu_count() or 1) // max(1, min(jobs, len(waiting))))
    context = multiprocessing.get_context("spawn")
    runner = partial(run_cell, data=data, device=device, displays=displays)
    tries = dict.fromkeys((e.key for e in waiting), 0)
    workers: list[_Worker] = []
    try:
        while waiting or any(worker.busy for worker in workers):
            for _ in range(min(len(waiting), jobs - sum(w.busy is not None for w in workers))):
                idle = next((w for w in workers if w.busy is None), None)
                if idle is None:
                    idle = _Worker(context, runner, threads)
                    workers.append(idle)
                idle.give(waiting.pop(0), out)
            by_connection = {worker.connection: worker for worker in workers if worker.busy}
            for connection in wait(list(by_connection), timeout=1):
                worker = by_connection[connection]
                running = worker.busy
                assert running is not None
                key = running.key
                try:
                    event: Event = worker.connection.recv()
                except (EOFError, ConnectionResetError):
                    worker.process.join()
                    workers.remove(worker)
                    tries[key] += 1
                    if tries[key] < _TRIES:
                        waiting.append(running)
                        continue
                    event = Event(key, "failed", text=f"its process died with code {worker.process.exitcode}, twice")
                    write_error(out / key, event.text)
                if event.kind in ("done", "failed", "elsewhere"):
                    worker.busy = None
                    results[key] = event.error
                watch(event)
    finally:
        for worker in workers:
            worker.stop()
    return results


class _Worker:
    """A process that runs one cell after another. Mutable: knows which cell it runs."""

    def __init__(self, context: Any, runner: CellRunner, threads: int) -> None:
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, runner, threads), daemon=True)
        self.process.start()
        theirs.close()  # so that reading fails once the process is dead
        self.busy: Experiment | None = None

    def give(self, experiment: Experiment, out: Path) -> None:
        self.busy = experiment
        self.connection.send((experiment.model_dump(mode="json"), out / experiment.key))

    def stop(self) -> None:
        """End the process, after the checkpoint of the cell that it runs."""
        try:
            if self.busy and self.process.pid:
                os.kill(self.process.pid, signal.SIGINT)
            self.connection.send(None)
        except (OSError, ValueError):  # it has ended already
            pass
        self.process.join(30)
        if self.process.is_alive():
            self.process.kill()


def _work(connection: Connection, runner: CellRunner, threads: int) -> None:
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # ignored in the background of a script
        signal.signal(signal.SIGINT, _interrupted_once)
    torch.set_num_threads(threads)
    try:
        while (task := connection.recv()) is not None:
            settings, path = task
            runner(Experiment.of(settings), path, report=connection.send)
    except (KeyboardInterrupt, EOFError, BrokenPipeError):
        return  # interrupted, or the parent has ended; the run has written its checkpoint


def _interrupted_once(*_: Any) -> None:
    """Ignore further interrupts while saving: at Ctrl-C, the terminal and the parent process both send one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt
