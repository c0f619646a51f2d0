"""All commands of the command line, and its exit codes."""

import os
import sys
from contextlib import suppress
from typing import Annotated

import typer
from rich.text import Text

from fedsieve.cli.audit import audit
from fedsieve.cli.data import data_app
from fedsieve.cli.list import list_
from fedsieve.cli.options import err, say
from fedsieve.cli.report import report
from fedsieve.cli.reproduce import reproduce
from fedsieve.cli.run import run
from fedsieve.cli.sweep import sweep
from fedsieve.cli.watch import watch
from fedsieve.config.imports import announced
from fedsieve.core.errors import FedSieveError, StorageError
from fedsieve.core.escaping import printable

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # else square brackets in help texts are markup, and lines are cut off
    help="Federated learning that survives malicious clients.",
)
# in the overview of all commands, where the first line of a docstring would be cut off
app.command(short_help="Run one experiment.")(run)
app.command(short_help="Run a grid of experiments.")(sweep)
app.command(short_help="Make tables, figures and a page of runs.")(report)
app.command(short_help="Find out which of your sites is off.")(audit)
app.command(short_help="Rerun a published table or figure.")(reproduce)
app.command(short_help="Show a running experiment.")(watch)
app.command("list", short_help="Print what there is, and what it needs.")(list_)
app.add_typer(data_app, name="data")


def _version(wanted: bool) -> bool:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"fedsieve {version('fedsieve')}")
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line.

    Exit codes: 2 for a user's mistake; 1 for a failure of ours, of the machine (a full disk, no memory) or of a cell of
    a sweep; 128 and the number of the signal if interrupted.
    """
    try:
        try:
            with announced(say):
                app(prog_name="fedsieve")
        finally:
            sys.stdout.flush()
    except StorageError as error:
        _say(str(error))
        sys.exit(1)
    except FedSieveError as error:
        _say(str(error))
        sys.exit(2)
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # whoever read the output has seen enough
            _say(f"{error.filename or 'input or output'}: {error.strerror or error}")
        with suppress(OSError, ValueError):  # what is still to be written to it can't be
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        said = str(error) or "Python could not allocate what was asked for"
        # torch has a type of its own for a GPU's memory, and none for the machine's
        if not (isinstance(error, MemoryError) or "allocate memory" in said or "out of memory" in said):
            raise
        _say(f"out of memory: {said.splitlines()[0]}; try fewer clients_per_round, a smaller model or smaller batches")
        sys.exit(1)


def _say(error: str) -> None:
    err.print(Text.assemble(("error:", "bold red"), f" {printable(error)}"), soft_wrap=True)
