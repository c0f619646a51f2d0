"""``fedsieve reproduce``."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from fedsieve.cli.options import TensorBoardFlag, folder, out
from fedsieve.cli.swept import CheckpointOption, JobsOption, ThreadsOption, swept
from fedsieve.core.escaping import printable


def reproduce(
    name: Annotated[str, typer.Argument(help="A table or figure; fedsieve reproduce list prints their names.")],
    scale: Annotated[str, typer.Option(help="smoke (a minute), small (half an hour on two cores) or paper.")] = "small",
    directory: Annotated[
        Path | None,
        typer.Option(
            "--out", parser=folder, help="Folder for tables and figures.", show_default="reproduced/NAME-SCALE"
        ),
    ] = None,
    runs: Annotated[Path, typer.Option(parser=folder, help="Folder for run directories.")] = Path("runs"),
    jobs: JobsOption = 2,
    threads: ThreadsOption = 1,
    ray: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Run on this Ray cluster instead.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.")] = "auto",
    checkpoint_every: CheckpointOption = 60.0,
    tables_only: Annotated[bool, typer.Option("--tables-only", help="Run nothing; use existing runs.")] = False,
    tensorboard: TensorBoardFlag = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Don't show progress.")] = False,
) -> None:
    """Rerun a published table or figure: our numbers beside the published ones, and which goals are not met.

    Runs that a sweep elsewhere has begun are waited for.
    """
    from fedsieve.core.errors import ParameterError
    from fedsieve.report.stored import Rounds, Stored
    from fedsieve.reproduce import SCALES, SUITES, tables
    from fedsieve.reproduce.comparison import compare
    from fedsieve.runs.cell import check_folder, finished
    from fedsieve.runs.files import one_line

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
    target = directory or Path("reproduced") / f"{name}-{scale}"
    check_folder(target, "tables and figures", make=True)  # before hours of computing
    if tables_only:
        errors = {e.key: "" for e in experiments}
    else:
        ends = swept(
            experiments,
            names,
            runs,
            jobs=jobs,
            threads=threads,
            ray=ray,
            device=device,
            checkpoint_every=checkpoint_every,
            wait=True,
            quiet=quiet,
            tensorboard=tensorboard,
        )
        errors = {key: end.error for key, end in ends.items()}
    records: dict[str, Rounds] = {}
    for e in experiments:
        if not errors[e.key]:
            stored = Stored(runs / e.key, e)  # its records stay on the disk
            errors[e.key] = next(iter(stored.problems), "") if finished(runs / e.key, e) else "not run"
            if not errors[e.key]:
                records[e.key] = stored
    found = compare(suite, plan, records, errors)
    how = f"`fedsieve reproduce {name} --scale {scale}`, {_versions()}, {time.strftime('%Y-%m-%d')}."
    with one_line(f"write tables and figures to {target}"):
        (target / f"{name}.md").write_text(tables.markdown(suite, plan, found, how), encoding="utf-8")
        tables.write_csv(found, target / f"{name}.csv")
        if suite.draw and records:
            suite.draw(plan, records, target / f"{name}.png")
    for table in tables.terminal(suite, found):
        out.print(table)
        out.print()
    out.print(Text("\n".join(tables.notes(plan, found))))
    out.print(Text(f"{printable(str(target))} ({time.perf_counter() - start:.0f} s)"), soft_wrap=True)
    if any(errors.values()):
        raise typer.Exit(1)


def _versions() -> str:
    from importlib.metadata import version

    return f"fedsieve {version('fedsieve')}, torch {version('torch')}"
