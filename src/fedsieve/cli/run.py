"""``fedsieve run``."""

import json
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsieve.cli.options import JsonFlag, TensorBoardFlag, err, nested_settings, out, torch_device

if TYPE_CHECKING:
    from fedsieve.core.records import RoundRecord


def run(
    file: Annotated[Path | None, typer.Argument(help="An experiment as a YAML file; options override it.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, e.g. attack.factor=5.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="A name or a file of data.", show_default="digits")] = None,
    model: Annotated[str | None, typer.Option(help="Model to train.", show_default="the dataset's")] = None,
    attack: Annotated[str | None, typer.Option(help="What malicious clients do.", show_default="none")] = None,
    defense: Annotated[str | None, typer.Option(help="How the server aggregates.", show_default="skymask")] = None,
    clients: Annotated[int | None, typer.Option(help="Number of clients.", show_default="the dataset's")] = None,
    malicious: Annotated[int | None, typer.Option(help="Number of malicious clients.", show_default="a fifth")] = None,
    rounds: Annotated[int | None, typer.Option(help="Number of rounds.", show_default="50")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides all random numbers.", show_default="0")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.")] = "auto",
    directory: Annotated[
        Path | None, typer.Option("--out", help="Run directory.", show_default="runs/KEY, KEY a hash of the settings")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the run directory's checkpoint.")] = False,
    tensorboard: TensorBoardFlag = False,
    as_json: JsonFlag = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Don't show progress.")] = False,
) -> None:
    """Run one experiment: an attack against a defense in a simulated federation."""
    from fedsieve.cli.progress import RunProgress
    from fedsieve.config.experiment import Experiment
    from fedsieve.data.store import data_folder
    from fedsieve.report import text
    from fedsieve.report.tensorboard import TensorBoard
    from fedsieve.runs.run import run as run_experiment

    options = {
        "dataset": dataset,
        "model": model,
        "attack": attack,
        "defense": defense,
        "clients": clients,
        "malicious": malicious,
        "rounds": rounds,
        "seed": seed,
    }
    chosen = nested_settings({k: v for k, v in options.items() if v is not None}, settings or [])
    experiment = Experiment.read(file, chosen) if file else Experiment.of(chosen)
    target = directory or Path("runs") / experiment.key
    start = time.perf_counter()
    displays: list[Callable[[RoundRecord], None]] = []

    def show(record: "RoundRecord") -> None:
        for display in displays:
            display(record)

    try:
        with ExitStack() as stack:
            progress = RunProgress(err, experiment.rounds, experiment.dataset.name, hidden=quiet)
            displays.append(stack.enter_context(progress).show)
            if tensorboard:
                displays.append(stack.enter_context(closing(TensorBoard(target))).show)
            records, summary = run_experiment(
                experiment,
                out=target,
                data=data_folder(),
                device=torch_device(device),
                resume=resume,
                on_round=show,
            )
    except KeyboardInterrupt:
        err.print(f"interrupted; the same command with --resume continues from {target}", soft_wrap=True)
        raise
    result = text.as_json(experiment, records, summary, time.perf_counter() - start, str(target))
    if as_json:
        typer.echo(json.dumps(result))
    else:
        out.print(f"{text.heading(experiment)}, {len(records)} rounds, seed {experiment.seed}")
        out.print(text.closing(result, records))
