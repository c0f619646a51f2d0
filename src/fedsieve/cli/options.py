"""Options and helpers shared by commands. Results go to standard output, everything else to standard error."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console

if TYPE_CHECKING:  # commands import torch, and all that imports it, when they run: --help and list need neither
    import torch

out = Console()
err = Console(stderr=True)

TensorBoardFlag = Annotated[
    bool, typer.Option("--tensorboard", help="Write scalars for TensorBoard into each run directory.")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


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
        except yaml.YAMLError as error:
            raise ParameterError(f"--set {key}: {value!r} is not a YAML value") from error
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
