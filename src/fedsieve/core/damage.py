"""Damage: accuracy lost against a run without attack, and what the records of one run tell alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from typing import Any

from fedsieve.core.records import RoundRecord, decided


@dataclass(frozen=True)
class Damage:
    """Accuracy that a run lost against a reference run; below 0 where it gained. See :func:`damage`.

    Attributes:
        rounds: Number of rounds that were compared: those that both runs have.
        mean: Accuracy lost per round: mean over the rounds in which both were evaluated.
        worst: The largest loss in one of these rounds.
        worst_round: The first such round, counted from 0.
        area: The losses added up over the rounds, in accuracy-rounds.
        late: Mean loss in the last tenth of the rounds.
    """

    rounds: int
    mean: float
    worst: float
    worst_round: int
    area: float
    late: float


def damage(accuracy: Sequence[float | None], reference: Sequence[float | None]) -> Damage | None:
    """What a run lost against a reference run, such as one with the same seed and no attack.

    Rounds beyond the shorter run are left out. The loss of an evaluation stands for all rounds since the one before it,
    so that ``area`` does not depend on how often the runs were evaluated; rounds after the last evaluation don't count.
    ``late`` is the mean over the evaluations in the last tenth of the rounds (at least one round), or the loss of the
    last evaluation if there is none among them, as in :func:`fedsieve.core.metrics.summarize`.

    Args:
        accuracy: Of each round; None where it was not evaluated.
        reference: The same of the reference run.

    Returns:
        None if no round was evaluated in both.

    >>> damage([0.5, None, 0.5, 0.75], [0.5, 0.75, 1.0, 1.0])
    Damage(rounds=4, mean=0.25, worst=0.5, worst_round=2, area=1.25, late=0.25)
    """
    rounds = min(len(accuracy), len(reference))
    pairs = enumerate(zip(accuracy[:rounds], reference[:rounds], strict=True))
    losses = {k: before - now for k, (now, before) in pairs if now is not None and before is not None}
    if not losses:
        return None
    worst_round = max(losses, key=lambda k: losses[k])  # the first of several
    starts = [-1, *losses]
    late = [loss for k, loss in losses.items() if k >= late_from(rounds)] or [losses[starts[-1]]]
    return Damage(
        rounds=rounds,
        mean=fsum(losses.values()) / len(losses),
        worst=losses[worst_round],
        worst_round=worst_round,
        area=fsum((k - start) * loss for start, (k, loss) in zip(starts, losses.items(), strict=False)),
        late=fsum(late) / len(late),
    )


def late_from(rounds: int) -> int:
    """The first of the last tenth of the rounds, at least one, counted from 0.

    >>> [late_from(rounds) for rounds in (1, 19, 60)]
    [0, 18, 54]
    """
    return rounds - max(1, rounds // 10)


class RunDamage:
    """What the records of one run tell of damage, of any attack and defense; records are added one at a time."""

    def __init__(self) -> None:
        self._benign = self._malicious = self._lost = self._decided = 0
        self._truth = True  # of every record so far
        self._met: int | None = None  # the first round with a malicious client, and with one that was rejected
        self._caught: int | None = None
        self._success: tuple[float | None, int | None] = (None, None)
        self._best: float | None = None
        self._fall: tuple[float | None, int | None] = (None, None)

    def add(self, record: RoundRecord) -> None:
        """Add the next round."""
        malicious, number = set(record.malicious or ()), record.round
        benign = set(record.clients) - malicious
        self._truth &= record.malicious is not None
        self._benign += len(benign)
        self._malicious += len(malicious)
        if malicious and self._met is None:
            self._met = number
        if decided(record):
            rejected = set(record.rejected or ())
            self._decided += 1
            self._lost += len(benign & rejected)
            if self._caught is None and malicious & rejected:
                self._caught = number
        success, accuracy = record.attack_success_rate, record.test_accuracy
        if success is not None and (self._success[0] is None or success > self._success[0]):
            self._success = success, number
        if accuracy is not None:
            self._best = accuracy if self._best is None else max(self._best, accuracy)
            fall = self._best - accuracy
            if self._fall[0] is None or fall > self._fall[0]:
                self._fall = fall, number

    def result(self) -> dict[str, Any]:
        """The results of the rounds so far; see :func:`fedsieve.core.metrics.summarize`."""
        met, caught, lost = self._met, self._caught, self._lost if self._decided and self._truth else None
        return {
            "rounds_decided": self._decided,
            "malicious_client_rounds": self._malicious if self._truth else None,
            "rounds_until_detection": None if met is None or caught is None or not self._truth else caught - met,
            "benign_client_rounds_lost": lost,
            "benign_share_lost": None if lost is None or not self._benign else lost / self._benign,
            "worst_attack_success_rate": self._success[0],
            "worst_attack_success_round": self._success[1],
            "largest_accuracy_fall": self._fall[0],
            "largest_accuracy_fall_round": self._fall[1] if self._fall[0] else None,
        }
