"""Reading YAML: ``1e-3`` is a number, tags that name Python objects are refused."""

import re
from pathlib import Path
from typing import Any

import yaml

from fedsieve.core.errors import ParameterError


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ParameterError: If the file cannot be read or holds no mapping.
    """
    try:
        found = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ParameterError(f"can't read {path}: {reason}") from error
    if not isinstance(found, dict):
        raise ParameterError(f"{path} holds no settings: a mapping such as 'dataset: digits' was expected")
    return found


def parse_yaml(text: str) -> Any:
    """The value of a YAML text. In YAML 1.1 ``1e-3`` is text (``1.0e-3`` is a number); here it is a number.

    >>> parse_yaml("{rate: 1e-3, name: krum}")
    {'rate': 0.001, 'name': 'krum'}
    """
    return _with_numbers(yaml.safe_load(text))


def _with_numbers(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _with_numbers(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_with_numbers(value) for value in tree]
    if isinstance(tree, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", tree):
        return float(tree)
    return tree
