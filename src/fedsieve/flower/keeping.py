"""What survives a restart of the ServerApp, and the run directory from which ``fedsieve report`` reads.

A checkpoint is written after every round, before the record of that round, which it holds as well: a kill at any moment
loses at most the round that is under way.
"""

import hashlib
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import BusyError, CorruptDataError, FedSieveError, ParameterError
from fedsieve.core.records import RoundRecord
from fedsieve.runs import files
from fedsieve.runs.checkpoint import opened, sealed, this_version
from fedsieve.runs.directory import CHECKPOINT, PREVIOUS, RunDirectory
from fedsieve.runs.lines import line_of
from fedsieve.runs.lock import claimed
from fedsieve.runs.packing import pack, unpack

LOG = logging.getLogger("flwr")
# Settings that may differ when a run goes on: they follow from who is there, and from how long it shall be.
_FREE = ("rounds", "clients", "clients_per_round", "assumed_malicious", "seed", "evaluate_every")


class Journal:
    """The run directory of a federation. Mutable: it holds the lock, and knows what has been written."""

    def __init__(self, out: Path) -> None:
        self.directory = RunDirectory(out)
        self._lock = ExitStack()
        self._settings: Experiment | None = None
        self._names: tuple[str, ...] = ()
        self._digest = hashlib.sha256()
        self._pending: RoundRecord | None = None

    def open(self, settings: Experiment, resume: bool) -> dict[str, Any] | None:
        """Lock the directory, and make it ready for the next round.

        Args:
            settings: Of the federation.
            resume: Whether to go on with the run that is there, if there is one.

        Returns:
            The state that was saved last; None if the run starts.

        Raises:
            FedSieveError: If another process runs there, or it holds another run, or one that can't go on.
        """
        out = self.directory.path
        if not self._lock.enter_context(claimed(out)):
            raise BusyError(f"another process runs in {out}; wait for it, or choose another out=")
        try:
            there, n = self.directory.read_settings(), self.directory.n_records()
            names = [name for name in (CHECKPOINT, PREVIOUS) if (out / name).exists()]
            if not n and not names:
                if (out / "experiment.yaml").exists() and (there or {}).get("dataset") != {"name": "flower"}:
                    raise ParameterError(f"{out} holds the settings of another run; choose another out=")
                self.directory.write_experiment(settings, torch.device("cpu"), "a federation of Flower")
                self._settings = settings
                return None
            if not resume:
                raise ParameterError(
                    f"{out} holds a run of {n} rounds: resume=True goes on with it; or choose another out="
                )
            found = self._last_good(settings, names)
            LOG.info("fedsieve: %s goes on after round %d", out, found["round"])
            return found
        except BaseException:
            self.close()
            raise

    def _last_good(self, settings: Experiment, names: list[str]) -> dict[str, Any]:
        """The state of the newest checkpoint that is whole, and belongs to these settings and the records there."""
        out, problems = self.directory.path, []
        for name in names:
            try:
                found = self._read(name, settings)
            except CorruptDataError as error:
                problems.append(f"{name}: {error}")
                continue
            for problem in problems:
                LOG.warning("fedsieve: %s; going on with %s, after round %d", problem, name, found["round"])
            if name != CHECKPOINT:
                files.rename(out / name, out / CHECKPOINT)
            return found
        said = "; ".join(problems) or "it has records but no checkpoint"
        raise CorruptDataError(f"can't go on in {out}: {said}; choose another out= to start anew")

    def _read(self, name: str, settings: Experiment) -> dict[str, Any]:
        path = self.directory.path / name
        with files.one_line(f"read {path}"), files.read(path) as file:
            run, tensors = opened(file.read(), torch.device("cpu"))
        with this_version():
            state: dict[str, Any] = unpack(run["state"], tensors)
            done, line, there = int(run["round"]), str(run["line"]).encode(), run["settings"]
            asked = settings.model_dump(mode="json")
            if differ := [k for k in asked if k not in _FREE and there.get(k) != asked[k]]:
                said = "; ".join(f"{k}: {there.get(k)} there, {asked[k]} asked for" for k in differ)
                raise ParameterError(f"{self.directory.path} holds another run ({said}); choose another out=")
            if int(state["round"]) != done:
                raise ValueError(f"of rounds {done} and {state['round']}")
        digest, size = self.directory.covered(done - 1)
        if digest.hexdigest() != run["records"]:
            raise CorruptDataError(f"records.jsonl was changed: its first {done - 1} rounds are not those of {name}")
        records = self.directory.path / "records.jsonl"
        try:
            digest, size = self.directory.covered(done)  # the record of the last round may have scores
            with files.one_line(f"write {records}"):
                files.cut(records, size)
        except CorruptDataError:
            with files.one_line(f"write {records}"):
                files.cut(records, size)
                files.append(records, line)
            digest.update(line)
        self._digest = digest
        self._settings = Experiment.recorded(self.directory.path / "experiment.yaml")
        self._names = self.directory.read_names()
        return state

    def write(
        self, record: RoundRecord, state: Mapping[str, Any], settings: Experiment, names: tuple[str, ...]
    ) -> None:
        """Keep the state after a round, and its record, which is written by :meth:`score`, or with the next one.

        Raises:
            FedSieveError: If it can't be written.
        """
        self.score()
        tensors: dict[str, Tensor] = {}
        out = self.directory.path
        run = {
            "settings": settings.model_dump(mode="json"),
            "round": record.round + 1,
            "records": self._digest.hexdigest(),
            "line": line_of(record).decode(),
            "state": pack(dict(state), "state", tensors),
        }
        with files.one_line(f"write a checkpoint to {out}"):
            files.sync(out / "records.jsonl")
            files.write(out / CHECKPOINT, sealed(run, tensors), last=out / PREVIOUS)
        if settings != self._settings:
            self.directory.write_settings(settings)
            self._settings = settings
        if names != self._names:
            self.directory.write_names(names)
            self._names = names
        self._pending = record

    def score(self, **scores: float | None) -> None:
        """Write the record of the last round, with these scores.

        Raises:
            FedSieveError: If it can't be written.
        """
        if self._pending is not None:
            record, self._pending = self._pending, None
            self._digest.update(self.directory.append(RoundRecord(**{**vars(record), **scores})))

    def close(self) -> None:
        """Write what is left, and release the lock."""
        try:
            self.score()
        except FedSieveError as error:
            LOG.error("fedsieve: %s", error)
        self._lock.close()


