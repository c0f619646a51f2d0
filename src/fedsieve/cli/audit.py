"""``fedsieve audit``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from fedsieve.cli.options import DeviceOption, JsonFlag, err, nested_settings, out, say, torch_device
from fedsieve.core.escaping import printable

if TYPE_CHECKING:
    from rich.progress import Progress

    from fedsieve.audit.audit import Audit


def audit(
    data: Annotated[str, typer.Argument(metavar="TABLE", help="A table, .npz file, folder of images or dataset.")],
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column with the classes.")] = None,
    site: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The column that says which site a row is from.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model to train, by name or module:Class.", show_default="logistic-regression")
    ] = None,
    trust: Annotated[
        list[str] | None, typer.Option(metavar="SITE", help="Draw the reference data from this site; may be repeated.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A table of trusted rows as reference data.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds of each federation.", show_default="40")] = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Number of splits and federations.")] = 3,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting of the federation, as of run.")
    ] = None,
    device: DeviceOption = "cpu",
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page of the audit there.")] = None,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the model of all sites there, as .safetensors.")
    ] = None,
    as_json: JsonFlag = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Don't show progress.")] = False,
) -> None:
    """Find out which of your sites is off: wrong labels or units, a drifting sensor, copied rows, or a cheat.

    Trains a federation over the sites as they are, and without each of them, and compares. Nobody attacks here, and no
    site is called malicious: a site is flagged where a measurement is beyond what is usual between your sites.
    """
    from fedsieve.audit.audit import Reference, n_rounds
    from fedsieve.audit.audit import audit as run_audit
    from fedsieve.audit.source import Source
    from fedsieve.audit.text import as_json as object_of
    from fedsieve.core.errors import ParameterError
    from fedsieve.data.store import data_folder

    if export:
        from fedsieve.federation.export import check_export

        check_export(export)
    if html and html.is_dir():
        raise ParameterError(f"can't write the page to {html}: it is a folder")
    if trust and reference:
        raise ParameterError("--trust and --reference are two sources of reference data: name one")
    options = {key: value for key, value in (("model", model), ("rounds", rounds)) if value is not None}
    columns = {key: value for key, value in (("dataset.label", label), ("dataset.client", site)) if value is not None}
    pairs = [f"{key}={json.dumps(value)}" for key, value in columns.items()]
    chosen = nested_settings({"dataset": data, **options}, [*pairs, *(settings or [])])
    folder, where = data_folder(), torch_device(device)
    source = Source.of(chosen, folder, reference)
    sites = source.experiment.clients
    with _bar(quiet) as bar:
        task = bar.add_task("rounds", total=n_rounds(sites, seeds, source.experiment.rounds))
        found = run_audit(
            source.load,
            source.experiment,
            seeds=range(seeds),
            folder=folder,
            device=where,
            rows=source.rows,
            reference=Reference(tuple(trust or ()), file=source.reference),
            on_round=lambda: bar.advance(task),
        )
    if export:
        from fedsieve.federation.export import exported, loading
        from fedsieve.runs.files import one_line, write

        with one_line(f"write {export}"):
            write(export, exported(found.watched.simulation, found.watched.state))
        say(f"the model is loaded by: {loading(found.watched.simulation, export)}")
    if html:
        from fedsieve.audit.page import write_page

        write_page(found, html)
    if as_json:
        typer.echo(json.dumps(object_of(found), ensure_ascii=False))
        return
    _print(found, html)


def _bar(hidden: bool) -> "Progress":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), BarColumn(20), TimeRemainingColumn(compact=True))
    return Progress(*columns, console=err, disable=hidden or not err.is_terminal, transient=True)


def _print(found: "Audit", html: Path | None) -> None:
    from fedsieve.audit.text import HEAD, explained, lines, splits

    say(found.reading)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in HEAD:
        table.add_column(name, overflow="fold", justify="left" if name in ("site", "verdict") else "right")
    for line, site in zip(lines(found), found.ordered, strict=True):
        table.add_row(*map(printable, line), style="yellow" if site.flagged else None)
    out.print(table)
    for note in (
        "own, all: balanced accuracy of the site's own model and of that of all sites on its held-out rows; "
        f"{splits(found)}.",
        "score: deviations from reference updates. without it: what the others gain, with its 95 % interval.",
        f"Reference data: {found.reference}.",
    ):
        out.print(Text(printable(note), style="dim"), soft_wrap=True)
    out.print()
    for text in explained(found):
        out.print(Text(printable(text)), soft_wrap=True)
    if html:
        out.print(Text(f"page: {printable(str(html))}"), soft_wrap=True)
