"""Runs one cell of a grid, unless it is finished or another process runs it, and reports events."""

import errno
import os
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile

import torch

from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import BusyError, FedSieveError, StorageError
from fedsieve.core.records import RoundRecord
from fedsieve.runs.events import Display, Displays, Event, Watch
from fedsieve.runs.files import one_line, read, write
from fedsieve.runs.lock import claimed
from fedsieve.runs.resuming import ELSE
from fedsieve.runs.run import run

CellRunner = Callable[..., None]  # :func:`run_cell` with all but experiment, path and report bound

# Seconds between two looks at cells that other processes run.
_PAUSE = 1.0
# What the machine lacks, which is no fault of the code that asked for it.
_LACKING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE)


def run_cell(
    experiment: Experiment,
    path: Path,
    data: Path,
    device: str,
    report: Watch,
    displays: Displays = (),
    checkpoint_every: float = 60.0,
) -> None:
    """Run one cell, unless another process runs it or has finished it. The last event reported says how it ended.

    Args:
        experiment: The cell.
        path: Its run directory; a run that was interrupted there is resumed.
        data: Folder of the datasets.
        device: Where to compute.
        report: Called with every event. An error is an event too; only an interruption is raised.
        displays: Show every round.
        checkpoint_every: Seconds of computing between checkpoints.
    """
    key, last, accuracy = experiment.key, 0.0, ""
    shown: list[Display] = []

    def on_round(record: RoundRecord) -> None:
        nonlocal last, accuracy
        for display in shown:
            display.show(record)
        if record.test_accuracy is not None:
            accuracy = f"{100 * record.test_accuracy:.1f} %"
        if time.monotonic() - last > 0.2:  # a terminal shows no more
            last = time.monotonic()
            report(Event(key, "round", record.round + 1, accuracy))

    def on_note(text: str) -> None:
        if there:  # that a new run has nothing to resume is no news
            report(Event(key, "note", text=text))

    try:
        there = os.path.lexists(path)
        if not finished(path, experiment):  # by another process, since the caller last looked
            report(Event(key, "started"))
            with ExitStack() as stack:
                shown += [stack.enter_context(closing(display(path))) for display in displays]
                run(
                    experiment,
                    out=path,
                    data=data,
                    device=torch.device(device),
                    resume=True,
                    checkpoint_every=checkpoint_every,
                    keep_records=False,
                    on_note=on_note,
                    on_round=on_round,
                )
        with suppress(OSError):  # of an earlier try
            (path / "error.txt").unlink()
        event = Event(key, "done", experiment.rounds, accuracy)
    except BusyError:
        event = Event(key, "elsewhere")
    except Exception as error:
        event = Event(key, "failed", text=_why(error, path))
        write_error(path, event.text)
    report(event)


def _why(error: Exception, path: Path) -> str:
    """Why a cell failed: one line that a user can act on, or the traceback of a failure of ours."""
    if isinstance(error, OSError) and error.errno in _LACKING:
        return str(error)
    if not (isinstance(error, FedSieveError) and str(error)):
        return "".join(traceback.format_exception(error))
    text = str(error).replace(ELSE, "").rstrip(" ;,")  # options that a sweep does not have
    deletable = str(path) in text and not isinstance(error, StorageError)
    return f"{text}; delete {path} to run it from the start" if deletable else text


def split(experiments: Sequence[Experiment], out: Path, watch: Watch) -> tuple[dict[str, Event], list[Experiment]]:
    """Tell finished experiments from those that are still to run.

    Args:
        experiments: The cells of a grid.
        out: Folder of their run directories; made if it does not exist.
        watch: Called with an event for every finished one.

    Returns:
        The event for every finished experiment, by key; and the others, each once.

    Raises:
        FedSieveError: If the folder can't be written.
    """
    check_folder(out, make=True)  # here, once, instead of in every worker
    ends: dict[str, Event] = {}
    waiting: dict[str, Experiment] = {}
    for experiment in experiments:
        key = experiment.key
        if finished(out / key, experiment):
            ends[key] = Event(key, "skipped", experiment.rounds)
            watch(ends[key])
        else:
            waiting[key] = experiment
    return ends, list(waiting.values())


def look_again(parked: dict[str, Experiment], out: Path, end: Watch, wait: bool) -> list[Experiment]:
    """Look again at cells that other processes ran, when nothing else is left to do.

    Args:
        parked: These cells, by key. Those that are finished now, or that nobody runs any more, are taken out; all of
            them if there is none to run and the others are not waited for.
        out: Folder of their run directories.
        end: Called with an event for every finished one.
        wait: Whether the others are waited for; if so, and there is none to run, this takes a second.

    Returns:
        Those that nobody runs any more, to be run.
    """
    free = []
    for key, experiment in list(parked.items()):
        try:
            with claimed(out / key) as idle:
                pass
        except FedSieveError:  # told by the one that runs it
            idle = True
        done = finished(out / key, experiment)
        if done:
            end(Event(key, "skipped", experiment.rounds))
        elif idle:
            free.append(experiment)
        if done or idle:
            del parked[key]
    if not (free or wait):
        parked.clear()
    if parked and not free:
        time.sleep(_PAUSE)
    return free


def check_folder(folder: Path, what: str = "run directories", make: bool = False) -> None:
    """See that files can be made in ``folder``, which is made too if ``make``.

    Args:
        folder: The folder.
        what: What is to be written there, for the error message.
        make: Make the folder and those above it.

    Raises:
        FedSieveError: If the path is wrong.
        StorageError: If the disk is full or read-only, the folder is gone, or it may not be written.
    """
    with one_line(f"write {what} to {folder}"):
        try:
            if make:
                folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=folder) as file:
                file.write(bytes(4096))
        except OSError as error:
            if make or error.errno not in (errno.EMFILE, errno.ENFILE):
                raise  # else this process can't tell; those that run cells can


def finished(path: Path, experiment: Experiment) -> bool:
    """Whether the run directory ``path`` holds all rounds of ``experiment``; False too if its files can't be read."""
    try:
        with read(path / "records.jsonl") as file:
            if sum(block.count(b"\n") for block in iter(partial(file.read, 2**20), b"")) != experiment.rounds:
                return False
        with read(path / "experiment.yaml") as file:
            same = file.read(2**20) == experiment.to_yaml().encode()  # quicker than reading YAML
        return same or Experiment.recorded(path / "experiment.yaml").key == experiment.key
    except (OSError, FedSieveError):
        return False


def write_error(path: Path, text: str) -> None:
    """Write why a cell failed into its run directory, if possible."""
    with suppress(OSError):  # where it can't be written, the event still has it
        path.mkdir(parents=True, exist_ok=True)
        write(path / "error.txt", (text.rstrip() + "\n").encode("utf-8", "replace"))
