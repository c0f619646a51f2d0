"""Reads run directories, finished, unfinished, failed or broken; problems are listed, not raised.

A run directory may be a stranger's: nothing that its files name is imported, and no record stays in memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import FedSieveError, ParameterError
from fedsieve.core.escaping import printable
from fedsieve.core.records import client_name
from fedsieve.core.scores import FinalScores
from fedsieve.report.digest import Digest
from fedsieve.report.escaping import shortened
from fedsieve.report.settings import component, setting
from fedsieve.report.stored import Rounds, Stored, digest
from fedsieve.runs.directory import RunDirectory

_LINE = 400  # characters of a problem that are shown
_TAIL = 1 << 16  # bytes of an error message that are read


@dataclass(frozen=True)
class Run:
    """One run directory.

    Attributes:
        path: The directory.
        experiment: Its settings; None if they can't be read.
        records: The rounds played so far, which are read from the disk whenever they are looped over.
        problems: What is wrong with it, one line each; empty for a finished run without errors.
        names: Name of each client, client 0 first; empty where they have none.
    """

    path: Path
    experiment: Experiment | None
    records: Rounds
    problems: tuple[str, ...]
    names: tuple[str, ...] = ()

    def name(self, client: int) -> str:
        """A client's name, or ``client 3``; printable."""
        return client_name(self.names, client)

    @property
    def truth(self) -> bool:
        """Whether it is known who is malicious."""
        return self.summary["malicious_client_rounds"] is not None

    @cached_property
    def digest(self) -> Digest:
        """Summary and curves."""
        return digest(self.records)

    @cached_property
    def scores(self) -> FinalScores | None:
        """All scores of the final model; None where there are none."""
        return RunDirectory(self.path).read_scores(self.digest.rounds)

    @property
    def finished(self) -> bool:
        """Whether all rounds have been played, and none of their records is damaged."""
        damaged = isinstance(self.records, Stored) and self.records.damaged
        return self.experiment is not None and self.digest.rounds == self.experiment.rounds and not damaged

    @property
    def summary(self) -> Mapping[str, Any]:
        """:func:`fedsieve.core.metrics.summarize` of the records."""
        return self.digest.summary

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What a reader of its numbers has to know: rounds that changed nothing, updates that were screened."""
        s, rounds = self.summary, self.digest.rounds
        said = []
        if s["rounds_not_applied"]:
            why = reasons(s["not_applied_reasons"])
            said.append(f"model unchanged in {s['rounds_not_applied']} of {rounds} rounds: {why}")
        if s["updates_screened"]:
            why = reasons(s["screened_reasons"])
            said.append(f"{s['updates_screened']} updates screened in {rounds} rounds: {why}")
        return tuple(shortened(line, _LINE) for line in said)

    @cached_property
    def attack(self) -> str:
        """Name of the attack, and its parameters that differ from the defaults; "" without settings."""
        e = self.experiment
        return "" if e is None else component("attack", e.attack, e.dataset.name)

    @cached_property
    def defense(self) -> str:
        """Name of the defense, and its parameters that differ from the defaults; "" without settings."""
        e = self.experiment
        return "" if e is None else component("defense", e.defense, e.dataset.name)

    @cached_property
    def setting(self) -> dict[str, str]:
        """All settings but attack, defense and seed, as text; empty without settings."""
        return {} if self.experiment is None else setting(self.experiment)


def reasons(counts: Mapping[str, int]) -> str:
    """Reasons, each with its number.

    >>> reasons({"not finite": 3, "too long": 1})
    'not finite (3), too long (1)'
    """
    return ", ".join(f"{reason} ({count})" for reason, count in counts.items())


def load(paths: Sequence[Path]) -> list[Run]:
    """The runs in these directories, each a run directory, its records file, or a folder of run directories.

    Raises:
        ParameterError: If there is none, or a path can't be read.
    """
    try:
        found = sorted({folder for path in paths for folder in _folders(path)})
    except OSError as error:
        raise ParameterError(f"can't look for runs: {printable(str(error))}") from error
    if not found:
        raise ParameterError(
            f"no run in {printable(', '.join(map(str, paths)))}: a run directory holds experiment.yaml or records.jsonl"
        )
    return [read(folder) for folder in found]


def _folders(path: Path) -> Iterator[Path]:
    if path.is_file():
        path = path.parent
    marks = ("experiment.yaml", "records.jsonl", "error.txt")
    if any((path / name).exists() for name in marks):
        yield path
        return
    for name in marks:
        yield from (file.parent for file in path.glob(f"*/{name}"))


def read(folder: Path) -> Run:
    """The run in one directory."""
    problems: list[str] = []
    experiment: Experiment | None = None
    settings = folder / "experiment.yaml"
    if (folder / "error.txt").is_file():
        problems.append(f"failed: {_last_line(folder / 'error.txt')}")
    try:
        experiment = Experiment.recorded(settings)
    except FedSieveError as error:
        problems.append(f"settings: {str(error).removeprefix(f'{settings}: ')}")
    records = Stored(folder, experiment)
    played = records.digest.rounds
    if experiment and not problems and not records.problems and played < experiment.rounds:
        problems.append(f"unfinished: {played} of {experiment.rounds} rounds")
    problems += records.problems
    said = tuple(shortened(line, _LINE) for line in problems)
    return Run(folder, experiment, records, said, RunDirectory(folder).read_names())


def _last_line(path: Path) -> str:
    """The last line of a text file, or why it can't be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            text = file.read(_TAIL).decode("utf-8", errors="replace").strip()
    except OSError as error:
        return f"{path.name}: {error.strerror}"
    return text.splitlines()[-1] if text else "no message"
