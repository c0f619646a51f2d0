"""What goes wrong in a worker process, at a moment that a test chooses."""

import errno
import os
import signal
from pathlib import Path
from typing import Any

from fedsieve.core.records import RoundRecord
from fedsieve.runs.directory import RunDirectory


class Spoiler:
    """A display that spoils a run, once, if there is a file beside the run directory whose name says how.

    ``kill-KEY``: SIGKILL in round 5. ``term-KEY``: SIGTERM in round 5. ``replace-KEY`` and ``fsync-KEY``: SIGKILL in
    the fifteenth call of that function, which is in a checkpoint if there is one in each round. ``full-KEY``: no record
    can be written, not once but until the file is gone.
    """

    def __init__(self, path: Path) -> None:
        self.ways: set[str] = set()
        self.append = RunDirectory.append
        for way in ("kill", "term", "replace", "fsync"):
            file = path.parent / f"{way}-{path.name}"
            if file.exists():
                file.unlink()
                self.ways.add(way)
        for way in self.ways & {"replace", "fsync"}:
            setattr(os, way, _deadly(getattr(os, way)))
        if (path.parent / f"full-{path.name}").exists():
            RunDirectory.append = _full  # type: ignore[method-assign]

    def show(self, record: RoundRecord) -> None:
        """Spoil the run."""
        if record.round == 5 and "kill" in self.ways:
            os.kill(os.getpid(), signal.SIGKILL)
        if record.round == 5 and "term" in self.ways:
            os.kill(os.getpid(), signal.SIGTERM)

    def close(self) -> None:
        """Let the next run be."""
        RunDirectory.append = self.append  # type: ignore[method-assign]


def _deadly(real: Any) -> Any:
    calls: list[Any] = []

    def call(*args: Any, **more: Any) -> Any:
        calls.append(args)
        if len(calls) == 15:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **more)

    return call


def _full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
