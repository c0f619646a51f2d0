"""Accuracy, loss and detection rates. Rates are in [0, 1], or None where they are undefined."""

from array import array
from collections.abc import Collection, Iterable
from itertools import zip_longest
from math import isfinite, nan
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedsieve.core.damage import RunDamage, late_from
from fedsieve.core.records import RoundRecord
from fedsieve.core.rejections import Rejections


def correct(logits: Float[Tensor, "k c"], y: Int[Tensor, " k"]) -> Bool[Tensor, " k"]:
    """Which samples have their largest logit at their class; False for a row with a logit that is not finite.

    >>> correct(torch.tensor([[2.0, 1.0], [2.0, 1.0], [torch.nan, 1.0]]), torch.tensor([0, 1, 1]))
    tensor([ True, False, False])
    """
    return (logits.argmax(dim=1) == y) & torch.isfinite(logits).all(dim=1)


def share(hits: int, n: int) -> float | None:
    """Share of ``hits`` among n; None for n = 0.

    >>> share(1, 4)
    0.25
    """
    return hits / n if n else None


def total_loss(logits: Float[Tensor, "k c"], y: Int[Tensor, " k"]) -> Float[Tensor, ""]:
    """Sum of the samples' cross-entropies."""
    return cross_entropy(logits, y, reduction="sum")


def false_positive_rate(
    clients: Collection[int], malicious: Collection[int] | None, rejected: Collection[int] | None
) -> float | None:
    """Share of the round's benign clients that were rejected.

    Args:
        clients: Ids of all clients of the round.
        malicious: Ids of malicious clients, of this round or not; None where that is not known.
        rejected: Ids of rejected clients; None if the defense rejects no clients as such.

    >>> false_positive_rate(clients=[1, 2, 3, 4, 5], malicious=[5], rejected=[4, 5])
    0.25
    """
    if malicious is None:
        return None
    benign = set(clients) - set(malicious)
    return len(benign & set(rejected)) / len(benign) if rejected is not None and benign else None


def false_negative_rate(
    clients: Collection[int], malicious: Collection[int] | None, rejected: Collection[int] | None
) -> float | None:
    """Share of the round's malicious clients that were accepted; arguments as in :func:`false_positive_rate`.

    >>> false_negative_rate(clients=[1, 2, 3, 4, 5], malicious=[4, 5], rejected=[1, 5])
    0.5
    """
    bad = set(clients) & set(malicious or ())
    return len(bad - set(rejected)) / len(bad) if rejected is not None and bad else None


def finite(value: float) -> float | None:
    """The value, or None if it is infinite or NaN."""
    return value if isfinite(value) else None


