"""A sweep shares its processes out to all GPUs, and knows when several would take turns on one."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsieve.runs import sweep as sweep_module
from fedsieve.runs.events import Event
from fedsieve.runs.gpus import devices_of, take_turns
from fedsieve.runs.grid import expand
from fedsieve.runs.sweep import sweep
from tests.runs.conftest import TINY
from tests.runs.test_sweep import InProcess


@pytest.fixture
def gpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """As many GPUs as the test asks for; returns the folder where MPS would listen."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("gpus", "device", "expected"),
    [
        (0, "cpu", ["cpu"]),
        (4, "cpu", ["cpu"]),
        (1, "cuda", ["cuda"]),
        (3, "cuda", ["cuda:0", "cuda:1", "cuda:2"]),
        (3, "cuda:1", ["cuda:1"]),
    ],
    indirect=["gpus"],
)
@pytest.mark.usefixtures("gpus")
def test_devices(device: str, expected: list[str]) -> None:
    assert devices_of(device) == expected


@pytest.mark.parametrize(
    ("gpus", "device", "jobs", "expected"),
    [
        (2, "cpu", 8, False),
        (1, "cuda", 1, False),
        (1, "cuda", 2, True),
        (2, "cuda", 2, False),
        (2, "cuda", 3, True),
        (2, "cuda:1", 2, True),
    ],
    indirect=["gpus"],
)
def test_turns(gpus: Path, device: str, jobs: int, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert take_turns(device, jobs) is expected
    (gpus / "control").touch()  # MPS listens
    assert not take_turns(device, jobs)
    (gpus / "control").unlink()
    monkeypatch.setattr(torch.version, "hip", "6.0")  # AMD's GPUs run several processes at once
    assert not take_turns(device, jobs)


@pytest.mark.parametrize("gpus", [3], indirect=True)
@pytest.mark.usefixtures("gpus")
def test_shared_out_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    ran: list[str] = []

    class Idle(InProcess):
        """Gives the cell's event back only once all are started."""

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            started.append(self.device)

    def runner(experiment: Any, path: Path, *, device: str, report: Any, **_: Any) -> None:
        ran.append(device)
        report(Event(experiment.key, "done", experiment.rounds))

    monkeypatch.setattr(sweep_module, "Worker", Idle)
    monkeypatch.setattr(sweep_module, "run_cell", runner)
    cells = expand({**TINY, "seed": list(range(7))})
    ends = sweep(cells, tmp_path, Path(), "cuda", 6, lambda _: None)
    assert all(end.finished for end in ends.values())
    assert Counter(started) == {"cuda:0": 2, "cuda:1": 2, "cuda:2": 2}
    assert set(ran) == set(started)
