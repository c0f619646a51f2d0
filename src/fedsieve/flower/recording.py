"""What a round has decided, about nodes: for the app, the log, Flower's metrics and the run directory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fedsieve.core.defense import Aggregate, Updates
from fedsieve.core.records import RoundRecord
from fedsieve.federation.evaluation import Scores
from fedsieve.federation.recording import round_record
from fedsieve.federation.server import Decision
from fedsieve.flower.replies import Dropped


@dataclass(frozen=True)
class RoundDecision:
    """What was decided in one round, by node id.

    Attributes:
        round: Counts from 1, as Flower's rounds do.
        accepted: Nodes whose update went into the model.
        rejected: Nodes that the defense rejected, each with the reason if it tells one.
        dropped: Replies that could not be used, each with the reason; of nodes that were not asked, too.
        silent: Nodes that were asked and did not reply in time.
        applied: Whether the model was moved.
        note: Why not, else what is special about the round, or "".
    """

    round: int
    accepted: tuple[int, ...]
    rejected: Mapping[int, str]
    dropped: tuple[Dropped, ...]
    silent: tuple[int, ...]
    applied: bool
    note: str

    def metrics(self, ids: Mapping[int, int]) -> dict[str, Any]:
        """As numbers that a ``MetricRecord`` holds; lists have the small ids of :attr:`Defended.nodes`."""
        return {
            "accepted": len(self.accepted),
            "rejected": len(self.rejected),
            "dropped": len(self.dropped),
            "silent": len(self.silent),
            "applied": int(self.applied),
            "rejected-clients": sorted(ids[node] for node in self.rejected),
            "dropped-clients": sorted({ids[d.node] for d in self.dropped if d.node is not None and d.node in ids}),
            "silent-clients": sorted(ids[node] for node in self.silent),
        }

    def lines(self, names: Mapping[int, str]) -> list[str]:
        """As lines of a log.

        Args:
            names: Of the nodes that are known, by id.
        """
        found = [
            f"round {self.round}: {len(self.accepted)} accepted, {len(self.rejected)} rejected, "
            f"{len(self.dropped)} dropped, {len(self.silent)} silent" + (f"; {self.note}" if self.note else "")
        ]
        found += [f"rejected {names[node]}" + (f": {why}" if why else "") for node, why in self.rejected.items()]
        found += [f"dropped a reply of {names.get(d.node or -1, f'node {d.node}')}: {d.reason}" for d in self.dropped]
        found += [f"no reply from {names[node]}" for node in self.silent]
        return found


def nothing(n: int, d: int, state: Any, note: str) -> Decision:
    """A decision in which the model stays, and nobody is judged."""
    return Decision(Aggregate(torch.zeros(d), torch.zeros(n), None, state=state), ("",) * n, False, note)


def decided(
    round: int, nodes: Sequence[int], decision: Decision, dropped: Sequence[Dropped], silent: Sequence[int]
) -> RoundDecision:
    """A decision of the server, by node.

    Args:
        round: Counts from 1.
        nodes: The node of each row.
        decision: Of the server; what it screened counts as dropped.
        dropped: Replies that were dropped before.
        silent: Nodes that did not reply.
    """
    result = decision.aggregate
    accepted = [True] * len(nodes) if result.accepted is None else result.accepted.tolist()
    why = result.diagnosis.reasons if result.diagnosis is not None else ("",) * len(nodes)
    rows = list(zip(nodes, accepted, why, decision.reasons, strict=True))
    return RoundDecision(
        round,
        tuple(node for node, ok, _, screened in rows if ok and not screened and decision.applied),
        {node: reason for node, ok, reason, screened in rows if not ok and not screened},
        (*dropped, *(Dropped(node, screened) for node, _, _, screened in rows if screened)),
        tuple(silent),
        decision.applied,
        decision.note,
    )


def recorded(
    round: int, updates: Updates, decision: Decision, dropped: Mapping[int, str], seconds: Mapping[str, float]
) -> RoundRecord:
    """The record of a round, in which nobody knows who is malicious.

    Args:
        round: Counts from 0.
        updates: Those that could be used.
        decision: Of the server.
        dropped: Clients whose reply could not be used, each with the reason; they stand behind the others.
        seconds: Wall time of the phases.
    """
    record = round_record(round, updates, None, decision, Scores())
    ids, n = tuple(dropped), len(dropped)
    seen, nowhere = record.diagnosis, ((None, None),) * n
    if seen is not None:
        seen = replace(
            seen,
            coordinates=seen.coordinates + nowhere if seen.coordinates else (),
            kept=seen.kept + ((None,) * len(seen.layers),) * n if seen.kept else (),
            reasons=seen.reasons + ("",) * n,
            updates=None if seen.updates is None else seen.updates + nowhere,
        )
    return replace(
        record,
        clients=record.clients + ids,
        rejected=None if record.rejected is None else record.rejected + ids,
        screened=record.screened + ids,
        screened_reasons=record.screened_reasons + tuple(dropped.values()),
        weights=record.weights + (0.0,) * n,
        scores=None if record.scores is None else record.scores + (None,) * n,
        diagnosis=seen,
        seconds=seconds,
    )
