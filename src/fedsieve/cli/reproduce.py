"""``fedsieve reproduce``."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fedsieve.cli.options import TensorBoardFlag, out
from fedsieve.cli.swept import swept


def reproduce(
    name: Annotated[str, typer.Argument(help="A table or figure; fedsieve reproduce list prints their names.")],
    scale: Annotated[str, typer.Option(help="smoke (a minute), small (half an hour on two cores) or paper.")] = "small",
    directory: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for tables and figures.", show_default="reproduced/NAME-SCALE"),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder for run directories.")] = Path("runs"),
    jobs: Annotated[int, typer.Option(help="Runs at a time; each gets a share of the cores.", min=1)] = 2,
    ray: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Run on this Ray cluster instead.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.")] = "auto",
    tables_only: Annotated[bool, typer.Option("--tables-only", help="Run nothing; use existing runs.")] = False,
    tensorboard: TensorBoardFlag = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Don't show progress.")] = False,
) -> None:
    """Rerun a published table or figure: our numbers beside the published ones, and which goals are not met."""
    from fedsieve.core.errors import ParameterError
    from fedsieve.reproduce import SCALES, SUITES, tables
    from fedsieve.reproduce.plan import compare
    from fedsieve.runs.cell import finished
    from fedsieve.runs.directory import RunDirectory

    if name == "list":
        listing = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for column in ("name", "what it is", *SCALES):
            listing.add_column(column)
        for suite in SUITES.values():
            sizes = [f"{suite.plan(s).size} runs" for s in SCALES]
            listing.add_row(suite.name, suite.summary, *sizes)
        out.print(listing)
        return
    if name not in SUITES:
        raise ParameterError(f"can't reproduce {name!r}; there are {', '.join(SUITES)}")
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
        errors = swept(experiments, names, runs, jobs, ray, device, quiet, tensorboard)
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
    out.print("\n".join(tables.notes(plan, found)))
    out.print(f"{target} ({time.perf_counter() - start:.0f} s)", soft_wrap=True)
    if any(errors.values()):
        raise typer.Exit(1)


def _versions() -> str:
    from importlib.metadata import version

    return f"fedsieve {version('fedsieve')}, torch {version('torch')}"
