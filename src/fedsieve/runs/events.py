"""What a grid of experiments reports while it runs, and what shows it."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from fedsieve.core.records import RoundRecord


@dataclass(frozen=True)
class Event:
    """What happened to a cell of a grid.

    Attributes:
        key: Key of its experiment.
        kind: ``skipped`` (it was finished already), ``elsewhere`` (another process runs it), ``started``, ``round``,
            ``done``, ``failed``, or ``note`` (something to tell; the cell is where it was).
        round: Number of rounds done so far.
        text: The test accuracy, the error message, or what is to be told.
    """

    key: str
    kind: Literal["skipped", "elsewhere", "started", "round", "done", "failed", "note"]
    round: int = 0
    text: str = ""

    @property
    def finished(self) -> bool:
        """Whether the cell has all its rounds."""
        return self.kind in ("skipped", "done")

    @property
    def ended(self) -> bool:
        """Whether this is the last event of a cell."""
        return self.finished or self.kind in ("failed", "elsewhere")

    @property
    def error(self) -> str:
        """After the cell has ended: why it is not finished, or ""."""
        return {"failed": self.text, "elsewhere": "another process runs it"}.get(self.kind, "")


class Display(Protocol):
    """Shows one run's records in the process that runs it, as TensorBoard does."""

    def show(self, record: RoundRecord, /) -> None:
        """Show one more round."""

    def close(self) -> None:
        """Write what is not written yet."""


Watch = Callable[[Event], None]


def quietly(watch: Watch) -> Watch:
    """``watch`` for a grid that goes on where events can't be shown: a closed terminal, a full disk."""

    def tell(event: Event) -> None:
        with suppress(OSError):
            watch(event)

    return tell


# Each makes a display for a run directory; a module's class, since it is pickled for workers.
Displays = Sequence[Callable[[Path], Display]]
