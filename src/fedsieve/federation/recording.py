"""Makes the record of a round from the server's decision and the ground truth."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import isfinite

import torch
from torch import Tensor

from fedsieve.core import metrics
from fedsieve.core.defense import Diagnosis, Updates
from fedsieve.core.records import DiagnosisRecord, RoundRecord, pictured
from fedsieve.federation.evaluation import Scores
from fedsieve.federation.positions import Cloud
from fedsieve.federation.server import Decision

# Significant digits. Weights have those of float32, so that they still sum to 1.
_WEIGHT_DIGITS, _SCORE_DIGITS, _POSITION_DIGITS = 7, 5, 4


def round_record(
    round: int,
    updates: Updates,
    malicious: Collection[int] | None,
    decision: Decision,
    scores: Scores,
) -> RoundRecord:
    """The record of one round, without its wall times.

    Args:
        round: Counts from 0.
        updates: What the clients sent.
        malicious: Ids of the malicious clients, as the server sees them; those that did not take part may be missing.
            None where that is not known.
        decision: Of the server.
        scores: Of the evaluation after the round.
    """
    result = decision.aggregate
    seen, cloud = result.diagnosis, None
    sent: dict[str, Tensor | None] = {
        "clients": updates.client_ids,
        "weights": result.weights,
        "accepted": result.accepted,
        "scores": result.scores,
        "length": result.update.double().norm(),
    }
    finite = [k for k, reason in enumerate(decision.reasons) if not reason]
    if seen is not None and pictured(round):
        cloud = Cloud.of(updates.matrix if len(finite) == len(updates.matrix) else updates.matrix[finite], round)
        sent |= {"points": seen.coordinates, "root": seen.root, "kept": seen.kept, "gram": cloud.gram}
    got = _on_host(sent, updates.matrix.device)
    clients = tuple(got["clients"].tolist())
    bad = None if malicious is None else frozenset(malicious)
    here = None if bad is None else tuple(i for i in clients if i in bad)
    rejected = None
    if "accepted" in got:
        rejected = tuple(i for i, ok in zip(clients, got["accepted"].tolist(), strict=True) if not ok)
    diagnosis = None
    if seen is not None:
        diagnosis = DiagnosisRecord((), None, (), (), seen.reasons)
        if cloud is not None:
            places = dict(zip(finite, cloud.positions(got["gram"]).tolist(), strict=True))
            diagnosis = _diagnosis(seen, got, [places.get(k, (torch.nan, torch.nan)) for k in range(len(clients))])
    return RoundRecord(
        round=round,
        clients=clients,
        malicious=here,
        rejected=rejected,
        screened=tuple(i for i, reason in zip(clients, decision.reasons, strict=True) if reason),
        screened_reasons=tuple(reason for reason in decision.reasons if reason),
        weights=_rounded(got["weights"].tolist(), _WEIGHT_DIGITS),
        scores=_rounded(got["scores"].tolist(), _SCORE_DIGITS) if "scores" in got else None,
        update_norm=metrics.finite(float(got["length"])),
        applied=decision.applied,
        note=decision.note,
        test_accuracy=scores.accuracy,
        test_loss=scores.loss,
        attack_success_rate=scores.attack_success_rate,
        attack_success_rate_all=scores.attack_success_rate_all,
        false_positive_rate=metrics.false_positive_rate(clients, here, rejected),
        false_negative_rate=metrics.false_negative_rate(clients, here, rejected),
        diagnosis=diagnosis,
    )


def _on_host(tensors: Mapping[str, Tensor | None], device: torch.device) -> dict[str, Tensor]:
    """Those that are not None, on the host in one transfer from ``device``: ids as they are, others in float64."""
    found = {name: x.to(device) for name, x in tensors.items() if x is not None}
    whole = {name for name, x in found.items() if x.dtype == torch.int64}
    bits = [(x if name in whole else x.double().view(torch.int64)).flatten() for name, x in found.items()]
    parts = torch.split(torch.cat(bits).cpu(), [len(part) for part in bits])
    return {
        name: (part if name in whole else part.view(torch.float64)).view(x.shape)
        for part, (name, x) in zip(parts, found.items(), strict=True)
    }


def _rounded(values: Iterable[float], digits: int) -> tuple[float | None, ...]:
    """To so many significant digits; None for those that are not finite."""
    return tuple(float(f"{v:.{digits}g}") if isfinite(v) else None for v in values)


def _diagnosis(diagnosis: Diagnosis, got: Mapping[str, Tensor], places: Iterable[Sequence[float]]) -> DiagnosisRecord:
    """The diagnosis of a round that is pictured, rounded.

    Args:
        diagnosis: Of the defense.
        got: What :func:`_on_host` has of it: ``points``, ``kept``, and ``root`` if there is one.
        places: Position of each update, two numbers, NaN for those that were screened.
    """

    def rows(x: Tensor, digits: int) -> Iterable[tuple[float | None, ...]]:
        return (tuple(metrics.finite(round(v, digits)) for v in row) for row in x.tolist())

    root = got.get("root")
    return DiagnosisRecord(
        # components of masks are numbers of parameters, for which one digit is enough
        coordinates=tuple((x, y) for x, y in rows(got["points"], 1)),
        root=None if root is None else (round(float(root[0]), 1), round(float(root[1]), 1)),
        layers=diagnosis.layers,
        kept=tuple(rows(got["kept"], 2)) if diagnosis.layers else (),
        reasons=diagnosis.reasons,
        updates=tuple((x, y) for x, y in (_rounded(place, _POSITION_DIGITS) for place in places)),
    )
