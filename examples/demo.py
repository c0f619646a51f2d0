"""A federation under attack, with and without a defense: `make demo`.

Thirty clients learn to read handwritten digits; in every attack, six of them are malicious.
"""

import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from fedsieve import Experiment, Simulation, summarize
from fedsieve.report.figures import accuracy_over_rounds
from fedsieve.report.text import percent

ATTACKS = ("none", "label-flip", "min-max", "scaling")
DEFENSES = ("mean", "trimmed-mean", "skymask")
ROUNDS = 60
PICTURE = Path("demo/accuracy.png")


def main() -> None:
    console = Console()
    start = time.perf_counter()
    runs = {attack: {} for attack in ATTACKS}
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

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("\nattack")
    for heading in ("accuracy\nmean", "\ntrimmed", "\nskymask", "backdoor\nmean", "works\nskymask"):
        table.add_column(heading, justify="right")
    table.add_column("malicious\nrejected", justify="right")
    table.add_column("benign\nrejected", justify="right")
    for attack, lines in runs.items():
        results = [summarize(lines[defense]) for defense in DEFENSES]
        mean, _, sky = results
        missed = sky["false_negative_rate"]
        table.add_row(
            attack,
            *(percent(result["late_test_accuracy"]) for result in results),
            percent(mean["attack_success_rate"]),
            percent(sky["attack_success_rate"]),
            percent(None if missed is None else 1 - missed),
            percent(sky["false_positive_rate"]),
        )
    console.print(table)
    console.print(
        "\nSix of thirty clients are malicious. Accuracy is on test data nobody trained on, the mean of the last "
        "rounds; 'mean' is plain federated averaging. A backdoor works where an image with the attacker's mark is read "
        "as the attacker's digit. The last two columns are SkyMask's decisions, over all rounds: who flips labels is "
        "found after a round or two, everybody else at once."
    )
    accuracy_over_rounds(runs, PICTURE)
    console.print(f"\nAccuracy over rounds: {PICTURE}    ({time.perf_counter() - start:.0f} seconds)")


if __name__ == "__main__":
    main()
