r"""Text that comes from a file, a folder's name or an error, written so that each kind of output shows it literally.

Names of stages, labels, reasons and messages may be a stranger's: they can hold markup, formulas, or characters that
control a terminal. Everything under ``report`` that shows such text passes it through one of these functions. The
page's scripts put text into the document as text, never as HTML.
"""

import json
import re
from typing import Any

from rich.text import Text

from fedsieve.core.escaping import printable

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "±": r"$\pm$",
    "\0": "{}",
    "–": "--",  # noqa: RUF001 (a dash is meant)
}
_HTML = {ord(c): f"\\u{ord(c):04x}" for c in "<>&"}


def terminal(text: str, style: str = "") -> Text:
    """Text for rich: neither markup nor emoji codes are read from it.

    >>> terminal("[bold]x[/] :smile:").plain
    '[bold]x[/] :smile:'
    """
    return Text(printable(text), style)


def markdown(text: str) -> str:
    r"""Text for one line or one table cell of Markdown, GitHub's kind included.

    >>> print(markdown("skymask (tau=0.3) | *a* <b> p_1"))
    skymask (tau=0.3) \| \*a\* \<b> p_1
    """
    said = re.sub(r"([\\`*<|$~]|&(?=#?\w+;)|(?<=\])\()", r"\\\1", printable(text))
    said = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", said)  # within a word it is literal
    said = re.sub(r"^(\s*\d+)([.)])(?=\s|$)", r"\1\\\2", said)  # what starts a list, a heading or a quotation
    return re.sub(r"^(\s*)([-+#>=])(?!\d)|(#)(?=\s*$)", r"\1\\\2\3", said)


def latex(text: str) -> str:
    r"""Text for LaTeX; none of it is a command, a comment, or an optional argument of the line break before it.

    >>> print(latex(r"\input{a} 85.0 ± 7.1 %"))
    \textbackslash{}input\{a\} 85.0 $\pm$ 7.1 \%
    """
    apart = re.sub(r"([-'])(?=\1)", "\\1\0", printable(text))  # two dashes or quotes would be drawn as one character
    said = "".join(_LATEX.get(c, c) for c in apart)
    return "{}" + said if said.lstrip()[:1] in ("[", "*") else said


def cell(text: str) -> str:
    """Text for a field of a CSV file; an apostrophe keeps spreadsheets from reading it as a formula.

    >>> cell("=1+1"), cell("mean")
    ("'=1+1", 'mean')
    """
    said = printable(text)
    return "'" + said if said.lstrip()[:1] in tuple("=+-@＝＋－＠") else said  # noqa: RUF001 (full-width ones too)


def figure(text: str, most: int = 60) -> str:
    r"""Text for matplotlib, at most so many characters: no formula, and not hidden from legends.

    >>> print(figure("$x$ and $y$"))
    \$x\$ and \$y\$
    """
    said = shortened(text, most).replace("$", r"\$")
    return f" {said}" if said.startswith("_") else said  # matplotlib leaves these out of legends


def shortened(text: str, most: int) -> str:
    """Printable text; the middle of a longer one is left out.

    >>> shortened("abcdefghij", 7)
    'abcd…ij'
    """
    said = printable(text)
    return said if len(said) <= most else f"{said[: most - most // 3 - 1]}…{said[len(said) - most // 3 :]}"


def json_in_html(value: Any) -> str:
    r"""JSON that can't end or change the HTML script element that holds it, whatever its strings are.

    >>> print(json_in_html({"name": "</script>"}))
    {"name":"\u003c/script\u003e"}
    """
    return json.dumps(value, allow_nan=False, separators=(",", ":")).translate(_HTML)
