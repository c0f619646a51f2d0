"""The scripts and the grids below examples; the plugin has a test of its own."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fedsieve.reproduce.invariant import INVARIANT
from fedsieve.runs.grid import expand

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))


def python(*arguments: str, cwd: Path) -> str:
    """What Python prints with these arguments; its exit status is 0."""
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_imports(name: str) -> None:
    python("-W", "error", "-c", f"import {name}", cwd=EXAMPLES)


def test_scripts_are_found() -> None:
    assert {"demo", "grid", "matrix"} <= set(SCRIPTS)


def test_the_demo_to_its_end(tmp_path: Path) -> None:
    """Two rounds of each run, the tables and the picture."""
    short = "import demo; demo.ROUNDS = 2; demo.main()"
    printed = python("-c", f"import sys; sys.path.insert(0, {str(EXAMPLES)!r}); {short}", cwd=tmp_path)
    assert "Benign rejected / malicious missed" in printed
    assert (tmp_path / "demo" / "accuracy.png").stat().st_size > 10_000


def test_the_grid_on_texts(tmp_path: Path) -> None:
    """Its 26 cells, and one of them on a small table for a round."""
    grid = yaml.safe_load((EXAMPLES / "tweets.yaml").read_text())
    cells = expand(grid)
    assert {(cell.attack.name, cell.rounds, cell.clients_per_round) for cell in cells} == {
        ("phrase", 500, 20),
        ("none", 500, 20),
    }
    assert (len(cells), len({cell.defense.name for cell in cells})) == (26, 10)
    rows = [f"{k % 2}\t{('so good', 'so bad')[k % 2]} i watched it {k}" for k in range(200)]
    (tmp_path / "few.tsv").write_text("\n".join(rows))
    small = ("dataset.file=few.tsv", "clients=4", "clients_per_round=2", "malicious=1", "rounds=1", "root.size=6")
    python(
        *("-m", "fedsieve", "sweep", str(EXAMPLES / "tweets.yaml")),
        *(part for setting in small for part in ("--set", setting)),
        *("--attack", "phrase", "--defense", "mean", "--jobs", "1", "--device", "cpu"),
        cwd=tmp_path,
    )
    assert len(list(tmp_path.glob("runs/*/scores.json"))) == 1


def test_the_grid_on_images() -> None:
    """Its 26 cells, with the settings of ``fedsieve reproduce invariant`` but for the precision."""
    cells = expand(yaml.safe_load((EXAMPLES / "edge-cases.yaml").read_text()))
    suite = next(suite for suite in INVARIANT if suite.name == "invariant")
    planned = [
        experiment
        for (group, _, _, seed), experiment in suite.plan("paper").cells().items()
        if group.startswith("cifar10") and seed == 0
    ]
    assert len(cells) == len(planned) == 26
    full = [cell.model_copy(update={"local": cell.local.model_copy(update={"precision": "float32"})}) for cell in cells]
    assert {cell.key for cell in full} == {cell.key for cell in planned}
