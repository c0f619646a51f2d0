"""Writes docs/edges.md: what every rule does with awkward input, tried out.

Not a test; test_edges.py holds the page to the code. `--print` prints the page instead.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fedsieve
from fedsieve import Layout
from fedsieve.aggregators.bulyan import bulyan
from fedsieve.aggregators.deepsight import deepsight
from fedsieve.aggregators.flame import flame
from fedsieve.aggregators.fltrust import fltrust
from fedsieve.aggregators.geometric_median import geometric_median
from fedsieve.aggregators.invariant import invariant
from fedsieve.aggregators.krum import krum, multi_krum
from fedsieve.aggregators.mean import mean
from fedsieve.aggregators.median import median
from fedsieve.aggregators.sign_majority import sign_majority
from fedsieve.aggregators.sparsefed import sparsefed
from fedsieve.aggregators.trimmed_mean import trimmed_mean
from fedsieve.aggregators.weak_dp import weak_dp
from fedsieve.config import registry
from fedsieve.core.errors import BoundError, ParameterError
from fedsieve.detectors.tolpegin import tolpegin
from fedsieve.preaggregators.momentum import momentum
from fedsieve.preaggregators.norm_clipping import norm_clipping

PAGE = Path(__file__).parents[2] / "docs" / "edges.md"
N, D, F = 11, 12, 2
X = 0.1 + 0.03 * torch.randn(N, D, generator=torch.Generator().manual_seed(0))


class Linear:
    """Three classes, three features: a network of twelve parameters."""

    input_shape = (3,)

    def logits(self, flat: Tensor, x: Tensor, /) -> Tensor:
        return x @ flat[:9].view(3, 3).T + flat[9:]


LAYOUT = Layout.of({"out.weight": torch.empty(3, 3), "out.bias": torch.empty(3)})


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def vector(x: Any, value: float = 0.1) -> Tensor:
    """A vector for the other arguments, in the type of ``x`` where that is one of floats."""
    return torch.full((D,), value, dtype=x.dtype if isinstance(x, Tensor) and x.is_floating_point() else torch.float32)


Rule = Callable[..., Any]
RULES: dict[str, Rule] = {
    "mean(x)": lambda x: mean(x),
    "median(x)": lambda x: median(x),
    "trimmed_mean(x, trim=f)": lambda x, f=F: trimmed_mean(x, f),
    "krum(x, f)": lambda x, f=F: krum(x, f),
    "multi_krum(x, f)": lambda x, f=F: multi_krum(x, f),
    "bulyan(x, f)": lambda x, f=F: bulyan(x, f),
    "geometric_median(x)": lambda x: geometric_median(x),
    "invariant(x)": lambda x: invariant(x),
    "sign_majority(x)": lambda x: sign_majority(x),
    "fltrust(x, root_update)": lambda x: fltrust(x, vector(x)),
    "flame(x, global_params)": lambda x: flame(x, vector(x, 1.0), generator=seeded()),
    "deepsight(x, ...)": lambda x: deepsight(x, vector(x), LAYOUT, Linear(), seeded(), seeds=1, samples=8),
    "sparsefed(x, momentum, memory)": lambda x: sparsefed(x, vector(x), vector(x), keep=0.5),
    "weak_dp(x)": lambda x: weak_dp(x, generator=seeded()),
    "norm_clipping(x)": lambda x: norm_clipping(x),
    "momentum(x, past)": lambda x: momentum(x, vector(x).repeat(len(x) if isinstance(x, Tensor) else 1, 1)),
    "tolpegin(x)": lambda x: tolpegin(x),
}
# Every registered defense that can run on a matrix alone.
NEEDS = {name: set(registry.traits("defenses", name).needs) for name in registry.names("defenses")}
DEFENSES = [name for name, needs in NEEDS.items() if not needs & {"root data", "network"}]


def aggregated(name: str) -> Rule:
    """The defense by name, as a rule of its own."""
    return lambda x, f=F: fedsieve.aggregate(x, name, n_malicious=f).update


def detected(x: Any) -> Any:
    return fedsieve.detect(x, "tolpegin").accepted


def replaced(row: int, value: float, like: Tensor = X) -> Tensor:
    x = like.clone()
    x[row] = value
    return x


def outcome(rule: Rule, x: Any, **options: Any) -> str:
    """In a word: "error" (one line), "bound" (an error about n and f), or what the result is like."""
    before = x.detach().clone() if isinstance(x, Tensor) and not x.is_meta else None
    try:
        found = rule(x, **options)
    except (ParameterError, BoundError) as error:
        return "an error of several lines" if "\n" in str(error) else "bound" if type(error) is BoundError else "error"
    except Exception as error:
        return f"a traceback: {type(error).__name__}"
    parts = found if isinstance(found, tuple) else (found,)
    if before is not None and not torch.equal(x.detach().nan_to_num(7), before.nan_to_num(7)):
        return "changes its input"
    if any(part.is_floating_point() and part.dtype != x.dtype for part in parts):
        return "another type"
    if any(part.requires_grad for part in parts):
        return "requires grad"
    if not all(part.isfinite().all() for part in parts):
        return "not finite"
    shapes = {tuple(part.shape) for part in parts}
    if not shapes <= {tuple(x.shape), (x.shape[1],), (len(x),)}:
        return "another shape"
    return "finite"


def like(rule: Rule, x: Tensor, reference: Tensor, tolerance: float = 0.0) -> str:
    """ "same" where the result is finite and, to a share ``tolerance`` of its largest value, that for ``reference``."""
    word = outcome(rule, x)
    if word != "finite":
        return word
    (one, two) = (found[0] if isinstance(found := rule(y), tuple) else found for y in (x, reference))
    far = (one.double() - two.double()).abs().max() > tolerance * two.double().abs().max()
    return "different" if far else "same"


def words(found: list[str]) -> str:
    """One word if all are alike."""
    return found[0] if len(set(found)) == 1 else " / ".join(found)


def strided(x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Views of all kinds, each with a plain tensor of the same values."""
    complex_rows = torch.complex(x, -x)
    views = [x.T.contiguous().T, torch.stack([x, x], 2)[:, :, 1], x[:1].expand(N, -1), complex_rows.conj().imag]
    return [(view, view.clone().contiguous().resolve_neg()) for view in views]


