"""Runs one experiment into a run directory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import FedSieveError, ParameterError
from fedsieve.core.metrics import Summary
from fedsieve.core.records import RoundRecord
from fedsieve.federation.export import check_export, check_loads, exported, loading
from fedsieve.federation.simulation import Simulation, SimulationState
from fedsieve.runs import files
from fedsieve.runs.checkpoint import pack_state
from fedsieve.runs.directory import RunDirectory
from fedsieve.runs.lock import held
from fedsieve.runs.resuming import ELSE, check_fits, go_on, last_good, refuse_to_replace


def run(
    experiment: Experiment,
    *,
    out: Path,
    data: Path,
    device: torch.device,
    resume: bool = False,
    fresh: bool = False,
    checkpoint_every: float = 60.0,
    keep_records: bool = True,
    export: Path | None = None,
    on_export: Callable[[str], None] | None = None,
    on_start: Callable[[str], None] | None = None,
    on_note: Callable[[str], None] | None = None,
    on_round: Callable[[RoundRecord], None] | None = None,
) -> tuple[list[RoundRecord], dict[str, Any]]:
    """Run an experiment into a directory, which is locked meanwhile.

    Args:
        experiment: The settings.
        out: The run directory.
        data: Folder of the datasets.
        device: Where to compute.
        resume: Continue the run that is there, if there is one; with more or fewer rounds, too.
        fresh: Replace the run that is there, if there is one.
        checkpoint_every: Seconds of computing between checkpoints; one is always written at the end, also after an
            error or an interruption.
        keep_records: Return the records. A run of thousands of rounds has gigabytes of them, and
            :meth:`RunDirectory.iter_records` reads them one by one.
        export: Write the final model's state dict to this file.
        on_export: Called with a line of Python that loads it.
        on_start: Called once, with a line that says how the data were read.
        on_note: Called with a line for whatever is not as expected: nothing to resume, a damaged checkpoint, other
            versions than the run was started with.
        on_round: Called after each round.

    Returns:
        All records, and their summary (:func:`fedsieve.core.metrics.summarize`).

    Raises:
        BusyError: If another process runs in the directory.
        StorageError: If a file can't be written; what was written before is intact, and the run can be resumed.
        FedSieveError: If data are missing, settings don't fit them, the directory holds a run and neither ``resume``
            nor ``fresh`` is set, or holds one that can't be resumed.
    """
    if not checkpoint_every >= 0:
        raise ParameterError(f"checkpoint_every is a number of seconds, at least 0, got {checkpoint_every}")
    if resume and fresh:
        raise ParameterError("resume continues a run and fresh replaces it: set one of them")
    tell, start = on_note or _silent, on_start or _silent
    if export:
        check_export(export)
    with held(out):
        directory, good, summary = RunDirectory(out), None, Summary()
        records: list[RoundRecord] = []

        def keep(record: RoundRecord) -> None:
            summary.add(record)
            if keep_records:
                records.append(record)

        if resume:
            experiment, good = last_good(directory, experiment, device, tell)
            if (good.state.round if good else directory.n_records()) == experiment.rounds:
                for record in directory.iter_records():
                    keep(record)
                directory.write_settings(experiment)  # one that was meant to have more rounds
                tell(f"the run in {out} is finished: it has all {experiment.rounds} rounds")
                start(str(directory.read_environment().get("data", "")))
                if export:
                    if good is None:
                        raise ParameterError(
                            f"can't write {export}: {out} has no checkpoint of the final model; {ELSE}"
                        )
                    _export(Simulation.of(experiment, data, device), good.state, export, on_export or _silent)
                return records, summary.result()
        elif not fresh:
            refuse_to_replace(directory, experiment)
        simulation = Simulation.of(experiment, data, device)
        if export:
            check_loads(simulation)
        reading = simulation.holdings.reading
        if good:
            check_fits(good.state, simulation.initial)
            go_on(directory, good, experiment, device, tell)
            for record in directory.iter_records():
                keep(record)
        else:
            directory.write_experiment(experiment, device, reading)
        directory.write_names(simulation.holdings.names)
        start(reading)
        state = good.state if good else simulation.initial
        state = _play(simulation, state, directory, checkpoint_every, keep, on_round)
        if export:
            _export(simulation, state, export, on_export or _silent)
    return records, summary.result()


def _play(
    simulation: Simulation,
    state: SimulationState,
    directory: RunDirectory,
    checkpoint_every: float,
    keep: Callable[[RoundRecord], None],
    on_round: Callable[[RoundRecord], None] | None,
) -> SimulationState:
    """Run the rounds from ``state`` on, with a checkpoint every so many seconds and at the end, whatever ends it.

    Returns:
        The state after the last round.
    """
    experiment, first, saved, unsaved = simulation.experiment, state.round, state.round, 0.0
    digest, _ = directory.covered(first)
    try:
        for following, record in simulation.rounds(state):
            if following.round == experiment.rounds:  # before the record, so that a finished run has them
                directory.write_scores(simulation.scores(following))
            grown = digest.copy()
            grown.update(directory.append(record))
            state, digest = following, grown  # both or none, if an interruption comes: nothing is called in between
            keep(record)
            unsaved += sum(record.seconds.values())
            if unsaved > checkpoint_every:
                directory.save(state, experiment, digest.hexdigest())
                saved, unsaved = state.round, 0.0
            elif state.round == first + 1:
                pack_state(state, {})  # a state that can't be kept ends the run now, not after hours
            if on_round:
                on_round(record)
    except BaseException as error:  # so that an interrupted run loses no round
        if saved < state.round:
            try:
                directory.save(state, experiment, digest.hexdigest())
            except FedSieveError as failed:
                error.add_note(str(failed))
        raise
    if saved < state.round:
        directory.save(state, experiment, digest.hexdigest())
    return state


def _export(simulation: Simulation, state: SimulationState, path: Path, tell: Callable[[str], None]) -> None:
    """Write the model, and tell how it is loaded."""
    with files.one_line(f"write {path}"):
        files.write(path, exported(simulation, state))
    tell(loading(simulation, path))


def _silent(text: str) -> None:
    pass
