"""A grid of experiments: run so that nothing is lost, nothing is done twice, and one failure stops no other.

Every cell has a run directory below the grid's, named by its experiment's key. Who runs a cell holds a lock on it,
which the operating system releases however a process ends; what an interrupted cell has done is taken up at its
checkpoint.
"""

import fcntl
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import product
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from fedsieve.experiment import Experiment
from fedsieve.runs import run
from fedsieve.types import FedSieveError, ParameterError, RoundRecord

# Sections whose settings are never lists themselves, so that a list is a choice there too.
_SECTIONS = ("local", "server", "root")
# A worker that died takes its cell with it; once more, since a machine that ran out of memory may have some then.
_TRIES = 2


def expand(grid: Mapping[str, Any]) -> list[Experiment]:
    """Every combination of the lists in a grid of settings, each experiment once.

    ``{"attack": ["none", "min-max"], "seed": [0, 1]}`` are four. Lists count at the top level and in local, server and
    root; elsewhere, as in ``{"name": "mlp", "hidden": [64, 32]}``, they are values. A chain of defenses is a list in
    a list.

    Raises:
        FedSieveError: For the first cell that is no experiment.
    """
    axes: list[tuple[tuple[str, ...], Sequence[Any]]] = []
    for key, value in grid.items():
        if isinstance(value, list):
            axes.append(((key,), value))
        elif key in _SECTIONS and isinstance(value, Mapping):
            axes += [((key, name), inner) for name, inner in value.items() if isinstance(inner, list)]
    for path, values in axes:
        if not values:
            raise ParameterError(f"{'.'.join(path)} is an empty list: a grid needs one value at least")
    found: dict[str, Experiment] = {}
    for choice in product(*(values for _, values in axes)):
        settings: dict[str, Any] = {
            key: dict(value) if isinstance(value, Mapping) else value for key, value in grid.items()
        }
        for (path, _), value in zip(axes, choice, strict=True):
            below = settings if len(path) == 1 else settings[path[0]]
            below[path[-1]] = value
        try:
            experiment = Experiment.of(settings)
        except FedSieveError as error:
            said = ", ".join(f"{'.'.join(path)}={value}" for (path, _), value in zip(axes, choice, strict=True))
            raise ParameterError(f"{said}: {error}" if said else str(error)) from error
        found.setdefault(experiment.key, experiment)
    return list(found.values())


@dataclass(frozen=True)
class Event:
    """What happened to a cell.

    Attributes:
        key: Of its experiment.
        kind: ``skipped`` (it was finished already), ``elsewhere`` (another process runs it), ``started``, ``round``,
            ``done`` or ``failed``.
        round: Rounds that are played.
        text: The accuracy, or the error.
    """

    key: str
    kind: Literal["skipped", "elsewhere", "started", "round", "done", "failed"]
    round: int = 0
    text: str = ""

    @property
    def error(self) -> str:
        """Why the cell is not finished, once it has ended; "" if it is."""
        return {"failed": self.text, "elsewhere": "another process runs it"}.get(self.kind, "")


Watch = Callable[[Event], None]


class Display(Protocol):
    """Shows one run's records where it is played, as TensorBoard does."""

    def show(self, record: RoundRecord, /) -> None:
        """One round more."""

    def close(self) -> None:
        """Flush what is there."""


# Makes a display for a run directory; a class of a module, since workers get it by name.
Displays = Sequence[Callable[[Path], Display]]
Player = Callable[..., None]  # :func:`play`, knowing all but the cell, its directory and whom to tell


