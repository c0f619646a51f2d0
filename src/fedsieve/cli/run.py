"""``fedsieve run``."""

import json
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

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
    err,
    folder,
    given,
    nested_settings,
    out,
    torch_device,
)
from fedsieve.cli.swept import CheckpointOption, grid_of, play_all
from fedsieve.core.escaping import printable
from fedsieve.runs.signals import interruptible

if TYPE_CHECKING:
    from fedsieve.config.experiment import Experiment
    from fedsieve.core.records import RoundRecord


def run(
    file: Annotated[Path | None, typer.Argument(help="An experiment as a YAML file; options override it.")] = None,
    settings: SettingsOption = None,
    dataset: DatasetOption = None,
    model: ModelOption = None,
    attack: AttackOption = None,
    defense: DefenseOption = None,
    clients: ClientsOption = None,
    malicious: MaliciousOption = None,
    rounds: RoundsOption = None,
    seed: SeedOption = None,
    device: DeviceOption = "auto",
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
    checkpoint_every: CheckpointOption = 60.0,
    export: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=folder,
            help="Write the final model there, a state dict as .safetensors, and say how to load it.",
        ),
    ] = None,
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
    from fedsieve.config.yaml_files import read_yaml
    from fedsieve.core.errors import ParameterError
    from fedsieve.runs.grid import several

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
    chosen = nested_settings(options, settings or [])
    if file and (lists := several(read_yaml(file))):
        raise ParameterError(f"{file} is a grid, with a list for {', '.join(lists)}: fedsieve sweep {file} runs it")
    if lists := several(chosen):
        if fresh:
            raise ParameterError(f"--fresh replaces one run, and the lists for {', '.join(lists)} make several")
        if export:
            raise ParameterError(f"--export writes one model, and the lists for {', '.join(lists)} make several")
        play_all(
            grid_of(file, chosen, allow_imports, chain=True),
            directory or Path("runs"),
            jobs=1,
            threads=threads or _cores(),
            device=device,
            checkpoint_every=checkpoint_every,
            tensorboard=tensorboard,
            as_json=as_json,
            quiet=quiet,
        )
        return
    experiment = Experiment.read(file, chosen, allow_imports) if file else Experiment.of(chosen)
    target = directory or Path("runs") / experiment.key
    if resume and directory is None:
        _refuse_to_start_over(target, experiment)
    if threads:
        _use(threads)
    start, reading, load = time.perf_counter(), "", ""
    with interruptible() as interruption, ExitStack() as stack:

        def started(text: str) -> None:
            nonlocal reading
            reading = text
            if text and not quiet:
                _say(text, "dim")

        def written(line: str) -> None:
            nonlocal load
            load = line

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
                export=export,
                on_export=written,
                on_start=started,
                on_note=_say,
            )
        except KeyboardInterrupt as error:
            how = "--resume in place of --fresh" if fresh else "--resume"
            _say(f"interrupted; the same command with {how} continues from {target}")
            for note in getattr(error, "__notes__", ()):
                _say(note)
            raise typer.Exit(interruption.code) from None
    seconds = time.perf_counter() - start
    exported = {"file": str(export), "load": load} if export else None
    _report(experiment, target, summary, exported, as_json, reading=reading, seconds=seconds)


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
    from fedsieve.runs.directory import RunDirectory
    from fedsieve.runs.run import run as run_experiment

    where = torch_device(device)
    progress = RunProgress(err, experiment.rounds, experiment.dataset.name, RunDirectory(out).read_names, hidden=quiet)
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
    experiment: "Experiment",
    target: Path,
    summary: dict[str, Any],
    exported: dict[str, str] | None,
    as_json: bool,
    **known: Any,
) -> None:
    """Print the results of a run, and to standard error what is wrong with them."""
    from fedsieve.report import flags, scores, text
    from fedsieve.runs.directory import RunDirectory

    directory = RunDirectory(target)
    names, final = directory.read_names(), directory.read_scores(experiment.rounds)
    known |= {"run_dir": str(target), "names": names, "scores": final}
    result = {**text.as_json(experiment, directory.iter_records(), summary, **known), "export": exported}
    if warning := text.warning(result):
        _say(f"warning: {warning}", "bold yellow")
    raised = flags.of_run(experiment, summary, result["rounds"], str(target), names)
    for line in flags.lines(raised):
        _say(line, "yellow")
    if as_json:
        typer.echo(json.dumps({**result, "flags": [flag.as_json() for flag in raised]}))
    else:
        out.print(f"{text.heading(experiment)}, {result['rounds']} rounds, seed {experiment.seed}")
        out.print(text.closing(result, names))
        for table in scores.tables(final) if final else []:
            out.print()
            out.print(table)
        if exported:
            out.print(
                Text(f"\n{exported['file']} holds the final model; in Python:\n{exported['load']}"), soft_wrap=True
            )


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


def _cores() -> int:
    """Threads that one run computes with by itself."""
    import torch

    return torch.get_num_threads()


def _use(threads: int) -> None:
    """Compute with so many threads from now on."""
    import torch

    torch.set_num_threads(threads)


def _say(text: str, style: str = "") -> None:
    """A line on standard error."""
    err.print(Text(printable(text), style), soft_wrap=True)
