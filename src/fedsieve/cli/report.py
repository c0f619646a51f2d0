"""``fedsieve report``."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fedsieve.cli.options import ImportsFlag, err, folder, nested_settings, out, say
from fedsieve.core.escaping import printable

if TYPE_CHECKING:
    from fedsieve.report.load import Run


def report(
    paths: Annotated[list[Path], typer.Argument(metavar="RUNS", help="Run directories, or folders of them.")],
    grid: Annotated[
        Path | None, typer.Option("--grid", metavar="FILE", help="Only the runs of this grid, a YAML file.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="With --grid: what sweep was given.")
    ] = None,
    allow_imports: ImportsFlag = False,
    directory: Annotated[
        Path, typer.Option("--out", parser=folder, help="Folder for tables, figures and the page.")
    ] = Path("report"),
    one_table: Annotated[
        bool, typer.Option("--one-table", help="Of each measure one table, with all datasets and settings.")
    ] = False,
    figure_width: Annotated[
        Literal["column", "page"] | None,
        typer.Option(help="Width of the figures of curves.", show_default="a column for one panel, a page for more"),
    ] = None,
    parquet: Annotated[
        bool, typer.Option("--parquet", help="Write runs, rounds and their clients as Parquet files, too.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Don't print the tables.")] = False,
) -> None:
    """Make tables, figures and an HTML page from the records of runs, with flags: what to doubt about the numbers.

    Tables are Markdown, LaTeX and CSV files, figures PNG, PDF and SVG; runs.csv and rounds.csv have all numbers.
    """
    from fedsieve.core.errors import MissingPackageError, ParameterError
    from fedsieve.core.extras import extra
    from fedsieve.report import damage, flags, frame_files, tables
    from fedsieve.report.escaping import terminal
    from fedsieve.report.load import load
    from fedsieve.report.page import write_page
    from fedsieve.runs.files import one_line, write

    if settings and not grid:
        raise ParameterError("--set has no effect without --grid")
    if parquet:
        frame_files.needs_parquet()
    wanted = _keys(grid, settings or [], allow_imports) if grid else None
    runs = load(paths)
    if grid and wanted is not None:
        runs = _of_grid(runs, grid, wanted)
    found, compared = tables.grids(runs), damage.compare(runs)
    rows, raised = damage.rows(runs, compared), flags.flags(runs, compared)
    drawn = ""
    with one_line(f"write the report to {printable(str(directory))}"):
        directory.mkdir(parents=True, exist_ok=True)
        parts = (flags.markdown(raised), tables.markdown(found, runs, one_table), damage.markdown(rows))
        write(directory / "tables.md", "\n".join(filter(None, parts)).encode())
        write(directory / "tables.tex", tables.latex(found, one_table).encode())
        tables.write_csv(found, directory / "tables.csv")
        damage.write_csv(rows, directory / "damage.csv")
        frame_files.write_csv(runs, directory)
        if parquet:
            frame_files.write_parquet(runs, directory)
        write_page(runs, directory / "index.html")
        try:
            with extra("report", "drawing figures"):
                from fedsieve.report import figures

                drawn = f", {figures.draw_all(runs, found, directory / 'figures', figure_width)} figures"
        except MissingPackageError as error:
            say(f"no figures: {error}")
    if not quiet:
        for table in (*tables.terminal(found, out.width, one_table), *damage.terminal(rows, out.width)):
            out.print(table)
            out.print()
        for line in flags.lines(raised):
            out.print(terminal(line, "yellow"), soft_wrap=True)
    for line in tables.problems(runs):
        err.print(terminal(line, "yellow"), soft_wrap=True)
    said = f"{len(runs)} runs, {len(found)} tables{drawn}: {directory / 'index.html'}"
    out.print(terminal(said), soft_wrap=True)


def _keys(grid: Path, settings: list[str], allow_imports: bool) -> set[str]:
    """Keys of the experiments of a grid."""
    from fedsieve.cli.swept import grid_of

    return {e.key for e in grid_of(grid, nested_settings({}, settings), allow_imports)}


def _of_grid(runs: "list[Run]", grid: Path, wanted: set[str]) -> "list[Run]":
    """The runs of a grid; says which others are left out, and how many of the grid are missing.

    Raises:
        ParameterError: If there is none.
    """
    from fedsieve.core.errors import ParameterError
    from fedsieve.report.settings import differing, title
    from fedsieve.report.text import some

    keys = {run.path: run.experiment.key if run.experiment else None for run in runs}
    kept = [run for run in runs if keys[run.path] in wanted]
    others = [run for run in runs if keys[run.path] not in wanted]
    if not kept:
        raise ParameterError(
            f"none of the {len(runs)} runs is of {grid}, which has {len(wanted)}; what --set did sweep get?"
        )
    if others:
        different = differing([run.setting for run in runs if run.setting])
        counted = Counter(
            f"{run.attack} / {run.defense}, {title(run.setting, different)}" if run.setting else "unreadable settings"
            for run in others
        )
        what = some([f"{n} of {words}" for words, n in counted.most_common()], mark="; ")
        say(f"left out: {len(others)} of {len(runs)} runs, which are not of {grid}: {what}")
    if missing := len(wanted - {keys[run.path] for run in kept}):
        say(f"{missing} of the {len(wanted)} runs of {grid} are not there")
    return kept
