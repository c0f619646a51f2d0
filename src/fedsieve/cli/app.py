"""All commands of the command line, and its exit codes."""

import sys

import typer
from rich.markup import escape

from fedsieve.cli.data import data_app
from fedsieve.cli.list import list_
from fedsieve.cli.options import err
from fedsieve.cli.report import report
from fedsieve.cli.reproduce import reproduce
from fedsieve.cli.run import run
from fedsieve.cli.sweep import sweep
from fedsieve.cli.watch import watch
from fedsieve.core.errors import FedSieveError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Federated learning that survives malicious clients.",
)
for command in (run, sweep, report, reproduce, watch):
    app.command()(command)
app.command("list")(list_)
app.add_typer(data_app, name="data")


def main() -> None:
    """Run the command line. Exit codes: 2 for a user's mistake, 1 for a failure of ours, 130 if interrupted."""
    sys.path.insert(0, "")  # so that package.module:Class finds modules in the current folder
    try:
        app()
    except FedSieveError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
