"""What the command line says about itself."""

import re
from importlib.metadata import version

import click
import pytest
import typer

from fedsieve.cli import app
from fedsieve.config.installed import registered
from tests.cli.conftest import Command, words

ROOT = typer.main.get_command(app)


def commands(command: click.Command = ROOT, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every command by its words, the whole command line included."""
    below = getattr(command, "commands", {})
    return [above, *(found for name, inner in below.items() for found in commands(inner, (*above, name)))]


def parameters(path: tuple[str, ...]) -> list[click.Parameter]:
    command = ROOT
    for name in path:
        command = command.commands[name]  # type: ignore[attr-defined]
    return command.params


def test_commands_are_found() -> None:
    assert {(), ("run",), ("sweep",), ("data",), ("data", "fetch")} <= set(commands())


@pytest.mark.parametrize("path", commands(), ids=lambda path: " ".join(path) or "fedsieve")
def test_every_default_is_said_and_nothing_is_cut_off(
    fedsieve_: Command, monkeypatch: pytest.MonkeyPatch, path: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = fedsieve_(*path, "--help")
    assert (result.code, result.err) == (0, "")
    assert "…" not in result.out
    assert not re.search(r"\w\.\.\.$", result.out.partition("Commands:")[2], re.MULTILINE)
    said = words(result.out).replace("- ", "-")
    for parameter in parameters(path):
        shown = getattr(parameter, "show_default", None)
        if isinstance(shown, str):
            assert f"[default: ({shown})" in said, parameter.name
        elif shown and parameter.default not in (None, False) and not callable(parameter.default):
            assert f"[default: {parameter.default}" in said, parameter.name
        if text := getattr(parameter, "help", ""):
            assert words(text).replace("- ", "-") in said


def test_defaults_with_brackets(fedsieve_: Command) -> None:
    assert "[default: (reproduced/NAME-SCALE[-ONLY])]" in words(fedsieve_("reproduce", "--help").out)
    assert "e.g. seed=[0,1]" in words(fedsieve_("sweep", "--help").out)


def test_version(fedsieve_: Command) -> None:
    result = fedsieve_("--version")
    assert (result.code, result.out, result.err) == (0, f"fedsieve {version('fedsieve')}\n", "")


class TestCompletion:
    def completed(self, fedsieve_: Command, monkeypatch: pytest.MonkeyPatch, *typed: str) -> list[str]:
        monkeypatch.setenv("_FEDSIEVE_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", " ".join(("fedsieve", *typed)))
        monkeypatch.setenv("COMP_CWORD", str(len(typed)))
        return fedsieve_().out.split()

    def test_commands(self, fedsieve_: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.completed(fedsieve_, monkeypatch, "re") == ["report", "reproduce"]

    @pytest.mark.parametrize("kind", ["attack", "defense", "dataset", "model"])
    def test_names(self, fedsieve_: Command, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
        known = list(registered(f"{kind}s"))
        start = known[0][:1]
        found = self.completed(fedsieve_, monkeypatch, "run", f"--{kind}", start)
        assert found == [name for name in known if name.startswith(start)]

    def test_chains(self, fedsieve_: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        found = self.completed(fedsieve_, monkeypatch, "run", "--defense", "sieve,trimmed")
        assert found == ["sieve,trimmed-mean"]

    def test_a_script_for_the_shell(self, fedsieve_: Command) -> None:
        assert "--install-completion" in fedsieve_("--help").out
