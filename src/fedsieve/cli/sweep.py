"""``fedsieve sweep``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from fedsieve.cli.options import JsonFlag, TensorBoardFlag, nested_settings, out
from fedsieve.cli.swept import swept

if TYPE_CHECKING:
    from fedsieve.config.experiment import Experiment


def sweep(
    file: Annotated[Path, typer.Argument(help="A grid as a YAML file: an experiment with lists of values.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting of the grid, e.g. seed=[0,1].")
    ] = None,
    directory: Annotated[Path, typer.Option("--out", help="Folder for run directories.")] = Path("runs"),
    jobs: Annotated[int, typer.Option(help="Runs at a time; each gets a share of the cores.", min=1)] = 2,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on this Ray cluster instead (auto: the one here).")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.")] = "auto",
    tensorboard: TensorBoardFlag = False,
    as_json: JsonFlag = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Don't show progress.")] = False,
) -> None:
    """Run a grid of experiments. Finished ones are skipped; a failed one does not stop the others."""
    from fedsieve.config.yaml_files import read_yaml
    from fedsieve.runs.grid import expand

    experiments = expand(nested_settings(read_yaml(file), settings or []))
    names = {e.key: _name(e) for e in experiments}
    errors = swept(experiments, names, directory, jobs, ray, device, quiet, tensorboard)
    failed = {key: error for key, error in errors.items() if error}
    if as_json:
        cells = [{"key": k, "name": names[k], "run_dir": str(directory / k), "error": e} for k, e in errors.items()]
        typer.echo(json.dumps({"cells": cells, "finished": len(errors) - len(failed), "failed": len(failed)}))
    else:
        for key, error in failed.items():
            out.print(f"[red]{names[key]}[/] ({key}): {escape(error.splitlines()[-1])}", soft_wrap=True)
        out.print(f"{len(errors) - len(failed)} of {len(errors)} runs are finished")
        out.print(f"fedsieve report {directory} makes a report", soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def _name(experiment: "Experiment") -> str:
    """Name of a cell in progress bars and error messages."""
    share = f"{experiment.n_malicious} of {experiment.clients}"
    return (
        f"{experiment.attack.name} / {experiment.defense.name}, {experiment.dataset.name}, "
        f"{experiment.partition.name}, {share}, seed {experiment.seed}"
    )
