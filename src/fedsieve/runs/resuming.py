"""Where a run goes on: what a run directory holds, and whether that belongs to the experiment that is asked for.

A checkpoint counts only if its checksum holds, its settings are the experiment's, and the records of its rounds are
those it was written with. The number of rounds is no setting in this sense: a run can be made longer or shorter.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import CorruptDataError, FedSieveError, ParameterError, StorageError
from fedsieve.federation.simulation import SimulationState
from fedsieve.runs import files
from fedsieve.runs.checkpoint import Stamp
from fedsieve.runs.directory import CHECKPOINT, PREVIOUS, RunDirectory, digest_of_data, environment
from fedsieve.runs.lines import line_of, record_of

Tell = Callable[[str], None]
ELSE = "choose another --out, or --fresh to start anew"
_SHOWN = 4  # differing settings in an error message


@dataclass(frozen=True)
class Good:
    """A state that a run can go on from.

    Attributes:
        state: The state.
        stamp: What its checkpoint says of it.
        name: Name of the checkpoint's file.
        size: Bytes of the records of its rounds.
    """

    state: SimulationState
    stamp: Stamp
    name: str
    size: int


def refuse_to_replace(directory: RunDirectory, experiment: Experiment) -> None:
    """See that a new run in a directory replaces nothing.

    Raises:
        ParameterError: If there is a run, or settings of another one.
    """
    path, there = directory.path, directory.read_settings()
    n, names = directory.n_records(), _checkpoints(directory)
    asked = experiment.model_dump(mode="json")
    if not n and not names and (there == asked or not os.path.lexists(path / "experiment.yaml")):
        return
    if there is None:
        what = f"{n} rounds of a run whose settings can't be read" if n or names else "an experiment.yaml of its own"
    elif not n and not names:
        what = "the settings of another run"
    else:
        what = f"a finished run of {n} rounds" if n == there["rounds"] else f"a run of {n} of {there['rounds']} rounds"
    problem = _differences(there, asked, {"rounds", "evaluate_every"}) if there else ["no settings"]
    if not problem:
        raise ParameterError(
            f"{path} holds {what}: --resume continues it, --fresh starts anew; or choose another --out"
        )
    said = f", other than asked for ({'; '.join(problem)})" if there else ""
    raise ParameterError(f"{path} holds {what}{said}: {ELSE}")


def last_good(
    directory: RunDirectory, asked: Experiment, device: torch.device, tell: Tell
) -> tuple[Experiment, Good | None]:
    """The state that a run can go on from; nothing is written.

    Args:
        directory: The run directory.
        asked: The settings asked for.
        device: Where to put tensors.
        tell: Called with a line for everything that is not as expected.

    Returns:
        The experiment, evaluated as often as the run there; and the last good state, None to start at round 0.

    Raises:
        FedSieveError: If the directory holds another run, more rounds than asked for, or no good state.
    """
    path, there, names = directory.path, directory.read_settings(), _checkpoints(directory)
    n = directory.n_records()
    if not names and not n:
        tell(f"nothing to resume in {path}, starting at round 0")
        return asked, None
    experiment = _continued(asked, there, f"{path} holds another run") if there else asked
    too_many = f"can't resume: {path} has {n} rounds already; ask for --rounds {n + 1} or more, {ELSE}"
    if n > asked.rounds:
        raise ParameterError(too_many)
    expected = directory.read_environment().get("data_sha256")
    if expected and expected != (found := digest_of_data(asked)):
        what = "has changed since the run was started" if found else "is gone"
        raise CorruptDataError(f"can't resume {path}: {asked.dataset.parameters.get('file')} {what}; {ELSE}")
    problems = []
    for name in names:
        try:
            good = _checked(directory, name, asked, device)
        except StorageError:  # such as no file handles: it may be good all the same
            raise
        except FedSieveError as error:
            problems.append(str(error))
            continue
        if problems:
            tell(f"{problems[0]}; going on from {name}, round {good.state.round}")
        experiment = _continued(asked, good.stamp.settings, f"{path} holds another run")
        if good.state.round == experiment.rounds < good.stamp.settings["rounds"] and n % experiment.evaluate_every:
            raise ParameterError(too_many)  # its last round has not been evaluated
        return experiment, good
    if problems or not there:
        raise CorruptDataError(f"can't resume {path}: {'; '.join(problems) or 'its settings are unreadable'}; {ELSE}")
    if n == experiment.rounds < there["rounds"] and n % experiment.evaluate_every:
        raise ParameterError(too_many)
    if n < experiment.rounds:
        tell(f"no checkpoint in {path}, starting at round 0: its {n} rounds are run again")
        return asked, None
    if [record.round for record in directory.iter_records()] != list(range(n)):
        raise CorruptDataError(f"can't resume {path}: records.jsonl is not rounds 0 to {n - 1} in order; {ELSE}")
    return experiment, None


def go_on(directory: RunDirectory, good: Good, experiment: Experiment, device: torch.device, tell: Tell) -> None:
    """Bring the files to the state: later records are deleted, since their rounds are run again.

    Args:
        directory: The run directory.
        good: The state.
        experiment: The settings, with the number of rounds that is asked for.
        device: Where the run computes.
        tell: Called with a line if machine or versions are not those of the rounds so far.

    Raises:
        FedSieveError: If the directory can't be written.
    """
    path, records = directory.path, directory.path / "records.jsonl"
    with files.one_line(f"write the run directory {path}"):
        files.remove(path / "error.txt")
        if good.name != CHECKPOINT:
            files.rename(path / good.name, path / CHECKPOINT)
        files.cut(records, good.size)
        directory.write_settings(experiment)
        if good.stamp.settings["rounds"] != experiment.rounds and good.size:
            with files.read(records) as file:
                content = file.read()
            head = content.rfind(b"\n", 0, -1) + 1
            changed = content[:head] + _as_due(content[head:], experiment)
            if changed != content:
                directory.save(good.state, experiment, hashlib.sha256(changed).hexdigest())
                files.write(records, changed)
        kept, now = directory.read_environment(), environment(device)
        before = {name: kept[name] for name in now if name in kept and kept[name] != now[name]}
        if before:
            said = ", ".join(f"{name} {value} before, {now[name]} now" for name, value in before.items())
            tell(f"{said}: rounds from {good.state.round} on may differ in the last digits from an uninterrupted run's")
            earlier = kept.get("earlier")
            steps = [*(earlier if isinstance(earlier, list) else []), {"until_round": good.state.round, **before}]
            directory.write_environment({**kept, **now, "earlier": steps})


def check_fits(state: SimulationState, initial: SimulationState) -> None:
    """See that a state is one of this model and of this version's attackers.

    Raises:
        CorruptDataError: If not: the model's code has changed, or the checkpoint is an older version's.
    """
    for name, found, own in (
        ("the model", state.server.params, initial.server.params),
        ("BatchNorm of the clients", state.personal, initial.personal),
    ):
        a, b = ([list(x.shape), x.dtype] if isinstance(x, torch.Tensor) else None for x in (found, own))
        if a != b:
            raise CorruptDataError(f"can't resume: the checkpoint has {name} as {a}, this experiment as {b}; {ELSE}")
    memory, kept = state.adversary, {"attack", "defense"} | ({"personal"} if state.personal is not None else set())
    if memory is not None and not (isinstance(memory, dict) and memory.keys() == kept):
        raise CorruptDataError(
            f"can't resume: the checkpoint has no attacker's memory as this version of fedsieve keeps it; {ELSE}"
        )


def same_run_beside(path: Path, experiment: Experiment) -> Path | None:
    """The run directory beside ``path`` with the most rounds of this experiment, whatever its number of rounds."""
    found, asked, free = [], experiment.model_dump(mode="json"), _free(experiment)
    for settings in path.parent.glob("*/experiment.yaml"):
        directory = RunDirectory(settings.parent)
        there = directory.read_settings()
        if there and not _differences(there, asked, free):
            found.append((directory.n_records(), directory.path))
    return max(found)[1] if found and max(found)[0] else None


def _checkpoints(directory: RunDirectory) -> list[str]:
    """Names of the checkpoints there are, the last one first."""
    return [name for name in (CHECKPOINT, PREVIOUS) if os.path.lexists(directory.path / name)]


def _checked(directory: RunDirectory, name: str, asked: Experiment, device: torch.device) -> Good:
    """The state in a checkpoint.

    Raises:
        FedSieveError: If it is damaged, or not one of this experiment and these records.
    """
    found = directory.read_checkpoint(name, device)
    if found is None:
        raise CorruptDataError(f"{name} is gone")
    stamp, state = found
    if not all(type(stamp.settings.get(key)) is int for key in ("rounds", "evaluate_every")):
        raise CorruptDataError(f"{name} does not say of how many rounds its run is")
    _continued(asked, stamp.settings, f"{name} is of another run")
    if not state.round == stamp.round or not 0 <= state.round <= asked.rounds:
        raise CorruptDataError(f"{name} is of round {state.round}, not one of 0 to {asked.rounds}")
    digest, size = directory.covered(state.round)
    if digest.hexdigest() != stamp.records:
        raise CorruptDataError(f"records.jsonl was changed: its first {state.round} rounds are not those of {name}")
    return Good(state, stamp, name, size)


def _continued(asked: Experiment, there: Mapping[str, Any], what: str) -> Experiment:
    """The experiment asked for, evaluated as often as the one that is there, if they differ in nothing else.

    Raises:
        ParameterError: If another setting than the number of rounds differs.
    """
    found = _differences(there, asked.model_dump(mode="json"), _free(asked))
    if found:
        raise ParameterError(f"can't resume: {what} ({'; '.join(found)}); {ELSE}")
    return asked.model_copy(update={"evaluate_every": there["evaluate_every"]})


def _free(asked: Experiment) -> set[str]:
    """Settings that may differ: the number of rounds, and what follows from it where the user has not set it."""
    settings = asked.model_dump(mode="json")
    del settings["evaluate_every"]
    usual = Experiment.of(settings).evaluate_every == asked.evaluate_every
    return {"rounds", "evaluate_every"} if usual else {"rounds"}


def _differences(there: Mapping[str, Any], asked: Mapping[str, Any], free: set[str]) -> list[str]:
    """Settings that differ, in words: ``seed: 0 there, 1 asked for``."""
    a, b = (dict(_leaves(settings)) for settings in (there, asked))
    names = [name for name in {**a, **b} if name not in free and a.get(name) != b.get(name)]
    said = [f"{name}: {_short(a, name)} there, {_short(b, name)} asked for" for name in names[:_SHOWN]]
    return said + ([f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else [])


def _leaves(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}".removesuffix(".name"), value


def _short(settings: Mapping[str, Any], name: str) -> str:
    text = json.dumps(settings[name], ensure_ascii=False).strip('"') if name in settings else "nothing"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _as_due(line: bytes, experiment: Experiment) -> bytes:
    """The last record of a shorter run, as the longer one has it: without scores if no evaluation was due."""
    record = record_of(line)
    if (record.round + 1) % experiment.evaluate_every == 0 or record.round + 1 == experiment.rounds:
        return line
    scores = ("test_accuracy", "test_loss", "attack_success_rate", "attack_success_rate_all")
    return line_of(replace(record, **dict.fromkeys(scores)))  # type: ignore[arg-type]
