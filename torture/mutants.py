"""Mutation tests of the core: plant one small defect at a time, run the tests, count the defects that no test notices.

    .venv/bin/python torture/mutants.py [--file F] [--sample N] [--jobs 2]

A file's mutants are all the defects that the operators below make of it: a comparison at its boundary, + for -, `and`
for `or`, min for max, a dropped ~ or .clamp(...), a constant moved by one, a deleted statement, and so on. Error
messages, docstrings, annotations, decorators and traits are left alone. A sample of each file is planted: those with
the smallest hash of what they change, so that the sample stays the same while other lines of the file change.

Each mutant is tested in a process of its own, forked where the tests of a file are collected: functions get the code
of the planted source there. What runs at import is planted before the package is imported, as if it were in the file.
Type and shape checks are on as in all tests. The tests of SUBJECTS run in stages until one fails. A mutant is noticed
by a failed test, by an error at import (without a mutant the same tests pass, which is tried first), by a crash, or by
time. Survivors are listed, with the reasons that mutants/survivors.toml gives.
"""

import argparse
import ast
import ctypes
import gc
import hashlib
import importlib.machinery
import json
import multiprocessing
import os
import pickle
import re
import resource
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "fedsieve"
SURVIVORS = Path(__file__).with_suffix("") / "survivors.toml"
PAGE = ROOT / "docs" / "results" / "mutants.md"
SAMPLE, LEAST_SHARE = 20, 0.9
_HANG = 3600  # seconds after which anything is taken to hang

# --- Which tests are those of a file ------------------------------------------------------------------------

_SCREEN = ("federation/test_server.py", "federation/test_screening.py", "core/test_contract.py")
_ROUND = ("federation/test_simulated_defense.py", "federation/test_simulation.py")
_SKYMASK = "defenses/detectors/test_skymask"
_SIEVE = "defenses/detectors/test_sieve"
_RULES = tuple(
    f"defenses/aggregators/test_{rule}.py" for rule in ("krum", "bulyan", "trimmed_mean", "flame", "deepsight")
)
_DEFAULTS = "defenses/test_defaults.py"


def _rule(file: str, *names: str) -> dict[str, tuple[tuple[str, ...], ...]]:
    """The stages of an aggregator or detector: its own tests, then what every defense must do."""
    room, _, stem = file.removesuffix(".py").partition("/")
    every = ("defenses/test_conformance.py", _DEFAULTS, "-k", " or ".join(f"{name}]" for name in names))
    return {file: ((f"defenses/{room}/test_{stem}.py",), every)}


