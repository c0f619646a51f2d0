"""Five made hospitals whose patients are readmitted or not, and one thing wrong at one of them.

    python examples/hospitals.py hospitals.csv --plant unit --site East --seed 1
    fedsieve audit hospitals.csv --label readmitted --site hospital

3,000 patients: laboratory values, words, a date and a number that names the patient; 4 % of the values are missing. The
label follows from the patient by a logistic model, the same at all hospitals, which differ a little in age and size. A
free-rider is no fault of a table: it is a site that sends an update without having trained.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

SITES = {"North": 900, "South": 700, "East": 600, "West": 450, "Central": 350}
FAULTS = {
    "none": "nothing is wrong",
    "labels-30": "30 % of the labels are flipped",
    "labels-all": "all labels are flipped",
    "unit": "creatinine is in µmol/l, everywhere else in mg/dl",
    "shift": "haemoglobin reads two standard deviations too high",
    "duplicate": "its rows are copies of another hospital's, the largest of the others",
    "few": "it has ten times fewer rows",
    "one-class": "nobody was readmitted: it has those rows only",
}
HONEST = ("none", "few", "one-class")  # odd, but nothing is wrong
LABEL, SITE, MISSING = "readmitted", "hospital", 0.04
UMOL = 88.42  # µmol/l of creatinine in one mg/dl


def hospitals(fault: str = "none", site: str = "East", seed: int = 0) -> pd.DataFrame:
    """The table of all hospitals, in random order.

    Args:
        fault: One of ``FAULTS``.
        site: The hospital that has it.
        seed: Of all random numbers; the fault changes no other hospital's rows.

    Raises:
        ValueError: If there is no such fault or hospital.
    """
    if fault not in FAULTS or site not in SITES:
        raise ValueError(f"faults are {', '.join(FAULTS)}; sites are {', '.join(SITES)}; got {fault} and {site}")
    parts = {name: _patients(name, n, np.random.default_rng([seed, k])) for k, (name, n) in enumerate(SITES.items())}
    random = np.random.default_rng([seed, len(SITES)])
    parts[site] = _planted(fault, site, parts, random)
    table = pd.concat(parts.values(), ignore_index=True)
    return table.iloc[random.permutation(len(table))].reset_index(drop=True)


def _patients(site: str, n: int, random: np.random.Generator) -> pd.DataFrame:
    k = list(SITES).index(site)
    age = np.clip(random.normal(60 + 2 * k, 14, n), 18, 98)
    diabetes = random.random(n) < 0.15 + 0.002 * (age - 50).clip(0)
    smoker = random.choice(["never", "former", "current"], n, p=[0.5, 0.3, 0.2])
    ward = random.choice(["medicine", "surgery", "cardiology", "geriatrics"], n, p=[0.4, 0.3, 0.2, 0.1])
    creatinine = np.exp(random.normal(0.0 + 0.004 * (age - 60), 0.35, n))
    haemoglobin = random.normal(13.2, 1.6, n) - 0.4 * (creatinine > 1.5)
    sodium, crp = random.normal(139, 3.5, n), np.exp(random.normal(2.0, 1.0, n))
    risk = (
        1.2 * (age - 65) / 14
        + 3.2 * np.log(creatinine)
        - 1.1 * (haemoglobin - 13.2) / 1.6
        + 0.8 * (np.log(crp) - 2.0)
        + 1.0 * diabetes
        + 0.8 * (smoker == "current")
        + 0.7 * (ward == "cardiology")
        - 0.5
    )
    table = pd.DataFrame(
        {
            "patient": [f"{site[0]}{number:05d}" for number in random.permutation(n)],
            "admitted": pd.Timestamp("2024-01-01") + pd.to_timedelta(random.integers(0, 366, n), "D"),
            "age": age.round(),
            "sex": random.choice(["f", "m"], n),
            "creatinine": creatinine.round(2),
            "haemoglobin": haemoglobin.round(1),
            "sodium": sodium.round(),
            "crp": crp.round(1),
            "diabetes": np.where(diabetes, "yes", "no"),
            "smoker": smoker,
            "ward": ward,
            SITE: site,
            LABEL: np.where(random.random(n) < 1 / (1 + np.exp(-1.3 * risk)), "yes", "no"),
        }
    )
    measured = [name for name in table.columns if name not in ("patient", "admitted", SITE, LABEL)]
    table[measured] = table[measured].mask(random.random((n, len(measured))) < MISSING)
    return table


def _planted(fault: str, site: str, parts: dict[str, pd.DataFrame], random: np.random.Generator) -> pd.DataFrame:
    table = parts[site].copy()
    n = len(table)
    flipped = table[LABEL].map({"yes": "no", "no": "yes"})
    if fault == "labels-30":
        table[LABEL] = table[LABEL].mask(random.permutation(n) < round(0.3 * n), flipped)
    elif fault == "labels-all":
        table[LABEL] = flipped
    elif fault == "unit":
        table["creatinine"] = (table["creatinine"] * UMOL).round()
    elif fault == "shift":
        table["haemoglobin"] = (table["haemoglobin"] + 2 * table["haemoglobin"].std()).round(1)
    elif fault == "duplicate":
        other = max((name for name in SITES if name != site), key=lambda name: len(parts[name]))
        rows = random.choice(len(parts[other]), n, replace=n > len(parts[other]))
        table = parts[other].iloc[rows].assign(**{SITE: site})
    elif fault == "few":
        table = table.iloc[: n // 10]
    elif fault == "one-class":
        table = table[table[LABEL] == "no"]
    return table


def main() -> None:
    """Write the table as a file of comma-separated values."""
    parser = argparse.ArgumentParser(description="Make the table of five hospitals.")
    parser.add_argument("file", type=Path, nargs="?", default=Path("hospitals.csv"))
    parser.add_argument(
        "--plant",
        choices=FAULTS,
        default="none",
        help="; ".join(f"{k}: {v}" for k, v in FAULTS.items()).replace("%", "%%"),
    )
    parser.add_argument("--site", choices=SITES, default="East")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    table = hospitals(given.plant, given.site, given.seed)
    table.to_csv(given.file, index=False)
    print(f"{given.file}: {len(table)} rows; at {given.site}, {FAULTS[given.plant]}")


if __name__ == "__main__":
    main()
