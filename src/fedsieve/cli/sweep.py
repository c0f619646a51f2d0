"""``fedsieve sweep``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fedsieve.cli.options import (
    AttackOption,
    ClientsOption,
    DatasetOption,
    DefenseOption,
    DeviceOption,
    ImportsFlag,
    JsonFlag,
    MaliciousOption,
    ModelOption,
    RoundsOption,
    SeedOption,
    SettingsOption,
    TensorBoardFlag,
    folder,
    given,
    nested_settings,
    say,
    torch_device,
)
from fedsieve.cli.swept import CheckpointOption, JobsOption, ThreadsOption, grid_of, play_all


def sweep(
    file: Annotated[
        Path | None, typer.Argument(help="A grid as a YAML file: an experiment with lists of values.")
    ] = None,
    settings: SettingsOption = None,
    dataset: DatasetOption = None,
    model: ModelOption = None,
    attack: AttackOption = None,
    defense: DefenseOption = None,
    clients: ClientsOption = None,
    malicious: MaliciousOption = None,
    rounds: RoundsOption = None,
    seed: SeedOption = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Run nothing; print the cells, what is left to run, and how long it takes."),
    ] = False,
    directory: Annotated[Path, typer.Option("--out", parser=folder, help="Folder for run directories.")] = Path("runs"),
    jobs: JobsOption = 2,
    threads: ThreadsOption = 1,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on this Ray cluster instead (auto: the one here).")
    ] = None,
    device: DeviceOption = "auto",
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
    from fedsieve.core.errors import ParameterError

    options = given(
        dataset=dataset,
        model=model,
        attack=attack,
        defense=defense,
        clients=clients,
        malicious=malicious,
        rounds=rounds,
        seed=seed,
    )
    if not (file or options or settings):
        raise ParameterError("a sweep needs a grid: a YAML file with lists of values, or options such as --seed 0,1,2")
    experiments = grid_of(file, nested_settings(options, settings or []), allow_imports)
    if dry_run:
        from fedsieve.cli import outlook
        from fedsieve.data.store import data_folder
        from fedsieve.reproduce.forecast import as_cells, forecast_cells

        where = torch_device(device)
        if not quiet:
            say(outlook.ESTIMATING)
        found = forecast_cells(as_cells(experiments), directory, data_folder(), where, threads)
        if as_json:
            typer.echo(json.dumps(outlook.as_json(found)))
        else:
            outlook.show(found, ("settings", "attack", "defense"), str(where), jobs, threads)
        return
    play_all(
        experiments,
        directory,
        jobs=jobs,
        threads=threads,
        ray=ray,
        device=device,
        checkpoint_every=checkpoint_every,
        wait=wait,
        tensorboard=tensorboard,
        as_json=as_json,
        quiet=quiet,
    )
