"""Run directories that are damaged, foreign or edited: resumed to the byte, or one line; never a wrong continuation.

Every file is damaged in every way, in a run that was killed half way and in a finished one. Then the run is resumed,
and all that reads run directories reads them.
"""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from io import StringIO
from pathlib import Path

import torch
from rich.console import Console

from fedsieve.cli.live import watch
from fedsieve.core.errors import FedSieveError
from fedsieve.report import tables
from fedsieve.report.load import load
from fedsieve.runs.directory import CHECKPOINT, PREVIOUS, RunDirectory
from torture.common import SETTINGS, Context, Row, Tally, command, expect, played, same, told, without_seconds

RECORDS, EXPERIMENT = "records.jsonl", "experiment.yaml"
FILES = (CHECKPOINT, PREVIOUS, RECORDS, EXPERIMENT, "environment.json")
# How many bits are flipped, one at a time; those of the checkpoint's tensors are most of them.
FLIPS = {CHECKPOINT: 60, PREVIOUS: 15, RECORDS: 40, EXPERIMENT: 40, "environment.json": 15}
FOREIGN = {
    "another seed": {"seed": 1},
    "another defense": {"defense": "momentum,mean"},
    "another attack": {"attack": "none"},
    "another number of clients": {"clients": 7},
    "more rounds": {"rounds": 20},
}
EDITS = ("seed: 0", "seed: 1"), ("rounds: 10", "rounds: 7"), ("name: momentum,median", "name: momentum,mean")
Damage = Callable[[Path], object]