def sweep(
    experiments: Sequence[Experiment],
    out: Path,
    data: Path,
    device: str,
    jobs: int,
    watch: Watch,
    displays: Displays = (),
) -> dict[str, str]:
    """Run every experiment that is not finished, ``jobs`` at a time, each in a process of a share of the cores.

    Args:
        experiments: The cells.
        out: Run directories go here, by key.
        data: Where datasets lie.
        device: Where to compute.
        jobs: Processes.
        watch: Called with every event.
        displays: Show every round of every cell.

    Returns:
        By key, ``""`` for cells that are finished, and what is wrong with the others.
    """
    results, waiting = _split(experiments, out, watch)
    threads = max(1, (os.cpu_count() or 1) // max(1, min(jobs, len(waiting))))
    context = multiprocessing.get_context("spawn")
    player = partial(play, data=data, device=device, displays=displays)
    tries = dict.fromkeys((e.key for e in waiting), 0)
    workers: list[_Worker] = []
    try:
        while waiting or any(worker.busy for worker in workers):
            for _ in range(min(len(waiting), jobs - sum(w.busy is not None for w in workers))):
                idle = next((w for w in workers if w.busy is None), None)
                if idle is None:
                    idle = _Worker(context, player, threads)
                    workers.append(idle)
                idle.give(waiting.pop(0), out)
            told = {worker.connection: worker for worker in workers if worker.busy}
            for connection in wait(list(told), timeout=1):
                worker = told[connection]
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


def sweep_on_ray(
    experiments: Sequence[Experiment],
    out: Path,
    data: Path,
    device: str,
    address: str,
    watch: Watch,
    displays: Displays = (),
) -> dict[str, str]:
    """The same on a Ray cluster whose machines see the same folders; a cell whose worker dies is taken up by another.

    Args:
        experiments: The cells.
        out: Run directories go here, by key.
        data: Where datasets lie.
        device: Where to compute; on GPUs, each cell asks Ray for one.
        address: As ``ray.init`` takes it.
        watch: Called with every event but rounds.
        displays: Show every round of every cell.

    Raises:
        FedSieveError: Without Ray, or without such a cluster.
    """
    try:
        ray: Any = import_module("ray")
    except ImportError as error:
        raise FedSieveError("sweeps on a cluster need Ray: pip install fedsieve[ray]") from error
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise FedSieveError(f"there is no Ray cluster at {address!r}: {str(error).splitlines()[0]}") from error
    resources = {"num_gpus": 1} if device.startswith("cuda") else {"num_cpus": 1}
    task = ray.remote(max_retries=3, **resources)(_ray_cell)
    player = partial(play, data=data.resolve(), device=device, displays=displays)
    results, waiting = _split(experiments, out, watch)
    running = {}
    for experiment in waiting:
        path, settings = (out / experiment.key).resolve(), experiment.model_dump(mode="json")
        running[task.remote(settings, path, player)] = experiment.key
        watch(Event(experiment.key, "started"))
    while running:
        (ready,), _ = ray.wait(list(running), num_returns=1)
        key = running.pop(ready)
        try:
            event = ray.get(ready)
        except ray.exceptions.RayError as error:
            event = Event(key, "failed", text=str(error).strip().splitlines()[-1])
            write_error(out / key, event.text)
        results[key] = event.error
        watch(event)
    return results


def _split(experiments: Sequence[Experiment], out: Path, watch: Watch) -> tuple[dict[str, str], list[Experiment]]:
    """The results of those that are finished, and the others."""
    results: dict[str, str] = {}
    waiting = []
    for experiment in experiments:
        if finished(out / experiment.key, experiment):
            results[experiment.key] = ""
            watch(Event(experiment.key, "skipped", experiment.rounds))
        else:
            waiting.append(experiment)
    return results, waiting


def _ray_cell(settings: Mapping[str, Any], path: Path, player: Player) -> Event:
    told: list[Event] = []
    torch.set_num_threads(1)
    player(Experiment.of(settings), path, tell=told.append)
    return told[-1]


class _Worker:
    """A process that runs one cell after another."""

    def __init__(self, context: Any, player: Player, threads: int) -> None:
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, player, threads), daemon=True)
        self.process.start()
        theirs.close()  # so that its end is seen when it dies
        self.busy: Experiment | None = None

    def give(self, experiment: Experiment, out: Path) -> None:
        self.busy = experiment
        self.connection.send((experiment.model_dump(mode="json"), out / experiment.key))

    def stop(self) -> None:
        """An idle one ends at once; a busy one is interrupted, and writes its checkpoint first."""
        try:
            if self.busy and self.process.pid:
                os.kill(self.process.pid, signal.SIGINT)
            self.connection.send(None)
        except (OSError, ValueError):  # gone already
            pass
        self.process.join(30)
        if self.process.is_alive():
            self.process.kill()


def _work(connection: Connection, player: Player, threads: int) -> None:
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as in the background of a script
        signal.signal(signal.SIGINT, _interrupted_once)
    torch.set_num_threads(threads)
    try:
        while (task := connection.recv()) is not None:
            settings, path = task
            player(Experiment.of(settings), path, tell=connection.send)
    except (KeyboardInterrupt, EOFError, BrokenPipeError):
        return  # whoever gave orders has gone; the run has its checkpoint


def _interrupted_once(*_: Any) -> None:
    """At Ctrl-C, both the terminal and whoever gives orders interrupt a worker; once is enough to save and go."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def play(experiment: Experiment, path: Path, data: Path, device: str, tell: Watch, displays: Displays = ()) -> None:
    """Run one cell, unless another process does or has; tells how it ends, whatever happens."""
    key = experiment.key
    with claimed(path) as mine:
        if not mine:
            tell(Event(key, "elsewhere"))
            return
        if finished(path, experiment):  # by another process, between our look and our claim
            tell(Event(key, "done", experiment.rounds))
            return
        tell(Event(key, "started"))
        last, accuracy = 0.0, ""
        shown: list[Display] = []

        def on_round(record: RoundRecord) -> None:
            nonlocal last, accuracy
            for display in shown:
                display.show(record)
            if record.test_accuracy is not None:
                accuracy = f"{100 * record.test_accuracy:.1f} %"
            if time.monotonic() - last > 0.2:  # a terminal shows no more
                last = time.monotonic()
                tell(Event(key, "round", record.round + 1, accuracy))

        try:
            (path / "error.txt").unlink(missing_ok=True)
            with ExitStack() as stack:
                shown += [stack.enter_context(closing(display(path))) for display in displays]
                run(experiment, out=path, data=data, device=torch.device(device), resume=True, on_round=on_round)
        except Exception as error:
            said = str(error) if isinstance(error, FedSieveError) else traceback.format_exc()
            write_error(path, said)
            tell(Event(key, "failed", text=said))
        else:
            tell(Event(key, "done", experiment.rounds, accuracy))


def finished(path: Path, experiment: Experiment) -> bool:
    """Whether a run directory holds all rounds of this very experiment."""
    settings, records = path / "experiment.yaml", path / "records.jsonl"
    if not (settings.exists() and records.exists()):
        return False
    with records.open("rb") as file:
        complete = sum(line.endswith(b"\n") for line in file)
    return complete == experiment.rounds and Experiment.read(settings).key == experiment.key


def write_error(path: Path, text: str) -> None:
    """Why a cell failed, beside what it has done so far."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "error.txt").write_text(text.rstrip() + "\n", encoding="utf-8")


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether this process alone may write the run directory; the claim ends with the process, if not before."""
    locks = path.parent / ".locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
        file = (locks / path.name).open("w")
    except OSError as error:
        raise FedSieveError(f"can't write {locks}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True