# The stages of each file: arguments of pytest, paths below tests/. The doctests of the file are in the first.
SUBJECTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "federation/server.py": (_SCREEN[:2], ("defenses/test_running_statistics.py", *_ROUND)),
    "federation/screening.py": (_SCREEN[:2], _ROUND),
    "federation/statistics.py": (("federation/test_statistics.py",), ("defenses/test_running_statistics.py",)),
    "core/contract.py": (("core/test_contract.py",), ("defenses/aggregators/test_chain.py", *_SCREEN[:2])),
    "core/linalg.py": (("core/test_linalg.py",), _RULES, ("defenses/test_scales.py", "defenses/test_conformance.py")),
    "core/angles.py": (("core/test_angles.py",), ("defenses/aggregators/test_flame.py",)),
    "core/clipping.py": (("core/test_clipping.py",), ("defenses/preaggregators/test_norm_clipping.py", *_RULES)),
    "core/ranks.py": (("core/test_ranks.py",), _RULES),
    "core/clustering.py": (
        ("core/test_clustering.py", f"{_SKYMASK}_clusters.py"),
        ("defenses/aggregators/test_flame.py", "defenses/aggregators/test_deepsight.py"),
    ),
    "aggregators/chain.py": (("defenses/aggregators/test_chain.py",), _SCREEN[:2]),
    "aggregators/weighting.py": (("defenses/aggregators/test_weighting.py",),),
    "detectors/skymask/__init__.py": ((f"{_SKYMASK}.py", f"{_SKYMASK}_parameters.py", _DEFAULTS),),
    "detectors/skymask/clusters.py": ((f"{_SKYMASK}_clusters.py",), (f"{_SKYMASK}.py",)),
    "detectors/skymask/masks.py": ((f"{_SKYMASK}_masks.py",), (f"{_SKYMASK}.py", f"{_SKYMASK}_parameters.py")),
    "detectors/skymask/recipe.py": ((f"{_SKYMASK}_parameters.py", f"{_SKYMASK}.py"), (f"{_SKYMASK}_network.py",)),
    "detectors/skymask/without_root.py": ((f"{_SKYMASK}_parameters.py", f"{_SKYMASK}.py", _DEFAULTS),),
    "detectors/sieve/__init__.py": ((f"{_SIEVE}.py", "defenses/detectors/test_parameters.py", _DEFAULTS),),
    **{
        f"detectors/sieve/{part}.py": ((f"{_SIEVE}_{part}.py",), (f"{_SIEVE}.py",))
        for part in (
            "cosines",
            "evidence",
            "groups",
            "guidance",
            "history",
            "influence",
            "margin",
            "measurements",
            "reference",
            "usual",
        )
    },
    "detectors/fldetector.py": (
        (*(f"defenses/detectors/test_fldetector{part}.py" for part in ("_parts", "", "_state")), _DEFAULTS),
    ),
    **_rule("detectors/tolpegin.py", "tolpegin"),
    **_rule("aggregators/bulyan.py", "bulyan"),
    **_rule("aggregators/deepsight.py", "deepsight"),
    **_rule("aggregators/flame.py", "flame"),
    **_rule("aggregators/fltrust.py", "fltrust"),
    **_rule("aggregators/geometric_median.py", "geometric-median"),
    **_rule("aggregators/invariant.py", "invariant"),
    **_rule("aggregators/krum.py", "krum"),
    **_rule("aggregators/mean.py", "mean", "fedavg"),
    **_rule("aggregators/median.py", "median"),
    **_rule("aggregators/root_only.py", "root-only"),
    **_rule("aggregators/sign_majority.py", "sign-majority"),
    **_rule("aggregators/sparsefed.py", "sparsefed"),
    **_rule("aggregators/trimmed_mean.py", "trimmed-mean"),
    **_rule("aggregators/weak_dp.py", "weak-dp"),
}

# --- Planting -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutant:
    """One defect in one file.

    Attributes:
        file: Path below the package.
        line: Of the change, from 1.
        function: Qualified name of the function or class around it, or "".
        before: The line as it is, stripped.
        after: The line with the defect.
        again: How many mutants with the same four values come before this one.
        start: First byte of the file that is replaced.
        stop: One past the last.
        text: What stands there instead.
        inside: Whether that is inside a function, and so not run at import.
    """

    file: str
    line: int
    function: str
    before: str
    after: str
    again: int
    start: int
    stop: int
    text: bytes
    inside: bool

    @property
    def key(self) -> tuple[str, ...]:
        """What identifies it, whatever happens to other lines of the file."""
        return (self.file, self.function, self.before, self.after, str(self.again))

    @property
    def rank(self) -> str:
        """The sample is taken in this order."""
        return hashlib.sha256("\0".join(self.key).encode()).hexdigest()

    def planted(self, source: bytes) -> bytes:
        """The source with the defect."""
        return source[: self.start] + self.text + source[self.stop :]


_COMPARISONS: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: (r"is\s+not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: (r"not\s+in", "in"),
}
_OPERATIONS: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"),
    ast.Pow: ("**", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
}
_SWAPS = (
    *(("min", "max"), ("argmin", "argmax"), ("minimum", "maximum"), ("any", "all"), ("ceil", "floor")),
    *(("ones_like", "zeros_like"), ("new_ones", "new_zeros"), ("ones", "zeros"), ("sum", "mean")),
)
_INSTEAD = {name: other for pair in _SWAPS for name, other in (pair, pair[::-1])}
# Methods that change values, order or memory, so that a call can be left out; .cpu() and .to(device) do nothing on a
# machine without a GPU.
_REMOVABLE = {
    *("abs", "abs_", "clamp", "clamp_", "sqrt", "square", "log", "exp", "sign", "sigmoid", "rsqrt", "reciprocal"),
    *("double", "float", "detach", "clone", "nan_to_num", "nan_to_num_", "fill_diagonal_", "round", "cumsum", "to"),
}
_NAMESPACES = {"torch", "np", "math"}


