"""Runs a grid of experiments on a Ray cluster."""

from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import FedSieveError
from fedsieve.runs.cell import CellRunner, run_cell, split, write_error
from fedsieve.runs.events import Displays, Event, Watch


def sweep_on_ray(
    experiments: Sequence[Experiment],
    out: Path,
    data: Path,
    device: str,
    address: str,
    watch: Watch,
    displays: Displays = (),
) -> dict[str, str]:
    """Run every experiment that is not finished on a Ray cluster; all its machines must see the same folders.

    A cell is run again by another worker if its worker dies.

    Args:
        experiments: The cells.
        out: Run directories go here, by key.
        data: Folder of the datasets.
        device: Where to compute; for ``cuda``, each cell asks Ray for one GPU.
        address: Of the cluster, as ``ray.init`` takes it.
        watch: Called with every event but rounds.
        displays: Show every round of every cell.

    Returns:
        By key, ``""`` for cells that are finished, and the error for the others.

    Raises:
        FedSieveError: If Ray is not installed, or there is no cluster at ``address``.
    """
    try:
        ray: Any = import_module("ray")
    except ImportError as error:
        raise FedSieveError("sweeps on a cluster need Ray: pip install fedsieve[ray]") from error
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise FedSieveError(f"there is no Ray cluster at {address!r}: {str(error).splitlines()[0]}") from error
    resources = {"num_gpus": 1} if device.startswith("cuda") else {"num_cpus": 1}
    task = ray.remote(max_retries=3, **resources)(_ray_cell)
    runner = partial(run_cell, data=data.resolve(), device=device, displays=displays)
    results, waiting = split(experiments, out, watch)
    running = {}
    for experiment in waiting:
        path, settings = (out / experiment.key).resolve(), experiment.model_dump(mode="json")
        running[task.remote(settings, path, runner)] = experiment.key
        watch(Event(experiment.key, "started"))
    while running:
        (ready,), _ = ray.wait(list(running), num_returns=1)
        key = running.pop(ready)
        try:
            event = ray.get(ready)
        except ray.exceptions.RayError as error:
            event = Event(key, "failed", text=str(error).strip().splitlines()[-1])
            write_error(out / key, event.text)
        results[key] = event.error
        watch(event)
    return results


def _ray_cell(settings: Mapping[str, Any], path: Path, runner: CellRunner) -> Event:
    events: list[Event] = []
    torch.set_num_threads(1)
    runner(Experiment.of(settings), path, report=events.append)
    return events[-1]
