"""Runs one cell of a grid, unless it is finished or another process runs it, and reports events."""

import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from tempfile import TemporaryFile

import torch

from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import FedSieveError
from fedsieve.core.records import RoundRecord
from fedsieve.runs.events import Display, Displays, Event, Watch
from fedsieve.runs.lock import claimed
from fedsieve.runs.run import run

CellRunner = Callable[..., None]  # :func:`run_cell` with all but experiment, path and report bound


def run_cell(
    experiment: Experiment, path: Path, data: Path, device: str, report: Watch, displays: Displays = ()
) -> None:
    """Run one cell, unless another process runs it or has finished it. The last event reported says how it ended.

    Args:
        experiment: The cell.
        path: Its run directory; a run that was interrupted there is resumed.
        data: Folder of the datasets.
        device: Where to compute.
        report: Called with every event. An error is an event too; only an interruption is raised.
        displays: Show every round.
    """
    try:
        with claimed(path) as mine:
            if mine:
                event = _run_claimed(experiment, path, data, device, report, displays)
            else:
                event = Event(experiment.key, "elsewhere")
    except FedSieveError as error:  # no lock can be written
        event = Event(experiment.key, "failed", text=str(error))
    report(event)


def _run_claimed(
    experiment: Experiment, path: Path, data: Path, device: str, report: Watch, displays: Displays
) -> Event:
    """Run a cell whose lock is held, and return its last event."""
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

    if finished(path, experiment):  # by another process, since the caller last looked
        return Event(key, "done", experiment.rounds)
    report(Event(key, "started"))
    try:
        with suppress(OSError):
            (path / "error.txt").unlink()
        with ExitStack() as stack:
            shown += [stack.enter_context(closing(display(path))) for display in displays]
            run(experiment, out=path, data=data, device=torch.device(device), resume=True, on_round=on_round)
    except Exception as error:
        text = str(error) if isinstance(error, FedSieveError) else traceback.format_exc()
        write_error(path, text)
        return Event(key, "failed", text=text)
    return Event(key, "done", experiment.rounds, accuracy)


def split(experiments: Sequence[Experiment], out: Path, watch: Watch) -> tuple[dict[str, str], list[Experiment]]:
    """Tell finished experiments from those that are still to run.

    Args:
        experiments: The cells of a grid.
        out: Folder of their run directories; made if it does not exist.
        watch: Called with an event for every finished one.

    Returns:
        ``""`` for every finished experiment, by key; and the others.

    Raises:
        FedSieveError: If the folder can't be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out):  # here, once, instead of in every worker
            pass
    except OSError as error:
        raise FedSieveError(f"can't write run directories to {out}: {error.strerror}") from error
    results: dict[str, str] = {}
    waiting = []
    for experiment in experiments:
        if finished(out / experiment.key, experiment):
            results[experiment.key] = ""
            watch(Event(experiment.key, "skipped", experiment.rounds))
        else:
            waiting.append(experiment)
    return results, waiting


def finished(path: Path, experiment: Experiment) -> bool:
    """Whether the run directory ``path`` holds all rounds of ``experiment``."""
    settings, records = path / "experiment.yaml", path / "records.jsonl"
    if not (settings.exists() and records.exists()):
        return False
    with records.open("rb") as file:
        complete = sum(line.endswith(b"\n") for line in file)
    return complete == experiment.rounds and Experiment.read(settings).key == experiment.key


def write_error(path: Path, text: str) -> None:
    """Write why a cell failed into its run directory, if possible."""
    with suppress(OSError):  # where it can't be written, the event still has it
        path.mkdir(parents=True, exist_ok=True)
        (path / "error.txt").write_text(text.rstrip() + "\n", encoding="utf-8")
