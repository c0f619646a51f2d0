"""A run directory: one experiment's settings, records and checkpoint, from which a killed run can be resumed.

``experiment.yaml``, ``environment.json``, ``records.jsonl`` (one line per round) and ``checkpoint.safetensors``. The
header of the checkpoint holds the state as JSON; its tensors are stored beside it. No file is a pickle.
"""

import json
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import FedSieveError
from fedsieve.core.records import RoundRecord
from fedsieve.federation.server import ServerState
from fedsieve.federation.simulation import SimulationState
from fedsieve.runs.packing import pack, unpack

_RECORD = TypeAdapter(RoundRecord)
_SERVER = tuple(f.name for f in fields(ServerState))


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run.

    Attributes:
        path: The directory; made when the run starts.
    """

    path: Path

    def write_experiment(self, experiment: Experiment, device: torch.device) -> None:
        """Write settings and environment, and delete records and checkpoint of an earlier run.

        Raises:
            FedSieveError: If the directory can't be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name in ("records.jsonl", "checkpoint.safetensors"):
                (self.path / name).unlink(missing_ok=True)
            (self.path / "experiment.yaml").write_text(experiment.to_yaml(), encoding="utf-8")
            (self.path / "environment.json").write_text(json.dumps(environment(device), indent=2) + "\n")
        except OSError as error:
            raise FedSieveError(f"can't write the run directory {self.path}: {error.strerror}") from error

    def append(self, record: RoundRecord) -> None:
        """Add the record of one round as one line."""
        with (self.path / "records.jsonl").open("a", encoding="utf-8") as file:
            file.write(_line(record))

    def records(self) -> list[RoundRecord]:
        """All of :meth:`iter_records`."""
        return list(self.iter_records())

    def iter_records(self) -> Iterator[RoundRecord]:
        """The record of each round, in order, read one at a time; an incomplete last line, left by a kill, is ignored.

        Raises:
            FedSieveError: If another line is not a record.
        """
        path = self.path / "records.jsonl"
        if not path.exists():
            return
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith("\n"):
                    return
                try:
                    yield _RECORD.validate_json(line)
                except ValidationError as error:
                    first = error.errors()[0]
                    where = ".".join(str(part) for part in first["loc"])
                    raise FedSieveError(f"{path}, line {number} is not a record: {where}: {first['msg']}") from error

    def save(self, state: SimulationState) -> None:
        """Write a checkpoint of ``state``; the last one is replaced only once the new file is complete."""
        tensors: dict[str, Tensor] = {}
        tree = pack(
            {
                "server": {name: getattr(state.server, name) for name in _SERVER},
                "personal": state.personal,
                "adversary": state.adversary,
            },
            "state",
            tensors,
        )
        new = self.path / "checkpoint.safetensors.new"
        # one file, so that all parts of the state are of the same round
        save_file(tensors, new, metadata={"state": json.dumps(tree)})
        new.replace(self.path / "checkpoint.safetensors")

    def load(self, device: torch.device) -> SimulationState | None:
        """The state in the checkpoint, tensors on ``device``; None without a checkpoint.

        Raises:
            FedSieveError: If the file is damaged.
        """
        path = self.path / "checkpoint.safetensors"
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
                found = unpack(json.loads(file.metadata()["state"]), tensors)
                return SimulationState(ServerState(**found["server"]), found["personal"], found["adversary"])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise FedSieveError(f"{path} is not a FedSieve checkpoint: {error}") from error

    def resume(self, experiment: Experiment, device: torch.device) -> tuple[SimulationState, list[RoundRecord]] | None:
        """The state in the checkpoint and the records up to it; None without a checkpoint.

        Records of later rounds are deleted, since these rounds are run again.

        Raises:
            FedSieveError: If the directory holds another experiment, or fewer records than the checkpoint has rounds.
        """
        settings = self.path / "experiment.yaml"
        if settings.exists() and (found := Experiment.read(settings).key) != experiment.key:
            raise FedSieveError(
                f"can't resume: {self.path} holds experiment {found}, not {experiment.key}; "
                f"choose another --out, or run without --resume"
            )
        state = self.load(device)
        if state is None:
            return None
        records = self.records()[: state.round]
        if len(records) < state.round:
            raise FedSieveError(f"can't resume: {self.path} has a checkpoint of round {state.round}, but fewer records")
        shorter = self.path / "records.jsonl.new"
        shorter.write_text("".join(_line(record) for record in records), encoding="utf-8")
        shorter.replace(self.path / "records.jsonl")
        return state, records


def _line(record: RoundRecord) -> str:
    return json.dumps(asdict(record), allow_nan=False) + "\n"


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
