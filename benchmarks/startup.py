"""How long the command line takes before anything is computed."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from harness import Figure, Measured, clock, in_turn, seconds

from fedsieve import RunDirectory

# With bytecode kept, as on a user's machine: without it every start compiles all of the package's files.
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
_RUN = ("run", "--dataset", "digits", "--clients", "10", "--rounds", "1", "--defense", "mean", "--quiet", "--json")


def measure(small: bool) -> Measured:
    """The figures; with ``small``, each command once."""
    budget = {"seconds": 0.0} if small else {"seconds": 12.0}
    works = {
        "help": lambda: command("--help"),
        "list": lambda: command("list"),
        "python": lambda: python("pass"),
        "torch": lambda: python("import torch"),
    }
    times = in_turn(works, **budget)
    figures = [
        Figure(
            f"fedsieve {'--help' if name == 'help' else name}",
            seconds(times.of(name)),
            name,
            times.of(name),
            f"{times.ratio(name, 'python'):.1f} x an empty Python",
        )
        for name in ("help", "list")
    ]
    own = median(overhead() for _ in range(1 if small else 5))
    shown = f"{own / times.of('torch'):.1f} x importing torch ({seconds(times.of('torch'))})"
    figures.append(Figure("fedsieve run without its rounds", seconds(own), "overhead", own, shown))
    return Measured(
        figures,
        notes=[
            f"Processes of their own with bytecode kept, {times.repeats} of each; the run: fedsieve {' '.join(_RUN)}."
        ],
    )


def command(*arguments: str) -> str:
    """What a command of fedsieve prints."""
    return subprocess.run(
        [sys.executable, "-m", "fedsieve", *arguments], check=True, capture_output=True, text=True, env=_ENVIRONMENT
    ).stdout


def python(code: str) -> None:
    """Run some code in a Python of its own."""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=_ENVIRONMENT)


def overhead() -> float:
    """Seconds of a run of one round, less those of the round."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        whole = clock(lambda: json.loads(command(*_RUN, "--out", str(out))))
        return whole - sum(sum(record.seconds.values()) for record in RunDirectory(out).records())
