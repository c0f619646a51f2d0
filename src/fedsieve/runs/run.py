"""Runs one experiment into a run directory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fedsieve.config.experiment import Experiment
from fedsieve.core.metrics import summarize
from fedsieve.core.records import RoundRecord
from fedsieve.federation.simulation import Simulation
from fedsieve.runs.directory import RunDirectory


def run(
    experiment: Experiment,
    *,
    out: Path,
    data: Path,
    device: torch.device,
    resume: bool = False,
    checkpoint_every: float = 60.0,
    on_round: Callable[[RoundRecord], None] | None = None,
) -> tuple[list[RoundRecord], dict[str, Any]]:
    """Run an experiment into a directory.

    Args:
        experiment: The settings.
        out: The run directory; an earlier run in it is replaced, unless ``resume``.
        data: Folder of the datasets.
        device: Where to compute.
        resume: Continue from the checkpoint, if there is one.
        checkpoint_every: Seconds of computing between checkpoints; one is always written at the end, also after an
            error or an interruption.
        on_round: Called after each round.

    Returns:
        All records, and their summary (:func:`fedsieve.core.metrics.summarize`).

    Raises:
        FedSieveError: If data are missing, settings don't fit them, or the directory can't be written or resumed.
    """
    simulation = Simulation.of(experiment, data, device)
    directory = RunDirectory(out)
    start, records = (directory.resume(experiment, device) if resume else None) or (simulation.initial, [])
    if not records:
        directory.write_experiment(experiment, device)
    kept, unsaved = start, 0.0
    try:
        for state, record in simulation.rounds(start):
            directory.append(record)
            records.append(record)
            kept = state
            unsaved += sum(record.seconds.values())
            if unsaved > checkpoint_every:
                directory.save(kept)
                unsaved = 0.0
            if on_round:
                on_round(record)
    finally:  # so that an interrupted run loses no round
        directory.save(kept)
    return records, summarize(records)
