"""Every goal with its figure, ratio and verdict: `make bench`, at most twenty minutes on two cores.

Absolute times depend on the machine; what is compared is timed in turn in one process, and medians are shown. CPU
figures go to benchmarks/cpu.json and, with those of a GPU in benchmarks/gpu.json, to docs/results/bench.md. What was
not measured is shown as not run.

On a machine with a GPU: `python benchmarks/bench.py --device cuda --out benchmarks/gpu.json`, two minutes; `--profile`
prints what a profiler counts in each phase. `--only` runs some parts, or some blocks of the GPU's, and leaves the other
figures as they are.
"""

import argparse
import io
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path

from goals import PARTS
from harness import HEADS, Measured, counts, keep, kept, machine, markdown, rows, together, told
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
CPU, GPU, PAGE = HERE / "cpu.json", HERE / "gpu.json", HERE.parent / "docs" / "results" / "bench.md"
ON_CPU = [part for part in PARTS if part != "gpu"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"run some of: {', '.join(ON_CPU)}")
    parser.add_argument("--smoke", action="store_true", help="everything once on small inputs; writes nothing")
    parser.add_argument("--device", default="cpu", help="cpu (default), or cuda for what needs a GPU")
    parser.add_argument("--out", type=Path, help="file of the figures: benchmarks/cpu.json or benchmarks/gpu.json")
    parser.add_argument("--profile", action="store_true", help="with --device cuda: print what a profiler counts, too")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page from the files")
    options = parser.parse_args()
    on_gpu, only = options.device != "cpu", options.only or []
    known = list(import_module("gpu").BLOCKS) if on_gpu else ON_CPU
    if unknown := [name for name in only if name not in known]:
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(known)}")
    if options.smoke:
        smoke(only or ON_CPU)
    elif on_gpu:
        blocks = only or [name for name in known if name != "profile"]
        blocks += ["profile"] if options.profile and "profile" not in blocks else []
        out = options.out or GPU
        import_module("gpu").measure(options.device, False, blocks, out)
        show({"gpu": together(kept(out))}, ["gpu"])
    else:
        out = options.out or CPU
        if not options.page:
            measure(only or ON_CPU, out)
        found = figures(out, GPU)
        PAGE.write_text(page(found), encoding="utf-8")
        show(found, list(PARTS))


def measure(parts: Sequence[str], out: Path) -> None:
    """Measure some parts, each written when it is done."""
    for part in parts:
        print(f"{part} ...", end=" ", file=sys.stderr, flush=True)
        start = time.perf_counter()
        found: Measured = import_module(part).measure(False)
        took = round(time.perf_counter() - start)
        keep(out, part, Measured(found.figures, machine(), found.notes, {**found.details, "seconds": took}))
        print(f"{took} s", file=sys.stderr, flush=True)


def figures(cpu: Path, gpu: Path) -> dict[str, Measured | None]:
    """Every part as it was measured last; None for one that was not."""
    found = kept(cpu)
    return {part: together(kept(gpu)) if part == "gpu" else found.get(part) for part in PARTS}


def smoke(parts: Sequence[str]) -> None:
    """Run everything once on small inputs, what needs a GPU on the CPU; both sides of the pairs are compared."""
    found: dict[str, Measured | None] = {part: import_module(part).measure(True) for part in parts}
    gpu = import_module("gpu")
    with redirect_stdout(io.StringIO()):
        found["gpu"] = together(gpu.measure("cpu", True, list(gpu.BLOCKS)))
    failed = [note for m in found.values() if m for note in m.notes if " failed: " in note]
    if failed:
        sys.exit("\n".join(failed))
    n = sum(len(rows(part, m)) for part, m in found.items())
    print(f"{n} rows of {len(found)} parts were measured on small inputs")


def page(found: Mapping[str, Measured | None]) -> str:
    """The page in Markdown."""
    said = ", ".join(f"{k} {verdict}" for verdict, k in counts(found).items())
    parts = [
        "# Benchmarks",
        f"Written by `make bench`, not by hand. Every goal has a row, whether it was measured or not: **{said}**. What "
        "is compared was timed in turn in one process; figures are medians. [scaling.md](../scaling.md) says how costs "
        "grow, and what larger federations than these would cost.",
    ]
    for part, measured in found.items():
        parts.append(f"## {PARTS[part]}")
        if measured and measured.on:
            parts.append(f"On {told(measured.on)}")
        parts.append(markdown([HEADS, *rows(part, measured)]))
        parts += measured.notes if measured else []
    return "\n\n".join(parts) + "\n"


def show(found: Mapping[str, Measured | None], parts: Sequence[str]) -> None:
    """Print the tables of these parts."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    colours = {"met": "green", "missed": "red", "not run": "yellow"}
    for part in parts:
        table = Table(title=PARTS[part], title_justify="left", box=None, padding=(0, 2, 0, 0))
        for head in HEADS:
            table.add_column(head)
        for row in rows(part, found[part]):
            table.add_row(*row, style=colours.get(row[-1], ""))
        console.print(table)
    console.print(", ".join(f"{k} {verdict}" for verdict, k in counts(found).items()))


if __name__ == "__main__":
    main()
