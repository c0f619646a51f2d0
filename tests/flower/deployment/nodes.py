"""Who was rejected, since when and why, from a run directory alone."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedsieve import RoundRecord


@dataclass(frozen=True)
class Verdict:
    """What became of one node's replies.

    Attributes:
        answered: Rounds with a reply of the node, usable or not.
        accepted: Rounds in which its reply was used.
        dropped: Rounds in which its reply could not be used.
        rejected: Rounds in which the defense rejected it.
        since: Round, counted from 1, since which no reply of it was used; None if its last one was.
        reasons: Why replies were dropped or rejected, the most frequent first.
    """

    answered: int
    accepted: int
    dropped: int
    rejected: int
    since: int | None
    reasons: tuple[str, ...]

    @property
    def text(self) -> str:
        """``accepted``, ``rejected`` or ``dropped``: what happened to most of its replies."""
        most = max(self.accepted, self.rejected, self.dropped)
        return {self.accepted: "accepted", self.dropped: "dropped"}.get(most, "rejected") if most else "no reply"


def verdicts(records: Sequence[RoundRecord], names: Sequence[str]) -> Mapping[str, Verdict]:
    """By name of the node."""
    return {name: _verdict(records, client) for client, name in enumerate(names)}


def _verdict(records: Sequence[RoundRecord], client: int) -> Verdict:
    accepted = dropped = rejected = 0
    since: int | None = None
    reasons: Counter[str] = Counter()
    for record in records:
        if client not in record.clients:
            continue
        if client in record.screened:
            dropped += 1
            reasons[record.screened_reasons[record.screened.index(client)]] += 1
        elif client in (record.rejected or ()):
            rejected += 1
            if record.diagnosis and (reason := record.diagnosis.reasons[record.clients.index(client)]):
                reasons[reason] += 1
        else:
            accepted, since = accepted + 1, None
            continue
        since = since or record.round + 1
    found = tuple(f"{reason} ({count})" for reason, count in reasons.most_common())
    return Verdict(accepted + dropped + rejected, accepted, dropped, rejected, since, found)