class _Planter(ast.NodeVisitor):
    """Collects the replacements of one file: start, stop, text, function, whether it is inside a function."""

    def __init__(self, source: bytes) -> None:
        self.source = source
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.path: list[str] = []
        self.depth = 0  # of functions
        self.found: list[tuple[int, int, bytes, str, bool]] = []

    def start(self, node: Any) -> int:
        return int(self.starts[node.lineno - 1] + node.col_offset)

    def stop(self, node: Any) -> int:
        return int(self.starts[node.end_lineno - 1] + node.end_col_offset)

    def text(self, node: ast.AST) -> str:
        return self.source[self.start(node) : self.stop(node)].decode()

    def add(self, start: int, stop: int, text: str) -> None:
        self.found.append((start, stop, text.encode(), ".".join(self.path), self.depth > 0))

    def between(self, left: ast.AST, right: ast.AST, wanted: str, text: str) -> None:
        """Replace the operator that stands between two nodes, beside brackets and white space."""
        start = self.stop(left)
        match = re.search(wanted.encode(), self.source[start : self.start(right)])
        assert match, f"no {wanted} in line {getattr(left, 'lineno', 0)}"
        self.add(start + match.start(), start + match.end(), text)

    # What is left alone

    def visit_Module(self, node: ast.Module) -> None:
        self.body(node.body)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.path.append(node.name)
        self.body(node.body)
        self.path.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.path.append(node.name)
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                self.visit(default)
        self.depth += 1
        self.body(node.body)
        self.depth -= 1
        self.path.pop()

    def body(self, statements: Sequence[ast.stmt]) -> None:
        for statement in statements:
            self.visit(statement)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.visit(node.body)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass

    def visit_Import(self, node: ast.Import) -> None:
        pass

    visit_ImportFrom = visit_Import  # type: ignore[assignment]  # noqa: N815

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None and getattr(node.target, "id", "") != "traits":
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        target = node.targets[0]
        if getattr(target, "id", "") == "__all__" or (not self.path and self._names_types(node.value)):
            return
        if isinstance(target, ast.Subscript | ast.Attribute):
            self.add(self.start(node), self.stop(node), "pass")
        self.generic_visit(node)

    def _names_types(self, value: ast.expr) -> bool:
        """Whether a module names a type here."""
        if isinstance(value, ast.BinOp):
            return isinstance(value.op, ast.BitOr)
        return isinstance(value, ast.Subscript) and self.text(value.value) in ("Literal", "Callable")

    # Statements

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):
            self.add(self.start(node), self.stop(node), "pass")
            self.visit(node.value)

    def visit_Raise(self, node: ast.Raise) -> None:
        self.add(self.start(node), self.stop(node), "pass")

    def visit_Continue(self, node: ast.Continue | ast.Break) -> None:
        self.add(self.start(node), self.stop(node), "pass")

    visit_Break = visit_Continue  # noqa: N815

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None and self.text(node.value) != "None":
            self.add(self.start(node.value), self.stop(node.value), "None")
            self.visit(node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.add(self.start(node), self.stop(node), "pass")
        if type(node.op) in _OPERATIONS:
            right, wrong = _OPERATIONS[type(node.op)]
            self.between(node.target, node.value, re.escape(right) + "=", wrong + "=")
        self.generic_visit(node)

    # Expressions

    def visit_If(self, node: ast.If | ast.IfExp) -> None:
        if not isinstance(node.test, ast.UnaryOp | ast.Compare):  # those have mutants of their own
            self.add(self.start(node.test), self.stop(node.test), f"not ({self.text(node.test)})")
        self.generic_visit(node)

    visit_IfExp = visit_If  # noqa: N815

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for condition in node.ifs:
            self.add(self.start(condition), self.stop(condition), "True")
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        for left, op, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
            self.between(left, right, *_COMPARISONS[type(op)])
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        texts = any(isinstance(n, ast.JoinedStr) or _is_text(n) for n in (node.left, node.right))
        if type(node.op) in _OPERATIONS and not texts:
            right, wrong = _OPERATIONS[type(node.op)]
            self.between(node.left, node.right, re.escape(right), wrong)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        right, wrong = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for one, other in zip(node.values, node.values[1:], strict=False):
            self.between(one, other, rf"\b{right}\b", wrong)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        token = {ast.Not: "not", ast.Invert: "~", ast.USub: "-"}.get(type(node.op))
        if token:
            self.add(self.start(node), self.start(node) + len(token), "")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self.add(self.start(node), self.stop(node), str(not value))
        elif isinstance(value, int):
            self.add(self.start(node), self.stop(node), str(value + 1))
        elif isinstance(value, float):
            self.add(self.start(node), self.stop(node), repr(value + 1 if abs(value) < 1 else value * 2))

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if self.text(node.value) in ("Literal", "Callable", "cast"):
            return
        self.generic_visit(node)

    def visit_Slice(self, node: ast.Slice) -> None:
        if (node.lower is None) != (node.upper is None) and node.step is None:
            text = f":{self.text(node.lower)}" if node.lower else f"{self.text(node.upper)}:"  # type: ignore[arg-type]
            self.add(self.start(node), self.stop(node), text)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        function = node.func
        name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
        if name in _INSTEAD:
            self.add(self.stop(function) - len(name), self.stop(function), _INSTEAD[name])
        if isinstance(function, ast.Attribute) and name in _REMOVABLE:
            if self.text(function.value) not in _NAMESPACES:
                if "device" not in self.text(node):
                    dot = self.source.rindex(b".", 0, self.stop(function) - len(name))
                    self.add(dot, self.stop(node), "")
            elif node.args:
                self.add(self.start(node), self.stop(node), self.text(node.args[0]))
        self.visit(function)
        for argument in node.args:
            self.visit(argument)
        for keyword in node.keywords:
            self._keyword(keyword, name)

    def _keyword(self, node: ast.keyword, called: str) -> None:
        if node.arg in ("device", "strict"):  # a machine without a GPU has one device; lengths that differ are a defect
            return
        if node.arg in ("dim", "axis") and isinstance(node.value, ast.Constant | ast.UnaryOp):
            self.add(self.start(node.value), self.stop(node.value), "1" if self.text(node.value) == "0" else "0")
            return
        if node.arg in ("min", "max") and called.startswith("clamp"):
            self.add(self.start(node), self.start(node) + 3, _INSTEAD[node.arg])
        self.visit(node.value)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def mutants(file: str, source: bytes) -> list[Mutant]:
    r"""All mutants of a file, in the order of their places.

    >>> [m.after for m in mutants("f.py", b"def f(x):\n    return abs(x) > 3\n")]
    ['return None', 'return abs(x) >= 3', 'return abs(x) > 4']
    """
    planter = _Planter(source)
    planter.visit(ast.parse(source))
    found: list[Mutant] = []
    seen: Counter[tuple[str, ...]] = Counter()
    for start, stop, text, function, inside in sorted(planter.found):
        line = source.count(b"\n", 0, start)
        begin, end = planter.starts[line], planter.starts[line + 1]
        while end < stop:  # what is replaced goes over several lines
            end = planter.starts[planter.starts.index(end) + 1]
        before = _one_line(source[begin:end])
        after = _one_line(source[begin:start] + text + source[stop:end])
        again = seen[file, function, before, after]
        seen[file, function, before, after] += 1
        mutant = Mutant(file, line + 1, function, before, after, again, start, stop, text, inside)
        if before != after:
            found.append(mutant)
    return found


def _one_line(text: bytes) -> str:
    return " ".join(text.decode().split())


def sample(found: Iterable[Mutant], size: int, seed: int = 0) -> list[Mutant]:
    """The ``size`` mutants of lowest rank, in the order of their places; another ``seed`` ranks them otherwise."""

    def rank(mutant: Mutant) -> str:
        return hashlib.sha256(f"{seed}{mutant.rank}".encode()).hexdigest() if seed else mutant.rank

    chosen = sorted(found, key=rank)[:size]
    return sorted(chosen, key=lambda mutant: (mutant.start, mutant.stop, mutant.text))


# --- Running tests ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What became of a mutant.

    Attributes:
        mutant: The defect.
        how: ``test``, ``import``, ``crash`` or ``time``; "" for a survivor.
        by: The test that failed.
        seconds: Processor time of all stages.
    """

    mutant: Mutant
    how: str = ""
    by: str = ""
    seconds: float = 0


class _Stage:
    """Plugin of pytest: forks once the tests are collected, for each mutant in turn; only the children run tests.

    Attributes:
        results: One for each mutant, in the process that does not run tests.
        told: How many tests ran and which failed first, in a process that runs them.
    """

    def __init__(self, path: Path, attempts: Sequence[tuple[Mutant, bytes]], folder: Path, limit: int) -> None:
        self.path, self.attempts, self.folder, self.limit = path, attempts, folder, limit
        self.results: list[Result] = []
        self.told: dict[str, Any] | None = None

    def pytest_runtestloop(self, session: Any) -> bool | None:
        if self.told is not None or session.testsfailed:
            return None
        for count, (mutant, source) in enumerate(self.attempts):
            folder = self.folder / str(count)
            folder.mkdir()
            pid = os.fork()
            if not pid:
                self.told = {"failed": "", "ran": 0}
                self.folder = folder
                _settle(folder, self.limit)
                _exchange(self.path, source)
                return None  # pytest goes on and runs the tests
            status, seconds = _wait(pid)
            self.results.append(Result(mutant, *_outcome(status, folder), seconds))
            if not count:
                self.limit = _limit(seconds)
        return True

    def pytest_runtest_logreport(self, report: Any) -> None:
        if self.told is not None:
            self.told["ran"] += report.when == "call"
            if report.failed:
                self.told["failed"] = self.told["failed"] or report.nodeid

    def pytest_sessionfinish(self) -> None:
        if self.told is not None:
            (self.folder / "told").write_text(json.dumps(self.told), encoding="utf-8")


def _prepare() -> None:
    """Import what all children need, and nothing of the package."""
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", PYTHONPATH=str(PACKAGE.parent))
    os.environ.pop("FEDSIEVE_DATA", None)
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT), str(PACKAGE.parent)]  # as ``python -m pytest`` has it
    import _hypothesis_pytestplugin  # type: ignore[import-untyped]  # noqa: F401
    import hypothesis.strategies
    import pydantic  # noqa: F401
    import safetensors.torch  # noqa: F401
    import sklearn.cluster
    import sklearn.mixture  # noqa: F401
    import torch
    import torch._dynamo  # optimizers import it when they are first used

    torch.set_num_threads(1)
    hypothesis.settings.register_profile("mutants", derandomize=True, deadline=None, database=None)
    hypothesis.settings.load_profile("mutants")
    assert "fedsieve" not in sys.modules


def _limit(seconds: float) -> int:
    """Seconds of processor time after which tests hang that take so many without a mutant."""
    return 20 + ceil(4 * seconds)


def _settle(folder: Path, limit: int) -> None:
    """Make this process write to ``folder``, and end with the process that forked it or after ``limit`` seconds."""
    os.setsid()
    _end_with_parent()
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["PYTEST_DEBUG_TEMPROOT"] = str(folder)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 34, 1 << 34))
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))  # not wall time: the machine may have other things to do


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _exchange(path: Path, source: bytes) -> None:
    """Give the functions of the module at ``path``, wherever they are held by now, the code of ``source``."""
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    module = importlib.import_module(name)
    codes: dict[str, list[CodeType]] = {}

    def collect(code: CodeType) -> None:
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                codes.setdefault(constant.co_qualname, []).append(constant)
                collect(constant)

    collect(module.__loader__.source_to_code(source, str(path)))  # type: ignore[union-attr]
    for function in gc.get_objects():
        if type(function) is FunctionType and function.__code__.co_filename == str(path):
            (code,) = codes[function.__code__.co_qualname]
            function.__code__ = code


def _instead(path: Path, source: bytes) -> None:
    """Let imports of ``path`` find ``source`` there, and no compiled code."""
    loader: Any = importlib.machinery.SourceFileLoader
    get_data, path_stats, name = loader.get_data, loader.path_stats, str(path)

    def stats(self: Any, at: str) -> Any:
        if at == name:
            raise OSError("planted")  # so that compiled code is neither read nor written
        return path_stats(self, at)

    loader.get_data = lambda self, at: source if at == name else get_data(self, at)
    loader.path_stats = stats


def _wait(pid: int) -> tuple[int, float]:
    """Exit status of a child, or minus its signal, and its processor time in seconds."""
    end = time.monotonic() + _HANG
    while time.monotonic() < end:
        found, status, usage = os.wait4(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
        time.sleep(0.005)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -signal.SIGXCPU, _HANG


def _outcome(status: int, folder: Path, early: bool = False) -> tuple[str, str]:
    """How a mutant was noticed, and by which test; a mutant that was planted ``early`` may be noticed at import."""
    if status == -signal.SIGXCPU:
        return "time", ""
    if status < 0:
        return "crash", f"signal {-status}"
    told = folder / "told"
    result: Any = json.loads(told.read_text(encoding="utf-8")) if told.exists() else {"failed": "", "ran": 0}
    if status == 0 and result["ran"]:
        return "", ""
    if status == 1 and result["failed"]:
        return "test", result["failed"]
    if early and status in (1, 2, 4) and not result["ran"]:  # a test file or a conftest cannot be imported
        return "import", ""
    raise RuntimeError(f"pytest ended with {status} after {result['ran']} tests\n{_log(folder)}")


def _arguments(file: str, stage: int) -> list[str]:
    """What pytest is called with."""
    names = [f"tests/{name}" if name.endswith(".py") else name for name in SUBJECTS[file][stage]]
    doctests = [f"src/fedsieve/{file}"] if stage == 0 else []
    # capture=sys: captured text is in the memory of a process, and not in a file that forked ones share
    plain = ("-x", "-q", "--capture=sys", "-p", "no:cacheprovider", "-p", "no:xdist")
    return [*names, *doctests, *plain, "-W", "ignore::pytest.PytestAssertRewriteWarning"]


def _forked(work: Callable[[], int], limit: int, folder: Path) -> tuple[int, float]:
    """Run ``work`` in a process of its own; see :func:`_wait`."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return _wait(pid)
    status = 70
    try:
        _settle(folder, limit)
        status = work()
    finally:
        sys.stdout.flush()
        os._exit(status)


def _planted_early(file: str, stage: int, mutant: Mutant, source: bytes, limit: int) -> Result:
    """Plant a mutant before anything of the package is imported, and run one stage."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        plugin = _Stage(PACKAGE / file, [], Path(name), limit)

        def work() -> int:
            import pytest

            plugin.told = {"failed": "", "ran": 0}
            _instead(PACKAGE / file, source)
            return int(pytest.main(_arguments(file, stage), plugins=[plugin]))

        status, seconds = _forked(work, limit, Path(name))
        return Result(mutant, *_outcome(status, Path(name), early=True), seconds)


def _planted_late(file: str, stage: int, attempts: Sequence[tuple[Mutant, bytes]]) -> list[Result]:
    """Collect the tests of one stage, then plant one mutant after the other and run them; the first must survive."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        plugin = _Stage(PACKAGE / file, attempts, Path(name), _HANG)

        def work() -> int:
            import pytest

            status = int(pytest.main(_arguments(file, stage), plugins=[plugin]))
            if plugin.told is None:
                (Path(name) / "results").write_bytes(pickle.dumps(plugin.results))
            return status

        status, _ = _forked(work, _HANG, Path(name))
        if status != 0:
            raise RuntimeError(f"{file}: the tests cannot be collected\n{_log(Path(name))}")
        results: list[Result] = pickle.loads((Path(name) / "results").read_bytes())  # noqa: S301, our own
        if results[0].how:
            raise RuntimeError(f"{file}: a test fails without a mutant: {results[0].by}\n{_log(Path(name) / '0')}")
        return results


def _log(folder: Path) -> str:
    return (folder / "log").read_text(encoding="utf-8", errors="replace")[-3000:]


def tested(given: tuple[str, bytes, Sequence[Mutant]]) -> list[Result]:
    """Test all mutants of one file, stage by stage."""
    file, source, chosen = given
    none = Mutant(file, 0, "", "", "", 0, 0, 0, b"", inside=True)  # the file as it is
    results = {m: Result(m) for m in chosen}
    for stage in range(len(SUBJECTS[file])):
        left = [m for m, result in results.items() if not result.how]
        late = [(m, m.planted(source)) for m in (none, *left) if m.inside]
        sound, *found = _planted_late(file, stage, late)
        limit = 20 + _limit(sound.seconds)  # these import the package as well
        found += [_planted_early(file, stage, m, m.planted(source), limit) for m in left if not m.inside]
        for result in found:
            results[result.mutant] = replace(result, seconds=result.seconds + results[result.mutant].seconds)
    return list(results.values())


# --- The page -----------------------------------------------------------------------------------------------


def reasons() -> dict[tuple[str, ...], str]:
    """Why each survivor that was looked at survives, by :attr:`Mutant.key`."""
    if not SURVIVORS.exists():
        return {}
    listed = tomllib.loads(SURVIVORS.read_text(encoding="utf-8"))["survivor"]
    return {
        (s["file"], s["function"], s["before"], s["after"], str(s.get("again", 0))): f"{s['kind']}: {s['why']}"
        for s in listed
    }


def page(done: Sequence[Result], places: dict[str, int], sampled: int) -> str:
    """The results as Markdown."""
    known = reasons()
    survivors = [r.mutant for r in done if not r.how]
    killed = len(done) - len(survivors)
    hows = Counter(r.how for r in done)
    lines = [
        "# Planted defects",
        "",
        f"`python torture/mutants.py --sample {sampled}`: small defects planted into the code that decides who is "
        "believed, one at a time, each followed by the tests of that file. "
        f"**{killed} of {len(done)} were noticed ({killed / len(done):.1%})**: {hows['test']} by a test, "
        f"{hows['import']} at import, {hows['time']} because the tests hung, {hows['crash']} by a crash. How they are "
        "made, and what counts, is said at the top of [the script](../../torture/mutants.py).",
        "",
        f"Up to {sampled} of each file's places are planted, always the same ones while their lines stay the same.",
        "",
        "| file | places | planted | noticed | survived |",
        "|---|---|---|---|---|",
    ]
    for file in SUBJECTS:
        of = [r for r in done if r.mutant.file == file]
        if of:
            left = sum(not r.how for r in of)
            lines.append(f"| {file} | {places[file]} | {len(of)} | {len(of) - left} | {left} |")
    lines += ["", "## Survivors", "", "| place | code | with the defect | why no test notices |", "|---|---|---|---|"]
    for m in survivors:
        why = known.get(m.key, "not looked at yet")
        lines.append(f"| {m.file}:{m.line} | {_code(m.before)} | {_code(m.after)} | {why} |")
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`"


def main(arguments: Sequence[str] | None = None) -> int:
    """Plant, test, and write the page if the sample is the usual one of all files; 1 if too many survive."""
    parser = argparse.ArgumentParser(description="Plant small defects and count those that the tests notice.")
    parser.add_argument("--file", action="append", help="only files whose path contains this; may be repeated")
    parser.add_argument("--only", default="", help="only mutants whose changed line contains this, all of them")
    parser.add_argument("--sample", type=int, default=SAMPLE, help=f"mutants per file, {SAMPLE} by default; 0 for all")
    parser.add_argument("--seed", type=int, default=0, help="another sample; 0 by default")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once, 2 by default")
    parser.add_argument("--list", action="store_true", help="print the sample and stop")
    parser.add_argument("--verbose", action="store_true", help="print every mutant and which test noticed it")
    given = parser.parse_args(arguments)
    files = [f for f in SUBJECTS if not given.file or any(part in f for part in given.file)]
    sources = {file: (PACKAGE / file).read_bytes() for file in files}
    every = {file: mutants(file, source) for file, source in sources.items()}
    size = given.sample if given.sample and not given.only else sys.maxsize
    chosen = {f: [m for m in sample(every[f], size, given.seed) if given.only in m.after] for f in files}
    count = sum(map(len, chosen.values()))
    print(f"{count} of {sum(map(len, every.values()))} mutants of {len(files)} files", flush=True)
    if given.list:
        for m in (m for found in chosen.values() for m in found):
            print(f"{m.file}:{m.line}: {m.before}\n    {m.after}")
        return 0
    _prepare()
    began, known, done = time.monotonic(), reasons(), list[Result]()
    work = [(file, sources[file], chosen[file]) for file in files if chosen[file]]
    with multiprocessing.get_context("fork").Pool(given.jobs, _end_with_parent, maxtasksperchild=1) as pool:
        for results in pool.imap_unordered(tested, work):
            done += results
            for r in (r for r in results if given.verbose or not r.how):
                said = f"{r.how or 'SURVIVED'} {r.by or known.get(r.mutant.key, '')}"
                print(f"{r.seconds:4.1f} s {r.mutant.file}:{r.mutant.line}: {r.mutant.before}")
                print(f"           {r.mutant.after}\n           {said}")
            killed, of = sum(bool(r.how) for r in done), len(done)
            print(
                f"{killed} of {of} noticed ({killed / of:.1%}), {(time.monotonic() - began) / 60:.1f} min", flush=True
            )
    order = {m.key: k for k, m in enumerate(m for found in chosen.values() for m in found)}
    done.sort(key=lambda r: order[r.mutant.key])
    if not (given.file or given.only or given.seed):
        PAGE.write_text(page(done, {f: len(found) for f, found in every.items()}, given.sample), encoding="utf-8")
    return int(killed < LEAST_SHARE * len(done))


if __name__ == "__main__":
    sys.exit(main())
