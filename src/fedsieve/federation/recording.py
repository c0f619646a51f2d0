"""Makes the record of a round from the server's decision and the ground truth."""

from collections.abc import Sequence

from jaxtyping import Bool, Float
from torch import Tensor

from fedsieve.core import metrics
from fedsieve.core.clustering import gram_components, one_blas_thread
from fedsieve.core.defense import Diagnosis, Updates
from fedsieve.core.linalg import centred_gram
from fedsieve.core.records import DiagnosisRecord, RoundRecord
from fedsieve.federation.evaluation import Scores
from fedsieve.federation.server import Decision


def round_record(
    round: int,
    updates: Updates,
    malicious: Sequence[int],
    decision: Decision,
    scores: Scores,
) -> RoundRecord:
    """The record of one round, without its wall times.

    Args:
        round: Counts from 0.
        updates: What the clients sent.
        malicious: Ids of the malicious clients, as the server sees them; those that did not take part may be missing.
        decision: Of the server.
        scores: Of the evaluation after the round.
    """
    clients, result = updates.client_ids.tolist(), decision.aggregate
    here = [i for i in clients if i in malicious]
    rejected = None
    if result.accepted is not None:
        rejected = tuple(i for i, ok in zip(clients, result.accepted.tolist(), strict=True) if not ok)
    diagnosis = None
    if result.diagnosis is not None:
        diagnosis = _diagnosis(result.diagnosis, updates.matrix, ~decision.screened)
    return RoundRecord(
        round=round,
        clients=tuple(clients),
        malicious=tuple(here),
        rejected=rejected,
        screened=tuple(i for i, reason in zip(clients, decision.reasons, strict=True) if reason),
        screened_reasons=tuple(reason for reason in decision.reasons if reason),
        weights=tuple(metrics.finite(w) for w in result.weights.tolist()),
        scores=None if result.scores is None else tuple(metrics.finite(s) for s in result.scores.tolist()),
        update_norm=metrics.finite(float(result.update.double().norm())),
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


def _diagnosis(diagnosis: Diagnosis, matrix: Float[Tensor, "n d"], finite: Bool[Tensor, " n"]) -> DiagnosisRecord:
    """The diagnosis rounded for storage, and each update's position along the updates' two principal components."""

    def rows(x: Tensor, digits: int) -> list[tuple[float | None, ...]]:
        return [tuple(metrics.finite(round(v, digits)) for v in row) for row in x.tolist()]

    sent = matrix[finite]
    with one_blas_thread():
        plane = gram_components(centred_gram(sent, finite[finite]), 2)
    raw: list[tuple[float | None, float | None]] = [(None, None)] * len(matrix)
    for row, (x, y) in zip(finite.nonzero().squeeze(1).tolist(), plane.tolist(), strict=True):
        raw[row] = (metrics.finite(float(f"{x:.4g}")), metrics.finite(float(f"{y:.4g}")))
    root = diagnosis.root
    return DiagnosisRecord(
        # components of masks are numbers of parameters, for which one digit is enough
        coordinates=tuple((x, y) for x, y in rows(diagnosis.coordinates, 1)),
        root=None if root is None else (round(float(root[0]), 1), round(float(root[1]), 1)),
        layers=diagnosis.layers,
        kept=tuple(rows(diagnosis.kept, 3)),
        reasons=diagnosis.reasons,
        updates=tuple(raw),
    )
