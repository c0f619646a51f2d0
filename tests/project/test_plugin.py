"""The example plugin: once installed, its attack and its defense are listed and run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parents[2] / "examples" / "plugin"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed package alone."""
    folder = tmp_path_factory.mktemp("site")
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--no-index")
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(folder), str(PLUGIN)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def fedsieve(site: Path, cwd: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-m", "fedsieve", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_is_listed(site: Path, tmp_path: Path) -> None:
    found = json.loads(fedsieve(site, tmp_path, "list", "--json"))
    attacks = {entry["name"]: entry for entry in found["attacks"]}
    defenses = {entry["name"]: entry for entry in found["defenses"]}
    assert attacks["echo"]["parameters"] == {"client": 0}
    assert attacks["echo"]["targets"] == ["updates"]
    assert defenses["centered-clipping"]["needs"] == ["state"]
    assert {"min-max", "scaling"} <= set(attacks)
    without = json.loads(fedsieve(tmp_path, tmp_path, "list", "--json"))
    assert "echo" not in {entry["name"] for entry in without["attacks"]}


def test_runs_alone_and_in_a_chain(site: Path, tmp_path: Path) -> None:
    settings = ("--attack", "echo", "--clients", "8", "--malicious", "2", "--rounds", "3", "--json", "--quiet")
    for defense in ("centered-clipping", "norm-clipping,centered-clipping"):
        result = json.loads(fedsieve(site, tmp_path, "run", "--defense", defense, *settings))
        assert (result["attack"], result["defense"], result["rounds"]) == ("echo", defense, 3)
        assert 0 < result["test_accuracy"] <= 1
