"""Tasks whose peak memory is measured, each in a process of its own: prints the bytes as JSON.

Usage: memory.py TASK NUMBERS, with the tasks and their numbers below.
"""

import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from inputs import Rounds

import fedsieve
from fedsieve import Experiment, Simulation
from fedsieve.data.store import data_folder
from fedsieve.models.resnet20 import ResNet20


def peak() -> int:
    """Bytes of the largest resident set of this process so far.

    Where the kernel tells it: ``ru_maxrss`` starts from that of the process that started this one.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def skymask_memory(n: int, device: str = "cpu") -> dict[str, float]:
    """SkyMask once, on n updates of ResNet20; on a GPU, ``peak`` is that of the memory allocated there."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ResNet20((3, 32, 32), 10).to(device)
    x, y = torch.randn(100, 3, 32, 32, generator=generator), torch.arange(100) % 10
    root = fedsieve.root_data(model, x, y)
    updates = torch.randn(n, root.layout.size, generator=generator).mul_(1e-3).to(device)
    updates[:, root.layout.n_parameters :] = 0
    before = peak()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    found = fedsieve.detect(updates, "skymask", root=root, mask_steps=2)
    assert found.accepted is not None
    most = torch.cuda.max_memory_allocated() if device != "cpu" else peak()
    return {"peak": most, "before": before, "matrix": updates.numel() * updates.element_size()}


def drawn(registered: int) -> dict[str, float]:
    """Rounds of registered clients who draw 100 samples each from the same 60,000."""
    return _three_rounds(registered, 60_000, {"name": "bootstrap", "samples": 100})


def dealt(registered: int, samples: int) -> dict[str, float]:
    """Rounds of registered clients among whom the same samples are dealt out, at least one for each."""
    return _three_rounds(registered, samples + 1000, {"name": "iid"})


def _three_rounds(registered: int, samples: int, partition: dict[str, Any]) -> dict[str, float]:
    settings = {
        "dataset": {"name": "inputs:Samples", "shape": [8], "classes": 2, "train": samples, "test": 1000},
        "model": "logistic-regression",
        "partition": partition,
        "clients": registered,
        "clients_per_round": min(100, registered),
        "attack": "label-flip",
        "defense": "momentum,trimmed-mean",
        "rounds": 3,
        "root": {"size": 100},
    }
    Rounds(Simulation.of(Experiment.of(settings), data_folder(), torch.device("cpu"))).play(3)
    return {"peak": peak()}


TASKS = {"skymask_memory": skymask_memory, "drawn": drawn, "dealt": dealt}

if __name__ == "__main__":
    task, *numbers = sys.argv[1:]
    print(json.dumps(TASKS[task](*map(int, numbers))))
