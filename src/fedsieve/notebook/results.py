"""What was run, as objects with data frames and plots."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsieve.config.experiment import Experiment
from fedsieve.core.extras import extra
from fedsieve.core.records import RoundRecord
from fedsieve.report.frames import clients_frame, rounds_frame, runs_frame
from fedsieve.report.load import Run
from fedsieve.report.load import load as read_all
from fedsieve.report.text import counted, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

# Fields of a round's record, as a plot and a summary name them.
_RATES = {
    "test_accuracy": "test accuracy",
    "attack_success_rate": "attack success",
    "false_positive_rate": "benign rejected",
    "false_negative_rate": "malicious missed",
}


@dataclass(frozen=True, repr=False)
class Result:
    """One run: its settings, its numbers, and where it is kept. Rates are in [0, 1].

    Attributes:
        run: What is in its directory.
    """

    run: Run

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.run.path

    @property
    def experiment(self) -> Experiment | None:
        """All settings; None if they can't be read."""
        return self.run.experiment

    @property
    def summary(self) -> Mapping[str, Any]:
        """The numbers of the whole run: :func:`fedsieve.summarize` of its records."""
        return self.run.summary

    @property
    def records(self) -> Iterator[RoundRecord]:
        """The record of each round, read from the disk one at a time."""
        return iter(self.run.records)

    @cached_property
    def rounds(self) -> "DataFrame":
        """One row for each round."""
        return rounds_frame([self.run])

    def clients(self) -> "DataFrame":
        """One row for each client in each round."""
        return clients_frame([self.run])

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw accuracy and rates over rounds, in per cent.

        Args:
            ax: Where to draw; a new figure by default.

        Returns:
            The axes, to change or to save: ``result.plot().figure.savefig("run.pdf")``.

        Raises:
            MissingPackageError: Without matplotlib.
        """
        with extra("report", "a plot"):
            from matplotlib import pyplot
        ax = ax or pyplot.subplots()[1]
        for field, name in _RATES.items():
            rounds, values = self.run.digest.curves[field]
            if values:
                ax.plot([k + 1 for k in rounds], [100 * value for value in values], label=name)
        ax.set(xlabel="round", ylabel="%", ylim=(-3, 103), title=self._name().replace("$", r"\$"))
        if ax.get_legend_handles_labels()[0]:
            ax.legend()
        return ax

    def _name(self) -> str:
        e = self.experiment
        if e is None:
            return str(self.path)
        return f"{self.run.attack} against {self.run.defense}, {e.dataset.name}, seed {e.seed}"

    def _numbers(self) -> dict[str, str]:
        """What a reader wants to know first, as text."""
        state = f"{self.run.digest.rounds}"
        if self.experiment is not None and not self.run.finished:
            state = f"{self.run.digest.rounds} of {self.experiment.rounds}"
        late = {**self.summary, "test_accuracy": self.summary["late_test_accuracy"]}
        rates = {name: percent(late[field]) for field, name in _RATES.items() if late[field] is not None}
        return {"rounds": state, **rates, "directory": str(self.path)}

    def __repr__(self) -> str:
        return f"{self._name()}: {', '.join(f'{name} {text}' for name, text in self._numbers().items())}"

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{k}</td><td>{escape(text)}</td></tr>" for k, text in self._numbers().items())
        return f"<b>{escape(self._name())}</b><table>{rows}</table>"


@dataclass(frozen=True, repr=False)
class Runs:
    """Runs that were read from the disk: what :func:`load` returns. A list of :class:`Result`, with data frames.

    Attributes:
        found: What is in each run directory.
    """

    found: tuple[Run, ...]

    @cached_property
    def runs(self) -> "DataFrame":
        """One row for each run: settings, summary, and what it lost against its reference."""
        return runs_frame(self.found)

    @cached_property
    def rounds(self) -> "DataFrame":
        """One row for each round of each run."""
        return rounds_frame(self.found)

    def clients(self) -> "DataFrame":
        """One row for each client in each round of each run: for long runs, millions."""
        return clients_frame(self.found)

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, k: int) -> Result:
        return Result(self.found[k])

    def __iter__(self) -> Iterator[Result]:
        return map(Result, self.found)

    def __repr__(self) -> str:
        problems = sum(not run.finished for run in self.found)
        unfinished = f", {problems} of them unfinished or damaged" if problems else ""
        columns = {
            "dataset": {run.setting.get("dataset", "") for run in self.found},
            "attack": {run.attack for run in self.found},
            "defense": {run.defense for run in self.found},
        }
        said = ", ".join(counted(len(names - {""}), name) for name, names in columns.items())
        return f"{counted(len(self.found), 'run')}{unfinished}: {said}; .runs and .rounds are data frames"


def load(*paths: str | Path) -> Runs:
    """The runs in these directories, each a run directory or a folder of them; ``runs`` by default.

    Nothing that a run directory names is imported, and what is damaged is a problem of its run (the column
    ``problems``), no error.

    Raises:
        ParameterError: If there is none.
    """
    return Runs(tuple(read_all([Path(path) for path in paths or ("runs",)])))
