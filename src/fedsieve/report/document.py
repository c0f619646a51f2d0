"""Self-contained HTML documents with charts: one file that opens without a network or a server.

Style, scripts, data and Vega with Vega-Lite are in the file. Its content security policy lets nothing be fetched and no
script run but those, so that a name that got into it as markup would still do nothing.
"""

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import sha256
from html import escape
from importlib.resources import files
from typing import Any

from fedsieve.core.errors import FedSieveError
from fedsieve.core.escaping import printable
from fedsieve.report.escaping import json_in_html


def page_of(title: str, body: str, specs: Mapping[str, Mapping[str, Any]]) -> str:
    """A page with charts.

    Args:
        title: Plain text.
        body: HTML, as the functions below make it; any other text in it must have been escaped.
        specs: Vega-Lite specifications by the name that the body's :func:`chart` has; the page adds its colours,
            light or dark. ``{"width": "container"}`` fills the width.

    Raises:
        FedSieveError: If the package with Vega is not installed.
    """
    return document(title, body, ("specs.js",), json_in_html({"specs": specs}))


def document(title: str, body: str, scripts: Sequence[str], data: str) -> str:
    """A whole document.

    Args:
        title: Plain text.
        body: HTML.
        scripts: Names of files in ``html/`` that follow ``common.js`` and ``charts.js``.
        data: JSON from :func:`fedsieve.report.escaping.json_in_html`, which the scripts find as ``D``.

    Raises:
        FedSieveError: If the package with Vega is not installed.
    """
    own = "\n".join(part(name).strip() for name in ("common.js", "charts.js", *scripts))
    texts = {
        "POLICY": _policy(vega(), f"\n{own}\n"),
        "TITLE": escape(printable(title)),
        "STYLE": part("style.css").strip(),
        "BODY": body,
        "VEGA": vega(),
        "SCRIPT": own,
        "DATA": data,
    }
    return re.sub(r"/\*([A-Z]+)\*/", lambda found: texts[found[1]], part("document.html"))


def chart(name: str, caption: str, text: str = "") -> str:
    """HTML of a chart's place.

    Args:
        name: Of its specification: letters, digits, hyphens.
        caption: What it shows.
        text: How to read it, in a sentence or two.
    """
    said = f'<p class="faint">{escape(printable(text))}</p>' if text else ""
    return (
        f"<figure><figcaption>{escape(printable(caption))}</figcaption>{said}"
        f'<div class="chart" id="{escape(name)}"></div></figure>'
    )


def table(lines: Sequence[Sequence[str]], caption: str = "") -> str:
    """HTML of a table from lines of plain texts, the head first; the first column names the lines."""
    head, *body = [[escape(printable(text)) for text in line] for line in lines]
    said = f"<caption>{escape(printable(caption))}</caption>" if caption else ""
    top = "".join(f'<th scope="col">{text}</th>' for text in head)
    rows = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td><span>{text}</span></td>" for text in rest)}</tr>'
        for first, *rest in body
    )
    return f'<div class="scroll"><table>{said}<thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table></div>'


def part(name: str) -> str:
    """A file of the folder ``html/``."""
    return files("fedsieve.report").joinpath("html", name).read_text(encoding="utf-8")


@cache
def vega() -> str:
    """Vega, Vega-Lite, their tooltips and vega-embed (BSD 3-clause, the Vega project) as one script.

    Raises:
        FedSieveError: If the package that brings them is not installed.
    """
    try:
        from vl_convert import javascript_bundle
    except ImportError as error:
        raise FedSieveError("the page's charts need vl-convert-python: pip install vl-convert-python") from error
    found = javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")
    return f'(() => {{"use strict";{found}}})();'  # its names stay its own


def _policy(*scripts: str) -> str:
    """The content security policy of a document with these scripts."""
    hashes = " ".join(f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