def rows(context: Context) -> Iterator[Row]:
    """Run the chapter."""
    folder, dice = context.folder, random.Random(context.seed)
    straight, half = folder / "straight", folder / "half"
    played(SETTINGS, straight, checkpoint_every=0)
    played(
        SETTINGS,
        folder / "killed",
        lambda r: r.round == 5 and shutil.copytree(folder / "killed", half),
        checkpoint_every=0,
    )
    foreign = {}
    for name, changed in FOREIGN.items():
        foreign[name] = folder / name.replace(" ", "-")
        played({**SETTINGS, **changed}, foreign[name], checkpoint_every=0)
    kept = folder / "report"
    for file in FILES:
        tally, reading = Tally("corruption", f"{file}, resumed"), Tally("corruption", f"{file}, read")
        for what, base in (("killed", half), ("finished", straight)):
            cases = list(damages(file, base, foreign, dice))
            if context.smoke or base is straight:
                cases = dice.sample(cases, 3 if context.smoke else len(cases) // 2)
            for number, (name, damage) in enumerate(cases):
                out = folder / "case"
                shutil.copytree(base, out, symlinks=True)
                damage(out)
                reading.case(f"{what} run, {name}", partial(read, out))
                if number % 10 == 0:
                    shutil.copytree(out, kept / f"{what}-{file}-{number}", symlinks=True, ignore=_pipes)
                tally.case(f"{what} run, {name}", partial(resume, out, straight))
                shutil.rmtree(out)
        yield tally.row()
        yield reading.row()
    tally = Tally("corruption", "a report of many damaged runs")
    tally.case("all", partial(report, kept, folder / "page"))
    yield tally.row()


def damages(file: str, base: Path, foreign: dict[str, Path], dice: random.Random) -> Iterator[tuple[str, Damage]]:
    """All ways to damage a file of the run directory ``base``, each with its name."""
    # as much is drawn whatever the length, which differs a little, since records hold the seconds they took
    content, noise = (base / file).read_bytes(), random.Random(dice.random())
    for _ in range(FLIPS[file]):
        at, bit = int(dice.random() * len(content)), dice.randrange(8)
        flipped = content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
        yield f"bit {bit} of byte {at} flipped", partial(_put, file, flipped)
    for size in sorted(int(dice.random() * len(content)) for _ in range(6)):
        yield f"cut to {size} of {len(content)} bytes", partial(_put, file, content[:size])
    yield "empty", partial(_put, file, b"")
    yield "random bytes", partial(_put, file, noise.randbytes(len(content)))
    yield "zeros", partial(_put, file, bytes(len(content)))  # as some file systems leave it after a power cut
    yield "random bytes behind it", partial(_put, file, content + noise.randbytes(100))
    yield "missing", lambda out: (out / file).unlink()
    yield "a folder in its place", lambda out: ((out / file).unlink(), (out / file / "in").mkdir(parents=True))
    yield "a pipe in its place", lambda out: ((out / file).unlink(), os.mkfifo(out / file))
    yield "a link to nothing in its place", lambda out: ((out / file).unlink(), (out / file).symlink_to("nothing"))
    for name, other in foreign.items():
        yield f"that of {name}", partial(_put, file, (other / file).read_bytes())
    if file == EXPERIMENT:
        for old, new in EDITS:
            expect(old in content.decode(), f"{old} is not in {file}")
            yield f"{new} for {old}", partial(_put, file, content.replace(old.encode(), new.encode()))
    if file == RECORDS:
        yield from _edits(content, dice)
    if file == CHECKPOINT:
        yield "the one before it in its place", lambda out: (out / PREVIOUS).replace(out / CHECKPOINT)
        yield "both missing", lambda out: ((out / PREVIOUS).unlink(), (out / CHECKPOINT).unlink())
        yield "both cut", lambda out: [_put(name, content[:500], out) for name in (CHECKPOINT, PREVIOUS)]


def _edits(content: bytes, dice: random.Random) -> Iterator[tuple[str, Damage]]:
    """Records in another order, twice, gone, edited."""
    lines = content.splitlines(keepends=True)
    for k in range(len(lines) - 1):
        swapped = [*lines[:k], lines[k + 1], lines[k], *lines[k + 2 :]]
        yield f"records {k} and {k + 1} swapped", partial(_put, RECORDS, b"".join(swapped))
        yield f"record {k} twice", partial(_put, RECORDS, b"".join([*lines[:k], lines[k], *lines[k:]]))
        yield f"record {k} gone", partial(_put, RECORDS, b"".join(lines[:k] + lines[k + 1 :]))
        edited = lines[k].replace(b'"applied": true', b'"applied": false')
        yield f"record {k} edited", partial(_put, RECORDS, b"".join([*lines[:k], edited, *lines[k + 1 :]]))
        of = int(dice.random() * len(lines[k]))
        yield f"record {k} cut short", partial(_put, RECORDS, b"".join([*lines[:k], lines[k][:of], *lines[k + 1 :]]))


def _put(file: str, content: bytes, out: Path) -> None:
    (out / file).write_bytes(content)


def _pipes(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if Path(folder, name).is_fifo()]


def resume(out: Path, straight: Path) -> None:
    """Resume: the records of a run that nothing happened to, or one line, and the records are still there."""
    before = without_seconds(out)
    try:
        played(SETTINGS, out, resume=True)
    except FedSieveError:
        expect(without_seconds(out)[: len(before)] == before, "it ended in an error, and changed the records")
        raise
    same(out, straight)


def read(out: Path) -> None:
    """Read it with all that reads run directories; the last error counts."""
    errors = []
    runs = load([out])
    found = tables.grids(runs)
    expect(isinstance(tables.markdown(found, runs), str), "no tables")
    directory = RunDirectory(out)
    console = Console(file=StringIO())
    for reader in (
        directory.records,
        partial(directory.load, torch.device("cpu")),
        partial(watch, out, console, once=True),
    ):
        try:
            reader()
        except FedSieveError as error:
            errors.append(error)
    if errors:
        raise errors[-1]


def report(folder: Path, page: Path) -> None:
    """The command makes a page of all of them, whatever they are."""
    ended = command("report", folder, "--out", page, "--quiet", seconds=300)
    told(ended)
    expect((page / "index.html").stat().st_size > 1000, "no page")
