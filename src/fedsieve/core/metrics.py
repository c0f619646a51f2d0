"""Accuracy, loss and detection rates. Rates are in [0, 1], or None where they are undefined."""

from collections.abc import Collection, Iterable, Sequence
from math import isfinite
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedsieve.core.records import RoundRecord


def correct(logits: Float[Tensor, "k c"], y: Int[Tensor, " k"]) -> Bool[Tensor, " k"]:
    """Which samples have their largest logit at their class; False for a row with a logit that is not finite.

    >>> correct(torch.tensor([[2.0, 1.0], [2.0, 1.0], [torch.nan, 1.0]]), torch.tensor([0, 1, 1]))
    tensor([ True, False, False])
    """
    return (logits.argmax(dim=1) == y) & torch.isfinite(logits).all(dim=1)


def rate(hits: Bool[Tensor, " k"]) -> float | None:
    """Share of True among k values; None for k = 0.

    >>> rate(torch.tensor([True, False, False, False]))
    0.25
    """
    return int(hits.sum()) / len(hits) if len(hits) else None


def total_loss(logits: Float[Tensor, "k c"], y: Int[Tensor, " k"]) -> float:
    """Sum of the samples' cross-entropies."""
    return float(cross_entropy(logits, y, reduction="sum"))


def false_positive_rate(
    clients: Collection[int], malicious: Collection[int], rejected: Collection[int] | None
) -> float | None:
    """Share of the round's benign clients that were rejected.

    Args:
        clients: Ids of all clients of the round.
        malicious: Ids of malicious clients, of this round or not.
        rejected: Ids of rejected clients; None if the defense rejects no clients as such.

    >>> false_positive_rate(clients=[1, 2, 3, 4, 5], malicious=[5], rejected=[4, 5])
    0.25
    """
    benign = set(clients) - set(malicious)
    return len(benign & set(rejected)) / len(benign) if rejected is not None and benign else None


def false_negative_rate(
    clients: Collection[int], malicious: Collection[int], rejected: Collection[int] | None
) -> float | None:
    """Share of the round's malicious clients that were accepted; arguments as in :func:`false_positive_rate`.

    >>> false_negative_rate(clients=[1, 2, 3, 4, 5], malicious=[4, 5], rejected=[1, 5])
    0.5
    """
    bad = set(clients) & set(malicious)
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


def summarize(records: Sequence[RoundRecord]) -> dict[str, Any]:
    """The results of a run.

    Accuracy is the share of all test samples that the global model classifies correctly (:func:`correct`).
    ``test_accuracy`` is that of the last evaluation: in a complete run, of the final model. Since accuracy varies from
    round to round, ``late_test_accuracy`` is the mean over the evaluations in the last tenth of the rounds (at least
    one round), or that of the last evaluation if there is none among them.

    Attack success rates are those of the last evaluation. Detection rates are means over the rounds in which they are
    defined: over all rounds, and with ``late_`` over the second half. None where there is no value.

    Args:
        records: The records of all rounds so far, in order.
    """
    n = len(records)
    evaluated = [r for r in records if r.test_accuracy is not None]
    last = evaluated[-1:]
    late = [r for r in evaluated if r.round >= n - max(1, n // 10)] or last
    half = records[n // 2 :]
    return {
        "test_accuracy": mean_of(r.test_accuracy for r in last),
        "late_test_accuracy": mean_of(r.test_accuracy for r in late),
        "attack_success_rate": mean_of(r.attack_success_rate for r in last),
        "attack_success_rate_all": mean_of(r.attack_success_rate_all for r in last),
        "false_positive_rate": mean_of(r.false_positive_rate for r in records),
        "false_negative_rate": mean_of(r.false_negative_rate for r in records),
        "late_false_positive_rate": mean_of(r.false_positive_rate for r in half),
        "late_false_negative_rate": mean_of(r.false_negative_rate for r in half),
    }
