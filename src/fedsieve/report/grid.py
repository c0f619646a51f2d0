"""What attack x defense tables say: mean and deviation over seeds, worst case over attacks, best of each column."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from fedsieve.core.escaping import printable
from fedsieve.report.load import Run
from fedsieve.report.names import ATTACKS, DATASETS, DEFENSES, named, ordered
from fedsieve.report.settings import differing, title, titles
from fedsieve.report.text import DASH, counted, number

# By key of a run's summary: heading, and whether more is better.
MEASURES = {
    "late_test_accuracy": ("Test accuracy, last tenth of the rounds", True),
    "attack_success_rate": ("Attack success rate (other classes), last round", False),
    "false_positive_rate": ("Benign clients rejected, all rounds", False),
    "false_negative_rate": ("Malicious clients missed, all rounds", False),
}
WORST = "worst"
_ABOUT = ("clients", "clients per round", "malicious", "rounds")
BOLD = "better than every other by more than the two standard deviations together"


@dataclass(frozen=True)
class Cell:
    """One measure over the seeds of an attack and a defense.

    Attributes:
        mean: Over the finished runs; None without one, or where the measure is undefined.
        deviation: Standard deviation over them; None for a single run.
        seeds: Number of values in the mean.
        finished: Number of finished runs.
        runs: Number of runs, finished or not; one of each seed.
        problem: What is wrong with an unfinished one, or "".
        note: What a reader of the finished ones' numbers has to know, or "".
    """

    mean: float | None
    deviation: float | None
    seeds: int
    finished: int
    runs: int
    problem: str
    note: str

    def text(self) -> str:
        """In per cent, or why there is no number."""
        if self.mean is None:
            return self.problem.partition(":")[0] if self.problem else DASH
        spread = f" ± {number(self.deviation)}" if self.deviation is not None else ""
        missing = f" [{self.finished} of {self.runs}]" if self.finished < self.runs else ""
        return f"{number(self.mean)}{spread}{missing}"


@dataclass(frozen=True)
class Grid:
    """One table of runs with the same settings, except attack, defense and seed.

    Attributes:
        title: Those settings that differ from the other tables' of the same dataset, the dataset first.
        printed: The same as papers print it, without what ``about`` tells.
        about: Numbers of clients and rounds, in words; two tables differ in one of both.
        measure: Of :data:`MEASURES`.
        defenses: Rows.
        attacks: Columns.
        cells: By (defense, attack), where there is a run.
        worst: The cell with the worst mean over the attacks, by defense; only where every attack has a number.
        best: By column, the defense that is ahead of every other (:data:`BOLD`), where there is one.
    """

    title: str
    printed: str
    about: str
    measure: str
    defenses: tuple[str, ...]
    attacks: tuple[str, ...]
    cells: Mapping[tuple[str, str], Cell]
    worst: Mapping[str, Cell]
    best: Mapping[str, str]

    @property
    def heading(self) -> str:
        """What the numbers are."""
        return f"{MEASURES[self.measure][0]}, %"

    @property
    def columns(self) -> tuple[str, ...]:
        """The attacks, and :data:`WORST` where a defense has met them all."""
        return (*self.attacks, *([WORST] if self.worst else []))

    def cell(self, defense: str, column: str) -> Cell | None:
        """The cell of a row and a column; None where there is no run, or no worst case."""
        return self.worst.get(defense) if column == WORST else self.cells.get((defense, column))

    def text(self, defense: str, column: str) -> str:
        """What stands in a field."""
        cell = self.cell(defense, column)
        return cell.text() if cell is not None else DASH if column == WORST else "not run"


def seeds(found: Sequence[Grid]) -> str:
    """Over how many seeds the means of some tables are, in words.

    Returns:
        "3 seeds", "1 to 3 seeds" where cells differ, or "" without any number.
    """
    counts = {cell.seeds for grid in found for cell in grid.cells.values() if cell.seeds}
    if not counts:
        return ""
    few, many = min(counts), max(counts)
    return f"{few} to {many} seeds" if few < many else counted(many, "seed")


def grids(runs: Sequence[Run]) -> list[Grid]:
    """One table per setting and measure; measures without any number are left out."""
    known = [run for run in runs if run.experiment is not None]
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in known:
        groups.setdefault(tuple(run.setting.items()), []).append(run)
    settings = [members[0].setting for members in groups.values()]
    found = []
    for name, setting, members in zip(titles(settings), settings, groups.values(), strict=True):
        names = name, printed(setting, settings), about(members)
        found += [grid for measure in MEASURES if (grid := _grid(names, measure, members)) is not None]
    return found


def printed(setting: Mapping[str, str], settings: Sequence[Mapping[str, str]]) -> str:
    """The settings that differ among those of the same dataset, as papers print them.

    Without what is the default, and without the numbers of clients and rounds, which :func:`about` tells.

    >>> small, large = ({"dataset": "har", "model": name} for name in ("mlp", "cnn"))
    >>> printed(small, [small, large]), printed(small, [small, {"dataset": "digits", "model": "cnn"}])
    ('HAR, model mlp', 'HAR')
    """
    alike = [other for other in settings if other["dataset"] == setting["dataset"]]
    keys = [key for key in differing(alike) if key in setting and key not in _ABOUT]
    return title({**setting, "dataset": named(setting["dataset"], DATASETS)}, keys)


def _grid(names: tuple[str, str, str], measure: str, runs: Sequence[Run]) -> Grid | None:
    by_cell: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        by_cell.setdefault((run.defense, run.attack), []).append(run)
    cells = {key: _cell(found, measure) for key, found in by_cell.items()}
    if measure != "late_test_accuracy" and all(cell.mean is None for cell in cells.values()):
        return None
    defenses, attacks = ordered((d for d, _ in cells), DEFENSES), ordered((a for _, a in cells), ATTACKS)
    if measure != "late_test_accuracy":  # rates are undefined for some attacks and defenses
        attacks = [a for a in attacks if any((c := cells.get((d, a))) and c.mean is not None for d in defenses)]
        defenses = [d for d in defenses if any((c := cells.get((d, a))) and c.mean is not None for a in attacks)]
    more = MEASURES[measure][1]
    worst = {}
    for defense in defenses:
        row = [cells.get((defense, attack)) for attack in attacks]
        numbers = {cell.mean: cell for cell in row if cell is not None and cell.mean is not None}
        if len(attacks) > 1 and all(cell is not None and cell.mean is not None for cell in row):
            worst[defense] = numbers[(min if more else max)(numbers)]
    columns = {a: {d: c for d in defenses if (c := cells.get((d, a)))} for a in attacks}
    ahead = {a: _best(column, more) for a, column in (*columns.items(), (WORST, worst))}
    best = {a: defense for a, defense in ahead.items() if defense is not None}
    return Grid(*names, measure, tuple(defenses), tuple(attacks), cells, worst, best)


def about(runs: Sequence[Run]) -> str:
    """How many clients, malicious ones and rounds runs have that differ in attack, defense and seed."""
    known = [(run, run.experiment) for run in runs if run.experiment is not None]
    e, n = known[0][1], max((e.n_malicious for run, e in known if run.truth), default=0)
    malicious = f", {n} of them malicious" if n else ""
    drawn = f" ({e.clients_per_round} in a round)" if e.clients_per_round < e.clients else ""
    return f"{counted(e.clients, 'client')}{drawn}{malicious}, {counted(e.rounds, 'round')}"


def one_of_each_seed(runs: Sequence[Run]) -> list[Run]:
    """Of runs that differ in nothing but the seed, one of each: the first finished one, or else the longest.

    A copy of a run is no second measurement.
    """
    found: dict[int, Run] = {}
    for run in sorted(runs, key=lambda run: (not run.finished, -run.digest.rounds, run.path)):
        if run.experiment is not None:
            found.setdefault(run.experiment.seed, run)
    return [found[seed] for seed in sorted(found)]


def _cell(runs: Sequence[Run], measure: str) -> Cell:
    kept = one_of_each_seed(runs)
    values = [v for run in kept if run.finished and (v := run.summary[measure]) is not None]
    problem = next((run.problems[0] for run in kept if not run.finished and run.problems), "")
    notes = [note for run in kept for note in run.notes]
    if len(kept) < len(runs):
        notes.append(f"{len(runs)} runs of {len(kept)} seeds: one of each seed counts")
    return Cell(
        mean=mean(values) if values else None,
        deviation=stdev(values) if len(values) > 1 else None,
        seeds=len(values),
        finished=sum(run.finished for run in kept),
        runs=len(kept),
        problem=problem,
        note="; ".join(dict.fromkeys(notes)),
    )


def _best(column: Mapping[str, Cell], more: bool) -> str | None:
    """The row that is ahead of every other by more than both deviations; None without one, or without deviations.

    Numbers are compared as they are shown, to a tenth of a per cent.
    """
    known = {
        d: (cell.mean if more else -cell.mean, cell.deviation) for d, cell in column.items() if cell.mean is not None
    }
    if len(known) < 2:
        return None
    first = max(known, key=lambda d: known[d][0])
    top, own = known.pop(first)
    for value, deviation in known.values():
        if own is None or deviation is None or round(top, 3) - round(value, 3) <= own + deviation:
            return None
    return first


def problems(runs: Sequence[Run]) -> list[str]:
    """All problems of all runs, and what a reader of their numbers has to know, one line each."""
    return [f"{printable(str(run.path))}: {line}" for run in runs for line in (*run.problems, *run.notes)]
