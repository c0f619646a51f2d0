"""``fedsieve watch``."""

from pathlib import Path
from typing import Annotated

import typer

from fedsieve.cli.options import out


def watch(
    directory: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    once: Annotated[bool, typer.Option("--once", help="Print the current state and exit.")] = False,
) -> None:
    """Show a running experiment until it is finished; Ctrl-C does not stop it."""
    from fedsieve.cli.live import watch as show

    try:
        show(directory, out, once=once)
    except KeyboardInterrupt:
        out.print("the experiment continues")
