"""The command line: parse, call, print. Results go to standard output, everything else to standard error."""

import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:  # torch and all that imports it is imported where used, so that --help is instant
    import torch

    from fedsieve.types import RoundRecord

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Federated learning that survives malicious clients.",
)
data_app = typer.Typer(no_args_is_help=True, help="Datasets: what there is, fetch it, check it.")
app.add_typer(data_app, name="data")

out = Console()
err = Console(stderr=True)

TensorBoardFlag = Annotated[
    bool, typer.Option("--tensorboard", help="Write scalars for TensorBoard into each run directory.")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def main() -> None:
    """Entry point: a user's mistake exits 2 with one line, a failure of ours 1, an interruption 130."""
    sys.path.insert(0, "")  # so that package.module:Class finds what lies in the current folder
    try:
        app()
    except Exception as error:
        from fedsieve.types import FedSieveError

        if not isinstance(error, FedSieveError):
            raise
        err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)


@app.command()
def run(
    file: Annotated[Path | None, typer.Argument(help="An experiment as YAML; options override it.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, e.g. attack.factor=5.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="[default: digits]")] = None,
    model: Annotated[str | None, typer.Option(help="[default: the dataset's]")] = None,
    attack: Annotated[str | None, typer.Option(help="[default: none]")] = None,
    defense: Annotated[str | None, typer.Option(help="[default: skymask]")] = None,
    clients: Annotated[int | None, typer.Option(help="Clients in all. [default: the dataset's]")] = None,
    malicious: Annotated[int | None, typer.Option(help="Malicious ones among them. [default: a fifth]")] = None,
    rounds: Annotated[int | None, typer.Option(help="[default: 50]")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides every random number. [default: 0]")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.")] = "auto",
    directory: Annotated[
        Path | None, typer.Option("--out", help="Run directory. [default: runs/KEY of the experiment]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the directory's last checkpoint.")] = False,
    tensorboard: TensorBoardFlag = False,
    as_json: JsonFlag = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Run one experiment: a federation, an attack, a defense."""
    from fedsieve.data.store import data_folder
    from fedsieve.experiment import Experiment
    from fedsieve.report import text
    from fedsieve.report.progress import RunProgress
    from fedsieve.report.tensorboard import TensorBoard
    from fedsieve.runs import run as run_experiment

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
    chosen = _settings({k: v for k, v in options.items() if v is not None}, settings or [])
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
                device=_device(device),
                resume=resume,
                on_round=show,
            )
    except KeyboardInterrupt:
        err.print(f"interrupted; the same command with --resume goes on from {target}", soft_wrap=True)
        raise
    result = text.as_json(experiment, records, summary, time.perf_counter() - start, str(target))
    if as_json:
        typer.echo(json.dumps(result))
    else:
        out.print(f"{text.heading(experiment)}, {len(records)} rounds, seed {experiment.seed}")
        out.print(text.closing(result, records))


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="A grid as YAML: an experiment in which lists are choices.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting of the grid, e.g. seed=[0,1].")
    ] = None,
    directory: Annotated[Path, typer.Option("--out", help="Run directories go here, by key.")] = Path("runs"),
    jobs: Annotated[int, typer.Option(help="Cells at a time; each gets a share of the cores.", min=1)] = 2,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on this Ray cluster instead (auto: the one here).")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.")] = "auto",
    tensorboard: TensorBoardFlag = False,
    as_json: JsonFlag = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Run a grid of experiments; what is finished already is skipped, and a failure stops no other cell."""
    from fedsieve.experiment import read_yaml
    from fedsieve.sweep import expand

    experiments = expand(_settings(read_yaml(file), settings or []))
    names = {e.key: _name(e) for e in experiments}
    errors = _swept(experiments, names, directory, jobs, ray, device, quiet, tensorboard)
    failed = {key: error for key, error in errors.items() if error}
    if as_json:
        cells = [{"key": k, "name": names[k], "run_dir": str(directory / k), "error": e} for k, e in errors.items()]
        typer.echo(json.dumps({"cells": cells, "finished": len(errors) - len(failed), "failed": len(failed)}))
    else:
        for key, error in failed.items():
            out.print(f"[red]{names[key]}[/] ({key}): {escape(error.splitlines()[-1])}", soft_wrap=True)
        out.print(
            f"{len(errors) - len(failed)} of {len(errors)} cells are finished\nfedsieve report {directory} shows them"
        )
    if failed:
        raise typer.Exit(1)


@app.command()
def reproduce(
    name: Annotated[str, typer.Argument(help="A suite; fedsieve reproduce list prints them.")],
    scale: Annotated[str, typer.Option(help="smoke (a minute), small (half an hour on two cores) or paper.")] = "small",
    directory: Annotated[
        Path | None, typer.Option("--out", help="Tables and pictures go here. [default: reproduced/NAME-SCALE]")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Run directories go here, by key.")] = Path("runs"),
    jobs: Annotated[int, typer.Option(help="Cells at a time; each gets a share of the cores.", min=1)] = 2,
    ray: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Run on this Ray cluster instead.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.")] = "auto",
    tables_only: Annotated[bool, typer.Option("--tables-only", help="From the runs that are there.")] = False,
    tensorboard: TensorBoardFlag = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Rerun a published table or figure: ours beside theirs, cell by cell, and what falls short of its goal."""
    from fedsieve.runs import RunDirectory
    from fedsieve.suites import SCALES, SUITES, tables
    from fedsieve.suites.plan import compare
    from fedsieve.sweep import finished
    from fedsieve.types import ParameterError

    if name == "list":
        listing = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for column in ("suite", "what it is", *SCALES):
            listing.add_column(column)
        for suite in SUITES.values():
            sizes = [f"{suite.plan(s).size} runs" for s in SCALES]
            listing.add_row(suite.name, suite.summary, *sizes)
        out.print(listing)
        return
    if name not in SUITES:
        raise ParameterError(f"there is no suite {name!r}; there are {', '.join(SUITES)}")
    if scale not in SCALES:
        raise ParameterError(f"there is no scale {scale!r}; there are {', '.join(SCALES)}")
    suite, start = SUITES[name], time.perf_counter()
    plan = suite.plan(scale)
    cells = plan.cells()
    names = {e.key: ", ".join(map(str, label)) for label, e in cells.items()}
    experiments = list({e.key: e for e in cells.values()}.values())
    if tables_only:
        errors = {e.key: "" if finished(runs / e.key, e) else "not run" for e in experiments}
    else:
        errors = _swept(experiments, names, runs, jobs, ray, device, quiet, tensorboard)
    records = {key: RunDirectory(runs / key).records() for key, error in errors.items() if not error}
    found = compare(suite, plan, records, errors)
    target = directory or Path("reproduced") / f"{name}-{scale}"
    target.mkdir(parents=True, exist_ok=True)
    how = f"`fedsieve reproduce {name} --scale {scale}`, {_versions()}, {time.strftime('%Y-%m-%d')}."
    (target / f"{name}.md").write_text(tables.markdown(suite, plan, found, how), encoding="utf-8")
    tables.write_csv(found, target / f"{name}.csv")
    for table in tables.terminal(suite, found):
        out.print(table)
        out.print()
    if suite.draw and records:
        suite.draw(plan, records, target / f"{name}.png")
    out.print(f"{plan.note}\n{tables.verdict(found)}".strip())
    out.print(f"{target} ({time.perf_counter() - start:.0f} s)", soft_wrap=True)
    if any(errors.values()):
        raise typer.Exit(1)


@app.command()
def report(
    paths: Annotated[list[Path], typer.Argument(metavar="RUNS...", help="Run directories, or folders of them.")],
    directory: Annotated[Path, typer.Option("--out", help="Tables, figures and the page go here.")] = Path("report"),
    quiet: Annotated[bool, typer.Option("--quiet", help="Print no tables.")] = False,
) -> None:
    """Tables, figures and a page to browse, from records alone."""
    from fedsieve.report import figures, tables
    from fedsieve.report.load import load
    from fedsieve.report.page import write_page

    runs = load(paths)
    found = tables.grids(runs)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tables.md").write_text(tables.markdown(found, runs), encoding="utf-8")
    (directory / "tables.tex").write_text(tables.latex(found), encoding="utf-8")
    tables.write_csv(found, directory / "tables.csv")
    drawn = figures.draw_all(runs, found, directory / "figures")
    write_page(runs, directory / "index.html")
    if not quiet:
        for table in tables.terminal(found):
            out.print(table)
            out.print()
    for line in tables.problems(runs):
        err.print(f"[yellow]{escape(line)}[/]", soft_wrap=True)
    out.print(f"{len(runs)} runs, {len(found)} tables, {drawn} figures: {directory / 'index.html'}", soft_wrap=True)


@app.command()
def watch(
    directory: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    once: Annotated[bool, typer.Option("--once", help="Show how it stands and leave.")] = False,
) -> None:
    """Show a running experiment until it is finished; Ctrl-C leaves it running."""
    from fedsieve.report.watch import watch as show

    try:
        show(directory, out, once=once)
    except KeyboardInterrupt:
        out.print("the experiment itself goes on")


@app.command("list")
def list_(
    kind: Annotated[str | None, typer.Argument(help="attacks, defenses, datasets, models or partitions.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Print every registered name with its traits."""
    from fedsieve import registry
    from fedsieve.types import ParameterError

    if kind is not None and kind not in registry.KINDS:
        raise ParameterError(f"can't list {kind!r}; there are {', '.join(registry.KINDS)}")
    found = {
        k: [
            {
                "name": n,
                **({"stage": registry.stage(n)} if k == "defenses" else {}),
                **asdict(registry.traits(k, n)),
                "parameters": registry.complete(k, n, {}),
            }
            for n in registry.names(k)
        ]
        for k in ([kind] if kind else registry.KINDS)
    }
    if as_json:
        typer.echo(json.dumps(found))
        return
    for title, entries in found.items():
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(title, no_wrap=True)
        table.add_column("what it is", overflow="fold")
        table.add_column("needs", overflow="fold")
        for entry in entries:
            lines = [entry["summary"]]
            if kind:  # one kind asked for: room for all there is to know
                lines += [f"[dim]{escape(entry['paper'])}[/]"] if entry["paper"] else []
                lines += [f"[dim]{k} = {escape(_short(v))}[/]" for k, v in entry["parameters"].items()]
            stage = [entry["stage"]] if entry.get("stage", "rule") != "rule" else []
            needs = [*stage, *entry["needs"], *([entry["bound"]] if entry["bound"] else [])]
            table.add_row(entry["name"], "\n".join(lines), ", ".join(needs))
        out.print(table)
        out.print()
    if not kind:
        out.print("fedsieve list KIND adds papers and parameters.")


@data_app.command("list")
def data_list(as_json: JsonFlag = False) -> None:
    """Print every dataset, its files, and whether they are here."""
    from fedsieve import registry
    from fedsieve.data.store import data_folder

    folder = data_folder()
    rows = []
    for name in registry.names("datasets"):
        loader = registry.build("datasets", name, {})
        rows.append((name, _state(loader, folder), [file.path for file in loader.files()]))
    if as_json:
        found = [{"name": name, "state": state, "files": files} for name, state, files in rows]
        typer.echo(json.dumps({"folder": str(folder), "datasets": found}))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("dataset", "state", "original files"):
        table.add_column(column, no_wrap=column == "dataset")
    for name, state, files in rows:
        ours = f"any, by its path: --dataset table.{name}" if state == "yours" else "none: ships with a dependency"
        table.add_row(name, state, "\n".join(files) or ours)
    out.print(f"data folder: {folder} (set FEDSIEVE_DATA for another)", soft_wrap=True)
    out.print(table)


@data_app.command()
def fetch(names: Annotated[list[str], typer.Argument(help="Datasets, or all.")]) -> None:
    """Download the original files that are missing or broken, and check them."""
    from fedsieve.data.store import data_folder

    for name, loader in _loaders(names):
        loader.fetch(data_folder())
        out.print(f"{name}: complete")


@data_app.command()
def verify(names: Annotated[list[str], typer.Argument(help="Datasets, or all.")]) -> None:
    """Check the files' published checksums."""
    from fedsieve.data.store import data_folder

    for name, loader in _loaders(names):
        loader.verify(data_folder())
        out.print(f"{name}: checksums right")


# --- Helpers ------------------------------------------------------------------------------------------------


def _settings(options: dict[str, Any], pairs: list[str]) -> dict[str, Any]:
    """Options and ``--set`` pairs as nested settings; values are read as YAML."""
    from fedsieve.experiment import override, parse_yaml
    from fedsieve.types import ParameterError

    result = dict(options)
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise ParameterError(f"--set takes key=value, e.g. --set attack.factor=5, got {pair!r}")
        try:
            override(result, key, parse_yaml(value))
        except yaml.YAMLError as error:
            raise ParameterError(f"--set {key}: {value!r} is no YAML value") from error
    return result


def _name(experiment: Any) -> str:
    """What tells a cell from others, for people."""
    share = f"{experiment.n_malicious} of {experiment.clients}"
    return (
        f"{experiment.attack.name} / {experiment.defense.name}, {experiment.dataset.name}, "
        f"{experiment.partition.name}, {share}, seed {experiment.seed}"
    )


def _swept(
    experiments: list[Any],
    names: dict[str, str],
    directory: Path,
    jobs: int,
    ray: str | None,
    device: str,
    quiet: bool,
    tensorboard: bool,
) -> dict[str, str]:
    """Every cell's error, or "", by key, with a display meanwhile."""
    from fedsieve.data.store import data_folder
    from fedsieve.report.progress import SweepProgress
    from fedsieve.report.tensorboard import TensorBoard
    from fedsieve.sweep import sweep as run_all
    from fedsieve.sweep import sweep_on_ray

    where = str(_device(device))
    displays = [TensorBoard] if tensorboard else []
    if tensorboard:
        TensorBoard(directory)  # where it can't be imported, before any cell is played
    try:
        with SweepProgress(err, {e.key: e.rounds for e in experiments}, names, hidden=quiet) as progress:
            if ray is not None:
                return sweep_on_ray(experiments, directory, data_folder(), where, ray, progress.show, displays)
            return run_all(experiments, directory, data_folder(), where, jobs, progress.show, displays)
    except KeyboardInterrupt:
        err.print(f"interrupted; the same command goes on from {directory}", soft_wrap=True)
        raise


def _versions() -> str:
    from importlib.metadata import version

    return f"fedsieve {version('fedsieve')}, torch {version('torch')}"


def _device(name: str) -> "torch.device":
    import torch

    from fedsieve.types import ParameterError

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise ParameterError(f"can't compute on device {name!r}: {str(error).splitlines()[0]}; try cpu") from error
    return device


def _loaders(names: list[str]) -> list[tuple[str, Any]]:
    from fedsieve import registry

    if names != ["all"]:
        return [(name, registry.build("datasets", name, {})) for name in names]
    loaders = [(name, registry.build("datasets", name, {})) for name in registry.names("datasets")]
    return [(name, loader) for name, loader in loaders if not hasattr(loader, "file")]  # a file of the user's


def _state(loader: Any, folder: Path) -> str:
    from fedsieve.types import CorruptDataError, MissingDataError

    if hasattr(loader, "file"):
        return "yours"
    try:
        loader.verify(folder)
    except MissingDataError:
        return "missing"
    except CorruptDataError:
        return "broken"
    return "ready"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
