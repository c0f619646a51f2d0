"""The audit: trains federations over the sites as they are and without each of them, and gathers the evidence."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from fedsieve.audit import verdict
from fedsieve.audit.agreement import agreements
from fedsieve.audit.columns import Shift, shifts
from fedsieve.audit.copies import Copies, copies
from fedsieve.audit.federations import Federations, Looked, n_sites
from fedsieve.audit.training import Tamper, Watched
from fedsieve.audit.verdict import LeftOut, Site
from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import ParameterError
from fedsieve.data.dataset import Dataset

LEAST_SITES = 3


@dataclass(frozen=True)
class RawRows:
    """The rows of a table as they were written, for evidence that needs no training.

    Attributes:
        cells: All columns but site and label, as text; missing values are None.
        numbers: Those of them that are numeric, as numbers.
        site: Site of each row.
        label: Class of each row.
    """

    cells: pd.DataFrame
    numbers: pd.DataFrame
    site: pd.Series
    label: pd.Series


@dataclass(frozen=True)
class Reference:
    """Where the reference data come from.

    Attributes:
        sites: Trusted sites from which they are drawn; empty: all sites, and then again without those that are flagged.
        size: Number of rows; None: a tenth of the training rows, at most 100.
        file: The file that they are, all of it; the loaded data then have them as root rows.
    """

    sites: tuple[str, ...] = ()
    size: int | None = None
    file: str = ""


@dataclass(frozen=True)
class Audit:
    """Result of an audit.

    Attributes:
        sites: In the order of the data's site numbers.
        score: Balanced accuracy of the model of all sites on all held-out rows, mean over seeds.
        reference: Where the reference data come from, in words.
        warnings: What makes the result say less than it seems to.
        seeds: The seeds.
        rounds: Rounds of each federation.
        reading: How the data were read.
        watched: The first seed's federation.
    """

    sites: tuple[Site, ...]
    score: float
    reference: str
    warnings: tuple[str, ...]
    seeds: tuple[int, ...]
    rounds: int
    reading: str
    watched: Watched

    @property
    def ordered(self) -> tuple[Site, ...]:
        """All sites, flagged ones first."""
        return tuple(sorted(self.sites, key=lambda site: not site.flagged))

    @property
    def flagged(self) -> tuple[Site, ...]:
        """Sites that are flagged."""
        return tuple(site for site in self.sites if site.flagged)


def audit(
    load: Callable[[int], Dataset],
    experiment: Experiment,
    *,
    seeds: Sequence[int],
    folder: Path,
    device: torch.device,
    rows: RawRows | None = None,
    reference: Reference | None = None,
    on_round: Callable[[], None] | None = None,
    tamper: Tamper | None = None,
) -> Audit:
    """Audit the sites of a dataset.

    Args:
        load: The dataset with the split of a seed; with root rows where ``reference`` is a file.
        experiment: The settings of the federation of all sites: partition ``natural``, no attack, a defense with root
            data. The number of clients is replaced.
        seeds: One federation of all sites, and one without each of them, for each.
        folder: Folder of the datasets.
        device: Where to compute.
        rows: The rows as they were written; None of images and arrays.
        reference: Where the reference data come from.
        tamper: For exercises: changes the updates that the server gets, such as those of a site that sends noise.
        on_round: Called after each round of any federation; :func:`n_rounds` says how many there are at most.

    Raises:
        FedSieveError: If the data have fewer than three sites, or the settings don't fit them.
    """
    reference, tick = reference or Reference(), on_round or _nothing
    sets = {seed: load(seed) for seed in seeds}
    first = sets[seeds[0]]
    names = _check(first)
    trusted = [names.index(name) for name in _known(reference.sites, names)]
    federations = Federations(experiment, folder, device, tick, tamper)
    seen = {
        seed: federations.look(data, seed, trusted or range(len(names)), reference.size) for seed, data in sets.items()
    }
    federations.leave_out(sets, seen)
    found = _sites(names, sets, seen, rows)
    warnings: list[str] = []
    if reference.file:
        said = f"the rows of {reference.file}, trusted"
    elif not trusted:
        off = [k for k, site in enumerate(found) if site.flagged]
        said = f"a sample of all {len(names)} sites"
        warnings.append(
            "the reference data are a sample of the sites' own rows, so they are themselves suspect; name a trusted "
            "site or file if there is one"
        )
        if off and len(names) - len(off) >= 2:
            rest = [k for k in range(len(names)) if k not in off]
            for seed, data in sets.items():
                seen[seed].watched = federations.again(data, seed, rest, reference.size)
            found = _sites(names, sets, seen, rows)
            said += f", and then again without {_listed([names[k] for k in off])}, which looked off"
        elif off:
            warnings.append(f"{len(off)} of {len(names)} sites look off: too many to say which ones are right")
    else:
        said = f"rows of {_listed([names[k] for k in trusted])}, trusted"
        if bad := [names[k] for k in trusted if found[k].flagged]:
            warnings.append(f"{_listed(bad)} was trusted and is flagged itself; try another reference")
    notes = {note for s in seen.values() for r in s.watched.records if (note := r.note) and "root data" in note}
    warnings += sorted(f"the defense says: {note}" for note in list(notes)[:1])
    score = float(np.mean([s.score for s in seen.values()]))
    watched = seen[seeds[0]].watched
    return Audit(found, score, said, tuple(warnings), tuple(seeds), experiment.rounds, first.reading, watched)


def n_rounds(sites: int, seeds: int, rounds: int) -> int:
    """Number of rounds of all federations of an audit at most."""
    return seeds * rounds * (3 + 2 * sites)


def _sites(
    names: Sequence[str], sets: dict[int, Dataset], seen: dict[int, Looked], rows: RawRows | None
) -> tuple[Site, ...]:
    """What is said of every site."""
    n, of = len(names), list(seen.values())
    half = of[0].watched.scores.shape[0] // 2
    scores = torch.cat([s.watched.scores[half:] for s in of])
    places = torch.cat([s.watched.places[half:] for s in of])
    lengths = torch.cat([s.watched.lengths[half:] for s in of])
    rejected = np.array(
        [[[i in (r.rejected or ()) for i in range(n)] for r in s.watched.records] for s in of], dtype=float
    )
    late = rejected[:, half:].mean(axis=(0, 1))
    far, harm = places.nanmean(dim=0).nan_to_num().numpy().T
    updates = verdict.of_updates(scores.nanmean(dim=0).nan_to_num().numpy(), far, harm, late)
    empty = verdict.of_lengths(lengths.median(dim=0).values.numpy())
    agreed = agreements(
        {name: np.sum([s.right[k] for s in of], axis=0) for k, name in enumerate(names)},
        {name: np.sum([s.rows[k] for s in of], axis=0) for k, name in enumerate(names)},
    )
    moved: dict[str, list[Shift]] = {}
    same: dict[str, Copies] = {}
    if rows is not None:
        moved, same = shifts(rows.numbers, rows.site, rows.label), copies(rows.cells, rows.site)
    data = next(iter(sets.values()))
    found = []
    for k, name in enumerate(names):
        evidence = [updates[k], empty[k], verdict.of_labels(agreed[name]), *verdict.of_columns(moved.get(name, []))]
        if name in same:
            evidence.append(verdict.of_copies(same[name], same.get(same[name].of)))
        counts = of[0].rows[k]
        found.append(
            Site(
                name=name,
                rows=int(counts.sum()),
                classes={data.class_names[c] if data.class_names else str(c): int(m) for c, m in enumerate(counts)},
                local_score=_mean([s.local[k] for s in of]),
                global_score=_mean([s.of_global[k] for s in of]),
                rounds_rejected=int(rejected[:, :, k].sum()),
                rounds=rejected.shape[0] * rejected.shape[1],
                score=updates[k].value,
                limit=updates[k].limit,
                since=_since(rejected[:, :, k].mean(axis=0)),
                left_out=LeftOut.of([s.change[k] for s in of]),
                evidence=tuple(sorted(evidence, key=lambda e: not e.unusual)),
                scores=tuple(torch.stack([s.watched.scores[:, k] for s in of]).nanmean(dim=0).tolist()),
                rejections=tuple(rejected[:, :, k].mean(axis=0).tolist()),
            )
        )
    return tuple(found)


def _check(data: Dataset) -> tuple[str, ...]:
    """The sites' names."""
    if data.owners is None or data.test_owners is None:
        raise ParameterError("an audit needs data that come from sites: name the column that says where a row is from")
    n = n_sites(data)
    if n < LEAST_SITES:
        raise ParameterError(f"an audit compares sites with each other and needs {LEAST_SITES} or more; there are {n}")
    return data.owner_names or tuple(f"site {k}" for k in range(n))


def _known(wanted: Sequence[str], names: Sequence[str]) -> Sequence[str]:
    for name in wanted:
        if name not in names:
            raise ParameterError(f"there is no site {name!r}; the sites are {_listed(names)}")
    return wanted


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _since(rejected: Float[np.ndarray, " rounds"]) -> int | None:
    """The first round, from 1, that is rejected and from which on most are; None if there is none."""
    for k, here in enumerate(rejected):
        if here > 0.5 and rejected[k:].mean() > 0.5:
            return k + 1
    return None


def _listed(names: Sequence[str]) -> str:
    shown = list(names[:10]) + ([f"{len(names) - 10} more"] if len(names) > 10 else [])
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else shown[0]


def _nothing() -> None:
    pass
