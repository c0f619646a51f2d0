"""Five made hospitals, one thing wrong at one of them at a time: what the audit finds, and whom it accuses wrongly.

    python examples/audit_hospitals.py docs/results/audit        # twenty minutes on two cores

The site with the fault changes with the seed. Each audit has the command's own defaults: three splits, 40 rounds.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from hospitals import FAULTS, HONEST, LABEL, SITE, SITES, hospitals

from fedsieve.audit.audit import audit
from fedsieve.audit.source import Source
from fedsieve.audit.training import Tamper
from fedsieve.core.defense import Updates

RIDES = {
    "free-rider, zeros": "it sends an update of zeros",
    "free-rider, noise": "it sends noise of an honest length",
}
HARDER = {
    "labels-10": "10 % of the labels are flipped",
    "shift, half": "haemoglobin reads half a standard deviation too high",
    "copied in part": "a fifth of its rows are copies of another hospital's",
    "older": "honest, but its patients are 15 years older",
    "two of five": "all labels of this hospital and of the next one are flipped",
}
SEEDS = (0, 1, 2, 3, 4)

_HEAD = """# The audit of five made hospitals

`python examples/audit_hospitals.py docs/results/audit` makes this page: 3,000 patients of five hospitals, one thing
wrong at one of them, another one with each of five seeds, none of which was used while the audit was written. Limits
are those of the command's defaults. "By" counts the kinds of evidence beyond their limit. The lower part has faults
that are harder to see, and a hospital that is different without being wrong.

"""


@dataclass(frozen=True)
class Case:
    """One fault at one site."""

    fault: str
    seed: int

    @property
    def site(self) -> str:
        """Where it is."""
        return list(SITES)[self.seed % len(SITES)]

    @property
    def off(self) -> set[str]:
        """The sites at which something is wrong."""
        if self.fault in HONEST or self.fault == "older":
            return set()
        next_one = list(SITES)[(self.seed + 1) % len(SITES)]
        return {self.site, next_one} if self.fault == "two of five" else {self.site}


def made(fault: str, site: str, seed: int) -> pd.DataFrame:
    """The table, with faults that are harder to see than those of ``hospitals.py``, too."""
    table = hospitals(fault if fault in FAULTS else "none", site, seed)
    here, generator = table[SITE] == site, np.random.default_rng([seed, 77])
    flipped = table[LABEL].map({"yes": "no", "no": "yes"})
    if fault == "labels-10":
        table[LABEL] = table[LABEL].mask(here & (generator.random(len(table)) < 0.1), flipped)
    elif fault == "shift, half":
        table.loc[here, "haemoglobin"] += 0.5 * table["haemoglobin"].std()
    elif fault == "copied in part":
        other = list(SITES)[(list(SITES).index(site) + 1) % len(SITES)]
        rows = table[table[SITE] == other].sample(int(here.sum()) // 5, random_state=seed)
        own = table[here].sample(int(here.sum()) - len(rows), random_state=seed)
        table = pd.concat([table[~here], own, rows.assign(**{SITE: site})])
    elif fault == "older":
        table.loc[here, "age"] += 15
    elif fault == "two of five":
        other = list(SITES)[(list(SITES).index(site) + 1) % len(SITES)]
        table[LABEL] = table[LABEL].mask(here | (table[SITE] == other), flipped)
    return table


def ride(kind: str, client: int) -> Tamper:
    """What a free-rider sends."""

    def tamper(updates: Updates, generator: torch.Generator) -> Updates:
        matrix = updates.matrix.clone()
        length = matrix.norm(dim=1).median()
        noise = torch.randn(matrix.shape[1], generator=generator)
        matrix[updates.client_ids == client] = 0 if kind.endswith("zeros") else noise * (length / noise.norm())
        return replace(updates, matrix=matrix)

    return tamper


def audited(case: Case) -> tuple[Case, dict[str, tuple[str, ...]], str]:
    """The reasons against every flagged site, and what leaving the faulty site out does."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "hospitals.csv")
        made(case.fault, case.site, case.seed).to_csv(file, index=False)
        source = Source.of(
            {"dataset": {"name": "csv", "file": str(file), "label": LABEL, "client": SITE}}, Path(folder)
        )
        client = sorted(SITES).index(case.site)
        found = audit(
            source.load,
            source.experiment,
            seeds=(3 * case.seed, 3 * case.seed + 1, 3 * case.seed + 2),
            folder=Path(folder),
            device=torch.device("cpu"),
            rows=source.rows,
            tamper=ride(case.fault, client) if case.fault in RIDES else None,
        )
    out = next(site.left_out for site in found.sites if site.name == case.site)
    return case, {site.name: site.kinds for site in found.flagged}, out.in_words if out else ""


def table(results: Sequence[tuple[Case, dict[str, tuple[str, ...]], str]]) -> str:
    """The results as Markdown."""
    lines = [
        "| planted | what it is | found | by | accused wrongly |",
        "|---|---|---|---|---|",
    ]
    for fault, text in (FAULTS | RIDES | HARDER).items():
        of = [r for r in results if r[0].fault == fault]
        if not of:
            continue
        off = [(case.off, flagged) for case, flagged, _ in of]
        hit, there = sum(len(sites & {*flagged}) for sites, flagged in off), sum(len(sites) for sites, _ in off)
        kinds = Counter(kind for sites, flagged in off for site in sites for kind in flagged.get(site, ()))
        by = ", ".join(f"{kind} ({n})" for kind, n in kinds.most_common())
        wrong, others = sum(len({*flagged} - sites) for sites, flagged in off), len(SITES) * len(of) - there
        lines.append(f"| {fault} | {text} | {f'{hit} of {there}' if there else ''} | {by} | {wrong} of {others} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run all cases and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--only", nargs="+", choices=[*FAULTS, *RIDES, *HARDER], help="These faults alone.")
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    cases = [Case(fault, seed) for fault in given.only or (*FAULTS, *RIDES, *HARDER) for seed in given.seeds]
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
        results = []
        for result in pool.map(audited, cases):
            print(result, flush=True)
            results.append(result)
    given.folder.mkdir(parents=True, exist_ok=True)
    text = table(results)
    (given.folder / "hospitals.md").write_text(_HEAD + text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
