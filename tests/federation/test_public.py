"""The package's public names, and that importing it is cheap."""

import ast
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

import fedsieve


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_import_brings_nothing_heavy() -> None:
    run(
        "import sys, fedsieve\n"
        "assert fedsieve.__version__ and dir(fedsieve)\n"
        "found = {'torch', 'numpy', 'sklearn', 'pydantic', 'yaml', 'typer'} & set(sys.modules)\n"
        "assert not found, found"
    )


def test_one_line_aggregates() -> None:
    out = run("import fedsieve, torch; print(fedsieve.aggregate(torch.randn(10, 5), 'krum', n_malicious=2))")
    assert out.startswith("Aggregate(update=tensor(")


def test_dir_lists_the_public_names() -> None:
    assert dir(fedsieve) == sorted(fedsieve.__all__)
    assert set(dir(fedsieve)) >= {"aggregate", "detect", "root_data", "run", "Experiment", "Updates", "__version__"}


def test_every_public_name_is_there() -> None:
    assert len(fedsieve.__all__) >= 30
    for name in fedsieve.__all__:
        found = getattr(fedsieve, name)
        if name == "__version__":
            assert found == version("fedsieve")
        else:
            assert found is getattr(import_module(f"fedsieve.{fedsieve._HOMES[name]}"), name)
            assert found.__doc__


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(fedsieve.__file__).read_text(encoding="utf-8"))
    seen = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("fedsieve.")
        for alias in node.names
    }
    assert seen == {name: f"fedsieve.{home}" for name, home in fedsieve._HOMES.items()}
    assert {*seen, "__version__"} == set(fedsieve.__all__)


def test_another_name_is_an_error() -> None:
    with pytest.raises(AttributeError, match="module 'fedsieve' has no attribute 'agregate'"):
        fedsieve.agregate  # type: ignore[attr-defined]  # noqa: B018
