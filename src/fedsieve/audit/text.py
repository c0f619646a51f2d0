"""An audit as JSON and as lines of text."""

from typing import Any

from fedsieve.audit.audit import Audit
from fedsieve.audit.verdict import Site
from fedsieve.core.metrics import finite
from fedsieve.report.text import counted


def as_json(audit: Audit) -> dict[str, Any]:
    """The audit as one object of plain values; None where a number is undefined."""
    return {
        "sites": [_site(site) for site in audit.sites],
        "flagged": [site.name for site in audit.flagged],
        "balanced_accuracy": _number(audit.score),
        "reference": audit.reference,
        "warnings": list(audit.warnings),
        "seeds": list(audit.seeds),
        "rounds": audit.rounds,
        "data": audit.reading,
    }


def _site(site: Site) -> dict[str, Any]:
    out = site.left_out
    return {
        "site": site.name,
        "rows": site.rows,
        "classes": site.classes,
        "flagged": site.flagged,
        "reasons": list(site.reasons),
        "rounds_rejected": site.rounds_rejected,
        "rounds": site.rounds,
        "since": site.since,
        "score": _number(site.score),
        "limit": _number(site.limit),
        "local_score": _number(site.local_score),
        "global_score": _number(site.global_score),
        "left_out": None if out is None else {k: _number(v) for k, v in vars(out).items()},
        "evidence": [
            {"kind": e.kind, "value": _number(e.value), "limit": _number(e.limit), "unusual": e.unusual, "text": e.text}
            for e in site.evidence
        ],
    }


def _number(value: float | None) -> float | None:
    return None if value is None else finite(round(value, 4))


HEAD = ("site", "rows", "classes", "own", "all", "accepted", "score (limit)", "without it", "verdict")


def lines(audit: Audit) -> list[tuple[str, ...]]:
    """A line for each site under :data:`HEAD`, flagged ones first."""
    return [_line(site) for site in audit.ordered]


def _line(site: Site) -> tuple[str, ...]:
    most = sorted(site.classes.items(), key=lambda item: -item[1])
    total = max(1, sum(site.classes.values()))
    shares = " / ".join(f"{100 * n / total:.0f}" for _, n in (site.classes.items() if len(most) <= 3 else most[:3]))
    return (
        site.name,
        f"{site.rows:,}",
        f"{shares} %" if len(most) <= 3 else f"{shares} % ...",
        _percent(site.local_score),
        _percent(site.global_score),
        f"{site.rounds - site.rounds_rejected} of {site.rounds}",
        f"{site.score:.1f} ({site.limit:.1f})",
        "" if site.left_out is None else site.left_out.in_words,
        site.verdict,
    )


def splits(audit: Audit) -> str:
    """On how much the numbers rest."""
    return f"{counted(len(audit.seeds), 'split')}, {audit.rounds} rounds each"


def explained(audit: Audit) -> list[str]:
    """Why each flagged site is flagged, or that there is nothing to be seen; then warnings."""
    found = []
    for site in audit.flagged:
        since = f", in most rounds from round {site.since} on" if site.since else ""
        rejected = f"rejected in {site.rounds_rejected} of {site.rounds} rounds{since}"
        found.append(f"{site.name}: {'; '.join(site.reasons)}. It was {rejected}.")
    if not found:
        found.append("Nothing to be seen: no site is beyond a limit.")
    return [*found, *(f"Mind: {text}." for text in audit.warnings)]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"
