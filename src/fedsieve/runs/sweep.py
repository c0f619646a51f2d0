"""Runs a grid of experiments in worker processes; a failed cell does not stop the others.

Every cell has a run directory named by its experiment's key. The process that runs a cell holds a lock on it, which the
operating system releases when the process ends for any reason. An interrupted cell resumes from its checkpoint.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import wait as wait_for
from pathlib import Path

from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import StorageError
from fedsieve.runs.cell import check_folder, look_again, run_cell, split, write_error
from fedsieve.runs.events import Displays, Event, Watch, quietly
from fedsieve.runs.gpus import devices_of
from fedsieve.runs.worker import Worker

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
    *,
    threads: int = 1,
    checkpoint_every: float = 60.0,
    wait: bool = False,
) -> dict[str, Event]:
    """Run every experiment that is not finished, ``jobs`` at a time, each in a process.

    Records depend on ``threads``, in the last digits, and not on ``jobs``. A cell that another process runs is looked
    at again when all others have ended: it is run if it was given up, and left alone if it is still being run.

    Args:
        experiments: The cells.
        out: Run directories go here, by key.
        data: Folder of the datasets.
        device: Where to compute; ``cuda`` is all GPUs, each for as many of the processes.
        jobs: Number of worker processes.
        watch: Called with every event. If it can't show one (OSError), the sweep goes on.
        displays: Show every round of every cell.
        threads: Number of threads of each run.
        checkpoint_every: Seconds of computing between the checkpoints of a run.
        wait: Wait for the cells that other processes run.

    Returns:
        The event with which each cell ended, by key.

    Raises:
        FedSieveError: If ``out`` can't be written.
        StorageError: If it can't be written any more (a full disk), or no worker process can be started. What was
            computed is kept; the same call continues.
    """
    tell = quietly(watch)

    def end(event: Event) -> None:
        ends[event.key] = event
        tell(event)

    ends, waiting = split(experiments, out, tell)
    queue, parked, tries = deque(waiting), dict[str, Experiment](), Counter[str]()
    runner = partial(run_cell, data=data, displays=displays, checkpoint_every=checkpoint_every)
    crew = _Crew(jobs, runner, threads, devices_of(device))
    try:
        while queue or crew.busy or parked:
            while queue and (worker := crew.idle(queue[0].key, tell)):
                worker.give(queue.popleft(), out)
            for experiment, event in crew.events():
                key = experiment.key
                if isinstance(event, str):
                    tries[key] += 1
                    if tries[key] < _TRIES:
                        tell(Event(key, "note", text=f"its process {event}; it is tried again"))
                        queue.append(experiment)
                        continue
                    event = Event(key, "failed", text=f"its process {event}, as before")
                    write_error(out / key, event.text)
                (end if event.ended else tell)(event)
                if event.kind == "elsewhere":
                    parked[key] = experiment
                if event.kind == "failed":
                    check_folder(out)  # if that is why, all others would fail too
            if parked and not (queue or crew.busy):
                queue.extend(look_again(parked, out, end, wait))
    finally:
        crew.stop()
    return {e.key: ends[e.key] for e in experiments}


class _Crew:
    """The worker processes of a sweep. Mutable.

    Args:
        size: Most processes.
        runner: Runs a cell.
        threads: Number of threads of each run.
        devices: Where to compute, shared out evenly.
    """

    def __init__(self, size: int, runner: Callable[..., None], threads: int, devices: Sequence[str]) -> None:
        self._size, self._runner, self._threads, self._devices = size, runner, threads, devices
        self._workers: list[Worker] = []

    @property
    def busy(self) -> bool:
        """Whether any runs a cell."""
        return any(worker.busy for worker in self._workers)

    def idle(self, key: str, tell: Watch) -> Worker | None:
        """One that runs nothing, started if need be for the cell ``key``; None if there may be no more.

        Raises:
            StorageError: If there is none and none can be started.
        """
        for worker in self._workers:
            if not worker.busy:
                return worker
        if len(self._workers) < self._size:
            try:
                used = Counter(worker.device for worker in self._workers)
                device = min(self._devices, key=lambda name: used[name])
                self._workers.append(Worker(partial(self._runner, device=device), self._threads, device))
                return self._workers[-1]
            except OSError as error:
                why = f"can't start a worker process: {error.strerror}"
                self._size = len(self._workers)
                if not self._workers:
                    raise StorageError(f"{why}; what was computed is kept, the same command continues") from error
                tell(Event(key, "note", text=f"{why}; going on with {self._size}"))
        return None

    def events(self) -> Iterator[tuple[Experiment, Event | str]]:
        """What happened to which cell within a second; a text says how the process ended that ran it."""
        by_connection = {worker.connection: worker for worker in self._workers}
        for connection in wait_for(list(by_connection), timeout=1):
            worker = by_connection[connection]  # type: ignore[index]
            experiment, event = worker.busy, None
            try:
                event = worker.connection.recv()
            except (EOFError, OSError):
                self._workers.remove(worker)
                event = worker.end()
            else:
                if event.ended:
                    worker.busy = None
            if experiment:
                yield experiment, event

    def stop(self) -> None:
        """End all of them, after the checkpoints of the cells that they run."""
        for worker in self._workers:
            worker.dismiss()
        for worker in self._workers:
            worker.end()
