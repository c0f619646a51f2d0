"""A run directory: one experiment's settings, records and checkpoint, written so that a killed run loses little.

``experiment.yaml``, ``environment.json``, ``records.jsonl`` (one line a round) and ``checkpoint.safetensors``, whose
header holds, as JSON, what of the server's state is no tensor. Nothing in it is a pickle.
"""

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedsieve.experiment import Experiment
from fedsieve.metrics import summarize
from fedsieve.server import ServerState
from fedsieve.simulation import Simulation
from fedsieve.types import FedSieveError, RoundRecord

_RECORD = TypeAdapter(RoundRecord)


@dataclass(frozen=True)
class RunDirectory:
    """Where one run is kept."""

    path: Path

    def write_experiment(self, experiment: Experiment, device: torch.device) -> None:
        """Settings, and where they are run; records and checkpoint of an earlier run go."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name in ("records.jsonl", "checkpoint.safetensors"):
                (self.path / name).unlink(missing_ok=True)
            (self.path / "experiment.yaml").write_text(experiment.to_yaml(), encoding="utf-8")
            (self.path / "environment.json").write_text(json.dumps(environment(device), indent=2) + "\n")
        except OSError as error:
            raise FedSieveError(f"can't write the run directory {self.path}: {error.strerror}") from error

    def append(self, record: RoundRecord) -> None:
        """Add one round; a line is written whole or not at all as far as the file system allows."""
        with (self.path / "records.jsonl").open("a", encoding="utf-8") as file:
            file.write(_line(record))

    def records(self) -> list[RoundRecord]:
        """All complete rounds, in order; a last line that a kill cut short is left out."""
        file = self.path / "records.jsonl"
        lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []
        records = []
        for number, line in enumerate(lines, 1):
            try:
                records.append(_RECORD.validate_json(line))
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"])
                raise FedSieveError(f"{file}, line {number} is no record: {where}: {first['msg']}") from error
        return records

    def save(self, state: ServerState) -> None:
        """Checkpoint ``state``, replacing the last one only when the new one is whole."""
        tensors: dict[str, Tensor] = {}
        tree = _pack(
            {"params": state.params, "round": state.round, "defense": state.defense,
             "optimizer": dict(state.optimizer), "personal": state.personal, "attacker": state.attacker},
            "state", tensors,
        )  # fmt: skip
        new = self.path / "checkpoint.safetensors.new"
        # one file, so that tensors and the rest can't be of different rounds
        save_file(tensors, new, metadata={"state": json.dumps(tree)})
        new.replace(self.path / "checkpoint.safetensors")

    def load(self, device: torch.device) -> ServerState | None:
        """The last checkpoint, or None if there is none."""
        path = self.path / "checkpoint.safetensors"
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
                return ServerState(**_unpack(json.loads(file.metadata()["state"]), tensors))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise FedSieveError(f"{path} is no checkpoint of ours: {error}") from error

    def resume(self, experiment: Experiment, device: torch.device) -> tuple[ServerState, list[RoundRecord]] | None:
        """The last checkpoint, if any, and the records up to it; later ones go, since their rounds are played again.

        Raises:
            FedSieveError: If the directory holds another experiment.
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
        experiment: What to run.
        out: The run directory; what it holds of an earlier run is replaced, unless ``resume``.
        data: Where datasets lie.
        device: Where to compute.
        resume: Go on from the last checkpoint, if there is one of this very experiment.
        checkpoint_every: Seconds between checkpoints; the end of the run, even an untimely one, always has one.
        on_round: Called after each round.

    Returns:
        All records, and :func:`fedsieve.metrics.summarize` of them.
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
    finally:  # an interrupted run too can be resumed where it was
        directory.save(kept)
    return records, summarize(records)


def _line(record: RoundRecord) -> str:
    return json.dumps(asdict(record), allow_nan=False) + "\n"


def environment(device: torch.device) -> dict[str, Any]:
    """What a result may depend on beside the experiment."""
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


# --- A state as JSON, with its tensors beside it ------------------------------------------------------------


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """``value`` as JSON, its tensors moved to ``tensors``; ``name`` says in an error where it stands."""
    if isinstance(value, Tensor):
        key = str(len(tensors))
        # a contiguous copy, since the file format refuses shared memory and strides
        tensors[key] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": key}
    if isinstance(value, Mapping):  # as pairs, since JSON would turn client ids into text
        pairs = value.items()
        return {"dict": [[_pack(k, f"a key of {name}", tensors), _pack(v, f"{name}.{k}", tensors)] for k, v in pairs]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_pack(v, f"{name}.{k}", tensors) for k, v in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise FedSieveError(
        f"can't checkpoint {name}: {type(value).__name__} is neither tensor, number, text, list, tuple nor dict"
    )


def _unpack(tree: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    ((kind, content),) = tree.items()
    match kind:
        case "tensor":
            return tensors[content]
        case "dict":
            return {_unpack(k, tensors): _unpack(v, tensors) for k, v in content}
        case "list":
            return [_unpack(v, tensors) for v in content]
        case "tuple":
            return tuple(_unpack(v, tensors) for v in content)
        case "value":
            return content
    raise ValueError(f"unknown kind {kind!r}")
