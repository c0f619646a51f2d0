"""``fedsieve report``."""

from pathlib import Path
from typing import Annotated

import typer

from fedsieve.cli.options import err, out
from fedsieve.core.escaping import printable


def report(
    paths: Annotated[list[Path], typer.Argument(metavar="RUNS...", help="Run directories, or folders of them.")],
    directory: Annotated[Path, typer.Option("--out", help="Folder for tables, figures and the page.")] = Path("report"),
    quiet: Annotated[bool, typer.Option("--quiet", help="Don't print the tables.")] = False,
) -> None:
    """Make tables, figures and an HTML page from the records of runs, with flags: what to doubt about the numbers."""
    from fedsieve.report import damage, figures, flags, tables
    from fedsieve.report.escaping import terminal
    from fedsieve.report.load import load
    from fedsieve.report.page import write_page
    from fedsieve.runs.files import one_line, write

    runs = load(paths)
    found, compared = tables.grids(runs), damage.compare(runs)
    rows, raised = damage.rows(runs, compared), flags.flags(runs, compared)
    with one_line(f"write the report to {printable(str(directory))}"):
        directory.mkdir(parents=True, exist_ok=True)
        parts = (flags.markdown(raised), tables.markdown(found, runs), damage.markdown(rows))
        write(directory / "tables.md", "\n".join(filter(None, parts)).encode())
        write(directory / "tables.tex", tables.latex(found).encode())
        tables.write_csv(found, directory / "tables.csv")
        damage.write_csv(rows, directory / "damage.csv")
        drawn = figures.draw_all(runs, found, directory / "figures")
        write_page(runs, directory / "index.html")
    if not quiet:
        for table in (*tables.terminal(found), *damage.terminal(rows)):
            out.print(table)
            out.print()
        for line in flags.lines(raised):
            out.print(terminal(line, "yellow"), soft_wrap=True)
    for line in tables.problems(runs):
        err.print(terminal(line, "yellow"), soft_wrap=True)
    said = f"{len(runs)} runs, {len(found)} tables, {drawn} figures: {directory / 'index.html'}"
    out.print(terminal(said), soft_wrap=True)
