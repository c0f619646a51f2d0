"""Rules at their edges: what docs/edges.md says is what they do, and none of it is a traceback, NaN or a wrong type."""

import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "edges.md"

# What every rule must do in each column; f and its bound only where the rule has one.
PROMISED = {
    "NaN, inf": {"error"},
    "3e38": {"finite"},
    "1e-38, 1e-45": {"finite"},
    "1e300": {"finite"},
    "zeros": {"finite"},
    "half": {"same"},
    "integers": {"error"},
    "grad": {"same"},
    "shape": {"error"},
    "n = 1": {"finite"},
    "views": {"same"},
    "meta": {"error"},
    "f": {"bound", ""},
    "f < 0": {"error", ""},
}
BY_NAME = {"NaN, inf": {"dropped"}, "f": {"bound / finite", ""}}


def cells() -> dict[str, dict[str, str]]:
    """The page's first table, by rule and column."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").partition("| column |")[0].splitlines() if "|" in line]
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): dict(zip(header[1:], row[1:], strict=True)) for row in rows}


def test_the_page_says_what_the_rules_do() -> None:
    # in a process of its own, where arguments of a wrong type reach the functions, as they do for users
    maker = Path(__file__).with_name("make_edges.py")
    made = subprocess.run([sys.executable, maker, "--print"], capture_output=True, text=True, check=True)
    assert PAGE.read_text(encoding="utf-8") == made.stdout, "run tests/project/make_edges.py"


@pytest.mark.parametrize("column", PROMISED)
def test_every_rule_keeps_its_promise(column: str) -> None:
    for name, found in cells().items():
        allowed = BY_NAME.get(column, PROMISED[column]) if name.startswith("fedsieve.") else PROMISED[column]
        assert found[column] in allowed, name


def test_all_are_there() -> None:
    assert all(set(found) == set(PROMISED) for found in cells().values())
    assert len(cells()) == 19
    assert cells()["krum(x, f)"]["f"] == "bound"
