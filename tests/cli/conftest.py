"""The command line, in this process and in one of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from fedsieve import cli
from tests.report.conftest import make_run  # noqa: F401 (a fixture)

# No server answers there, so no dataset can be downloaded.
OFFLINE = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
OFFLINE |= {"NO_PROXY": "", "no_proxy": "", "FEDSIEVE_MIRROR": ""}


class Result(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture
def fedsieve_(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """The command, in this process and in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDSIEVE_DATA", str(tmp_path / "data"))
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("fedsieve.data.store.PAUSE", 0.0)

    def call(*words: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["fedsieve", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        code = stop.value.code
        return Result(int(code) if code is not None else 0, out, err)

    return call


@pytest.fixture
def process(tmp_path: Path) -> Command:
    """The command, as a user runs it, in an empty folder."""

    def call(*words: str, module: str = "fedsieve") -> Result:
        env = {**os.environ, **OFFLINE, "FEDSIEVE_DATA": str(tmp_path / "data"), "PYTHONWARNINGS": "error"}
        done = subprocess.run(
            [sys.executable, "-m", module, *words], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return call


def words(text: str) -> str:
    """Without line breaks and columns."""
    return " ".join(text.split())


def assert_mistake(result: Result, said: str) -> None:
    """A user's mistake: exit 2, one clear line on standard error, nothing else anywhere."""
    assert result.code == 2
    assert result.out == ""
    assert len(result.err.splitlines()) == 1, result.err
    assert result.err.startswith("error: ")
    assert said in result.err
    assert "Traceback" not in result.err


QUICK = ("--rounds", "2", "--defense", "mean")
