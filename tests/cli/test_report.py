"""`fedsieve report`."""

from collections.abc import Callable
from pathlib import Path

from tests.cli.conftest import Command, assert_mistake, words


def test_writes_tables_and_a_page(fedsieve_: Command, tmp_path: Path, make_run: Callable[..., Path]) -> None:
    folder = make_run("a", [0.5, 0.75]).parent
    make_run("b", [0.25, 0.5], defense="median")
    result = fedsieve_("report", str(folder), "--out", "here", "--quiet")
    assert result.code == 0, result.err
    assert words(result.out).startswith("2 runs, ")
    assert words(result.out).endswith("here/index.html")
    written = {path.name for path in (tmp_path / "here").iterdir()}
    assert {"tables.md", "tables.tex", "tables.csv", "index.html"} <= written
    loud = fedsieve_("report", str(folder), "--out", "here")
    assert len(loud.out.splitlines()) > len(result.out.splitlines())


def test_nothing_to_report(fedsieve_: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_mistake(fedsieve_("report", "empty"), "empty")
