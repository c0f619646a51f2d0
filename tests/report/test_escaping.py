"""Nasty names are shown literally: in the terminal, Markdown, LaTeX, CSV, the page's JSON and pictures."""

import csv
import html
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from rich.console import Console

from fedsieve.core.escaping import printable
from fedsieve.report import escaping, figures
from fedsieve.report.figures.panels import Styles
from fedsieve.report.text import terminal_table
from tests.report.conftest import diagnosis, record
from tests.report.nasty import NASTY

each = pytest.mark.parametrize("name", NASTY.values(), ids=NASTY)


@each
def test_terminal(name: str) -> None:
    file = io.StringIO()
    console = Console(file=file, width=8000, force_terminal=True, color_system=None)
    console.print(escaping.terminal(name))
    console.print(terminal_table(printable(name), [["", name], [name, "1.0"]]))
    text = re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue())  # the title's style
    assert text.count(printable(name)) == 4
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e\u2066\ud800-\udfff]", text)


class Document(HTMLParser):
    """The elements of a document, and the text of its script elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] == ["script"]:
            self.scripts[-1] += data


@each
def test_json_in_a_page(name: str) -> None:
    text = escaping.json_in_html({name: [name, 1.5, None]})
    assert not set(text) & set("<>&\u2028\u2029")
    assert text.isascii()
    page = Document(f'<title>t</title><script type="application/json">{text}</script><p>end</p>')
    assert page.tags == ["title", "script", "p"]
    assert json.loads(page.scripts[0]) == {name: [name, 1.5, None]}


@each
def test_latex(name: str) -> None:
    text = escaping.latex(name)
    commands = r"\\text(?:backslash|asciitilde|asciicircum|asciigrave|less|greater|bar)\{\}|\\[{}$&#%_]|\$\\pm\$|\{\}"
    assert not set(re.sub(commands, "", text)) & set("\\{}$&#%_~^<>|\n\r\x1b")
    assert not re.match(r"\s*[\[*]", text)  # the argument of a line break before it
    if set(name) <= set("$x and\\frac5 "):
        assert text.replace(r"\textbackslash{}", "\\").replace(r"\$", "$") == name


@each
def test_markdown(name: str) -> None:
    """The text comes out as it went in, if a backslash before punctuation is taken away, and nothing is markup."""
    text = escaping.markdown(name)
    assert re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text) == printable(name)
    bare = re.sub(r"\\[!-/:-@\[-`{-~]", "", text)
    assert not re.search(r"[\\`*<|$~\n]|\]\(|^\s*([-+#>=]\D|\d+[.)]\s)", bare)
    assert html.unescape(bare) == bare  # no entities
    assert not re.search(r"(?<![^\W_])_|_(?![^\W_])", bare)


@each
def test_csv(name: str) -> None:
    file = io.StringIO()
    csv.writer(file).writerow([escaping.cell(name), 1])
    ((text, number),) = csv.reader(io.StringIO(file.getvalue()))
    assert number == "1"
    assert text.removeprefix("'") == printable(name).removeprefix("'")
    assert text.lstrip()[:1] not in ("=", "+", "-", "@", "\t", "\r")
    text.encode()


def test_a_formula_behind_blanks_or_in_full_width() -> None:
    assert escaping.cell("  =1") == "'  =1"
    assert escaping.cell("＠x") == "'＠x"  # noqa: RUF001


@each
def test_figure(name: str) -> None:
    """matplotlib shows the text itself: no formula is read from it, and legends don't leave it out."""
    text = Figure().text(0, 0, escaping.figure(name))
    shown, is_formula = text._preprocess_math(text.get_text())
    assert not is_formula
    assert shown.lstrip() == escaping.shortened(name, 60).lstrip()
    assert len(shown) <= 61
    assert not shown.startswith("_")


def test_all_figures_are_drawn(tmp_path: Path) -> None:
    lines = {n: [record(k, 0.5, diagnosis=diagnosis()) for k in range(2)] for n in NASTY.values()}
    few = {name: lines[name] for name in list(lines)[:4]}
    runs = dict.fromkeys(list(lines)[:2], few)
    seeds = {name: [records] for name, records in lines.items()}
    figures.accuracy_over_rounds({NASTY["dollars"]: seeds}, tmp_path / "a.png", failures=True)
    fpr = {a: {d: [records] for d, records in line.items()} for a, line in runs.items()}
    figures.over_rounds(fpr, "false_positive_rate", tmp_path / "b.png", title=NASTY["dollars"])
    figures.rates_against({n: {"$ = 1": seeds[n], "$ = 2": seeds[n]} for n in list(lines)[:2]}, tmp_path / "c.png")
    figures.heat_map({(a, b): 0.5 for a in few for b in lines}, tmp_path / "d.png", NASTY["dollars"])
    figures.mask_scatter(runs, tmp_path / "e.png")
    figures.layers_kept(few, tmp_path / "f.png")
    for letter in "abcdef":
        assert imread(tmp_path / f"{letter}.png")[..., :3].std() > 0.02
        assert (tmp_path / f"{letter}.pdf").read_bytes().startswith(b"%PDF")
        ElementTree.parse(tmp_path / f"{letter}.svg")


def test_long_names_that_look_alike_once_shortened_are_numbered() -> None:
    a, b = "n" * 50 + "a" + "n" * 50, "n" * 50 + "b" + "n" * 50
    styles = Styles.of([b, a, "mean"])
    assert styles.label("mean") == "FedAvg"
    assert [styles.label(name)[-4:] for name in (a, b)] == [" (1)", " (2)"]


@pytest.mark.parametrize(
    ("text", "most", "said"),
    [("abc", 3, "abc"), ("abcdefghij", 7, "abcd…ij"), ("a\n", 3, "a\\n"), ("", 3, "")],
    ids=["fits", "cut", "printable", "empty"],
)
def test_shortened(text: str, most: int, said: str) -> None:
    assert escaping.shortened(text, most) == said
