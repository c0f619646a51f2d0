"""``fedsieve report``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from fedsieve.cli.options import err, out


def report(
    paths: Annotated[list[Path], typer.Argument(metavar="RUNS...", help="Run directories, or folders of them.")],
    directory: Annotated[Path, typer.Option("--out", help="Folder for tables, figures and the page.")] = Path("report"),
    quiet: Annotated[bool, typer.Option("--quiet", help="Don't print the tables.")] = False,
) -> None:
    """Make tables, figures and an HTML page from the records of runs."""
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
