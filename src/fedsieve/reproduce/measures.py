"""Measures of the tables: what they read from the records of a run, and from those of a run without attack."""

from collections import Counter
from collections.abc import Sequence
from statistics import mean, stdev

from fedsieve.core.damage import damage
from fedsieve.report.digest import Digest
from fedsieve.report.stored import Rounds

# Measures that are keys of :func:`fedsieve.core.metrics.summarize`. The papers' rates are means over all rounds, and so
# are these; late rates are means over the second half.
MEASURES = {
    "accuracy": "late_test_accuracy",
    "success": "attack_success_rate_all",
    "fpr": "false_positive_rate",
    "fnr": "false_negative_rate",
    "late_fpr": "late_false_positive_rate",
    "late_fnr": "late_false_negative_rate",
    "late_success": "late_attack_success_rate",
    "benign_lost": "benign_share_lost",
}
# Measures that are attributes of :class:`fedsieve.core.damage.Damage`, against the reference run.
LOSSES = {"worst_loss": "worst", "late_loss": "late", "area": "area"}
# The highest attack success of any evaluation after the first tenth of the rounds, in which an untrained model may read
# everything as one class; and the measure of :func:`wronged`.
WORST_SUCCESS, WRONGED = "worst_success", "wronged"
ALL = (*MEASURES, *LOSSES, WORST_SUCCESS, WRONGED)
# Of several seeds the tables show the largest value of these, and the mean of the others.
LARGEST = ("worst_loss", WORST_SUCCESS, WRONGED)


def measured(measure: str, run: Digest, reference: Digest | None) -> float | None:
    """A measure of one run; None where it is undefined.

    Args:
        measure: Of :data:`ALL`, but :data:`WRONGED`.
        run: Of the run.
        reference: Of the run with its seed and data, without attack and defense; None without one.
    """
    if measure in MEASURES:
        value: float | None = run.summary[MEASURES[measure]]
        return value
    if measure == WORST_SUCCESS:
        rates = zip(*run.curves["attack_success_rate"], strict=True)
        return max((rate for k, rate in rates if k >= run.rounds // 10), default=None)
    lost = None if reference is None else damage(run.accuracies, reference.accuracies)
    return None if lost is None else getattr(lost, LOSSES[measure])


def wronged(run: Rounds, quiet: Rounds) -> float | None:
    """How much more often a benign client was rejected than in a run without attack: the client with most.

    Args:
        run: Records of the run.
        quiet: Records of the run with the same seed, data and defense, without attack.

    Returns:
        A difference of shares of the rounds in which the client took part; None if one of the runs rejects no clients
        as such.
    """
    shares, before = _rejected(run), _rejected(quiet)
    if shares is None or before is None:
        return None
    return max((share - before.get(client, 0.0) for client, share in shares.items()), default=None)


def _rejected(records: Rounds) -> dict[int, float] | None:
    """Of each benign client, the share of its rounds in which it was rejected; None if nobody knows who is benign."""
    took_part, rejected, decided = Counter[int](), Counter[int](), False
    for record in records:
        if record.malicious is None:
            return None
        benign = set(record.clients) - set(record.malicious)
        took_part.update(benign)
        if record.rejected is not None:
            decided = True
            rejected.update(benign & set(record.rejected))
    return {client: rejected[client] / n for client, n in took_part.items()} if decided else None


def acceptable(measure: str, goal: float, references: Sequence[Digest | None]) -> float | None:
    """The bound that a goal sets.

    The goal of ``accuracy`` is the largest loss against the references, that of ``late_success`` the largest excess; in
    the worst round, what misclassifies the samples in the references too is no success. Other goals are bounds.

    Args:
        measure: Of :data:`ALL`.
        goal: See :attr:`fedsieve.reproduce.plan.Row.goals`.
        references: Of the seeds' runs without attack and defense; None for one that is missing.

    Returns:
        None if it depends on references and there are none.
    """
    if measure not in ("accuracy", "late_success", WORST_SUCCESS):
        return goal
    values = [measured(measure, other, None) for other in references if other is not None]
    base = over_seeds(measure, [value for value in values if value is not None])[0]
    if base is None:
        return None
    if measure == WORST_SUCCESS:
        return max(goal, base)
    return base - goal if measure == "accuracy" else base + goal


def over_seeds(measure: str, values: list[float]) -> tuple[float | None, float | None]:
    """The value of a cell and its standard deviation, from those of its seeds; None without any.

    >>> over_seeds("late_loss", [0.0, 0.5])[0], over_seeds("worst_loss", [0.0, 0.5])
    (0.25, (0.5, None))
    """
    if measure in LARGEST:
        return max(values, default=None), None
    return mean(values) if values else None, stdev(values) if len(values) > 1 else None
