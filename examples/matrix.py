"""Every attack against every defense, on the digits: `make matrix`.

Thirty clients, six of them malicious, non-IID data (q = 0.5); attackers see the benign updates and, where they ask,
may simulate the defense. Writes docs/results/digits-matrix.csv and the tables of docs/results/digits-matrix.md.
"""

import argparse
from typing import Any

from grid import OUT, Cell, play_all, rate, read_numbers, replace_tables, table, write_numbers

from fedsieve.config import registry
from fedsieve.report.text import number

OTHER_DATA = {"edge-case", "phrase"}  # need colour images and text
ALIASES = {"fedavg"}
CHAINS = ("sieve,trimmed-mean", "momentum,median")
BACKDOORS = ("scaling", "lie-backdoor", "mixture")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--tables-only", action="store_true", help="from the numbers that are there")
    options = parser.parse_args()
    attacks = ["none", *(a for a in registry.names("attacks") if a not in OTHER_DATA | {"none"})]
    defenses = ["mean", *(d for d in registry.names("defenses") if d not in ALIASES | {"mean"}), *CHAINS]
    usual = {"dataset": "digits", "clients": 30, "malicious": 6, "partition": {"name": "groups", "q": 0.5}}
    usual |= {"rounds": options.rounds, "seed": options.seed, "knows_defense": True}
    numbers, heads = OUT / "digits-matrix.csv", ("attack", "defense")
    if not options.tables_only:
        jobs: dict[tuple[str, ...], dict[str, Any]] = {
            (a, d): {**usual, "attack": a, "defense": d} for a in attacks for d in defenses
        }
        write_numbers(numbers, heads, play_all(jobs, options.processes))
    cells = read_numbers(numbers, heads)

    def both(cell: Cell) -> str:
        return f"{rate(cell, 'false_positive_rate')} / {rate(cell, 'false_negative_rate')}"

    def accuracy(d: str, a: str) -> str:
        if a == "worst":
            return number(min(cells[a, d]["late_test_accuracy"] for a in attacks))
        return rate(cells[a, d], "late_test_accuracy")

    deciders = [d for d in defenses if any(cells[a, d].get("false_positive_rate") is not None for a in attacks)]
    parts = [
        "**Test accuracy**, %, mean over the last tenth of the rounds:",
        table(defenses, [*attacks, "worst"], accuracy),
        "**Attack success rate**, %, of triggered test images that are not of the target class, after the last round:",
        table(defenses, BACKDOORS, lambda d, a: rate(cells[a, d], "attack_success_rate")),
        "**Benign clients rejected / malicious clients accepted**, %, mean over all rounds:",
        table(deciders, attacks, lambda d, a: both(cells[a, d])),
    ]
    replace_tables(OUT / "digits-matrix.md", "\n\n".join(parts))


if __name__ == "__main__":
    main()
