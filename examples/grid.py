"""Many experiments at once, for the tables below docs/results: helpers that the scripts beside this file share."""

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fedsieve import Experiment, FedSieveError, summarize
from fedsieve.cli.progress import SweepProgress
from fedsieve.data.store import data_folder
from fedsieve.report.text import markdown_table, number
from fedsieve.runs.directory import RunDirectory
from fedsieve.runs.sweep import sweep

OUT, RUNS = Path("docs/results"), Path("runs")
Cell = Mapping[str, Any]


def play_all(
    cells: Mapping[tuple[str, ...], Mapping[str, Any]], processes: int
) -> dict[tuple[str, ...], dict[str, Any]]:
    """Every cell's summary, or the error that kept it from running; prints what failed and what took longest."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    experiments = {}
    for name, settings in cells.items():
        try:
            experiments[name] = Experiment.of(settings)
        except FedSieveError as error:
            found[name] = {"error": str(error), "seconds": 0.0}
    rounds = {e.key: e.rounds for e in experiments.values()}
    names = {e.key: " ".join(name) for name, e in experiments.items()}
    with SweepProgress(Console(stderr=True), rounds, names, hidden=False) as progress:
        ends = sweep(list(experiments.values()), RUNS, data_folder(), "cpu", processes, progress.show, wait=True)
    errors = {key: end.error for key, end in ends.items()}
    for name, experiment in experiments.items():
        records = [] if errors[experiment.key] else RunDirectory(RUNS / experiment.key).records()
        summary = summarize(records) if records else {}
        seconds = sum(sum(record.seconds.values()) for record in records)
        found[name] = {**summary, "error": errors[experiment.key], "seconds": seconds}
    failed = {name: cell["error"] for name, cell in found.items() if cell["error"]}
    for name, why in failed.items():
        print(f"{' '.join(name)}: {why}")
    slow = sorted(found, key=lambda name: -found[name]["seconds"])[:3]
    print(f"{len(found)} runs, {len(failed)} without a result; slowest:", end=" ")
    print(", ".join(f"{' '.join(name)} {found[name]['seconds']:.0f} s" for name in slow))
    return {name: found[name] for name in cells}


def write_numbers(path: Path, heads: Sequence[str], cells: Mapping[tuple[str, ...], Cell]) -> None:
    """All numbers but the times, one line a run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = [key for key in max(cells.values(), key=len) if key != "seconds"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*heads, *fields])
        writer.writerows([*name, *(cell.get(field) for field in fields)] for name, cell in cells.items())


def read_numbers(path: Path, heads: Sequence[str]) -> dict[tuple[str, ...], dict[str, Any]]:
    """What :func:`write_numbers` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    return {
        tuple(line[head] for head in heads): {
            key: value if key == "error" else float(value) if value else None
            for key, value in line.items()
            if key not in heads
        }
        for line in lines
    }


def table(rows: Sequence[str], columns: Sequence[str], show: Callable[[str, str], str]) -> str:
    """A table in Markdown; ``show`` gives the text of (row, column)."""
    return markdown_table([["", *columns], *([row, *(show(row, column) for column in columns)] for row in rows)])


def rate(cell: Cell, name: str) -> str:
    """A rate in per cent, without the sign."""
    return "error" if cell["error"] else number(cell[name])


def replace_tables(page: Path, tables: str) -> None:
    """Put new tables between the page's two marks; what people wrote around them stays."""
    before, start, rest = page.read_text(encoding="utf-8").partition("<!-- tables -->\n")
    _, end, after = rest.partition("<!-- /tables -->\n")
    assert start, f"{page} has no place for tables"
    assert end, f"{page} has no end of the tables"
    page.write_text(f"{before}{start}\n{tables}\n\n{end}{after}", encoding="utf-8")
