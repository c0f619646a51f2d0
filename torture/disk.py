"""Disks that are full, folders that vanish, no file handles, impossible paths: one line, and the run can be resumed.

A full disk is a limit on the size of files (RLIMIT_FSIZE), which stops every write at a byte of our choice.
"""

import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from fedsieve.core.errors import FedSieveError
from torture.common import SETTINGS, Command, Context, Row, Tally, command, expect, played, run_arguments, same, told
from torture.common import without_seconds as recorded

RUN: dict[str, Any] = {**SETTINGS, "rounds": 30, "evaluate_every": 10}


def rows(context: Context) -> Iterator[Row]:
    """Run the chapter."""
    folder, straight = context.folder, context.folder / "straight"
    half = folder / "half"
    played(
        RUN, folder / "killed", lambda r: r.round == 12 and shutil.copytree(folder / "killed", half), checkpoint_every=0
    )
    ended = command(*run_arguments(RUN, straight))
    expect(ended.code == 0, ended.text)
    longest = max(file.stat().st_size for file in straight.iterdir())
    n = context.some(24, 3)
    sizes = sorted({0, 1, *(round(longest * (k / n) ** 2) for k in range(n + 1))})
    for what, base in (("a new run", None), ("a run that is resumed", half)):
        tally = Tally("disk", f"full at growing sizes, {what}", 120)
        for size in sizes:
            limit = partial(_limit, resource.RLIMIT_FSIZE, size)
            tally.case(f"{size} bytes", partial(stopped, base, folder / f"size-{size}", straight, limit))
        yield tally.row()
    tally = Tally("disk", "file handles run out", 120)
    used = len(list(Path("/proc/self/fd").iterdir()))
    for more in range(0, context.some(24, 2), 1 if not context.smoke else 2):
        limit = partial(_limit, resource.RLIMIT_NOFILE, used + more)
        tally.case(f"{more} more", partial(stopped, half, folder / f"handles-{more}", straight, limit))
    yield tally.row()
    tally = Tally("disk", "the folder is gone, moved or locked during a run", 120)
    for name, gone in (("moved away", True), ("its records deleted", False)):
        for k in range(context.some(3, 1)):
            tally.case(f"{name} {k}", partial(vanished, folder / f"gone-{gone}-{k}", straight, gone, 0.1 * k))
    tally.case("run by two at once", partial(two_at_once, folder / "two", straight))
    yield tally.row()
    yield _paths(context, straight)
    yield _outputs(context, straight)
    if not context.smoke:
        tally = Tally("disk", "full at growing sizes, a sweep", 300)
        for size in (0, 500, longest // 2):
            tally.case(f"{size} bytes", partial(swept, folder / f"sweep-{size}", straight, size))
        yield tally.row()


def _limit(kind: int, most: int) -> None:
    resource.setrlimit(kind, (most, resource.getrlimit(kind)[1]))


def stopped(base: Path | None, out: Path, straight: Path, limit: Callable[[], object]) -> None:
    """A run under a limit: earlier results stay, and without the limit it goes on to the records of the other."""
    if base:
        shutil.copytree(base, out)
    before = recorded(out) if base else []
    ended = command(*run_arguments(RUN, out, "--resume", "--checkpoint-every", 0.01), before=limit)
    failure: FedSieveError | None = None
    try:
        told(ended)
    except FedSieveError as error:
        failure = error
    if base:
        expect(recorded(out)[: len(before)] == before or ended.code == 0, "earlier records are gone")
    again = command(*run_arguments(RUN, out, "--resume"))
    expect(again.code == 0, f"it can't be resumed: {again.text[-500:]}")
    same(out, straight)
    shutil.rmtree(out)
    if failure:
        raise failure


def vanished(out: Path, straight: Path, whole: bool, after: float) -> None:
    """The folder of a run, or its records, go away while it runs; where it was moved to, it can be resumed."""
    long = {**RUN, "rounds": 3000}
    process, records, moved = Command(*run_arguments(long, out, "--checkpoint-every", 0.05)), out / "records.jsonl", out
    while process.running() and not (records.exists() and records.stat().st_size):
        time.sleep(0.002)
    time.sleep(after)
    if whole:
        moved = out.with_name(f"{out.name}-moved")
        out.rename(moved)
    else:
        records.unlink()
    failure = None
    try:
        told(process.wait())
    except FedSieveError as error:
        failure = error
    expect(failure is not None, "it went on")
    if whole:
        expect(not out.exists(), "it made the folder again")
        again = command(*run_arguments({**long, "rounds": 10**6}, moved, "--resume"), before=_end_soon)
        expect(again.code == 143, f"it can't be resumed: {again.text[-500:]}")
        # evaluations differ, since there are more rounds; who took part and what was done does not
        found, wanted = recorded(moved), recorded(straight)
        expect(
            all(a.partition('"test_')[0] == b.partition('"test_')[0] for a, b in zip(found, wanted, strict=False)),
            "other records",
        )
    shutil.rmtree(moved, ignore_errors=True)
    assert failure is not None
    raise failure


def _end_soon() -> None:
    """SIGTERM in two seconds."""
    import signal
    import threading

    def end() -> None:
        time.sleep(2)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end, daemon=True).start()


