"""A run directory: one experiment's settings, records and checkpoints, from which a killed run can be resumed.

``experiment.yaml``, ``environment.json``, ``clients.json`` (their names, where they have any), ``records.jsonl`` (one
line per round), ``scores.json`` (of the final model), ``checkpoint.safetensors`` and the one before it,
``checkpoint.previous.safetensors``. No file is a pickle. Every file but the records is replaced whole;
records are added at the end, and are on disk before a checkpoint that covers them.
"""

import hashlib
import json
import platform
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import CorruptDataError, FedSieveError
from fedsieve.core.escaping import printable
from fedsieve.core.records import RoundRecord
from fedsieve.core.scores import FinalScores
from fedsieve.data.digest import digest_of
from fedsieve.federation.simulation import SimulationState
from fedsieve.runs import files
from fedsieve.runs.checkpoint import Stamp, decode, encode
from fedsieve.runs.lines import line_of, record_of

CHECKPOINT, PREVIOUS = "checkpoint.safetensors", "checkpoint.previous.safetensors"
NAMES, SCORES = "clients.json", "scores.json"
_SCORES = TypeAdapter(FinalScores)
_LONGEST_NAME = 100  # characters; longer ones are cut
_LONGEST = 2**28  # bytes of a record; a stranger's file may be one endless line


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run.

    Attributes:
        path: The directory; made when the run starts.
    """

    path: Path

    def write_experiment(self, experiment: Experiment, device: torch.device, data: str = "") -> None:
        """Write settings and environment, and delete what an earlier run has left; files of others stay.

        Args:
            experiment: The settings.
            device: Where the run computes.
            data: How the data were read, in one line.

        Raises:
            FedSieveError: If the directory can't be written.
        """
        with files.one_line(f"write the run directory {self.path}"):
            files.make_folder(self.path)
            # checkpoints first: one without its records is of no use
            left = (CHECKPOINT, PREVIOUS, "records.jsonl", "error.txt", NAMES, SCORES)
            files.remove(*(self.path / name for name in left))
            self.write_settings(experiment)
            self.write_environment({**environment(device), "data": data, "data_sha256": digest_of_data(experiment)})
            files.write(self._records, b"")

    def write_settings(self, experiment: Experiment) -> None:
        """Replace ``experiment.yaml``, unless it holds these settings.

        Raises:
            FedSieveError: If it can't be written.
        """
        if self.read_settings() == experiment.model_dump(mode="json"):
            return
        with files.one_line(f"write the run directory {self.path}"):
            files.write(self.path / "experiment.yaml", experiment.to_yaml().encode())

    def read_settings(self) -> dict[str, Any] | None:
        """All settings, by name; None where they are missing or can't be read."""
        try:
            return Experiment.recorded(self.path / "experiment.yaml").model_dump(mode="json")
        except (FedSieveError, OSError):
            return None

    def write_environment(self, found: dict[str, Any]) -> None:
        """Replace ``environment.json``.

        Raises:
            FedSieveError: If it can't be written.
        """
        with files.one_line(f"write the run directory {self.path}"):
            files.write(self.path / "environment.json", (json.dumps(found, indent=2) + "\n").encode())

    def read_environment(self) -> dict[str, Any]:
        """What ``environment.json`` holds; nothing where it is missing or can't be read."""
        try:
            with files.read(self.path / "environment.json") as file:
                found = json.loads(file.read(2**20))
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def write_names(self, names: Sequence[str]) -> None:
        """Write the name of each client, client 0 first; no file without any.

        Raises:
            FedSieveError: If it can't be written.
        """
        if names:
            with files.one_line(f"write the run directory {self.path}"):
                files.write(self.path / NAMES, (json.dumps({"names": list(names)}) + "\n").encode())

    def read_names(self) -> tuple[str, ...]:
        """The name of each client, printable and not too long; none where the file is missing or can't be read."""
        try:
            with files.read(self.path / NAMES) as file:
                found = json.loads(file.read(_LONGEST))["names"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return ()
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            return ()
        cut = _LONGEST_NAME - 3
        return tuple(printable(n if len(n) <= _LONGEST_NAME else f"{n[:cut]}...") for n in found)

    def write_scores(self, scores: FinalScores) -> None:
        """Replace the scores of the final model.

        Raises:
            FedSieveError: If they can't be written.
        """
        with files.one_line(f"write the run directory {self.path}"):
            files.write(self.path / SCORES, _SCORES.dump_json(scores, indent=1) + b"\n")

    def read_scores(self, rounds: int) -> FinalScores | None:
        """The scores of the model after so many rounds; None where there are none, or they can't be read."""
        try:
            with files.read(self.path / SCORES) as file:
                found = _SCORES.validate_json(file.read(_LONGEST))
        except (OSError, ValueError):
            return None
        return found if found.rounds == rounds else None

    def append(self, record: RoundRecord) -> bytes:
        """Add the record of one round as one line, and return that.

        Raises:
            FedSieveError: If it can't be written.
        """
        line = line_of(record)
        with files.one_line(f"write to {self._records}"):
            files.append(self._records, line)
        return line

    def records(self) -> list[RoundRecord]:
        """All of :meth:`iter_records`."""
        return list(self.iter_records())

    def iter_records(self, only: Container[int] | None = None) -> Iterator[RoundRecord]:
        """The record of each round, in order, read one at a time; an incomplete last line, left by a kill, is ignored.

        Args:
            only: Positions of the lines to read, from 0; others are skipped unread. None reads all.

        Raises:
            FedSieveError: If the file can't be read, or another line is not a record.
        """
        for number, line in enumerate(self._lines()):
            if only is not None and number not in only:
                continue
            try:
                record = record_of(line)
            except ValidationError as error:
                first = error.errors()[0]
                what = ": ".join([*filter(None, [".".join(map(str, first["loc"]))]), first["msg"]])
                raise CorruptDataError(f"{self._records}, line {number + 1} is not a record: {what}") from error
            yield record

    def n_records(self) -> int:
        """Number of complete lines."""
        return sum(1 for _ in self._lines())

    def covered(self, rounds: int) -> "tuple[hashlib._Hash, int]":
        """SHA-256 of the first ``rounds`` lines of the records, to be continued, and their length in bytes.

        Raises:
            FedSieveError: If there are fewer, or they can't be read.
        """
        digest, size, lines = hashlib.sha256(), 0, self._lines()
        for number in range(rounds):
            line = next(lines, None)
            if line is None:
                raise CorruptDataError(f"{self._records} has {number} rounds, fewer than {rounds}")
            digest.update(line)
            size += len(line)
        return digest, size

    def save(self, state: SimulationState, experiment: Experiment, records: str) -> None:
        """Write a checkpoint; the last one is replaced only once the new file is complete, and then kept beside it.

        Args:
            state: What to keep.
            experiment: The settings.
            records: SHA-256 of the records of the rounds so far.

        Raises:
            FedSieveError: If it can't be written, or the state holds what can't be kept.
        """
        with files.one_line(f"write a checkpoint to {self.path}"):
            files.sync(self._records)
            content = encode(state, Stamp(experiment.model_dump(mode="json"), state.round, records))
            files.write(self.path / CHECKPOINT, content, last=self.path / PREVIOUS)

    def load(self, device: torch.device) -> SimulationState | None:
        """The state in the last checkpoint, tensors on ``device``; None without one.

        Raises:
            FedSieveError: If the file is damaged.
        """
        found = self.read_checkpoint(CHECKPOINT, device)
        return found[1] if found else None

    def read_checkpoint(self, name: str, device: torch.device) -> tuple[Stamp, SimulationState] | None:
        """What the checkpoint of this name belongs to, and its state; None without it.

        Raises:
            FedSieveError: If the file is damaged.
        """
        path = self.path / name
        with files.one_line(f"read {path}"):
            try:
                with files.read(path) as file:
                    return decode(file.read(), device)
            except FileNotFoundError:
                return None
            except (CorruptDataError, MemoryError) as error:
                raise CorruptDataError(f"{path}: {str(error) or 'it is too large'}") from error

    @property
    def _records(self) -> Path:
        return self.path / "records.jsonl"

    def _lines(self) -> Iterator[bytes]:
        """Complete lines of the records, with their ends."""
        with files.one_line(f"read {self._records}"):
            try:
                file = files.read(self._records)
            except FileNotFoundError:
                return
            with file:
                for line in iter(partial(file.readline, _LONGEST), b""):
                    if line.endswith(b"\n"):
                        yield line
                    elif len(line) == _LONGEST:
                        raise CorruptDataError(f"{self._records} has a line of more than {_LONGEST} bytes")


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, on which results may depend beside the experiment."""
    packages = ("fedsieve", "torch", "numpy", "scikit-learn")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "platform": platform.platform(),
        "device": str(device),
        "device_name": name,
        "threads": torch.get_num_threads(),
    }


def digest_of_data(experiment: Experiment) -> str | None:
    """SHA-256 of the user's own data file or folder; None for a dataset by name, whose files have known checksums.

    Raises:
        FedSieveError: If it can't be read.
    """
    path = experiment.dataset.parameters.get("file")
    return digest_of(path) if isinstance(path, str) and path else None
