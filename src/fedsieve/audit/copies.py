"""Whether rows of a site are copies of another site's rows."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

LEAST_SHARE = 0.3  # of a site's rows that are copies, at least
DRAWS = 8  # subsets of columns by which copies are looked for
LEAST_VALUES = 3  # columns in a subset, at least


@dataclass(frozen=True)
class Copies:
    """RawRows of a site that stand at another site, too.

    Attributes:
        of: The other site.
        share: Share of the site's rows.
        usual: The largest such share between two other sites.
    """

    of: str
    share: float
    usual: float

    @property
    def limit(self) -> float:
        """The largest share that would still be usual."""
        return max(LEAST_SHARE, 3 * self.usual)

    @property
    def unusual(self) -> bool:
        """Whether it is beyond the limit."""
        return self.share > self.limit

    @property
    def in_words(self) -> str:
        """One sentence."""
        return f"{self.share:.0%} of its rows stand at {self.of}, too (between other sites at most {self.usual:.0%})"


def copies(table: pd.DataFrame, site: pd.Series, seed: int = 0) -> dict[str, Copies]:
    """For each site, the other site at which most of its rows stand, too.

    Two rows are copies if all columns in which neither has a missing value are equal, and these are at least half of
    all columns. Candidates are rows that agree on one of some random halves of the columns. Copies are not directed:
    of two sites that share rows, it is the one for which these are the larger share that has little of its own.

    Args:
        table: All columns but the site.
        site: Of each row.
        seed: Draws the subsets.
    """
    sites = sorted(site.unique())
    where = site.map({name: k for k, name in enumerate(sites)}).to_numpy()
    codes = np.stack([pd.factorize(table[c])[0] for c in table.columns], axis=1)  # -1 is missing
    copied = np.zeros((len(sites), len(sites)))
    n_columns, generator = codes.shape[1], np.random.default_rng(seed)
    hits: set[tuple[int, int]] = set()
    for _ in range(DRAWS):
        chosen = generator.permutation(n_columns)[: max(min(LEAST_VALUES, n_columns), n_columns // 2)]
        part = codes[:, chosen]
        rows = np.flatnonzero((part >= 0).all(axis=1))
        order = rows[np.lexsort(part[rows].T)]
        same = (codes[order[1:]][:, chosen] == codes[order[:-1]][:, chosen]).all(axis=1)
        for group in np.split(order, np.flatnonzero(~same) + 1):
            if 1 < len(group) <= 50:  # larger ones are common values, not copies
                hits.update((int(a), int(b)) for a in group for b in group if where[a] != where[b])
    if hits:
        a, b = np.array(sorted(hits)).T
        both = (codes[a] >= 0) & (codes[b] >= 0)
        equal = ((codes[a] == codes[b]) | ~both).all(axis=1) & (both.sum(axis=1) * 2 >= n_columns)
        pairs = np.unique(np.stack([a[equal], where[b[equal]]], axis=1), axis=0)
        np.add.at(copied, (where[pairs[:, 0]], pairs[:, 1]), 1)
    copied /= np.bincount(where, minlength=len(sites))[:, None]
    found = {}
    for k, name in enumerate(sites):
        other = int(copied[k].argmax())
        rest = [i for i in range(len(sites)) if i not in (k, other)]
        usual = float(copied[np.ix_(rest, rest)].max()) if rest else 0.0
        found[name] = Copies(sites[other], float(copied[k, other]), usual)
    return found
