"""Options and helpers shared by commands. Results go to standard output, everything else to standard error."""

import os
import sys
from collections.abc import Callable
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


# Columns where a file or another program reads: nothing is wrapped there, or cut off.
_PIPED = 10_000
out = Console(width=None if "COLUMNS" in os.environ or (sys.stdout and sys.stdout.isatty()) else _PIPED)
err = Console(file=cast(IO[str], _Errors()))


def registered_names(kind: str) -> Callable[[str], list[str]]:
    """Completes the beginning of a registered name of this kind."""

    def complete(incomplete: str) -> list[str]:
        from fedsieve.config.installed import registered

        *before, last = incomplete.rpartition(",")  # the stages of a chain
        return ["".join(before) + name for name in registered(kind) if name.startswith(last)]

    return complete


SettingsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Any setting, e.g. attack.factor=5; of a grid, lists too, e.g. seed=[0,1]."
    ),
]
DatasetOption = Annotated[
    str | None,
    typer.Option(help="A name or a file of data.", show_default="digits", autocompletion=registered_names("datasets")),
]
ModelOption = Annotated[
    str | None,
    typer.Option(help="Model to train.", show_default="the dataset's", autocompletion=registered_names("models")),
]
AttackOption = Annotated[
    str | None,
    typer.Option(help="What malicious clients do.", show_default="none", autocompletion=registered_names("attacks")),
]
DefenseOption = Annotated[
    str | None,
    typer.Option(
        help="How the server aggregates.", show_default="skymask", autocompletion=registered_names("defenses")
    ),
]
ClientsOption = Annotated[int | None, typer.Option(help="Number of clients.", show_default="the dataset's")]
MaliciousOption = Annotated[
    str | None,
    typer.Option(
        metavar="NUMBER,...",
        help="Number of malicious clients, or their share; several, as in 0.2,0.4, are a grid.",
        show_default="a fifth",
    ),
]
RoundsOption = Annotated[int | None, typer.Option(help="Number of rounds.", show_default="50")]
SeedOption = Annotated[
    str | None,
    typer.Option(
        metavar="NUMBER,...", help="Decides all random numbers; several, as in 0,1,2, are a grid.", show_default="0"
    ),
]
DeviceOption = Annotated[
    str, typer.Option("--device", help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.")
]
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


def given(**options: Any) -> dict[str, Any]:
    """The settings among options, which are None where they are not given; several numbers are a list.

    Raises:
        ParameterError: If ``seed`` or ``malicious`` is something else than numbers.
    """
    found = {name: value for name, value in options.items() if value is not None}
    return found | {name: _numbers(name, found[name]) for name in ("seed", "malicious") if name in found}


def _numbers(option: str, text: str) -> Any:
    """A number, or a list of several."""
    from fedsieve.config.yaml_files import parse_yaml
    from fedsieve.core.errors import ParameterError

    found = []
    for part in text.split(","):
        try:
            number = parse_yaml(part)
        except ValueError:
            number = None
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ParameterError(f"--{option} takes a number, or several as in 0,1,2; got {shown(text)}")
        found.append(number)
    return found[0] if len(found) == 1 else found


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
        kind, colon, number = name.partition(":")
        if kind.lower() in ("gpu", "nvidia"):
            said = f"; did you mean cuda{colon}{number}?"
        elif str(error).startswith("Expected one of"):  # followed by all that torch has ever heard of
            said = "; there are auto, cpu, cuda (a GPU of NVIDIA or AMD), mps (Apple) and xpu (Intel)"
        else:
            said = f": {str(error).splitlines()[0]}; try cpu"
        raise ParameterError(f"can't compute on device {name!r}{said}") from error
    return device
