"""``fedsieve sweep``."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from fedsieve.cli.options import ImportsFlag, JsonFlag, TensorBoardFlag, folder, nested_settings, out
from fedsieve.cli.swept import CheckpointOption, JobsOption, ThreadsOption, swept
from fedsieve.core.escaping import printable

if TYPE_CHECKING:
    from fedsieve.config.experiment import Experiment


def sweep(
    file: Annotated[Path, typer.Argument(help="A grid as a YAML file: an experiment with lists of values.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting of the grid, e.g. seed=[0,1].")
    ] = None,
    directory: Annotated[Path, typer.Option("--out", parser=folder, help="Folder for run directories.")] = Path("runs"),
    jobs: JobsOption = 2,
    threads: ThreadsOption = 1,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on this Ray cluster instead (auto: the one here).")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.")] = "auto",
    checkpoint_every: CheckpointOption = 60.0,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for runs that another sweep has begun.")] = False,
    allow_imports: ImportsFlag = False,
    tensorboard: TensorBoardFlag = False,
    as_json: JsonFlag = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Don't show progress.")] = False,
) -> None:
    """Run a grid of experiments. Finished ones are skipped; a failed one does not stop the others.

    Runs that another sweep has begun are left to it, and count as "elsewhere".
    """
    from fedsieve.config.imports import named_in
    from fedsieve.config.yaml_files import read_yaml
    from fedsieve.runs.grid import expand

    grid, typed = read_yaml(file), nested_settings({}, settings or [])
    with named_in(file, grid, typed, allow_imports):
        experiments = expand(nested_settings(grid, settings or []))
    names = {e.key: _name(e) for e in experiments}
    ends = swept(
        experiments,
        names,
        directory,
        jobs=jobs,
        threads=threads,
        ray=ray,
        device=device,
        checkpoint_every=checkpoint_every,
        wait=wait,
        quiet=quiet,
        tensorboard=tensorboard,
    )
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
    """Name of a cell in progress bars and error messages."""
    share = f"{experiment.n_malicious} of {experiment.clients}"
    return (
        f"{experiment.attack.name} / {experiment.defense.name}, {experiment.dataset.name}, "
        f"{experiment.partition.name}, {share}, seed {experiment.seed}"
    )
