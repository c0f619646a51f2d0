"""``fedsieve data list | fetch | verify``."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from fedsieve.cli.options import JsonFlag, out
from fedsieve.core.escaping import printable

data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, download and check datasets.")


@data_app.command("list")
def data_list(as_json: JsonFlag = False) -> None:
    """Print every dataset with its files and their state."""
    from fedsieve.config import registry
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
        without = f"any file, by its path: --dataset table.{name}" if state == "yours" else "none: part of scikit-learn"
        shown = [printable(text) for text in files] or [without]
        table.add_row(Text(printable(name)), state, Text("\n".join(shown)))
    out.print(Text(f"data folder: {printable(str(folder))} (FEDSIEVE_DATA sets another)"), soft_wrap=True)
    out.print(table)


@data_app.command(short_help="Download missing files, and check them.")
def fetch(names: Annotated[list[str], typer.Argument(help="Datasets, or all.")]) -> None:
    """Download original files that are missing or damaged, and check them."""
    from fedsieve.data.store import data_folder

    for name, loader in _loaders(names):
        loader.fetch(data_folder())
        out.print(Text(f"{printable(name)}: complete"))


@data_app.command()
def verify(names: Annotated[list[str], typer.Argument(help="Datasets, or all.")]) -> None:
    """Check files against their published checksums."""
    from fedsieve.data.store import data_folder

    for name, loader in _loaders(names):
        loader.verify(data_folder())
        out.print(Text(f"{printable(name)}: checksums match"))


def _loaders(names: list[str]) -> list[tuple[str, Any]]:
    from fedsieve.config import registry

    if names != ["all"]:
        return [(name, registry.build("datasets", name, {})) for name in names]
    loaders = [(name, registry.build("datasets", name, {})) for name in registry.names("datasets")]
    # csv and npz read files of the user's own
    return [(name, loader) for name, loader in loaders if not hasattr(loader, "file")]


def _state(loader: Any, folder: Path) -> str:
    from fedsieve.core.errors import CorruptDataError, MissingDataError

    if hasattr(loader, "file"):
        return "yours"
    try:
        loader.verify(folder)
    except MissingDataError:
        return "missing"
    except CorruptDataError:
        return "broken"
    return "ready"
