"""What is said of a site, and when it is flagged."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from fedsieve.audit.agreement import Agreement
from fedsieve.audit.columns import Shift
from fedsieve.audit.copies import Copies

LEAST_SCORE = 4.0  # deviations of the reference updates, the mean over the second half of the rounds
SCORE_DEVIATIONS = 5.0  # and so many deviations of the other sites' scores above their median
EMPTY = 0.01  # of the usual length of an update, below which it says nothing


@dataclass(frozen=True)
class Finding:
    """One measurement of a site against its limit.

    Attributes:
        kind: ``updates``, ``empty``, ``labels``, ``column`` or ``copies``.
        value: What was measured.
        limit: What would still be usual.
        unusual: Whether it is beyond the limit.
        text: In one sentence.
    """

    kind: str
    value: float
    limit: float
    unusual: bool
    text: str


@dataclass(frozen=True)
class LeftOut:
    """The score of the model without a site, minus with it, on the other sites' held-out rows; means over seeds.

    Attributes:
        change: The difference of balanced accuracy.
        low: Lower end of the 95 % interval over seeds; NaN with one seed.
        high: Upper end.
    """

    change: float
    low: float
    high: float

    @property
    def in_words(self) -> str:
        """In points."""
        change = f"{100 * self.change:+.1f} points"
        return change if np.isnan(self.low) else f"{change} ({100 * self.low:+.1f} to {100 * self.high:+.1f})"

    @classmethod
    def of(cls, differences: Sequence[float]) -> "LeftOut":
        """Mean and interval (Student's t) of differences, one per seed."""
        from scipy import stats

        x = np.asarray(differences)
        if len(x) < 2:
            return cls(float(x.mean()), float("nan"), float("nan"))
        half = float(stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
        return cls(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half)


@dataclass(frozen=True)
class Site:
    """What the audit says of one site.

    Attributes:
        name: Of the site.
        rows: Number of its rows.
        classes: RawRows of each class, by its name.
        local_score: Balanced accuracy of a model of its own on its held-out rows; None without any.
        global_score: The same of the model of all sites.
        rounds_rejected: Rounds in which the defense rejected it, over all seeds.
        rounds: Rounds, over all seeds.
        score: Its anomaly score, in deviations of the reference updates.
        limit: Of the score.
        since: First round, from 1, from which on it was rejected in most rounds; None if there is none.
        left_out: What the model is without it; None if that was not tried.
        evidence: All measurements, those beyond their limit first.
        scores: Anomaly score by round, mean over seeds.
        rejections: Share of the seeds in which it was rejected, by round.
    """

    name: str
    rows: int
    classes: dict[str, int]
    local_score: float | None
    global_score: float | None
    rounds_rejected: int
    rounds: int
    score: float
    limit: float
    since: int | None
    left_out: LeftOut | None
    evidence: tuple[Finding, ...] = ()
    scores: tuple[float, ...] = ()
    rejections: tuple[float, ...] = ()

    @property
    def flagged(self) -> bool:
        """Whether a measurement is beyond its limit."""
        return any(e.unusual for e in self.evidence)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is flagged, a sentence each."""
        return tuple(e.text for e in self.evidence if e.unusual)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of evidence by which it is flagged."""
        return tuple(dict.fromkeys(e.kind for e in self.evidence if e.unusual))

    @property
    def verdict(self) -> str:
        """In a few words."""
        return "look at it" if self.flagged else "nothing to be seen"


def of_updates(
    score: Float[np.ndarray, " n"],
    far: Float[np.ndarray, " n"],
    harm: Float[np.ndarray, " n"],
    rejected: Float[np.ndarray, " n"],
) -> list[Finding]:
    """Evidence from the sites' updates, against the reference updates and the other sites.

    A site is flagged where its score, the mean over rounds and seeds, is beyond the limit, or where the defense
    rejected it in most of these rounds.

    Args:
        score: Mean anomaly score.
        far: Mean residual norm, in deviations of the reference updates.
        harm: Mean of the larger alignment with what raises the root loss or lowers margins, in such deviations.
        rejected: Share of the rounds in which the site was rejected.
    """
    found = []
    for k, value in enumerate(score):
        rest = np.delete(score, k)
        middle = float(np.median(rest))
        spread = (middle - float(np.quantile(rest, 0.1))) / 1.28  # of the lower half, where nobody who is off is
        limit = max(LEAST_SCORE, middle + SCORE_DEVIATIONS * spread)
        unusual = bool(value > limit or rejected[k] > 0.5)
        if harm[k] >= far[k]:
            text = (
                "its updates raise the loss on the reference data as wrong labels would, "
                f"{harm[k]:.1f} deviations beyond what reference updates do"
            )
        else:
            text = (
                f"its updates are {far[k]:.1f} deviations farther than usual from anything the reference data explain"
            )
        found.append(Finding("updates", float(value), limit, unusual, text))
    return found


def of_lengths(lengths: Float[np.ndarray, " n"]) -> list[Finding]:
    """Evidence from the median length of each site's updates, relative to the usual one."""
    text = "its updates say nothing: their length is {:.2%} of the usual one".format
    return [Finding("empty", float(v), EMPTY, bool(v < EMPTY), text(v)) for v in lengths]


def of_labels(found: Agreement) -> Finding:
    """Evidence from how the other sites' model reads the site's rows."""
    return Finding("labels", found.gap, found.limit, found.unusual, found.in_words)


def of_columns(found: Sequence[Shift]) -> list[Finding]:
    """Evidence from the site's columns."""
    return [Finding("column", abs(s.deviations), s.limit, s.unusual, s.in_words) for s in found]


def of_copies(found: Copies, other: Copies | None) -> Finding:
    """Evidence from rows that stand at another site, too.

    Args:
        found: Of the site.
        other: Of the site whose rows they are; where the same rows are the smaller part of what it has, it is the
            one that was copied.
    """
    text = found.in_words
    copied_from = other is not None and other.share > found.share + 0.05
    if copied_from:
        text += "; they are the larger part of that site, so that this one was probably copied"
    return Finding("copies", found.share, found.limit, found.unusual and not copied_from, text)