def mean_of(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are not None; None if all are.

    >>> mean_of([None, 1.0, 2.0])
    1.5
    """
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


# A record's reasons are free text; beyond so many different ones the rest are counted together.
_REASONS = 20
NO_REASON = "no reason given"
OTHER_REASONS = "other reasons"
NOT_FINITE = "not finite"  # why updates were screened in records that hold no reasons


def count_reason(counts: dict[str, int], reason: str) -> None:
    """Count one more ``reason`` in place; a bounded number of different ones, the others together.

    >>> counts = {"overflow": 1}
    >>> count_reason(counts, "overflow")
    >>> counts
    {'overflow': 2}
    """
    key = reason if reason in counts or len(counts) < _REASONS else OTHER_REASONS
    counts[key] = counts.get(key, 0) + 1


class Summary:
    """:func:`summarize` of records that are added one at a time; holds a few numbers of each round, no record."""

    def __init__(self) -> None:
        self.rounds = 0
        self._evaluated, self._accuracy = array("q"), array("d")  # rounds with an evaluation, and their accuracy
        self._success, self._success_all = array("d"), array("d")  # in the same rounds; NaN where undefined
        self._fpr, self._fnr = array("d"), array("d")  # NaN where undefined
        self._not_applied: dict[str, int] = {}
        self._screened: dict[str, int] = {}
        self._notes: dict[str, int] = {}
        self._damage, self._rejections = RunDamage(), Rejections()

    def add(self, record: RoundRecord) -> None:
        """Add the next round."""
        self.rounds += 1
        self._damage.add(record)
        self._rejections.add(record)
        if record.test_accuracy is not None:
            self._evaluated.append(record.round)
            self._accuracy.append(record.test_accuracy)
            self._success.append(_or_nan(record.attack_success_rate))
            self._success_all.append(_or_nan(record.attack_success_rate_all))
        self._fpr.append(_or_nan(record.false_positive_rate))
        self._fnr.append(_or_nan(record.false_negative_rate))
        if not record.applied:
            count_reason(self._not_applied, record.note or NO_REASON)
        elif record.note:
            for note in record.note.split("; "):
                count_reason(self._notes, note.partition(" (")[0])  # numbers stand in brackets
        for _, reason in zip_longest(record.screened, record.screened_reasons[: len(record.screened)]):
            count_reason(self._screened, reason or NOT_FINITE)

    def result(self) -> dict[str, Any]:
        """The results of the rounds so far."""
        n, half = self.rounds, self.rounds // 2
        count = sum(k >= late_from(n) for k in self._evaluated) or 1  # rounds are in order
        return {
            "test_accuracy": mean_of(self._accuracy[-1:]),
            "late_test_accuracy": mean_of(self._accuracy[-count:]),
            "attack_success_rate": mean_of(map(finite, self._success[-1:])),
            "attack_success_rate_all": mean_of(map(finite, self._success_all[-1:])),
            "late_attack_success_rate": mean_of(map(finite, self._success[-count:])),
            "false_positive_rate": mean_of(map(finite, self._fpr)),
            "false_negative_rate": mean_of(map(finite, self._fnr)),
            "late_false_positive_rate": mean_of(map(finite, self._fpr[half:])),
            "late_false_negative_rate": mean_of(map(finite, self._fnr[half:])),
            "rounds_not_applied": sum(self._not_applied.values()),
            "not_applied_reasons": dict(self._not_applied),
            "updates_screened": sum(self._screened.values()),
            "screened_reasons": dict(self._screened),
            "notes": dict(self._notes),
            **self._damage.result(),
            **self._rejections.result(),
        }


def _or_nan(value: float | None) -> float:
    return nan if value is None else value


def summarize(records: Iterable[RoundRecord]) -> dict[str, Any]:
    """The results of a run.

    Accuracy is the share of all test samples that the global model classifies correctly (:func:`correct`).
    ``test_accuracy`` is that of the last evaluation: in a complete run, of the final model. Since accuracy varies from
    round to round, ``late_test_accuracy`` is the mean over the evaluations in the last tenth of the rounds (at least
    one round), or that of the last evaluation if there is none among them.

    Attack success rates are those of the last evaluation, ``late_attack_success_rate`` is the mean over the same
    evaluations as ``late_test_accuracy``. Detection rates are means over the rounds in which they are defined: over all
    rounds, and with ``late_`` over the second half. None where there is no value.

    ``rounds_not_applied`` is the number of rounds that left the global model unchanged, ``updates_screened`` that of
    the updates dropped before the defense; both by reason in ``not_applied_reasons`` and
    ``screened_reasons``. ``notes`` counts what the defense said of rounds that changed the model, by text without
    brackets.

    Damage that needs no other run to compare with; rounds count from 0 as in the records:

    - ``rounds_until_detection``: from the first round in which a malicious client took part to the first in which one
      was rejected, whether it attacked before or not; 0 if both are the same round, None if none ever was.
    - ``benign_client_rounds_lost``: how often a benign client was rejected, and ``benign_share_lost``, of all times
      that one took part; None if the defense never took a decision. ``rounds_decided`` is the number of rounds in which
      it did, ``malicious_client_rounds`` how often a malicious client took part. Rounds in which every update was
      dropped before the defense are none in which it decided.
      All these but ``rounds_decided`` are None where a record does not know who is malicious.
    - ``client_rounds_rejected``: how often any client was rejected, and ``share_rejected``, of all times that one took
      part; None if the defense never took a decision. ``most_rejected``: the clients that were rejected most often, at
      most 20, each with ``client``, ``rounds_rejected`` and the ``rounds`` in which it took part; none are named where
      more than 10,000 took part.
    - ``worst_attack_success_rate``: the highest of any evaluation, and ``worst_attack_success_round``, the first such.
    - ``largest_accuracy_fall``: how far the accuracy of an evaluation lay below the best one before it, at most, and
      ``largest_accuracy_fall_round``, the first with it; None if accuracy never fell.

    Args:
        records: The records of all rounds so far, in order.
    """
    found = Summary()
    for record in records:
        found.add(record)
    return found.result()
