"""Seconds that a round of an experiment takes: from rounds on disk, or from a few that are run for it."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from fedsieve.config import registry
from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import FedSieveError
from fedsieve.core.records import RoundRecord
from fedsieve.federation.simulation import Simulation
from fedsieve.runs.directory import RunDirectory, environment

RECORDS, SIMILAR, MEASURED = "records", "records of another attack", "measured now"
_READ = 40  # rounds of a run that are read, the last ones
_RUNS = 3  # runs of a kind that are read
_RUN = 4  # rounds that are run where none are on disk; the first, which is slower, does not count
_EACH = 15.0  # seconds after which no more of them are run
# Settings on which the time of a round depends most, beside the attack.
_KIND = ("dataset", "model", "clients_per_round", "local", "defense", "knows_defense")


def of_round(records: Sequence[RoundRecord], evaluate_every: int) -> float | None:
    """Mean seconds of a round, evaluations counted as often as they are due; None if none are recorded.

    Args:
        records: Of some rounds.
        evaluate_every: Rounds from one evaluation to the next.
    """
    timed = [record for record in records if record.seconds]
    if not timed:
        return None
    rest = fmean(sum(record.seconds.values()) - record.seconds.get("evaluate", 0.0) for record in timed)
    evaluated = [r.seconds.get("evaluate", 0.0) for r in timed if r.test_accuracy is not None]
    return rest + (fmean(evaluated) / evaluate_every if evaluated else 0.0)


class Paces:
    """Seconds of a round by experiment. Mutable: what has been read or measured once is kept.

    Args:
        runs: Folder of the run directories.
        data: Folder of the datasets.
        device: Where the runs would compute.
        threads: Number of threads of each run.
        seconds: How long rounds are run at most, all in all; about, since a round is not interrupted.
    """

    def __init__(self, runs: Path, data: Path, device: torch.device, threads: int, seconds: float) -> None:
        self._data, self._device, self._threads = data, device, threads
        self._until = time.perf_counter() + seconds
        self._name = environment(device)["device_name"]
        self._known: dict[str, tuple[float | None, str]] = {}
        self._last: tuple[dict[str, Any], Simulation] | None = None
        self._folders: dict[str, list[Path]] = {}
        for settings in sorted(runs.glob("*/experiment.yaml")):
            there = RunDirectory(settings.parent).read_settings()
            for kind in _kinds(there) if there else ():
                self._folders.setdefault(kind, []).append(settings.parent)

    def of(self, experiment: Experiment) -> tuple[float | None, str]:
        """Seconds of a round, or None; and where they come from, or why they are not known."""
        with_attack, without = _kinds(experiment.model_dump(mode="json"))
        for kind, source in ((with_attack, RECORDS), (without, SIMILAR)):
            if kind not in self._known:
                self._known[kind] = self._recorded(kind, experiment.evaluate_every), source
            if self._known[kind][0] is not None:
                return self._known[kind]
        measured = f"measured {without}"
        if measured not in self._known:
            self._known[measured] = self._measured(experiment)
        return self._known[measured]

    def _recorded(self, kind: str, evaluate_every: int) -> float | None:
        """The mean over a few runs of this kind, as far as they were computed on this kind of device."""
        found: list[float] = []
        for path in self._folders.get(kind, ()):
            try:
                pace = self._read(RunDirectory(path), evaluate_every)
            except FedSieveError:  # it is damaged: others may not be
                continue
            found += [] if pace is None else [pace]
            if len(found) == _RUNS:
                break
        return fmean(found) if found else None

    def _read(self, directory: RunDirectory, evaluate_every: int) -> float | None:
        there = directory.read_environment()
        if there.get("device_name") != self._name:
            return None
        n, first = directory.n_records(), _first_here(there)
        return of_round(list(directory.iter_records(range(max(first + 1, n - _READ), n))), evaluate_every)

    def _measured(self, experiment: Experiment) -> tuple[float | None, str]:
        start = time.perf_counter()
        if start > self._until:
            return None, "not measured: the time for it was over"
        threads = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            records = []
            for _, record in self._simulation(experiment).rounds():
                records.append(record)
                if time.perf_counter() > min(start + _EACH, self._until):
                    break
        except FedSieveError as error:  # data are missing
            return None, f"not measured: {error}"
        finally:
            torch.set_num_threads(threads)
        return of_round(records[1:] or records, experiment.evaluate_every), MEASURED

    def _simulation(self, experiment: Experiment) -> Simulation:
        """A few rounds of the experiment, with what the last one had, where only the defense is another.

        Raises:
            FedSieveError: If data are missing; none are fetched.
        """
        short = experiment.model_copy(update={"rounds": _RUN, "evaluate_every": 1})
        apart = short.model_dump(mode="json", exclude={"defense"})
        if self._last is not None and self._last[0] == apart and not short.knows_defense:
            defense = registry.build_defense(short.defense.name, short.defense.parameters)
            last = self._last[1]
            return replace(last, experiment=short, server=replace(last.server, defense=defense))
        dataset = experiment.dataset
        registry.build("datasets", dataset.name, dataset.parameters).verify(self._data)
        self._last = apart, Simulation.of(short, self._data, self._device)
        return self._last[1]


def _kinds(settings: dict[str, Any]) -> tuple[str, str]:
    """What the time of a round depends on, with the attack and without, as text."""
    kind = {name: settings[name] for name in _KIND}
    return json.dumps([kind, settings["attack"]], sort_keys=True), json.dumps([kind], sort_keys=True)


def _first_here(there: dict[str, Any]) -> int:
    """First round of a run that was computed where and as its last one: it may have been moved here."""
    steps = there.get("earlier")
    rounds = [step.get("until_round") for step in (steps if isinstance(steps, list) else []) if isinstance(step, dict)]
    return max((k for k in rounds if isinstance(k, int)), default=0)
