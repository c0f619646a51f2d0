"""Sweeps on a Ray cluster."""

import subprocess
import sys
from pathlib import Path

import pytest

from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import FedSieveError
from fedsieve.runs.events import Event
from fedsieve.runs.grid import expand
from fedsieve.runs.lock import claimed
from fedsieve.runs.ray_cluster import sweep_on_ray
from fedsieve.runs.sweep import sweep
from tests.runs.conftest import TINY, lines_of


@pytest.mark.filterwarnings("ignore")  # what a cluster warns of is not ours
class TestRay:
    def test_without_ray(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(FedSieveError, match=r"pip install fedsieve\[ray\]"):
            sweep_on_ray([], tmp_path, Path(), "cpu", "auto", lambda event: None)

    @pytest.mark.parametrize("error", [ConnectionError("no such\ncluster"), OSError(), TypeError("a port is a number")])
    def test_without_a_cluster(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
        class Ray:
            @staticmethod
            def init(**_: object) -> None:
                raise error

        monkeypatch.setitem(sys.modules, "ray", Ray)
        with pytest.raises(FedSieveError) as told:
            sweep_on_ray([], tmp_path, Path(), "cpu", "nowhere:1", lambda event: None)
        assert str(told.value).startswith("there is no Ray cluster at 'nowhere:1': ")
        assert str(told.value).splitlines()[0].endswith(("no such", "OSError", "a port is a number"))
        assert "\n" not in str(told.value)

    def test_a_folder_that_cannot_be_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "ray", object())
        (tmp_path / "out").write_text("a file in the way")
        with pytest.raises(FedSieveError, match=f"can't write run directories to {tmp_path}/out: File exists"):
            sweep_on_ray([Experiment.of(TINY)], tmp_path / "out", Path(), "cpu", "auto", lambda event: None)

    def test_a_local_cluster_loses_a_worker(self, tmp_path: Path) -> None:
        ray = pytest.importorskip("ray")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
        try:
            cells = expand({**TINY, "rounds": 160, "defense": ["mean", "sieve"], "seed": [0, 1]})
            events: list[Event] = []
            victim = subprocess.Popen([sys.executable, "-c", KILLER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
            with claimed(tmp_path / cells[0].key):
                left = sweep_on_ray(cells[:1], tmp_path, Path(), "cpu", "auto", lambda event: None)
            ends = sweep_on_ray(cells, tmp_path, Path(), "cpu", "auto", events.append)
            assert "killed" in victim.communicate(timeout=60)[0]
        finally:
            ray.shutdown()
        assert left == {cells[0].key: Event(cells[0].key, "elsewhere")}
        assert list(ends) == [e.key for e in cells]
        assert {end.kind for end in ends.values()} == {"done"}
        straight = sweep(cells, tmp_path / "straight", Path(), "cpu", 2, lambda event: None)
        assert {end.kind for end in straight.values()} == {"done"}
        for cell in cells:
            assert lines_of(tmp_path / cell.key) == lines_of(tmp_path / "straight" / cell.key)
        assert {e.kind for e in events} == {"started", "done"}


# Kills the first worker that has run some rounds, from outside, as a machine that goes down would.
KILLER = """
import os, pathlib, signal, subprocess, sys, time
folder = pathlib.Path(sys.argv[1])
while not any(len(p.read_bytes().splitlines()) > 5 for p in folder.glob("*/records.jsonl")):
    time.sleep(0.02)
found = []
while not found:  # between two cells no worker has this title
    found = subprocess.run(["pgrep", "-f", "ray::_ray_cell"], capture_output=True, text=True).stdout.split()
os.kill(int(found[0]), signal.SIGKILL)
print("killed")
"""
