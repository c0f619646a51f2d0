"""The progress of a run: in a notebook, a bar that needs no widgets; elsewhere, that of the command line."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from html import escape

from rich.console import Console

from fedsieve.cli.options import err
from fedsieve.cli.progress import RunProgress, described
from fedsieve.config.experiment import Experiment
from fedsieve.core.records import RoundRecord
from fedsieve.runs.directory import RunDirectory

_PAUSE = 0.2  # seconds between two updates

Show = Callable[[RoundRecord], None]


@contextmanager
def progress(experiment: Experiment, directory: RunDirectory, hidden: bool) -> Iterator[Show]:
    """Within this context, the progress of a run is shown: call what is yielded after every round.

    Args:
        experiment: What is run.
        directory: Where, for the clients' names.
        hidden: Show nothing.
    """
    if not hidden and Console().is_jupyter:
        yield _in_notebook(experiment, directory)
    else:
        with RunProgress(err, experiment.rounds, experiment.dataset.name, directory.read_names, hidden) as shown:
            yield shown.show


def _in_notebook(experiment: Experiment, directory: RunDirectory) -> Show:
    """A bar below the cell that runs."""
    from IPython.display import HTML, display

    handle = display(HTML(f"loading {escape(experiment.dataset.name)}"), display_id=True)
    names, rounds = cache(directory.read_names), experiment.rounds
    accuracy: float | None = None
    last = 0.0

    def show(record: RoundRecord) -> None:
        nonlocal accuracy, last
        accuracy = accuracy if record.test_accuracy is None else record.test_accuracy
        done, now = record.round + 1, time.monotonic()
        if done == rounds or now - last > _PAUSE:
            last = now
            said = escape(f"round {done:,} of {rounds:,}  {described(record, accuracy, names)}")
            handle.update(HTML(f'<progress value="{done}" max="{rounds}"></progress> {said}'))

    return show
