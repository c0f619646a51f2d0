"""Hostile files: whatever is in them, one line or a valid result, in bounded time and memory, and no code is run.

Hypothesis makes experiments of every kind of nonsense and damages good files; atheris looks for inputs that reach new
code in the parsers.
"""

import io
import json
import os
import random
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from fedsieve.config.experiment import Experiment
from fedsieve.config.yaml_files import read_yaml
from fedsieve.data.arrays import NPZ
from fedsieve.report.load import load
from fedsieve.runs.grid import expand
from torture.common import SETTINGS, Context, Row, Tally, command, expect, played, told
from torture.targets import TARGETS, bombs, seeds

PLANTED = "Path('MARKER').touch()"
NAMES = (
    "planted:Evil",
    "planted:evil.inner",
    "subprocess:Popen",
    "os:system",
    "builtins:eval",
    "torch:load",
    "yaml:load",
)
# Pieces that break parsers, put into good files.
SPICE = [
    b"&a ", b"*a", b"<<: *a", b"!!python/object/apply:os.system ['touch MARKER']", b"9" * 5000, b"1e999", b"-1e-999",
    b"{" * 200, b"[" * 200, b"\0", b"\xff\xfe", b'"', b"\n", b"\r", b"\t", b",", b";", b"nan", b"NA", b"<NA>", b"-",
    b"1_1", b"5,400", b"--- ", b"planted:Evil", b"[/]", b"\x1b[2J", b"=cmd()", b"1" * 400, b"\xc3\x28", b"1e39",
]  # fmt: skip


def rows(context: Context) -> Iterator[Row]:
    """Run the chapter."""
    os.chdir(context.folder)
    os.environ["FEDSIEVE_MAX_GIB"] = "0.25"
    Path("planted.py").write_text(
        f"from pathlib import Path\n{PLANTED}\nclass Evil:\n    def __init__(self, *a): {PLANTED}\n"
    )
    Path("table.csv").write_text("a,b,y\n" + "".join(f"{k},{k % 4},{k % 2}\n" for k in range(20)))
    os.mkfifo("pipe.csv")
    yield _experiments(context)
    for name in TARGETS:
        yield _damaged(context, name)
    tally = Tally("files", "files that unpack to far more, 256 MiB allowed", 60)
    before = _peak()
    for name, action in bombs(context.folder, 2**29 if not context.smoke else 2**28 + 2**24).items():
        tally.case(name, partial(_refused, action))
    tally.case("memory", lambda: expect(_peak() - before < 2**30, f"it took {(_peak() - before) / 2**30:.1f} GiB"))
    yield tally.row()
    yield _strangers(context)
    if not context.smoke:
        yield from _fuzzed(context)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _refused(action: Callable[[], object]) -> None:
    action()
    expect(False, "it was read")


def _examples(context: Context, full: int) -> Callable[[Any], Any]:
    """Settings of hypothesis: so many examples, decided by the seed; losses are counted, so nothing is shrunk."""
    chosen = settings(
        max_examples=context.some(full, 25), database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    return lambda function: seed(context.seed)(chosen(function))


# --- Experiments --------------------------------------------------------------------------------------------


def _values() -> st.SearchStrategy[Any]:
    numbers = [-1, 0, 1, 3, 10**5, 10**6, 10**9, 2**63, 10**30, 0.0, -0.5, 1e-320, 1e308, float("nan"), float("inf")]
    files = ["table.csv", "pipe.csv", "/dev/zero", "/dev/stdin", ".", "no.csv", "a\0b", "~nobody/x.csv", "x" * 5000]
    words = [
        *NAMES,
        *files,
        "",
        "median",
        "digits",
        "sieve,trimmed-mean",
        "mean," * 60 + "mean",
        "Adam",
        "1e3",
        "[/]",
        "\x1b[2J",
    ]
    scalars = st.none() | st.booleans() | st.sampled_from(numbers) | st.sampled_from(words) | st.text(max_size=8)
    keys = st.sampled_from(["name", "file", "label", "client", "trim", "factor", "attacks", "hidden", "size", "lr"])
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys | st.text(max_size=4), inner, max_size=3),
        max_leaves=6,
    )


def _experiments(context: Context) -> Row:
    tally, keys = (
        Tally("files", "experiments of any settings, read and expanded", 20),
        [*Experiment.model_fields, "x", ""],
    )
    good = Experiment.of(SETTINGS).model_dump(mode="json")

    @_examples(context, 1500)
    @given(
        st.dictionaries(st.sampled_from(keys), _values(), max_size=4),
        st.sampled_from(["", "whole", "recorded", "grid"]),
    )
    def tried(changed: dict[str, Any], kind: str) -> None:
        whole = {**good, **changed} if kind in ("whole", "recorded") else changed
        Path("experiment.yaml").write_text(json.dumps(whole), errors="replace")  # YAML, too
        reader: Callable[[Path], object] = Experiment.recorded if kind == "recorded" else Experiment.read
        if kind == "grid":
            reader = lambda path: expand(_safe(read_yaml(path)))  # noqa: E731
        tally.case(json.dumps(whole)[:300], partial(reader, Path("experiment.yaml")))

    tried()
    tally.case("nothing was imported", _nothing_imported)
    return tally.row()


def _safe(grid: dict[str, Any]) -> dict[str, Any]:
    """A grid without names of classes: ``expand`` takes what a program gives it, and the command refuses those."""
    return json.loads(re.sub(r"[A-Za-z.]+:[A-Za-z.]+", "median", json.dumps(grid)))  # type: ignore[no-any-return]