# What is tried, and how: a column's title, its cells, and how the page explains it.
Cell = Callable[[Rule], str]
COLUMNS: dict[str, tuple[Cell, str]] = {
    "NaN, inf": (
        lambda rule: words([outcome(rule, replaced(3, value)) for value in (torch.nan, torch.inf, -torch.inf)]),
        "a row with a value that is not finite",
    ),
    "3e38": (
        lambda rule: words([outcome(rule, y) for y in (replaced(3, 3e38), -replaced(3, 3e38), 3e38 * X.sign())]),
        "float32 values whose sums overflow: in one row, in all",
    ),
    "1e-38, 1e-45": (
        lambda rule: words([outcome(rule, y) for y in (replaced(3, 1e-38), 1e-38 * X, replaced(3, 1e-45), 1e-44 * X)]),
        "the least normal numbers of float32, and denormal ones: in one row, in all",
    ),
    "1e300": (
        lambda rule: words([outcome(rule, y) for y in (replaced(3, 1e300, X.double()), 1e-300 * X.double())]),
        "float64 values whose squares overflow in one row, or underflow in all",
    ),
    "zeros": (
        lambda rule: words([outcome(rule, y) for y in (torch.zeros_like(X), replaced(3, 0.0))]),
        "nothing but zeros; one row of zeros",
    ),
    "half": (
        lambda rule: words([like(rule, X.to(t), X.to(t).float(), 0.01) for t in (torch.float16, torch.bfloat16)]),
        "float16, bfloat16: the result of float32, rounded",
    ),
    "integers": (
        lambda rule: words([outcome(rule, X.to(t)) for t in (torch.int64, torch.bool, torch.complex64)]),
        "integers, bools, complex numbers",
    ),
    "grad": (lambda rule: like(rule, X.clone().requires_grad_(), X), "a tensor that requires grad"),
    "shape": (
        lambda rule: words([outcome(rule, y) for y in (X[0], X[None], X[:0], X[:, :0], None)]),
        "[d], [1, n, d], n = 0, d = 0, None",
    ),
    "n = 1": (
        lambda rule: outcome(rule, X[:1], **({} if takes_f(rule) is None else {"f": 0})),
        "one row, f = 0",
    ),
    "views": (
        lambda rule: words([like(rule, view, plain, 1e-6) for view, plain in strided(X)]),
        "tensors with other strides, expanded and negated ones: as a copy of them",
    ),
    "meta": (
        lambda rule: words([outcome(rule, y) for y in (X.to("meta"), X.to_sparse())]),
        "a device that holds no values; a sparse tensor",
    ),
    "f": (
        lambda rule: "" if takes_f(rule) is None else words([outcome(rule, X, f=f) for f in (N, N // 2 + 1)]),
        "f beyond the rule's bound",
    ),
    "f < 0": (
        lambda rule: "" if takes_f(rule) is None else words([outcome(rule, X, f=f) for f in (-1, 1.5, 1.0, True, "1")]),
        "f that is negative, no whole number, a bool or text",
    ),
}  # fmt: skip


def takes_f(rule: Rule) -> int | None:
    """The rule's f, if it has one."""
    return (rule.__defaults__ or (None,))[0]


def table() -> dict[str, dict[str, str]]:
    """What every rule does at every edge, by rule and column."""
    found = {name: {title: cell(rule) for title, (cell, _) in COLUMNS.items()} for name, rule in RULES.items()}
    of_all = {
        title: " / ".join(sorted({cell(aggregated(name)) for name in DEFENSES})) for title, (cell, _) in COLUMNS.items()
    }
    detector = {title: cell(detected) for title, (cell, _) in COLUMNS.items()}
    broken = replaced(3, torch.nan)
    if of_all["NaN, inf"] == "finite" and not any(fedsieve.aggregate(broken, name).weights[3] for name in DEFENSES):
        of_all["NaN, inf"] = "dropped"
    if detector["NaN, inf"] == "finite" and not detected(broken)[3]:
        detector["NaN, inf"] = "dropped"
    return {**found, "fedsieve.aggregate(x, ...)": of_all, 'fedsieve.detect(x, "tolpegin")': detector}


# One mistake of each kind, for the messages.
MISTAKES: dict[str, Callable[[], Any]] = {
    "NaN": lambda: krum(replaced(3, torch.nan), f=2),
    "integers": lambda: krum(X.long(), f=2),
    "a vector": lambda: krum(X[0], f=2),
    "no rows": lambda: krum(X[:0], f=2),
    "a list": lambda: krum(X.tolist(), f=2),  # type: ignore[arg-type]
    "meta": lambda: krum(X.to("meta"), f=2),
    "f beyond the bound": lambda: krum(X, f=5),
    "f below 0": lambda: krum(X, f=-1),
    "f no whole number": lambda: krum(X, f=1.5),  # type: ignore[arg-type]
    "another length": lambda: fltrust(X, torch.ones(5)),
    "the other argument with inf": lambda: fltrust(X, torch.full((D,), torch.inf)),
    "two devices": lambda: fltrust(X, torch.ones(D, device="meta")),
    "1e200 in most rows": lambda: krum(1e200 * X.double(), f=2),
}

INTRODUCTION = """# Rules at their edges

Every rule is a plain function of a tensor `x` of updates, [n, d], and runs by name in `fedsieve.aggregate` or
`fedsieve.detect`. This page says what each does with awkward input. `tests/project/make_edges.py` writes it from what
the functions do, and a test compares the two.

- Finite updates have a finite result. float16 and bfloat16 are computed in float32. Where sums may overflow float32, a
  rule is computed in float64 and its result is clamped to the range of its type. `fedsieve.aggregate` drops rows that
  are out of all proportion first.
- A row that is not finite is an error of the plain functions, which cannot say that they left it out;
  `fedsieve.aggregate` and `fedsieve.detect` drop it and say so.
- Integers, bools and complex numbers are refused everywhere, and so is an f that is no whole number.
- The result has the type of `x` and no history of gradients. No argument is written to, and the result shares no
  memory with one.
- In float64, lengths below 1e-150 count as 0, since their squares underflow; values above 1e150 in most rows are an
  error.

"""

LEGEND = """
*error*: one line, a `ParameterError`. *bound*: one line, a `BoundError`. *finite*: a result of the documented shape and
type. *same*: as for a plain tensor of the same values. *dropped*: the row has weight 0, or is not accepted. The row of
`fedsieve.aggregate` is that of all defenses that need no root data; several words are those of different defenses.

## Messages

| mistake | message |
|---|---|
"""


def page() -> str:
    """The page in Markdown."""
    titles = list(COLUMNS)
    lines = [INTRODUCTION + "| | " + " | ".join(titles) + " |", "|---|" + "---|" * len(titles)]
    for name, cells in table().items():
        lines.append(f"| `{name}` | " + " | ".join(cells[title] for title in titles) + " |")
    lines += ["", "| column | what is tried |", "|---|---|"]
    lines += [f"| {title} | {meaning} |" for title, (_, meaning) in COLUMNS.items()]
    lines += LEGEND.splitlines()
    for name, mistake in MISTAKES.items():
        try:
            mistake()
        except (ParameterError, BoundError) as error:
            lines.append(f"| {name} | {error} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--print"]:
        sys.stdout.write(page())
    else:
        PAGE.write_text(page(), encoding="utf-8")
