"""Runs many experiments with progress bars, for ``sweep`` and ``reproduce``, and the options that both have."""

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from fedsieve.cli.options import err, torch_device
from fedsieve.core.escaping import printable

if TYPE_CHECKING:
    from fedsieve.config.experiment import Experiment
    from fedsieve.runs.events import Event

JobsOption = Annotated[int, typer.Option("--jobs", help="Runs at a time, each in a process.", min=1)]
ThreadsOption = Annotated[
    int,
    typer.Option("--threads", help="Threads of each run. Records depend on them, but not on --jobs.", min=1, max=1024),
]
CheckpointOption = Annotated[
    float, typer.Option("--checkpoint-every", metavar="SECONDS", help="Time between checkpoints of a run.", min=0)
]


def swept(
    experiments: "list[Experiment]",
    names: dict[str, str],
    directory: Path,
    *,
    jobs: int,
    threads: int,
    ray: str | None,
    device: str,
    checkpoint_every: float,
    wait: bool,
    quiet: bool,
    tensorboard: bool,
) -> "dict[str, Event]":
    """Run experiments with progress bars.

    Args:
        experiments: The cells of a grid.
        names: Their names in progress bars, by key.
        directory: Folder of their run directories.
        jobs: Number of worker processes.
        threads: Number of threads of each run.
        ray: Address of a Ray cluster to use instead of worker processes, or None.
        device: Name of the device, or ``auto``.
        checkpoint_every: Seconds of computing between the checkpoints of a run.
        wait: Wait for the cells that other processes run.
        quiet: Don't show progress.
        tensorboard: Write scalars for TensorBoard.

    Returns:
        The event with which each cell ended, by key.
    """
    from fedsieve.cli.progress import SweepProgress
    from fedsieve.data.store import data_folder
    from fedsieve.report.tensorboard import TensorBoard
    from fedsieve.runs.signals import interruptible

    where = str(torch_device(device))
    displays = [TensorBoard] if tensorboard else []
    if tensorboard:
        TensorBoard(directory)  # if it can't be imported, fail before any cell is run
    if ray is not None:
        from fedsieve.runs.ray_cluster import sweep_on_ray

        run_all = partial(sweep_on_ray, address=ray)
    else:
        from fedsieve.runs.sweep import sweep

        run_all = partial(sweep, jobs=jobs)
    with interruptible() as interruption:
        try:
            with SweepProgress(err, {e.key: e.rounds for e in experiments}, names, hidden=quiet) as progress:

                def watch(event: "Event") -> None:
                    interruption.check()
                    progress.show(event)

                return run_all(
                    experiments,
                    directory,
                    data_folder(),
                    where,
                    watch=watch,
                    displays=displays,
                    threads=threads,
                    checkpoint_every=checkpoint_every,
                    wait=wait,
                )
        except KeyboardInterrupt:
            said = f"interrupted; the same command continues from {printable(str(directory))}"
            with suppress(OSError):  # a terminal that is gone
                err.print(Text(said), soft_wrap=True)
            raise typer.Exit(interruption.code) from None
