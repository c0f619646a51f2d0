"""``fedsieve run``."""

import json
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from fedsieve.cli.options import ImportsFlag, JsonFlag, TensorBoardFlag, err, folder, nested_settings, out, torch_device
from fedsieve.core.escaping import printable
from fedsieve.runs.signals import interruptible

if TYPE_CHECKING:
    from fedsieve.config.experiment import Experiment
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
    malicious: Annotated[
        float | None, typer.Option(help="Number of malicious clients, or their share.", show_default="a fifth")
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Number of rounds.", show_default="50")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides all random numbers.", show_default="0")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.")] = "auto",
    directory: Annotated[
        Path | None,
        typer.Option(
            "--out", parser=folder, help="Run directory.", show_default="runs/KEY, KEY a hash of the settings"
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in the run directory, with more rounds too.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace the run in the run directory.")] = False,
    checkpoint_every: Annotated[
        float, typer.Option("--checkpoint-every", metavar="SECONDS", help="Time between checkpoints.", min=0)
    ] = 60.0,
    threads: Annotated[
        int | None,
        typer.Option(
            help="Threads to compute with; records are the same to the byte with the same number.",
            show_default="the cores",
            min=1,
            max=1024,
        ),
    ] = None,
    allow_imports: ImportsFlag = False,
    tensorboard: TensorBoardFlag = False,
    as_json: JsonFlag = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Don't show progress.")] = False,
) -> None:
    """Run one experiment: an attack against a defense in a simulated federation."""
    from fedsieve.config.experiment import Experiment

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
    experiment = Experiment.read(file, chosen, allow_imports) if file else Experiment.of(chosen)
    target = directory or Path("runs") / experiment.key
    if resume and directory is None:
        _refuse_to_start_over(target, experiment)
    if threads:
        _use(threads)
    start, reading = time.perf_counter(), ""
    with interruptible() as interruption, ExitStack() as stack:

        def started(text: str) -> None:
            nonlocal reading
            reading = text
            if text and not quiet:
                _say(text, "dim")

        try:
            summary = _played(
                experiment,
                stack,
                interruption.check,
                tensorboard=tensorboard,
                quiet=quiet,
                out=target,
                device=device,
                resume=resume,
                fresh=fresh,
                checkpoint_every=checkpoint_every,
                on_start=started,
                on_note=_say,
            )
        except KeyboardInterrupt as error:
            how = "--resume in place of --fresh" if fresh else "--resume"
            _say(f"interrupted; the same command with {how} continues from {target}")
            for note in getattr(error, "__notes__", ()):
                _say(note)
            raise typer.Exit(interruption.code) from None
    _report(experiment, target, summary, reading, time.perf_counter() - start, as_json)


def _played(
    experiment: "Experiment",
    stack: ExitStack,
    check: Callable[[], None],
    *,
    tensorboard: bool,
    quiet: bool,
    out: Path,
    device: str,
    **how: Any,
) -> dict[str, Any]:
    """Run the experiment with its displays, which ``stack`` closes, and return the summary."""
    from fedsieve.cli.progress import RunProgress
    from fedsieve.data.store import data_folder
    from fedsieve.report.tensorboard import TensorBoard
    from fedsieve.runs.run import run as run_experiment

    where = torch_device(device)
    progress = RunProgress(err, experiment.rounds, experiment.dataset.name, hidden=quiet)
    displays: list[Callable[[RoundRecord], None]] = [stack.enter_context(progress).show]
    if tensorboard:
        displays.append(stack.enter_context(closing(TensorBoard(out))).show)

    def show(record: "RoundRecord") -> None:
        check()
        for display in displays:
            display(record)

    return run_experiment(
        experiment, out=out, data=data_folder(), device=where, keep_records=False, on_round=show, **how
    )[1]


def _report(
    experiment: "Experiment", target: Path, summary: dict[str, Any], reading: str, seconds: float, as_json: bool
) -> None:
    """Print the results of a run, and to standard error what is wrong with them."""
    from fedsieve.report import flags, text
    from fedsieve.runs.directory import RunDirectory

    result = text.as_json(experiment, RunDirectory(target).iter_records(), summary, reading, seconds, str(target))
    if warning := text.warning(result):
        _say(f"warning: {warning}", "bold yellow")
    raised = flags.of_run(experiment, summary, result["rounds"], str(target))
    for line in flags.lines(raised):
        _say(line, "yellow")
    if as_json:
        typer.echo(json.dumps({**result, "flags": [flag.as_json() for flag in raised]}))
    else:
        out.print(f"{text.heading(experiment)}, {result['rounds']} rounds, seed {experiment.seed}")
        out.print(text.closing(result))


def _refuse_to_start_over(target: Path, experiment: "Experiment") -> None:
    """Where nothing is to be resumed under the name that the settings give, look for a run of other length.

    Raises:
        ParameterError: If there is one; its directory must be named.
    """
    from fedsieve.core.errors import ParameterError
    from fedsieve.runs.resuming import same_run_beside

    if not target.exists() and (other := same_run_beside(target, experiment)):
        raise ParameterError(
            f"nothing to resume in {target}, but {other} holds this run with another number of rounds; "
            f"--out {other} continues it"
        )


def _use(threads: int) -> None:
    """Compute with so many threads from now on."""
    import torch

    torch.set_num_threads(threads)


def _say(text: str, style: str = "") -> None:
    """A line on standard error."""
    err.print(Text(printable(text), style), soft_wrap=True)
