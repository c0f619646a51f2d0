"""Runs the chapters one after another and ends in a table: tried, lost (nothing), told. See ``--help``.

Each chapter is a process of its own, so that a crash or a hang of one is a row of the table and not its end.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import date
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results" / "torture.md"
# Each chapter, and the minutes after which it is taken to hang.
CHAPTERS = {"kills": 15, "corruption": 10, "files": 15, "stages": 5, "rules": 10, "disk": 10, "soak": 20}
COLUMNS = ("chapter", "what", "tried", "lost", "right", "told", "worst")
LEGEND = """A case is *lost* if an earlier result is gone or changed, if a run goes on differently without a word, or if
it ends in a traceback, a hang or NaN. It is *right* if its result is: for a run, the records of an undisturbed run, to
the byte (but for the seconds). It is *told* if it ends in one line that says why. Every case is one of the three.
*Worst* is the first loss, or else the slowest case."""


def main() -> int:
    """Run the command; 1 if anything is lost."""
    parser = argparse.ArgumentParser(prog="python -m torture", description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=CHAPTERS, action="append", help="this chapter; may be given several times")
    parser.add_argument("--seed", type=int, default=0, help="decides everything random (0)")
    parser.add_argument("--smoke", action="store_true", help="a few cases of each, to see that the chapters work")
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)  # of one chapter, where its rows go
    given = parser.parse_args()
    if given.rows:
        _chapter(given.only[0], given.seed, given.smoke, given.rows)
        return 0
    print(f"torture with seed {given.seed}", flush=True)
    rows, minutes = [], {}
    for name in given.only or CHAPTERS:
        start = time.monotonic()
        found = _process(name, given.seed, given.smoke)
        minutes[name] = (time.monotonic() - start) / 60
        rows += found
        print(f"{name}, {60 * minutes[name]:.0f} s", *(f"  {_said(row)}" for row in found), sep="\n", flush=True)
    lost = sum(int(row["lost"]) for row in rows)
    table = _table(rows)
    print("", table, f"{lost} lost" if lost else "nothing lost", sep="\n", flush=True)
    if not given.only and not given.smoke:
        PAGE.write_text(_page(table, given.seed, minutes, lost), encoding="utf-8")
    return int(lost > 0)


def _process(name: str, seed: int, smoke: bool) -> list[dict[str, str | int]]:
    """The rows of a chapter that runs in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        file = Path(folder, "rows.json")
        call = [sys.executable, "-m", "torture", "--only", name, "--seed", str(seed), "--rows", str(file)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "TMPDIR": folder, "COLUMNS": "200"}
        process = subprocess.Popen(call + ["--smoke"] * smoke, cwd=ROOT, env=environment, start_new_session=True)
        try:
            code = process.wait(60 * CHAPTERS[name])
            why = f"it ended with code {code}"
        except subprocess.TimeoutExpired:
            why = f"no end after {CHAPTERS[name]} minutes"
            os.killpg(process.pid, 9)
            process.wait()
        rows = json.loads(file.read_text()) if file.exists() else []
        if not file.exists() or process.returncode != 0:
            rows.append(dict(zip(COLUMNS, (name, "the chapter itself", 1, 1, 0, 0, why), strict=True)))
        return list(rows)


def _chapter(name: str, seed: int, smoke: bool, file: Path) -> None:
    """Run a chapter in this process."""
    import torch

    from torture.common import Context

    torch.set_num_threads(1)
    folder = file.parent / name
    folder.mkdir()
    rows = []
    for row in import_module(f"torture.{name}").rows(Context(folder, seed, smoke)):
        rows.append(asdict(row))
        file.write_text(json.dumps(rows))  # whatever happens to the rest of the chapter


def _said(row: dict[str, str | int]) -> str:
    return "{what}: {tried} tried, {lost} lost, {right} right, {told} told ({worst})".format(**row)


def _table(rows: list[dict[str, str | int]]) -> str:
    lines = [COLUMNS, ("---", "---", "---:", "---:", "---:", "---:", "---")]
    lines += [tuple(" ".join(str(row[key]).replace("|", "/").split()) for key in COLUMNS) for row in rows]
    total = [str(sum(int(row[key]) for row in rows)) for key in COLUMNS[2:6]]
    return "\n".join(f"| {' | '.join(line)} |" for line in [*lines, ("**all**", "", *total, "")])


def _page(table: str, seed: int, minutes: dict[str, float], lost: int) -> str:
    took = ", ".join(f"{name} {m:.1f}" for name, m in minutes.items())
    versions = ", ".join(f"{package} {version(package)}" for package in ("fedsieve", "torch", "numpy"))
    return (
        "# Torture\n\n"
        f"`make torture` (seed {seed}), {date.today()}, {versions}, Python {platform.python_version()}, "
        f"{os.cpu_count()} CPU cores; {sum(minutes.values()):.0f} minutes ({took}). "
        f"**{'Nothing' if not lost else f'{lost} cases'} lost.**\n\n{LEGEND}\n\n{table}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
