"""What is kept in memory of a run: its summary, its evaluations, and a bounded number of points of each curve.

Never its records, which are hundreds of times as large as the two numbers of an evaluation.
"""

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fedsieve.core.metrics import Summary
from fedsieve.core.records import RoundRecord

# Most points of a curve that are kept; a panel of a figure is about as many pixels wide.
POINTS = 500
# Accuracy in those rounds in which a malicious client was accepted: a curve like the fields of a record.
MISSED = "missed"
_FIELDS = ("test_accuracy", "attack_success_rate", "false_positive_rate", "false_negative_rate")

Curve = tuple["array[int]", "array[float]"]  # rounds, counted from 0, and values


@dataclass(frozen=True)
class Digest:
    """What tables and figures show of a run.

    Attributes:
        rounds: Number of rounds.
        summary: :func:`fedsieve.core.metrics.summarize` of all of them.
        evaluations: The rounds with an evaluation and their accuracy, all of them: damage is compared round by round.
        curves: The rounds in which a field has a value, and the values, evenly thinned to :data:`POINTS`; by field of
            :class:`fedsieve.core.records.RoundRecord`, and :data:`MISSED`.
        decided_from: First round, counted from 0, in which the defense took a decision; None if it never did.
        n_diagnosed: Number of records with a diagnosis.
        diagnosed: Positions of those that hold clients' coordinates, thinned in the same way.
    """

    rounds: int
    summary: Mapping[str, Any]
    evaluations: Curve
    curves: Mapping[str, Curve]
    decided_from: int | None
    n_diagnosed: int
    diagnosed: "array[int]"

    @classmethod
    def of(cls, records: Iterable[RoundRecord]) -> "Digest":
        """The digest of records, which are looped over once and not kept."""
        summary, decided_from, n_diagnosed, diagnosed = Summary(), None, 0, array("q")
        curves: dict[str, Curve] = {name: (array("q"), array("d")) for name in (*_FIELDS, MISSED)}
        for record in records:
            if (seen := record.diagnosis) is not None:
                n_diagnosed += 1
                if seen.coordinates:
                    diagnosed.append(summary.rounds)
            summary.add(record)
            if decided_from is None and record.rejected is not None:
                decided_from = record.round
            values = {name: getattr(record, name) for name in _FIELDS}
            values[MISSED] = record.test_accuracy if (record.false_negative_rate or 0) > 0 else None
            for name, value in values.items():
                if value is not None:
                    curves[name][0].append(record.round)
                    curves[name][1].append(value)
        thinned = {name: (thin(rounds, POINTS), thin(values, POINTS)) for name, (rounds, values) in curves.items()}
        return cls(
            rounds=summary.rounds,
            summary=summary.result(),
            evaluations=curves["test_accuracy"],
            curves=thinned,
            decided_from=decided_from,
            n_diagnosed=n_diagnosed,
            diagnosed=thin(diagnosed, POINTS),
        )

    @property
    def accuracies(self) -> list[float | None]:
        """Test accuracy of each round, None where it was not evaluated."""
        rounds, values = self.evaluations
        found: list[float | None] = [None] * max(self.rounds, rounds[-1] + 1 if rounds else 0)
        for k, value in zip(rounds, values, strict=True):
            found[k] = value
        return found


def thin(values: "array[Any]", most: int) -> "array[Any]":
    """At most ``most`` of the values, evenly spaced, the last one included."""
    return array(values.typecode, (values[k] for k in spaced(len(values), most)))


def spaced(n: int, most: int) -> list[int]:
    """At most ``most`` of n positions, evenly spaced, the last one included.

    >>> spaced(11, 3)
    [0, 5, 10]
    """
    if n <= most:
        return list(range(n))
    return sorted({n - 1 - round(k * (n - 1) / max(1, most - 1)) for k in range(most)})
