"""An audit as a page: one screen for a reader without a course in federated learning, then the details."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from fedsieve.audit.audit import Audit
from fedsieve.audit.text import HEAD, explained, lines, splits
from fedsieve.core.escaping import printable
from fedsieve.core.metrics import finite
from fedsieve.report.document import chart, page_of, table
from fedsieve.runs.files import one_line, write

_GLOSSARY = {
    "own, all": (
        "Balanced accuracy on the site's held-out rows: of a model trained on the site alone, and of one "
        "trained by all sites together. Balanced means that every class counts the same. A site whose own "
        "model is good and on whose rows the model of all is bad has labels of another meaning."
    ),
    "accepted": ("In how many rounds the defense used the site's update."),
    "score (limit)": (
        "How far the site's updates are from what the reference data lead to, in standard deviations of the "
        "server's own updates; a mean over the second half of the rounds. The limit follows from the other "
        "sites."
    ),
    "without it": (
        "How many points of balanced accuracy the others gain if the site is left out, with the 95 % interval "
        "over splits. An interval that contains 0 says that leaving it out was not seen to help."
    ),
    "verdict": (
        "'Look at it' where a measurement is beyond its limit. It says that the site is unlike the others in "
        "that way, not why, and nothing about intent."
    ),
}


def write_page(audit: Audit, path: Path) -> None:
    """Write the page, self-contained.

    Raises:
        FedSieveError: If it can't be written, or the package for charts is not installed.
    """
    with one_line(f"write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, page(audit).encode())


def page(audit: Audit) -> str:
    """The page as HTML."""
    off = audit.flagged
    title = "Audit: nothing to be seen" if not off else f"Audit: look at {', '.join(site.name for site in off)}"
    said = "".join(f"<p>{_text(line)}</p>" for line in explained(audit))
    notes = "".join(f"<dt>{_text(name)}</dt><dd>{_text(text)}</dd>" for name, text in _GLOSSARY.items())
    evidence = [("site", "what", "measured", "limit", "in words")]
    evidence += [
        (site.name, e.kind, f"{e.value:.3g}", f"{e.limit:.3g}", e.text if e.unusual else "usual")
        for site in audit.sites
        for e in site.evidence
    ]
    body = (
        f"<header><h1>{_text(title)}</h1></header><main>{said}{table([HEAD, *lines(audit)])}"
        f"<p class='faint'>{_text(audit.reading)}. {splits(audit)}. "
        f"Reference data: {_text(audit.reference)}.</p>"
        + chart(
            "scores", "Anomaly score by round", "Above 4, an update is unlike anything that the reference data lead to."
        )
        + chart(
            "rejected",
            "Rejected, by round",
            "Coloured: the defense left the site's update out, in that share of the splits.",
        )
        + f"<h2>What the columns mean</h2><dl>{notes}</dl>"
        + f"<details><summary>All measurements</summary>{table(evidence)}</details></main>"
    )
    return page_of(title, body, {"scores": _scores(audit), "rejected": _rejected(audit)})


def _scores(audit: Audit) -> Mapping[str, Any]:
    values = [
        {
            "site": site.name,
            "round": k + 1,
            "score": finite(v),
            "flagged": "look at it" if site.flagged else "usual",
        }
        for site in audit.sites
        for k, v in enumerate(site.scores)
    ]
    return {
        "width": "container",
        "height": 260,
        "data": {"values": values},
        "mark": {"type": "line", "tooltip": True},
        "encoding": {
            "x": {"field": "round", "type": "quantitative", "title": "round", "axis": {"tickMinStep": 1}},
            "y": {"field": "score", "type": "quantitative", "title": "score, deviations"},
            "detail": {"field": "site"},
            "color": {"field": "flagged", "title": None, "scale": {"domain": ["usual", "look at it"]}},
            "tooltip": [{"field": "site"}, {"field": "round"}, {"field": "score", "format": ".1f"}],
        },
    }


def _rejected(audit: Audit) -> Mapping[str, Any]:
    values = [
        {"site": site.name, "round": k + 1, "share": v} for site in audit.sites for k, v in enumerate(site.rejections)
    ]
    return {
        "width": "container",
        "height": {"step": 18},
        "data": {"values": values},
        "mark": {"type": "rect", "tooltip": True},
        "encoding": {
            "x": {
                "field": "round",
                "type": "ordinal",
                "title": "round",
                "axis": {"labelOverlap": True, "labelAngle": 0},
            },
            "y": {"field": "site", "type": "nominal", "title": None, "sort": [site.name for site in audit.ordered]},
            "color": {
                "field": "share",
                "type": "quantitative",
                "title": "rejected",
                "scale": {"domain": [0, 1], "range": ["#8883", "#c04e00"]},
                "legend": {"format": ".0%"},
            },
            "tooltip": [
                {"field": "site"},
                {"field": "round"},
                {"field": "share", "format": ".0%", "title": "rejected"},
            ],
        },
    }


def _text(text: str) -> str:
    return escape(printable(text))
