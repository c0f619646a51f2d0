"""A federation under attack, with and without a defense: `make demo`.

Thirty clients learn to read handwritten digits; in every attack, six of them are malicious.
"""

import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from fedsieve import Experiment, RoundRecord, Simulation, summarize
from fedsieve.report.figures import accuracy_over_rounds
from fedsieve.report.text import number, percent

ATTACKS = ("none", "label-flip", "min-max", "scaling")
DEFENSES = ("mean", "trimmed-mean", "skymask", "sieve")
ROUNDS = 60
PICTURE = Path("demo/accuracy.png")


def main() -> None:
    console = Console()
    start = time.perf_counter()
    runs: dict[str, dict[str, list[RoundRecord]]] = {attack: {} for attack in ATTACKS}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(ATTACKS) * len(DEFENSES) * ROUNDS)
        for attack in ATTACKS:
            for defense in DEFENSES:
                progress.update(task, description=f"{attack} against {defense}")
                experiment = Experiment.of({"attack": attack, "defense": defense, "rounds": ROUNDS})
                simulation = Simulation.of(experiment, folder=Path(), device=torch.device("cpu"))
                runs[attack][defense] = []
                for _, record in simulation.rounds():
                    runs[attack][defense].append(record)
                    progress.advance(task)

    results = {attack: {d: summarize(records) for d, records in lines.items()} for attack, lines in runs.items()}
    accuracy = Table(title="Test accuracy", title_justify="left", box=None, padding=(0, 2, 0, 0))
    rates = Table(title="Benign rejected / malicious missed, %", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for table, columns in ((accuracy, DEFENSES), (rates, DEFENSES[2:])):
        table.add_column("attack", min_width=12)
        for column in columns:
            table.add_column(column, justify="right", min_width=12)
    for attack, lines in results.items():
        accuracy.add_row(attack, *(percent(lines[d]["late_test_accuracy"]) for d in DEFENSES))
        found = [(lines[d]["false_positive_rate"], lines[d]["false_negative_rate"]) for d in DEFENSES[2:]]
        rates.add_row(attack, *(f"{number(fpr)} / {number(fnr)}" for fpr, fnr in found))
    console.print(accuracy)
    console.print()
    console.print(rates)
    backdoor = {d: percent(results["scaling"][d]["attack_success_rate"]) for d in DEFENSES}
    console.print(
        "\nSix of thirty clients are malicious. Test accuracy is the mean over the last tenth of the rounds; 'mean' is "
        "plain federated averaging. 'skymask' is the method of Yan et al. (ECCV 2024), 'sieve' is this project's own "
        f"detector. Rates are means over all {ROUNDS} rounds. The scaling attack plants a backdoor: images with the "
        f"attacker's mark are read as the attacker's digit in {backdoor['mean']} of cases under mean, "
        f"{backdoor['skymask']} under skymask and {backdoor['sieve']} under sieve."
    )
    seeds = {attack: {d: [records] for d, records in lines.items()} for attack, lines in runs.items()}
    accuracy_over_rounds(seeds, PICTURE)
    console.print(f"\nAccuracy over rounds: {PICTURE}    ({time.perf_counter() - start:.0f} seconds)")


if __name__ == "__main__":
    main()
