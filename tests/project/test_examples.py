"""The scripts below examples can be imported; the plugin has a test of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_imports(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import {name}"],
        cwd=EXAMPLES,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_scripts_are_found() -> None:
    assert {"demo", "grid", "matrix"} <= set(SCRIPTS)


def test_the_demo_to_its_end(tmp_path: Path) -> None:
    """Two rounds of each run, the tables and the picture."""
    short = "import demo; demo.ROUNDS = 2; demo.main()"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(EXAMPLES)!r}); {short}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Benign rejected / malicious missed" in done.stdout
    assert (tmp_path / "demo" / "accuracy.png").stat().st_size > 10_000
