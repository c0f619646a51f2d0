"""`fedsieve report`."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Command, assert_mistake, words
from tests.report.conftest import record


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


def test_flags_and_damage(fedsieve_: Command, tmp_path: Path, make_run: Callable[..., Path]) -> None:
    reference = make_run("a", [0.5, 0.75], attack="none", defense="mean")
    attacked = make_run("b", [0.5, 0.75], attack="label-flip", defense="mean")
    result = fedsieve_("report", str(reference.parent), "--out", "here")
    assert (result.code, result.err) == (0, "")
    flag = (
        "harmless-attack: digits: label-flip costs the undefended mean +0.0 % of accuracy per round and +0.0 % in the "
        f"last tenth: what a defense does here shows nothing [{attacked}]; see docs/flags/harmless-attack.md"
    )
    assert f"flag {flag}" in result.out.splitlines()
    assert "accuracy lost against the run of the same seed without attack" in words(result.out).lower()
    text = (tmp_path / "here" / "tables.md").read_text()
    assert text.startswith("## Flags\n\n- harmless-attack: digits: label-flip costs")
    assert "## digits: damage" in text
    assert "| mean | label-flip | mean | 2 | 0.0 | 0.0 (round 1) | 0.0 | 0.00 | 0 | 0.0 |" in text
    lines = (tmp_path / "here" / "damage.csv").read_text().splitlines()
    assert lines[0].startswith("setting,defense,attack,reference,rounds,of_rounds,lost_per_round,")
    assert len(lines) == 3
    assert "flag" not in fedsieve_("report", str(reference.parent), "--out", "here", "--quiet").out


def test_nothing_to_report(fedsieve_: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_mistake(fedsieve_("report", "empty"), "empty")


def test_a_folder_from_a_stranger(process: Command, tmp_path: Path, make_run: Callable[..., Path]) -> None:
    """Nothing that it names is imported or run, and its run is shown by its names."""
    (tmp_path / "evil.py").write_text("open('ran', 'w')\nclass Evil: pass\n")
    popen = {"name": "subprocess:Popen", "args": ["touch", "ran"]}
    for k, changed in enumerate(
        ({"defense": {"name": "evil:Evil", "x": 1}, "attack": {"name": "evil:Evil"}}, {"defense": popen})
    ):
        path = make_run(str(k), [0.5], attack="none")
        settings = yaml.safe_load((path / "experiment.yaml").read_text())
        (path / "experiment.yaml").write_text(yaml.safe_dump({**settings, **changed}))
    result = process("report", str(path.parent))
    assert result.code == 0, result.err
    assert result.err == ""
    assert not (tmp_path / "ran").exists()
    text = (tmp_path / "report" / "tables.md").read_text()
    assert "evil:Evil (x=1)" in text
    assert "subprocess:Popen (args=['touch', 'ran'])" in text


def test_names_with_markup(fedsieve_: Command, tmp_path: Path, make_run: Callable[..., Path]) -> None:
    folder = make_run("[bold]x[/]", [0.5], attack="none", rounds=2)
    settings = yaml.safe_load((folder / "experiment.yaml").read_text())
    settings["defense"] = {"name": "[/]\x1b[2J $a$ :smile: \\input{x}"}
    (folder / "experiment.yaml").write_text(yaml.safe_dump(settings))
    (folder / "error.txt").write_text("no [/] memory\x1b[2J\n")
    result = fedsieve_("report", str(folder), "--out", "[red]o[/]\x07")
    assert result.code == 0, result.err
    assert "[/]\\x1b[2J $a$ :smile: \\input{x}" in " ".join(result.out.split())
    assert words(result.err).endswith("/[bold]x[/]: failed: no [/] memory\\x1b[2J")
    assert words(result.out).endswith("[red]o[/]\\x07/index.html")
    assert "\x1b[2J" not in result.out + result.err


def test_runs_that_changed_nothing_are_told(fedsieve_: Command, make_run: Callable[..., Path]) -> None:
    dropped = {"applied": False, "note": "no update is left", "screened": (0, 1), "screened_reasons": ("NaN", "NaN")}
    path = make_run("a", [], [record(k, 0.1, **dropped) for k in range(3)], rounds=3)
    result = fedsieve_("report", str(path), "--quiet")
    assert result.code == 0
    first, second = result.err.splitlines()
    assert first.endswith("a: model unchanged in 3 of 3 rounds: no update is left (3)")
    assert second.endswith("a: 6 updates screened in 3 rounds: NaN (6)")


def test_a_folder_that_cannot_be_written(fedsieve_: Command, tmp_path: Path, make_run: Callable[..., Path]) -> None:
    path = make_run("a", [0.5])
    (tmp_path / "file").write_text("")
    result = fedsieve_("report", str(path), "--out", "file/below")
    assert result.code in (1, 2)
    assert result.out == ""
    (line,) = result.err.splitlines()
    assert line == "error: can't write the report to file/below: Not a directory"


def test_a_path_that_cannot_be_read(fedsieve_: Command) -> None:
    assert_mistake(fedsieve_("report", "n" * 5000), "can't look for runs: ")


def test_without_matplotlib(
    fedsieve_: Command, tmp_path: Path, make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, and all that needs no drawing."""
    for name in ("matplotlib", "seaborn", *(n for n in sys.modules if n.split(".")[0] in ("matplotlib", "seaborn"))):
        monkeypatch.setitem(sys.modules, name, None)
    result = fedsieve_("report", str(make_run("a", [0.5, 0.75]).parent), "--out", "here", "--quiet")
    assert result.code == 0
    (line,) = result.err.splitlines()
    assert line.startswith("no figures: ")
    assert line.endswith(": pip install 'fedsieve[report]'")
    assert "figures" not in result.out
    written = {path.name for path in (tmp_path / "here").iterdir()}
    assert {"tables.md", "tables.tex", "tables.csv", "damage.csv", "index.html"} <= written