def packed(value: Any) -> Any:
    """Arrays, numbers and text, however nested, as what a checkpoint can hold.

    Raises:
        TypeError: If there is something else in it.
    """
    match value:
        case np.ndarray() if value.dtype.kind in "fiub":
            return {"ndarray": torch.from_numpy(np.array(value).astype(value.dtype.newbyteorder("=")))}
        case np.generic() if value.dtype.kind in "fiub":
            return {"scalar": torch.from_numpy(np.array(value))}
        case ArrayRecord():
            return {"arrays": [packed_array(name, array) for name, array in value.items()]}
        case dict():
            return {"dict": [[packed(k), packed(v)] for k, v in value.items()]}
        case list() | tuple():
            return {type(value).__name__: [packed(v) for v in value]}
        case Strategy():
            return {"strategy": [[k, v] for k, v in memory(value).items()]}
        case None | bool() | int() | float() | str():
            return {"value": value}
    raise TypeError(f"a {type(value).__name__}")


def packed_array(name: str, array: Array) -> list[Any]:
    """An array as name, type, shape, and its bytes."""
    data = torch.from_numpy(np.frombuffer(array.data, np.uint8).copy())
    return [name, array.dtype, list(array.shape), array.stype, data]


def unpacked(tree: Mapping[str, Any]) -> Any:
    """Inverse of :func:`packed`; a strategy comes back as what it remembers."""
    ((kind, content),) = tree.items()
    match kind:
        case "ndarray":
            return content.numpy()
        case "scalar":
            return content.numpy()[()]
        case "arrays":
            return ArrayRecord(
                {
                    name: Array(dtype, tuple(shape), stype, data.numpy().tobytes())
                    for name, dtype, shape, stype, data in content
                }
            )
        case "dict":
            return {unpacked(k): unpacked(v) for k, v in content}
        case "list" | "tuple":
            return [unpacked(v) for v in content] if kind == "list" else tuple(unpacked(v) for v in content)
        case "strategy":
            return _Inner(dict(content))
    return content


@dataclass(frozen=True)
class _Inner:
    """What a strategy inside a strategy remembers."""

    memory: Mapping[str, Any]


def memory(strategy: Strategy) -> dict[str, Any]:
    """What a strategy remembers from round to round: all its attributes that are arrays, or hold arrays.

    Its settings, which are numbers and text, are left to the app, where they may have been changed.
    """
    found = {}
    for name, value in vars(strategy).items():
        if isinstance(value, np.ndarray | np.generic | ArrayRecord | dict | list | tuple | Strategy):
            try:
                found[name] = packed(value)
            except (TypeError, RecursionError):  # an object of the app's own, which it has to restore
                continue
    return found


def remember(strategy: Strategy, found: Mapping[str, Any]) -> None:
    """Give a strategy back what :func:`memory` found."""
    for name, tree in found.items():
        value = unpacked(tree)
        if isinstance(value, _Inner):
            if isinstance(inner := getattr(strategy, name, None), Strategy):
                remember(inner, value.memory)
        else:
            setattr(strategy, name, value)