def two_at_once(out: Path, straight: Path) -> None:
    """A second process in one folder is told, and the first is not disturbed."""
    first = Command(*run_arguments(RUN, out, "--checkpoint-every", 0))
    while first.running() and not (out / "records.jsonl").exists():
        time.sleep(0.001)
    second = command(*run_arguments(RUN, out, "--fresh"))
    ended = first.wait()
    expect(ended.code == 0, ended.text)
    same(out, straight)
    told(second)


def _paths(context: Context, straight: Path) -> Row:
    """Impossible places for a run, a sweep and a report."""
    folder = context.folder / "paths"
    (folder / "folder").mkdir(parents=True)
    (folder / "file").write_text("mine")
    (folder / "dangling").symlink_to("nothing/at/all")
    (folder / "loop").symlink_to("loop")
    (folder / "full").mkdir()
    (folder / "full" / "records.jsonl").symlink_to("/dev/full")
    grid = folder / "grid.yaml"
    grid.write_text("{dataset: digits, clients: 6, rounds: 1, seed: [0]}")
    places = {
        "a file": folder / "file",
        "below a file": folder / "file" / "x",
        "a loop of links": folder / "loop",
        "a link to nothing": folder / "dangling",
        "a name of 300 characters": folder / ("x" * 300),
        "a path of 5,000 characters": Path(*["y" * 100] * 50),
        "in /proc": Path("/proc/x"),
        "a device": Path("/dev/full"),
        "below a device": Path("/dev/null/x"),
        "a folder whose records are /dev/full": folder / "full",
    }
    tally = Tally("disk", "places where nothing can be written", 120)
    os.chdir(folder / "folder")
    for name, place in list(places.items())[: context.some(99, 3)]:
        for what, arguments in (
            ("run", run_arguments({**RUN, "rounds": 1}, place)),
            ("sweep", ["sweep", grid, "--out", place, "--jobs", 1, "--quiet"]),
            ("report", ["report", straight, "--out", place, "--quiet"]),
        ):
            if what == "run" or name not in ("a folder whose records are /dev/full", "a link to nothing"):
                tally.case(f"{what}: {name}", partial(_told, arguments))
    tally.case("a file there is still the same", lambda: expect((folder / "file").read_text() == "mine", "it is not"))
    return tally.row()


def _told(arguments: list[object]) -> None:
    told(command(*arguments))


def _outputs(context: Context, straight: Path) -> Row:
    """Standard output or error that can't be written: results are kept, the exit code says so."""
    tally, folder = Tally("disk", "standard output and error on a full disk", 120), context.folder / "outputs"
    for number, name in ((1, "output"), (2, "error")):
        for arguments in (run_arguments(RUN, folder / name), ["list"], ["report", straight, "--out", folder / "r"]):
            showing = partial(_shown, arguments, number, folder / name, straight)
            tally.case(f"{name}: {arguments[0]}", showing)
    return tally.row()


def _shown(arguments: list[object], number: int, out: Path, straight: Path) -> None:
    ended = command(*arguments, before=partial(_full, number))
    if arguments[0] == "run":
        same(out, straight)
    if number == 1:
        expect(ended.code == 1, f"exit code {ended.code}: {ended.text}")
    told(ended)


def _full(number: int) -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), number)


def swept(out: Path, straight: Path, size: int) -> None:
    """A sweep on a full disk: one line, and the same command again finishes it."""
    grid = out.with_suffix(".yaml")
    settings = {**RUN, "seed": [0, 1]}
    grid.write_text("\n".join(f"{key}: {value}" for key, value in settings.items()))
    arguments = ["sweep", grid, "--out", out, "--jobs", 2, "--quiet", "--device", "cpu", "--checkpoint-every", 0.01]
    ended = command(*arguments, before=partial(_limit, resource.RLIMIT_FSIZE, size))
    expect("Traceback" not in ended.text, ended.text[-1500:])
    expect(ended.code in (1, 2), f"exit code {ended.code}: {ended.text[-500:]}")
    again = command(*arguments)
    expect(again.code == 0, f"the same command again ended with {again.code}: {again.text[-500:]}")
    with suppress(StopIteration):
        first = next(path for path in out.iterdir() if "seed: 0" in _text(path / "experiment.yaml"))
        same(first, straight)
    raise FedSieveError(" ".join(ended.text.split()))


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""
