"""``fedsieve list``."""

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from fedsieve.cli.options import JsonFlag, out
from fedsieve.config.catalog import KINDS, Entry, entries
from fedsieve.core.errors import ParameterError
from fedsieve.core.escaping import printable

# Heading of a column that only this kind has.
_COLUMNS = {"defenses": "kind", "attacks": "changes"}


def list_(
    kind: Annotated[
        str | None, typer.Argument(help="attacks, defenses, datasets, models or partitions.", show_default="all")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Print every attack, defense, dataset, model and partition with what it needs."""
    if kind is not None and kind not in KINDS:
        raise ParameterError(f"can't list {kind!r}; there are {', '.join(KINDS)}")
    found = {k: entries(k) for k in ([kind] if kind else KINDS)}
    if as_json:
        typer.echo(json.dumps({k: [_as_json(k, entry) for entry in some] for k, some in found.items()}))
        return
    for title, some in found.items():
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(title, no_wrap=True)
        if column := _COLUMNS.get(title):
            table.add_column(column, overflow="fold")
        table.add_column("what it is", overflow="fold")
        table.add_column("needs", overflow="fold")
        for entry in some:
            traits, lines = entry.traits, []
            if kind:
                lines += [traits.paper] if traits.paper else []
                lines += [f"breaks at: {traits.breaks_at}"] if traits.breaks_at else []
                lines += [f"cost: {traits.cost}"] if traits.cost else []
                about = {k: f": {text}" for k, text in entry.about.items()}
                lines += [f"{k} = {_short(v)}{about.get(k, '')}" for k, v in entry.parameters.items()]
            what = Text("\n").join([Text(printable(traits.summary)), *(Text(printable(line), "dim") for line in lines)])
            needs = [*traits.needs, *([traits.bound] if traits.bound else [])]
            kinds = [entry.stage or ", ".join(entry.targets)] if title in _COLUMNS else []
            table.add_row(Text(printable(entry.name)), *kinds, what, Text(printable(", ".join(needs))))
        out.print(table)
        out.print()
    if not kind:
        out.print("fedsieve list KIND prints papers, costs and parameters too.")


def _as_json(kind: str, entry: Entry) -> dict[str, Any]:
    """One entry as ``--json`` prints it; ``stage`` is of defenses only, ``targets`` of attacks only."""
    found = {"name": entry.name, **asdict(entry.traits), "parameters": entry.parameters, "about": entry.about}
    if kind == "defenses":
        found["stage"] = entry.stage
    if kind == "attacks":
        found["targets"] = entry.targets
    return found


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
