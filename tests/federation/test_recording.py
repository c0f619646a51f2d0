"""The record of a round."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from fedsieve.core.defense import Aggregate, Diagnosis, Updates
from fedsieve.core.layout import Layout
from fedsieve.core.seeding import stream
from fedsieve.federation.evaluation import Scores
from fedsieve.federation.positions import MOST, Cloud
from fedsieve.federation.recording import round_record
from fedsieve.federation.server import Decision
from tests.federation.conftest import DIGITS, records_of


def decision(screened: list[bool], **aggregate: Any) -> Decision:
    n = len(screened)
    found = {"update": torch.tensor([3.0, 4.0]), "weights": torch.full((n,), 1 / n), **aggregate}
    return Decision(Aggregate(**found), tuple("not finite" * out for out in screened), True, "")


class TestRoundRecord:
    updates = Updates(torch.ones(4, 2), torch.tensor([9, 3, 5, 7]), Layout.of({"w": torch.zeros(2)}))

    def test_fields(self) -> None:
        accepted, scores = torch.tensor([True, False, False, True]), torch.tensor([0.5, 2.0, torch.nan, torch.inf])
        decided = decision([False, False, True, False], accepted=accepted, scores=scores)
        record = round_record(6, self.updates, (5, 1, 9), decided, Scores(0.75, 1.5, 0.25, 0.5))
        assert (record.round, record.clients, record.malicious) == (6, (9, 3, 5, 7), (9, 5))
        assert (record.rejected, record.screened, record.screened_reasons) == ((3, 5), (5,), ("not finite",))
        assert record.weights == (0.25,) * 4
        assert record.scores == (0.5, 2.0, None, None)
        assert record.update_norm == pytest.approx(5.0)
        assert (record.test_accuracy, record.test_loss) == (0.75, 1.5)
        assert (record.attack_success_rate, record.attack_success_rate_all) == (0.25, 0.5)
        assert (record.false_positive_rate, record.false_negative_rate) == (0.5, 0.5)
        assert (record.applied, record.note, record.diagnosis, record.seconds) == (True, "", None, {})

    def test_large_ids(self) -> None:
        ids = (2**53 + 1, 2**62 + 1, 0, 5)
        record = round_record(
            0, Updates(torch.ones(4, 2), torch.tensor(ids), self.updates.layout), (5,), decision([False] * 4), Scores()
        )
        assert (record.clients, record.malicious) == (ids, (5,))

    def test_digits(self) -> None:
        weights = torch.tensor([1, 2, 3, 5]) / 11
        scores = torch.tensor([123456.7, -0.000123456, 1e30, 0])
        record = round_record(0, self.updates, (), decision([False] * 4, weights=weights, scores=scores), Scores())
        assert record.weights == (0.09090909, 0.1818182, 0.2727273, 0.4545455)
        assert record.scores == (123460, -0.00012346, 1e30, 0)

    def test_without_decisions(self) -> None:
        record = round_record(0, self.updates, (5,), decision([False] * 4), Scores())
        assert (record.rejected, record.scores) == (None, None)
        assert (record.false_positive_rate, record.false_negative_rate) == (None, None)

    def test_numbers_that_are_not_finite(self) -> None:
        decided = decision(
            [False] * 4, update=torch.tensor([torch.inf, 0]), weights=torch.tensor([torch.nan, 0.5, 0.5, 0])
        )
        record = round_record(0, self.updates, (), decided, Scores())
        assert record.update_norm is None
        assert record.weights == (None, 0.5, 0.5, 0)

    def test_a_diagnosis_is_rounded(self) -> None:
        found = Diagnosis(
            torch.tensor([[1.26, torch.nan]] * 4), torch.tensor([0.04, 2.0]), ("one",), torch.full((4, 1), 1 / 3),
            ("late", "", "", ""),
        )  # fmt: skip
        record = round_record(0, self.updates, (), decision([False] * 4, diagnosis=found), Scores()).diagnosis
        assert record is not None
        assert record.coordinates == ((1.3, None),) * 4
        assert record.root == (0.0, 2.0)
        assert record.kept == ((0.33,),) * 4
        assert (record.layers, record.reasons) == (("one",), ("late", "", "", ""))


class TestPositionsOfUpdates:
    @staticmethod
    def recorded(matrix: Tensor) -> list[tuple[float | None, float | None]]:
        n, d = matrix.shape
        seen = Diagnosis(matrix.new_zeros(n, 2), None, ("one",), matrix.new_ones(n, 1), ("",) * n)
        decided = decision((~torch.isfinite(matrix).all(dim=1)).tolist(), diagnosis=seen)
        updates = Updates(matrix, torch.arange(n), Layout.of({"w": torch.zeros(d)}))
        found = round_record(0, updates, (), decided, Scores()).diagnosis
        assert found is not None
        assert found.updates is not None
        return list(found.updates)

    def test_are_along_their_principal_components(self) -> None:
        matrix = torch.randn(9, 40, generator=stream(0, "test")) * 1e-3
        matrix[4, 7] = torch.nan
        found = self.recorded(matrix)
        assert found[4] == (None, None)
        finite = [k for k in range(9) if k != 4]
        ours = np.array([found[k] for k in finite], dtype=float)
        theirs = PCA(2).fit_transform(matrix[finite].double().numpy())
        assert np.abs(ours) == pytest.approx(np.abs(theirs), rel=1e-3, abs=1e-7)
        assert np.abs((ours * theirs).sum(axis=0)) == pytest.approx((theirs**2).sum(axis=0), rel=1e-3)

    def test_of_huge_updates_and_without_finite_ones(self) -> None:
        matrix = torch.zeros(4, 3)
        matrix[0] = 3e38
        found = self.recorded(matrix)
        assert found[1] == found[2] == found[3]
        assert found[0][0] != found[1][0]
        assert all(x is not None for pair in found for x in pair)
        assert self.recorded(torch.full((2, 3), torch.nan)) == [(None, None)] * 2
        assert self.recorded(torch.ones(1, 3)) == [(0, 0)]

    def test_of_tiny_updates(self) -> None:
        matrix = torch.randn(9, 40, generator=stream(0, "test"))
        for (x, y), (large_x, large_y) in zip(self.recorded(matrix * 2**-40), self.recorded(matrix), strict=True):
            assert None not in (x, y, large_x, large_y)
            assert (x * 2**40, y * 2**40) == pytest.approx((large_x, large_y), rel=1e-3)

    def test_where_inner_products_overflow(self) -> None:
        assert self.recorded(torch.eye(3, dtype=torch.float64) * 1e200) == [(None, None)] * 3

    def test_are_in_rounds_whose_number_is_a_square(self) -> None:
        records = records_of(
            DIGITS, attack="min-max", defense={"name": "skymask", "mask_steps": 3}, malicious=2, rounds=5
        )
        for record, there in zip(records, [True, False, False, True, False], strict=True):
            seen = record.diagnosis
            assert seen is not None
            assert [reason != "" for reason in seen.reasons] == [i in (record.rejected or ()) for i in record.clients]
            if there:
                assert seen.root is not None
                assert seen.updates is not None
                assert len(seen.coordinates) == len(seen.kept) == len(seen.updates) == 8
                assert {len(seen.layers)} == set(map(len, seen.kept))
            else:
                assert (seen.coordinates, seen.root, seen.layers, seen.kept, seen.updates) == ((), None, (), (), None)


class TestManyUpdates:
    def test_lie_along_components_of_some(self) -> None:
        directions, _ = torch.linalg.qr(torch.randn(500, 2, generator=stream(0, "test")))
        places = torch.randn(3 * MOST, 2, generator=stream(1, "test"), dtype=torch.float64)
        places[:, 0] *= 3
        x = (places @ directions.T.double()).float() + 7
        cloud = Cloud.of(x, round=0)
        assert len(set(cloud.rows)) == MOST == len(cloud.gram)
        found = cloud.positions(cloud.gram)
        # two-dimensional, so the distances are those of the updates whoever the components are computed from
        theirs = torch.cdist(places, places)
        torch.testing.assert_close(
            torch.cdist(torch.from_numpy(found), torch.from_numpy(found)), theirs, rtol=1e-4, atol=1e-4
        )
        assert found[cloud.rows].mean(axis=0) == pytest.approx([0, 0], abs=1e-6)
        assert found[cloud.rows].T @ found[cloud.rows] == pytest.approx(
            np.diag((found[cloud.rows] ** 2).sum(axis=0)), abs=1e-2
        )
        assert found[:, 0].std() > 2 * found[:, 1].std()

    def test_components_that_are_missing(self) -> None:
        x = torch.zeros(2 * MOST, 3)
        assert not Cloud.of(x, 0).positions(Cloud.of(x, 0).gram).any()
        x[:, 1] = torch.arange(2 * MOST)
        found = Cloud.of(x, 0).positions(Cloud.of(x, 0).gram)
        assert np.abs(np.diff(found[:, 0])) == pytest.approx(1, rel=1e-4)
        assert not found[:, 1].any()

    def test_rows_are_drawn_by_round(self) -> None:
        x = torch.zeros(2 * MOST, 1)
        assert Cloud.of(x, 3).rows == Cloud.of(x, 3).rows != Cloud.of(x, 8).rows
