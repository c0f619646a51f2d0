"""``fedsieve reproduce``."""

import re
import shlex
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from fedsieve.cli.options import TensorBoardFlag, folder, out, say, torch_device
from fedsieve.cli.swept import CheckpointOption, JobsOption, ThreadsOption, swept
from fedsieve.core.escaping import printable


def reproduce(
    name: Annotated[str, typer.Argument(help="A table or figure; fedsieve reproduce list prints their names.")],
    scale: Annotated[str, typer.Option(help="smoke (a minute), small (half an hour on two cores) or paper.")] = "small",
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="TEXT",
            help="Groups, rows or columns whose label contains this (=TEXT: is this). Texts of one kind add up, and "
            "the three kinds narrow each other.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Run nothing; print what is left to run, and about how long it takes.")
    ] = False,
    directory: Annotated[
        Path | None,
        typer.Option(
            "--out", parser=folder, help="Folder for tables and figures.", show_default="reproduced/NAME-SCALE[-ONLY]"
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

    Runs that are finished are not run again, and others go on where they stopped, also on another machine: copy the
    folder of run directories. Runs that a sweep elsewhere has begun are waited for.
    """
    from fedsieve.cli import outlook
    from fedsieve.core.errors import ParameterError
    from fedsieve.data.store import data_folder
    from fedsieve.report.stored import Rounds, Stored
    from fedsieve.reproduce import SCALES, SUITES, tables
    from fedsieve.reproduce.comparison import compare
    from fedsieve.reproduce.forecast import forecast, rounds_done
    from fedsieve.reproduce.only import only as narrowed
    from fedsieve.runs.cell import check_folder
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
    plan, part = suite.plan(scale), ""
    if only:
        plan, part = narrowed(suite, plan, only)
        say(part)
    if dry_run:
        where = torch_device(device)
        if not quiet:
            say(outlook.ESTIMATING)
        found = forecast(plan, runs, data_folder(), where, threads)
        outlook.show(found, ("group", "row", "column"), str(where), jobs, threads)
        return
    cells = plan.cells()
    names = {e.key: ", ".join(map(str, label)) for label, e in cells.items()}
    experiments = list({e.key: e for e in cells.values()}.values())
    target = directory or Path("reproduced") / "-".join([name, scale, *map(_slug, only or [])])
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
            done = rounds_done(runs / e.key, e)
            missing = f"not finished: round {done:,} of {e.rounds:,}" if done else "not run"
            errors[e.key] = next(iter(stored.problems), "") if done == e.rounds else missing
            if not errors[e.key]:
                records[e.key] = stored
    compared = compare(suite, plan, records, errors)
    options = "".join(f" --only {shlex.quote(text)}" for text in only or [])
    how = (
        f"`fedsieve reproduce {name} --scale {scale}{printable(options)}`, {_versions()}, {time.strftime('%Y-%m-%d')}."
    )
    with one_line(f"write tables and figures to {target}"):
        (target / f"{name}.md").write_text(tables.markdown(suite, plan, compared, how, part), encoding="utf-8")
        tables.write_csv(compared, target / f"{name}.csv")
        if suite.draw and records:
            suite.draw(plan, records, target / f"{name}.png")
    if part:
        out.print(Text(part))
    for table in tables.terminal(suite, compared, out.width):
        out.print(table)
        out.print()
    out.print(Text("\n".join(tables.notes(plan, compared))))
    out.print(Text(f"{printable(str(target))} ({time.perf_counter() - start:.0f} s)"), soft_wrap=True)
    if any(errors.values()):
        raise typer.Exit(1)


def _slug(text: str) -> str:
    """A text as a part of a folder's name."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "only"


def _versions() -> str:
    from importlib.metadata import version

    return f"fedsieve {version('fedsieve')}, torch {version('torch')}"
