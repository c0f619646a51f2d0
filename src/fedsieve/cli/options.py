"""Options and helpers shared by commands. Results go to standard output, everything else to standard error."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.text import Text

from fedsieve.core.escaping import printable, shown

if TYPE_CHECKING:  # commands import torch, and all that imports it, when they run: --help and list need neither
    import torch


class _Errors:
    """Standard error as far as it works: a terminal that is gone, or a full disk, must not end a run."""

    @property
    def encoding(self) -> str:
        return str(self._file().encoding)

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._file().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._file().flush()

    def isatty(self) -> bool:
        return bool(self._file().isatty())

    def fileno(self) -> int:
        return int(self._file().fileno())

    def _file(self) -> Any:
        return getattr(sys.stderr, "rich_proxied_file", sys.stderr)  # a progress bar puts itself in its place


out = Console()
err = Console(file=cast(IO[str], _Errors()))

TensorBoardFlag = Annotated[
    bool, typer.Option("--tensorboard", help="Write scalars for TensorBoard into each run directory.")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]

ImportsFlag = Annotated[
    bool,
    typer.Option("--allow-imports", help="Load the classes that FILE names as module:Class, which runs their code."),
]


def say(line: str) -> None:
    """Print a line to standard error; no character of it controls the terminal."""
    err.print(Text(printable(line)), soft_wrap=True)


def folder(text: str | Path) -> Path:
    """Parser of options that name a folder to write to.

    Raises:
        ParameterError: If there is no text: Path takes that for the current folder.
    """
    from fedsieve.core.errors import ParameterError

    if not str(text):
        raise ParameterError("the name of the folder to write to is empty; the current folder is .")
    return Path(text)


def nested_settings(options: dict[str, Any], pairs: list[str]) -> dict[str, Any]:
    """Options and ``--set`` pairs as nested settings; values of pairs are read as YAML.

    Raises:
        ParameterError: If a pair is not KEY=VALUE.
    """
    from fedsieve.config.merging import override
    from fedsieve.config.yaml_files import parse_yaml
    from fedsieve.core.errors import ParameterError

    result = dict(options)
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise ParameterError(f"--set takes key=value, e.g. --set attack.factor=5, got {pair!r}")
        try:
            override(result, key, parse_yaml(value))
        except ValueError as error:
            raise ParameterError(f"--set {key}: {shown(value)} is not a YAML value: {error}") from error
    return result


def torch_device(name: str) -> "torch.device":
    """The device of that name; ``auto`` is a GPU if there is one.

    Raises:
        ParameterError: If there is no such device.
    """
    import torch

    from fedsieve.core.errors import ParameterError

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise ParameterError(f"can't compute on device {name!r}: {str(error).splitlines()[0]}; try cpu") from error
    return device
