"""Timing in turns, figures, the table that compares them with the goals, and the files that keep them."""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from goals import GOALS, Goal

Work = Callable[[], Any]
NOT_RUN, NO_GOAL = "not run", "-"


# --- Timing ------------------------------------------------------------------------------------------------


def clock(work: Work) -> float:
    """Seconds that ``work`` takes once."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Timings:
    """Seconds of several works, run in turn A B A B ..., so that all of them see the same machine.

    Attributes:
        seconds: By name, in the order of the repeats.
    """

    seconds: Mapping[str, Sequence[float]]

    def of(self, name: str) -> float:
        """Median seconds of one work."""
        return median(self.seconds[name])

    def ratio(self, name: str, other: str) -> float:
        """Median over the repeats of the seconds of ``name`` over those of ``other``."""
        return median(a / b for a, b in zip(self.seconds[name], self.seconds[other], strict=True))

    @property
    def repeats(self) -> int:
        """How often each was timed."""
        return len(next(iter(self.seconds.values())))


def in_turn(works: Mapping[str, Work], seconds: float = 6.0, least: int = 3, most: int = 9) -> Timings:
    """Time works in turn, after one untimed call of each.

    Args:
        works: What to time, by name.
        seconds: About how long to go on. Works that take longer than this together are timed by their first call alone.
        least: Fewest repeats, unless the first calls took that long.
        most: Most repeats.
    """
    first = {name: clock(work) for name, work in works.items()}
    cost = sum(first.values())
    if cost > seconds:
        return Timings({name: [value] for name, value in first.items()})
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(min(most, max(least, int(seconds / max(cost, 1e-9))))):
        for name, work in works.items():
            times[name].append(clock(work))
    return Timings(times)


# --- Figures -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """One measured figure.

    Attributes:
        what: What was measured.
        measured: The figure with its unit; ``not run`` or why it could not be measured.
        goal: Key of the goal in :data:`goals.GOALS`; "" without one.
        value: What is compared with the goal, in its unit; None where nothing was measured.
        ratio: The figure as a ratio to something measured in the same run; "" without one.
    """

    what: str
    measured: str
    goal: str = ""
    value: float | None = None
    ratio: str = ""

    @property
    def verdict(self) -> str:
        """``met``, ``missed``, ``not run``, or a dash without a goal."""
        if not self.goal:
            return NO_GOAL
        if self.value is None:
            return NOT_RUN
        return "met" if GOALS[self.goal].met_by(self.value) else "missed"


@dataclass(frozen=True)
class Measured:
    """The figures of one part of the benchmarks, and where and when they were measured.

    Attributes:
        figures: The figures.
        on: Machine, versions, date.
        notes: Lines below the table.
        details: Anything else worth keeping, for the file alone.
    """

    figures: list[Figure]
    on: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


def machine(device: str = "cpu") -> dict[str, str]:
    """What figures depend on: hardware, versions, date."""
    card = torch.cuda.get_device_name() if device.startswith("cuda") else _processor()
    found = {
        "on": card if device.startswith("cuda") else f"{card}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }
    return found | {"fedsieve": _version("fedsieve")}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "from its sources"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def keep(path: Path, part: str, measured: Measured) -> None:
    """Write the figures of one part into a JSON file, beside those of other parts that are there."""
    found = {name: asdict(other) for name, other in kept(path).items()} | {part: asdict(measured)}
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(new, path)  # noqa: PTH105


def kept(path: Path) -> dict[str, Measured]:
    """What :func:`keep` wrote to a file, by part; nothing where there is no file."""
    if not path.exists():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    return {
        part: Measured([Figure(**figure) for figure in m["figures"]], m["on"], m["notes"], m["details"])
        for part, m in found.items()
    }


def together(blocks: Mapping[str, Measured]) -> Measured | None:
    """Several blocks as one part; None for none. Where they come from different machines or days, notes say so."""
    if not blocks:
        return None
    figures = [figure for m in blocks.values() for figure in m.figures]
    notes = [note for m in blocks.values() for note in m.notes]
    first, *others = [m.on for m in blocks.values()]
    if all(on == first for on in others):
        return Measured(figures, first, notes)
    return Measured(figures, {}, [*notes, *(f"{name}: {told(m.on)}" for name, m in blocks.items())])


def told(on: Mapping[str, str]) -> str:
    """Where and when something was measured, in one line.

    >>> told({"on": "a card", "torch": "2.11"})
    'a card, torch 2.11.'
    """
    return ", ".join(value if key == "on" else f"{key} {value}" for key, value in on.items()) + "."


# --- The table ---------------------------------------------------------------------------------------------

HEADS = ("what", "measured", "ratio", "goal", "verdict")


def rows(part: str, measured: Measured | None) -> list[tuple[str, ...]]:
    """The table of one part: each of its goals, met, missed or not run, in the order of the goals; then the rest."""
    figures = measured.figures if measured else []
    found: list[tuple[str, ...]] = []
    for key, goal in GOALS.items():
        if goal.part != part:
            continue
        own = [f for f in figures if f.goal == key] or [Figure(goal.what, NOT_RUN, key)]
        found += [_row(figure, goal) for figure in own]
    return found + [_row(figure, None) for figure in figures if not figure.goal]


def _row(figure: Figure, goal: Goal | None) -> tuple[str, ...]:
    return (figure.what, figure.measured, figure.ratio or NO_GOAL, goal.text if goal else NO_GOAL, figure.verdict)


def counts(found: Mapping[str, Measured | None]) -> dict[str, int]:
    """How many rows with a goal are met, missed and not run, over all parts."""
    verdicts = [row[-1] for part, measured in found.items() for row in rows(part, measured)]
    return {verdict: verdicts.count(verdict) for verdict in ("met", "missed", NOT_RUN)}


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first line holds the heads."""
    head, *rest = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rest])


def seconds(value: float) -> str:
    """A duration with three digits and its unit.

    >>> [seconds(v) for v in (12.34, 0.5, 0.00123)]
    ['12.3 s', '500 ms', '1.23 ms']
    """
    return f"{value:.3g} s" if value >= 1 else f"{value * 1000:.3g} ms"
