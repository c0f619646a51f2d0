"""LaTeX tables: what stands in them, that a parser reads them, and that TeX sets them where there is one."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from pylatexenc.latexwalker import LatexWalker

from fedsieve.report import tables
from fedsieve.report.grid import Cell, Grid
from fedsieve.report.load import load
from tests.report.nasty import NASTY

PREAMBLE = "% Needs \\usepackage{booktabs} and \\usepackage{graphicx}.\n"


def grid(printed: str, rows: dict[str, dict[str, Cell]], **more: object) -> Grid:
    """A table of accuracies."""
    attacks = tuple(dict.fromkeys(attack for row in rows.values() for attack in row))
    cells = {(defense, attack): cell for defense, row in rows.items() for attack, cell in row.items()}
    usual = {
        "title": printed.lower(),
        "printed": printed,
        "about": "4 clients, 2 rounds",
        "measure": "late_test_accuracy",
        "defenses": tuple(rows),
        "attacks": attacks,
        "cells": cells,
        "worst": {},
        "best": {},
    }
    return Grid(**{**usual, **more})  # type: ignore[arg-type]


def cell(mean: float | None, deviation: float | None = None, seeds: int = 1, problem: str = "") -> Cell:
    return Cell(mean, deviation, 0 if mean is None else seeds, seeds, seeds, problem, "")


DIGITS = grid(
    "Digits",
    {
        "mean": {"none": cell(0.9, 0.01, 3), "min-max": cell(0.2, 0.02, 3)},
        "skymask (tau=0.3)": {"none": cell(0.85, 0.01, 3), "min-max": cell(None, problem="failed: 100 % of memory")},
    },
    best={"none": "mean"},
)
HAR = grid("HAR", {"krum": {"none": cell(0.5)}}, about="30 clients, 2 rounds")


def parsed(text: str) -> list[str]:
    """Names of the environments; raises for unbalanced braces, environments and formulas."""
    nodes = LatexWalker(text, tolerant_parsing=False).get_latex_nodes()[0]
    return [node.environmentname for node in nodes if hasattr(node, "environmentname")]


def test_one_table() -> None:
    text = tables.latex([DIGITS])
    assert text == (
        PREAMBLE + r"""
\begin{table}
\centering
\caption{Digits, 4 clients, 2 rounds. Test accuracy, last tenth of the rounds, \%; mean $\pm$ standard deviation """
        r"""over 3 seeds. Bold: better than every other by more than the two standard deviations together.}
\label{tab:digits-late-test-accuracy}
\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%
\begin{tabular}{lrr}
\toprule
 & No attack & Min-Max \\
\midrule
FedAvg & \textbf{90.0 $\pm$ 1.0} & 20.0 $\pm$ 2.0 \\
SkyMask (tau=0.3) & 85.0 $\pm$ 1.0 & failed \\
\bottomrule
\end{tabular}%
}
\end{table}
"""
    )
    assert parsed(text) == ["table"]


def test_one_table_over_datasets() -> None:
    text = tables.latex([DIGITS, HAR], together=True)
    lines = text.splitlines()
    assert parsed(text) == ["table"]
    assert lines[lines.index(r"\toprule") :] == [
        r"\toprule",
        r" &  & No attack & Min-Max \\",
        r"\midrule",
        r"Digits & FedAvg & \textbf{90.0 $\pm$ 1.0} & 20.0 $\pm$ 2.0 \\",
        r" & SkyMask (tau=0.3) & 85.0 $\pm$ 1.0 & failed \\",
        r"\midrule",
        r"HAR & Krum & 50.0 & -- \\",
        r"\bottomrule",
        r"\end{tabular}%",
        "}",
        r"\end{table}",
    ]
    assert r"over 1 to 3 seeds" in text
    assert r"\label{tab:all-late-test-accuracy}" in text


def test_datasets_of_two_sizes_are_told_apart() -> None:
    small = grid("HAR", {"krum": {"none": cell(0.25)}}, about="10 clients, 2 rounds")
    lines = tables.latex([small, HAR], together=True).splitlines()
    assert r"HAR, 10 clients, 2 rounds & Krum & 25.0 \\" in lines
    assert r"HAR, 30 clients, 2 rounds & Krum & 50.0 \\" in lines


def test_many_attacks_go_on_in_a_second_table() -> None:
    wide = grid("Digits", {"mean": {f"a{k}": cell(0.1 * k) for k in range(10)}})
    text = tables.latex([wide])
    assert parsed(text) == ["table", "table"]
    assert r"FedAvg & 0.0 & 10.0 & 20.0 & 30.0 & 40.0 & 50.0 & 60.0 & 70.0 \\" in text.splitlines()
    assert r"FedAvg & 80.0 & 90.0 \\" in text.splitlines()
    assert text.count("(continued)") == 1
    assert text.count(r"\label{tab:digits-late-test-accuracy}") == 1
    assert text.count(r"\label{tab:digits-late-test-accuracy-2}") == 1


def test_the_same_title_twice_has_two_labels() -> None:
    assert tables.latex([HAR, HAR]).count(r"\label{tab:har-late-test-accuracy-2}") == 1


def nasty() -> list[Grid]:
    """Every nasty name as a dataset, a defense, an attack and a problem."""
    made = []
    for name in NASTY.values():
        row = {name: cell(0.5), "none": cell(None, problem=name)}
        made.append(grid(name, {name: row, "mean": row}))
    return made


@pytest.mark.parametrize("together", [False, True])
def test_nasty_names(together: bool) -> None:
    text = tables.latex(nasty(), together)
    assert set(parsed(text)) == {"table"}
    for found in nasty():
        assert parsed(tables.latex([found], together)) == ["table"]
    assert "\\input{" not in text
    assert "\x1b" not in text


def test_letters_that_pdflatex_lacks_are_told() -> None:
    said = "use XeLaTeX or LuaLaTeX"
    assert said in tables.latex([grid("防御", {"mean": {"none": cell(0.5)}})])
    assert said not in tables.latex([grid("Crème", {"mean": {"none": cell(0.5, 0.1, 2)}})])


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex, of texlive-latex-recommended")
@pytest.mark.parametrize("together", [False, True])
def test_pdflatex_sets_them_within_the_text(tmp_path: Path, make_run: Callable[..., Path], together: bool) -> None:
    attacks = ("none", "label-flip", "min-max", "min-sum", "fang-trim", "scaling", "ipm", "lie", "gaussian")
    for attack in attacks:
        for dataset in ("digits", "har"):
            make_run(f"{attack}-{dataset}", [0.5], attack=attack, dataset=dataset, defense="mean", clients=6)
    found = tables.grids(load([tmp_path / "runs"]))
    odd = [g for g in nasty() if max(map(ord, g.printed)) < 0x250 and len(g.printed) < 100]
    (tmp_path / "tables.tex").write_text(tables.latex([*found, *odd], together))
    for kind in ("article", "[twocolumn]{article}"):
        start = rf"\documentclass{kind if '[' in kind else '{' + kind + '}'}\usepackage{{booktabs,graphicx}}"
        (tmp_path / "paper.tex").write_text(start + r"\begin{document}\input{tables}\end{document}")
        command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "-no-shell-escape", "paper.tex"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
        assert done.returncode == 0, done.stdout[-2000:]
        log = (tmp_path / "paper.log").read_text(errors="replace")
        assert r"Overfull \hbox" not in log