class TestOfAGrid:
    @pytest.fixture
    def runs(self, tmp_path: Path, make_run: Callable[..., Path]) -> str:
        """Four runs, two of them of the grid, which has three."""
        (tmp_path / "grid.yaml").write_text(
            "{dataset: digits, clients: 4, malicious: 1, rounds: 2, defense: [mean, median, trimmed-mean]}"
        )
        make_run("a", [0.5, 0.75], defense="mean")
        make_run("b", [0.25, 0.5], defense="median")
        make_run("c", [0.25], defense="median")
        return str((make_run("d", [0.9, 0.9], defense="median", seed=1) / "experiment.yaml").parent.parent)

    def test_others_are_left_out(self, fedsieve_: Command, tmp_path: Path, runs: str) -> None:
        result = fedsieve_("report", runs, "--grid", "grid.yaml", "--quiet")
        assert result.code == 0
        assert result.out.startswith("2 runs, ")
        assert result.err.splitlines() == [
            "left out: 2 of 4 runs, which are not of grid.yaml: "
            "1 of none / median, digits, rounds 1; 1 of none / median, digits, rounds 2",
            "1 of the 3 runs of grid.yaml are not there",
        ]
        assert "90.0" not in (tmp_path / "report" / "tables.md").read_text()

    def test_settings_of_the_sweep(self, fedsieve_: Command, runs: str) -> None:
        result = fedsieve_("report", runs, "--grid", "grid.yaml", "--set", "seed=1", "--quiet")
        assert result.code == 0
        assert result.out.startswith("1 runs, ")
        assert "2 of the 3 runs of grid.yaml are not there" in result.err

    def test_none(self, fedsieve_: Command, tmp_path: Path, runs: str) -> None:
        said = "none of the 4 runs is of grid.yaml, which has 3; what --set did sweep get?"
        assert_mistake(fedsieve_("report", runs, "--grid", "grid.yaml", "--set", "seed=9"), said)
        assert_mistake(fedsieve_("report", runs, "--set", "seed=9"), "--set has no effect without --grid")
        (tmp_path / "grid.yaml").write_text("defense: evil:Evil")
        assert_mistake(fedsieve_("report", runs, "--grid", "grid.yaml"), "--allow-imports")