def _nothing_imported() -> None:
    expect(not Path("MARKER").exists(), "code that a file names was run")
    expect("planted" not in sys.modules, "a module that a file names was imported")


# --- Damaged files --------------------------------------------------------------------------------------------


@st.composite
def _mutated(draw: Any, good: list[bytes]) -> bytes:
    content = bytearray(draw(st.sampled_from(good)))
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(content)))
        content[at : at + draw(st.integers(0, 12))] = draw(st.binary(max_size=12) | st.sampled_from(SPICE))
    return bytes(content)


def _damaged(context: Context, name: str) -> Row:
    tally = Tally("files", f"{name}: good files with random changes", 20)

    @_examples(context, 1000)
    @given(_mutated(seeds(name)) | st.binary(max_size=200))
    def tried(content: bytes) -> None:
        tally.case(repr(content)[:300], partial(TARGETS[name], content))

    tried()
    tally.case("nothing was imported", _nothing_imported)
    return tally.row()


# --- Commands with files of strangers -----------------------------------------------------------------------------


class _Pickled:
    def __reduce__(self) -> Any:
        return os.system, ("touch MARKER",)


def _strangers(context: Context) -> Row:
    """Experiment files and run directories that name code: refused, or shown, and never loaded."""
    tally = Tally("files", "commands with files that name code")
    played({**SETTINGS, "rounds": 2}, Path("runs/good"))

    def shown(name: str, kind: str) -> None:
        folder = Path("runs", re.sub(r"\W", "-", f"{kind}-{name}"))
        folder.mkdir()
        for file in ("experiment.yaml", "records.jsonl"):
            (folder / file).write_text(Path("runs/good", file).read_text())
        text = (folder / "experiment.yaml").read_text()
        changed = re.sub(rf"(?m)^{kind}:\n  name: .*$", f"{kind}:\n  name: {name}", text)
        expect(changed != text, f"no {kind} in it")
        (folder / "experiment.yaml").write_text(changed)
        load([folder])[0].digest  # noqa: B018 (reads the records)
        told(command("watch", "--once", folder))
        told(command("run", folder / "experiment.yaml", "--out", folder, "--resume", "--quiet"))
        expect(False, "it was run")

    kinds = ("defense", "attack", "model", "dataset", "partition")
    for name in NAMES[: context.some(len(NAMES), 1)]:
        for kind in kinds[: context.some(5, 2)]:
            tally.case(f"{kind}: {name}", partial(shown, name, kind))
    tally.case("a report of them all", lambda: told(command("report", "runs", "--quiet")))
    file = io.BytesIO()
    np.savez(file, x=np.array([[_Pickled()]] * 4, dtype=object), y=np.arange(4) % 2)
    Path("pickled.npz").write_bytes(file.getvalue())
    tally.case("arrays with a pickle", partial(_refused, lambda: NPZ(file="pickled.npz").load(Path(), _generator())))
    Path("rich.py").write_text(f"from pathlib import Path\n{PLANTED}\n")
    tally.case("a module of a library's name beside it", _beside)
    Path("rich.py").unlink()
    tally.case("nothing was imported", _nothing_imported)
    return tally.row()


def _generator() -> Any:
    import torch

    return torch.Generator().manual_seed(0)


def _beside() -> None:
    call = [sys.executable, "-m", "fedsieve", "list", "defenses"]
    ended = subprocess.run(call, capture_output=True, text=True, timeout=60, check=False)
    expect(ended.returncode == 0 and "krum" in ended.stdout, ended.stderr[-300:])


# --- Coverage-guided fuzzing -------------------------------------------------------------------------------------


def _fuzzed(context: Context) -> Iterator[Row]:
    """Every parser for a minute, two at a time."""
    if find_spec("atheris") is None:
        yield Row("files", "fuzzing with atheris: left out, it is not installed", 0, 0, 0, 0, "")
        return
    root, running = Path(__file__).parents[1], {}
    for name in TARGETS:
        folder = context.folder / f"fuzz-{name}"
        folder.mkdir()
        options = ["-max_total_time=60", f"-seed={random.Random(context.seed).randrange(1, 2**31)}", "-timeout=20"]
        options += ["-rss_limit_mb=4096", "-max_len=4096", f"-artifact_prefix={context.folder}/"]
        call = [
            sys.executable,
            "-m",
            "torture.fuzz",
            name,
            str(context.folder / f"{name}.counts"),
            str(folder),
            *options,
        ]
        log = (context.folder / f"{name}.log").open("w")
        running[name] = subprocess.Popen(call, cwd=root, stdout=log, stderr=subprocess.STDOUT)
        if len(running) == 2 or name == list(TARGETS)[-1]:
            for one, process in running.items():
                yield _counted(context.folder, one, process)
            running = {}


def _counted(folder: Path, name: str, process: "subprocess.Popen[bytes]") -> Row:
    try:
        code = process.wait(300)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    text = (folder / f"{name}.log").read_text(errors="replace")
    counts = folder / f"{name}.counts"
    tried, told = np.frombuffer(counts.read_bytes(), dtype="<u8").tolist() if counts.exists() else (1, 0)
    lost, worst = int(code != 0), f"{re.findall(r'cov: [0-9]+', text)[-1:] or ['']}"
    if code:
        print(f"LOST files, fuzzing {name}: {text[-3000:]}", file=sys.stderr, flush=True)
        worst = f"ended with code {code}: {' '.join(text.split())[-200:]}"
    return Row("files", f"{name}: fuzzed for a minute", tried, lost, tried - told - lost, told, worst.strip("[]'"))
