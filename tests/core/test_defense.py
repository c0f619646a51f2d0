"""Results over the clients that took part, put back over all clients of the round."""

import torch

from fedsieve.core.defense import Aggregate, Detection, Diagnosis, scatter

ROWS = torch.tensor([True, False, True, False])
NAN = torch.nan


def diagnosis(n: int) -> Diagnosis:
    return Diagnosis(
        coordinates=torch.arange(2.0 * n).view(n, 2),
        root=torch.tensor([1.0, 2.0]),
        layers=("a", "b", "c"),
        kept=torch.full((n, 3), 0.5),
        reasons=tuple(f"reason {k}" for k in range(n)),
    )


def same(found: torch.Tensor | None, expected: list[object]) -> None:
    assert found is not None
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), equal_nan=True, rtol=0, atol=0)


def test_scatter() -> None:
    same(scatter(torch.tensor([1.0, 2.0]), ROWS, NAN), [1, NAN, 2, NAN])
    same(scatter(torch.tensor([[1, 2], [3, 4]]), ROWS, 0), [[1, 2], [0, 0], [3, 4], [0, 0]])
    same(scatter(torch.tensor([True, False]), ROWS, False), [True, False, False, False])
    same(scatter(torch.zeros(0, 3), torch.zeros(2, dtype=torch.bool), 1.0), [[1] * 3] * 2)


def test_aggregate() -> None:
    update, weights = torch.ones(5), torch.tensor([0.25, 0.75])
    whole = Aggregate(
        update, weights, torch.tensor([True, False]), torch.tensor([3.0, 4.0]), state=7, diagnosis=diagnosis(2)
    ).scattered(ROWS, score=9.0)
    assert whole.update is update
    assert whole.state == 7
    same(whole.weights, [0.25, 0, 0.75, 0])
    same(whole.accepted, [True, False, False, False])
    same(whole.scores, [3, 9, 4, 9])
    assert whole.diagnosis is not None
    same(whole.diagnosis.coordinates, [[0, 1], [NAN] * 2, [2, 3], [NAN] * 2])
    assert whole.diagnosis.reasons == ("reason 0", "", "reason 1", "")
    same(Aggregate(update, weights, scores=weights).scattered(ROWS).scores, [0.25, NAN, 0.75, NAN])


def test_detection() -> None:
    whole = Detection(torch.tensor([True, False]), torch.tensor([3.0, 4.0]), "state", diagnosis(2)).scattered(
        ROWS, score=1.0, reason="overflow"
    )
    same(whole.accepted, [True, False, False, False])
    same(whole.scores, [3, 1, 4, 1])
    assert whole.state == "state"
    assert whole.diagnosis is not None
    same(whole.diagnosis.kept, [[0.5] * 3, [NAN] * 3] * 2)
    assert whole.diagnosis.reasons == ("reason 0", "overflow", "reason 1", "overflow")
    assert whole.diagnosis.layers == ("a", "b", "c")


def test_what_is_missing_stays_missing() -> None:
    aggregate = Aggregate(torch.ones(5), torch.tensor([0.5, 0.5])).scattered(ROWS)
    detection = Detection(None).scattered(ROWS)
    assert (aggregate.accepted, aggregate.scores, aggregate.diagnosis) == (None, None, None)
    assert (detection.accepted, detection.scores, detection.diagnosis) == (None, None, None)


def test_all_rows_change_nothing() -> None:
    everything = torch.ones(2, dtype=torch.bool)
    for result in (Aggregate(torch.ones(5), torch.ones(2)), Detection(torch.ones(2, dtype=torch.bool)), diagnosis(2)):
        assert result.scattered(everything) is result  # type: ignore[attr-defined]
