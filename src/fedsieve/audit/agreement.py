"""Whether a site's labels agree with what the other sites teach: a model trained without the site, on its rows."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

LEAST_CLASSES = 2  # at a site: the share read right of one class alone says where the model's threshold is
LEAST_GAP = 0.1  # of accuracy below the other sites
DEVIATIONS = 4.0  # and so many deviations of sampling and of the other sites together


@dataclass(frozen=True)
class Agreement:
    """How a model that never saw a site reads that site's rows.

    Attributes:
        accuracy: Mean over the classes that the site has of the share that the model reads as labelled.
        usual: Median of the same over the other sites, each read by the model without it, on the same classes.
        gap: ``usual - accuracy``.
        limit: The largest gap that would still be usual.
    """

    accuracy: float
    usual: float
    gap: float
    limit: float

    @property
    def unusual(self) -> bool:
        """Whether it is beyond the limit."""
        return self.gap > self.limit

    @property
    def in_words(self) -> str:
        """One sentence."""
        return (
            f"a model trained by the other sites alone reads {self.accuracy:.0%} of its rows as they are labelled, "
            f"elsewhere {self.usual:.0%}"
        )


def agreements(right: Mapping[str, np.ndarray], rows: Mapping[str, np.ndarray]) -> dict[str, Agreement]:
    """Compare the sites.

    Args:
        right: By site, how many rows of each class the model trained without that site reads as labelled, [classes].
        rows: By site, how many rows of each class it has, [classes].
    """
    found = {}
    for name, n in rows.items():
        has = n > 0
        shares = {
            s: (right[s][has & (rows[s] > 0)] / rows[s][has & (rows[s] > 0)])
            for s in rows
            if (has & (rows[s] > 0)).any()
        }
        own = shares[name]
        rest = np.array([x.mean() for s, x in shares.items() if s != name])
        accuracy = float(own.mean())
        if len(rest) < 2 or has.sum() < LEAST_CLASSES:
            found[name] = Agreement(accuracy, float("nan"), float("nan"), float("inf"))
            continue
        usual = float(np.median(rest))
        p = np.clip(own, 0.05, 0.95)
        sampling = float(np.sqrt((p * (1 - p) / n[has]).sum()) / has.sum())
        between = float(np.quantile(rest, 0.75) - np.quantile(rest, 0.25)) / 1.349 * (1 + 2 / len(rest))
        limit = max(LEAST_GAP, DEVIATIONS * float(np.hypot(sampling, between)))
        found[name] = Agreement(accuracy, usual, usual - accuracy, limit)
    return found
