"""The records of a run directory, read from the disk one at a time; damaged and contradictory ones are left out."""

from collections.abc import Collection, Container, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import Any

from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import FedSieveError
from fedsieve.core.records import DiagnosisRecord, RoundRecord, seen_id
from fedsieve.report.digest import Digest
from fedsieve.runs.directory import RunDirectory

_MISTAKES = ("false_positive_rate", "false_negative_rate")
_RATES = ("test_accuracy", "attack_success_rate", "attack_success_rate_all", *_MISTAKES)
# Bounds of rounds and ids where there are no settings; positions beyond the other are not drawn.
_WHOLE, _FAR = 10**9, 1e100


class Stored:
    """The records of one run directory. Each loop over them reads the file anew and holds one record at a time.

    Left out are records that can't be of this run: rounds a second time or out of order, clients or rounds that the
    settings don't have, lists of wrong lengths. In the others, numbers that are not finite, and rates that are not in
    [0, 1], are replaced by None.

    Args:
        folder: The run directory.
        experiment: Its settings; None if they can't be read.

    Attributes:
        digest: Summary and curves.
        problems: What is wrong with the records, one line each.
        damaged: Whether some are left out or can't be read.
    """

    def __init__(self, folder: Path, experiment: Experiment | None) -> None:
        self._directory = RunDirectory(folder)
        self._rounds = min(experiment.rounds, _WHOLE) if experiment else _WHOLE
        self._clients = experiment.clients if experiment else _WHOLE
        self.problems: list[str] = []
        self._left_out, self._replaced, first = 0, 0, ""

        def usable() -> Iterator[RoundRecord]:
            nonlocal first
            for line, (record, wrong) in enumerate(self._checked(), 1):
                if wrong:
                    self._left_out += 1
                    first = first or f"line {line}: {wrong}"
                else:
                    whole = _finite(record)
                    self._replaced += whole is not record
                    yield whole

        self.digest = Digest.of(usable())
        self.damaged = bool(self._left_out or self.problems)
        rounds = self.digest.rounds
        if self._left_out:
            self.problems.append(
                f"damaged: {self._left_out} of {rounds + self._left_out} records are left out; {first}"
            )
        if self._replaced:
            numbers = "numbers that are not finite, or rates not in [0, 1]; these are left out"
            self.problems.append(f"{self._replaced} of {rounds} rounds have {numbers}")

    def __len__(self) -> int:
        return self.digest.rounds

    def __iter__(self) -> Iterator[RoundRecord]:
        return (_finite(record) for record, wrong in self._checked() if not wrong)

    def at(self, positions: Collection[int]) -> Iterator[RoundRecord]:
        """The records at these positions, counted from 0, in order."""
        if self._left_out:  # positions are not lines
            return (record for k, record in enumerate(self) if k in positions)
        return (_finite(record) for record, wrong in self._checked(positions) if not wrong)

    def _checked(self, only: Container[int] | None = None) -> Iterator[tuple[RoundRecord, str]]:
        """Every record and what is wrong with it, or ""; stops where the file is no longer one of records."""
        above = 0
        try:
            for record in self._directory.iter_records(only):
                wrong = _wrong(record, above, self._rounds, self._clients)
                above = above if wrong else record.round + 1
                yield record, wrong
        except (FedSieveError, OSError, ValueError) as error:
            said = f"records: {error}"
            if said not in self.problems:
                self.problems.append(said)


Rounds = Sequence[RoundRecord] | Stored


def digest(records: Rounds) -> Digest:
    """The digest of records, in memory or on the disk."""
    return records.digest if isinstance(records, Stored) else Digest.of(records)


def _wrong(r: RoundRecord, above: int, rounds: int, clients: int) -> str:
    """Why this can't be the record of a round from ``above`` on of a run with so many rounds and clients, or ""."""
    if not above <= r.round < rounds:
        return f"round {r.round}, where one from {above} to {rounds - 1} was expected"
    n, known = len(r.clients), set(r.clients)
    top = seen_id(clients - 1, r.round, clients)  # a malicious client may take a new id every round
    new = {i for i in known if not 0 <= i < clients}
    bad = r.malicious or ()
    if n > clients or not new.issubset(bad) or not all(0 <= i <= top for i in new):
        there = f"0 to {clients - 1}" + (
            f", malicious clients' to {top}" if r.round and r.malicious is not None else ""
        )
        return f"{n} clients with ids from {min(known)} to {max(known)}, where there are ids {there}"
    if not known.issuperset(bad) or not known.issuperset(r.rejected or ()) or not known.issuperset(r.screened):
        return "decisions on clients that did not take part"
    per_client: dict[str, Sequence[Any] | None] = {"weights": r.weights, "scores": r.scores}
    if (seen := r.diagnosis) is not None:
        per_client |= {"positions": seen.coordinates or None, "masks": seen.kept or None, "reasons": seen.reasons}
        per_client |= {"positions of updates": seen.updates}
        if {*map(len, seen.kept)} - {len(seen.layers)}:
            return "masks with another number of layers than there are names"
    for name, values in per_client.items():
        if values is not None and len(values) != n:
            return f"{len(values)} {name} of {n} clients"
    return ""


def _finite(record: RoundRecord) -> RoundRecord:
    """The record itself, or a copy without the numbers that make no sense."""
    wrong: dict[str, Any] = {
        name: None for name in _RATES if (rate := getattr(record, name)) is not None and not 0 <= rate <= 1
    }
    if record.malicious is None:  # then nobody can count mistakes
        wrong |= {name: None for name in _MISTAKES if getattr(record, name) is not None}
    if record.test_loss is not None and not isfinite(record.test_loss):
        wrong["test_loss"] = None
    if record.diagnosis is not None and (seen := _near(record.diagnosis)) is not record.diagnosis:
        wrong["diagnosis"] = seen
    return replace(record, **wrong) if wrong else record


def _near(seen: DiagnosisRecord) -> DiagnosisRecord:
    """The diagnosis itself, or a copy without numbers that are not finite or too large to draw."""
    pairs = [*seen.coordinates, *(seen.updates or ()), *([seen.root] if seen.root else []), *seen.kept]
    if sum(map(abs, filter(None, chain.from_iterable(pairs)))) < _FAR:  # false for NaN
        return seen

    def known(v: float | None) -> float | None:
        return v if v is not None and abs(v) < _FAR else None

    return replace(
        seen,
        coordinates=tuple((known(x), known(y)) for x, y in seen.coordinates),
        updates=None if seen.updates is None else tuple((known(x), known(y)) for x, y in seen.updates),
        root=seen.root if seen.root and None not in map(known, seen.root) else None,
        kept=tuple(tuple(known(v) for v in kept) for kept in seen.kept),
    )
