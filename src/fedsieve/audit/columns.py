"""Whether a column of one site is unlike the same column of the other sites: other units, a shifted sensor.

A column is compared class by class, so that a site with few or no rows of a class is not accused of that. What is
usual between honest sites is taken from the other sites themselves.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

LEAST_ROWS = 8  # of a class at a site, below which nothing is said of it
LEAST_SHIFT = 1.0  # deviations by which a column has to be shifted at least
DEVIATIONS = 6.0  # and so many standard errors, the usual differences between sites included
LEAST_FACTOR = 3.0  # a positive column that is so many times as large or small is in another unit


@dataclass(frozen=True)
class Shift:
    """A numeric column of a site against the other sites.

    Attributes:
        column: Its name.
        deviations: How far the site's median is from the other sites', in their robust standard deviations, the mean
            over classes; positive is larger.
        limit: The largest size that would still be usual.
        factor: The site's median divided by the others', where both are positive everywhere; else NaN.
        median: The site's.
        others: The other sites' median.
    """

    column: str
    deviations: float
    limit: float
    factor: float
    median: float
    others: float

    @property
    def unusual(self) -> bool:
        """Whether it is beyond the limit."""
        return abs(self.deviations) > self.limit

    @property
    def in_words(self) -> str:
        """One sentence."""
        numbers = f"median {self.median:.4g}, at the other sites {self.others:.4g}"
        if self.factor >= LEAST_FACTOR or self.factor <= 1 / LEAST_FACTOR:
            times = self.factor if self.factor >= 1 else 1 / self.factor
            return f"its {self.column} is {times:.3g} times as {'large' if self.factor >= 1 else 'small'}: {numbers}"
        size = f"{abs(self.deviations):.1f} deviations"
        return f"its {self.column} is shifted by {size}: {numbers}"


def shifts(table: pd.DataFrame, site: pd.Series, label: pd.Series) -> dict[str, list[Shift]]:
    """Every site's numeric columns against those of the other sites, the farthest first.

    Args:
        table: Numeric columns; missing values are left out.
        site: Of each row.
        label: Class of each row.
    """
    sites, classes = sorted(site.unique()), sorted(label.unique())
    found: dict[str, list[Shift]] = {name: [] for name in sites}
    for column in table.columns:
        values = table[column].astype(float)
        positive = bool((values.dropna() > 0).all())
        cells = {(s, c): values[(site == s) & (label == c)].dropna().to_numpy() for s in sites for c in classes}
        medians = {key: float(np.median(x)) for key, x in cells.items() if len(x) >= LEAST_ROWS}
        for name in sites:
            seen = _against(name, sites, classes, cells, medians)
            if seen is None:
                continue
            here, there = values[site == name].median(), values[site != name].median()
            factor = float(here / there) if positive and there > 0 else float("nan")
            found[name].append(Shift(str(column), *seen, factor, float(here), float(there)))
    return {name: sorted(of, key=lambda s: s.limit - abs(s.deviations)) for name, of in found.items()}


def _against(
    name: str,
    sites: list[str],
    classes: list[str],
    cells: dict[tuple[str, str], np.ndarray],
    medians: dict[tuple[str, str], float],
) -> tuple[float, float] | None:
    """Mean deviation over classes and its limit; None where too few rows can be compared."""
    deviations, limits = [], []
    for c in classes:
        others = [s for s in sites if s != name and (s, c) in medians]
        if (name, c) not in medians or len(others) < 2:
            continue
        rest = np.concatenate([cells[s, c] for s in others])
        scale = _spread(rest)
        if scale == 0:
            continue
        centre = float(np.median([medians[s, c] for s in others]))
        # honest sites differ by more than sampling alone
        between = _spread(np.array([medians[s, c] for s in others])) / scale
        sampling = 1.2533 / np.sqrt(len(cells[name, c]))  # standard error of a normal sample's median
        deviations.append((medians[name, c] - centre) / scale)
        limits.append(float(np.hypot(between * (1 + 2 / len(others)), sampling)))
    if not deviations:
        return None
    limit = DEVIATIONS * float(np.mean(limits)) / np.sqrt(len(limits))
    return float(np.mean(deviations)), float(max(LEAST_SHIFT, limit))


def _spread(x: np.ndarray) -> float:
    """Robust standard deviation: of the quartiles, or where these are equal the usual one."""
    low, high = np.quantile(x, [0.25, 0.75])
    return float((high - low) / 1.349) or float(x.std())
