"""Runs many experiments with progress bars, for ``sweep``, ``run`` and ``reproduce``, and options that these share."""

import json
import shlex
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from fedsieve.cli.options import err, out, torch_device
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

_TURNS = (
    "Runs on one GPU take turns; with NVIDIA's MPS (nvidia-cuda-mps-control -d) they compute at the same time, "
    "see docs/usage.md, On a GPU."
)


def swept(
    experiments: "list[Experiment]",
    names: dict[str, str],
    directory: Path,
    *,
    jobs: int,
    threads: int,
    device: str,
    checkpoint_every: float,
    quiet: bool,
    tensorboard: bool,
    ray: str | None = None,
    wait: bool = False,
) -> "dict[str, Event]":
    """Run experiments with progress bars.

    Args:
        experiments: The cells of a grid.
        names: Their names in progress bars, by key.
        directory: Folder of their run directories.
        jobs: Number of worker processes.
        threads: Number of threads of each run.
        device: Name of the device, or ``auto``.
        checkpoint_every: Seconds of computing between the checkpoints of a run.
        quiet: Don't show progress.
        tensorboard: Write scalars for TensorBoard.
        ray: Address of a Ray cluster to use instead of worker processes, or None.
        wait: Wait for the cells that other processes run.

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
        from fedsieve.runs.gpus import take_turns
        from fedsieve.runs.sweep import sweep

        if not quiet and take_turns(where, jobs):
            err.print(Text(_TURNS), soft_wrap=True)
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


def grid_of(
    file: Path | None, chosen: "dict[str, Any]", allow_imports: bool, chain: bool = False
) -> "list[Experiment]":
    """The experiments of a grid.

    Args:
        file: Its YAML file, if it has one.
        chosen: Settings that replace those of the file.
        allow_imports: Load classes that only the file names.
        chain: A list of defenses is a chain, as in a single experiment, and not a list of choices.

    Raises:
        FedSieveError: If a setting is wrong, or there are too many cells.
    """
    from fedsieve.config.imports import named_in
    from fedsieve.config.merging import merged
    from fedsieve.config.yaml_files import read_yaml
    from fedsieve.runs.grid import expand, several

    found = read_yaml(file) if file else {}
    grid = merged(found, chosen)
    if chain and isinstance(defense := grid.get("defense"), list) and "defense" not in several(grid):
        grid["defense"] = [defense]
    with named_in(file or Path(), found, chosen, allow_imports):
        return expand(grid)


def play_all(experiments: "list[Experiment]", directory: Path, *, as_json: bool, **how: Any) -> None:
    """Run a grid, and print how its cells ended.

    Args:
        experiments: The cells.
        directory: Folder of their run directories.
        as_json: Print one JSON object.
        how: What else :func:`swept` takes.

    Raises:
        typer.Exit: With code 1 if a cell has failed.
    """
    names = {e.key: _name(e) for e in experiments}
    ends = swept(experiments, short_names(experiments), directory, **how)
    states = {key: "finished" if end.finished else end.kind for key, end in ends.items()}
    counts = {state: list(states.values()).count(state) for state in ("finished", "failed", "elsewhere")}
    if as_json:
        cells = [
            {"key": k, "name": names[k], "run_dir": str(directory / k), "state": states[k], "error": end.error}
            for k, end in ends.items()
        ]
        typer.echo(json.dumps({"cells": cells, **counts}))
    else:
        for key, end in ends.items():
            if end.kind == "failed":
                why = printable(end.error.strip().splitlines()[-1])
                out.print(Text.assemble((printable(names[key]), "red"), f" ({key}): {why}"), soft_wrap=True)
        elsewhere = f", {counts['elsewhere']} run elsewhere" if counts["elsewhere"] else ""
        out.print(f"{counts['finished']} of {len(ends)} runs are finished{elsewhere}")
        where = printable(shlex.quote(str(directory)))
        out.print(Text(f"fedsieve report {where} makes a report"), soft_wrap=True)
    if counts["failed"]:
        raise typer.Exit(1)


def _name(experiment: "Experiment") -> str:
    """Name of a cell in error messages."""
    share = f"{experiment.n_malicious} of {experiment.clients}"
    return (
        f"{experiment.attack.name} / {experiment.defense.name}, {experiment.dataset.name}, "
        f"{experiment.partition.name}, {share}, seed {experiment.seed}"
    )


def short_names(experiments: "list[Experiment]") -> dict[str, str]:
    """Name of each cell beside the others of its grid, by key: attack and defense, and what differs between cells."""
    from fedsieve.report.settings import component, differing, setting

    settings = [setting(e) for e in experiments]
    keys = [key for key in differing(settings) if key != "dataset" or len({e.dataset.name for e in experiments}) > 1]
    seeds = len({e.seed for e in experiments}) > 1
    names = {}
    for e, found in zip(experiments, settings, strict=True):
        said = [found[key] if key == "dataset" else f"{key} {found.get(key, 'default')}" for key in keys]
        said += [f"seed {e.seed}"] * seeds
        both = f"{component('attack', e.attack, e.dataset.name)} / {component('defense', e.defense, e.dataset.name)}"
        names[e.key] = ", ".join([both, *said])
    return names
