"""Runs a grid of experiments on a Ray cluster."""

from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import FedSieveError
from fedsieve.runs.cell import CellRunner, check_folder, look_again, run_cell, split, write_error
from fedsieve.runs.events import Displays, Event, Watch, quietly

# How long interrupted cells may write their checkpoints.
_SECONDS_TO_SAVE = 30.0


def sweep_on_ray(
    experiments: Sequence[Experiment],
    out: Path,
    data: Path,
    device: str,
    address: str,
    watch: Watch,
    displays: Displays = (),
    *,
    threads: int = 1,
    checkpoint_every: float = 60.0,
    wait: bool = False,
) -> dict[str, Event]:
    """Run every experiment that is not finished on a Ray cluster; all its machines must see the same folders.

    A cell is run again by another worker if its worker dies. A cell that another process runs is looked at again when
    all others have ended, as :func:`fedsieve.runs.sweep.sweep` does.

    Args:
        experiments: The cells.
        out: Run directories go here, by key.
        data: Folder of the datasets.
        device: Where to compute; for ``cuda``, each cell asks Ray for one GPU.
        address: Of the cluster, as ``ray.init`` takes it.
        watch: Called with every event but rounds. If it can't show one (OSError), the sweep goes on.
        displays: Show every round of every cell.
        threads: Number of threads of each run; on the CPU, each cell asks Ray for as many cores.
        checkpoint_every: Seconds of computing between the checkpoints of a run.
        wait: Wait for the cells that other processes run.

    Returns:
        The event with which each cell ended, by key.

    Raises:
        FedSieveError: If Ray is not installed, there is no cluster at ``address``, or ``out`` can't be written.
    """
    tell = quietly(watch)

    def end(event: Event) -> None:
        ends[event.key] = event
        tell(event)

    try:
        ray: Any = import_module("ray")
    except ImportError as error:
        raise FedSieveError("sweeps on a cluster need Ray: pip install fedsieve[ray]") from error
    ends, queue = split(experiments, out, tell)
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
    except Exception as error:  # of many kinds, depending on the address
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise FedSieveError(f"there is no Ray cluster at {address!r}: {reason}") from error
    resources = {"num_gpus": 1} if device.startswith("cuda") else {"num_cpus": threads}
    task = ray.remote(max_retries=3, **resources)(_ray_cell)
    runner = partial(run_cell, data=data.resolve(), device=device, displays=displays, checkpoint_every=checkpoint_every)
    running: dict[Any, Experiment] = {}
    parked: dict[str, Experiment] = {}
    try:
        while queue or running or parked:
            for experiment in queue:
                running[task.remote(experiment, (out / experiment.key).resolve(), runner, threads)] = experiment
                tell(Event(experiment.key, "started"))
            queue = []
            if running:
                (ready,), _ = ray.wait(list(running), num_returns=1)
                experiment = running.pop(ready)
                try:
                    event = ray.get(ready)
                except ray.exceptions.RayError as error:
                    event = Event(experiment.key, "failed", text=str(error).strip().splitlines()[-1])
                    write_error(out / experiment.key, event.text)
                end(event)
                if event.kind == "elsewhere":
                    parked[experiment.key] = experiment
                if event.kind == "failed":
                    check_folder(out)  # if that is why, all others would fail too
            elif parked:
                queue = look_again(parked, out, end, wait)
    finally:
        if running:  # interrupted: each run writes its checkpoint
            for each in running:
                ray.cancel(each)
            ray.wait(list(running), num_returns=len(running), timeout=_SECONDS_TO_SAVE)
    return {e.key: ends[e.key] for e in experiments}


def _ray_cell(experiment: Experiment, path: Path, runner: CellRunner, threads: int) -> Event:
    events: list[Event] = []
    torch.set_num_threads(threads)
    runner(experiment, path, report=events.append)
    return events[-1]
