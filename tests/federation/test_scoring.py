"""Scores of a final model, against scikit-learn and by hand."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score, precision_score, recall_score, roc_auc_score
from torch import Tensor

from fedsieve.core.scores import Scored
from fedsieve.federation import scoring
from fedsieve.federation.scoring import aurocs, calibration_error, final_scores

NAN, INF = float("nan"), float("inf")


def drawn(k: int, c: int, seed: int) -> tuple[Tensor, Tensor]:
    """Logits, some of them alike, and classes."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(k, c, generator=random).mul(2).round() / 2
    return logits, torch.randint(c, (k,), generator=random)


class TestAgainstScikitLearn:
    @settings(deadline=None)
    @given(st.integers(1, 40), st.integers(2, 5), st.integers(0, 10**6))
    def test_all(self, k: int, c: int, seed: int) -> None:
        logits, y = drawn(k, c, seed)
        found, truth, predicted = final_scores(logits, y, 7), y.numpy(), logits.argmax(dim=1).numpy()
        p, there = torch.softmax(logits.double(), dim=1).numpy(), np.unique(truth)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes that one of both has not
            assert found.rounds == 7
            assert found.test.n == k
            assert found.test.accuracy == pytest.approx(np.mean(truth == predicted), abs=1e-6)
            assert found.test.balanced_accuracy == pytest.approx(balanced_accuracy_score(truth, predicted), abs=1e-6)
            assert found.test.macro_f1 == pytest.approx(f1_score(truth, predicted, average="macro"), abs=1e-6)
            areas = [roc_auc_score(truth == j, p[:, j]) for j in there] if len(there) > 1 else []
            assert found.test.auroc == (pytest.approx(np.mean(areas), abs=1e-6) if areas else None)
            for j, one in enumerate(found.classes):
                assert (one.name, one.n) == (str(j), int((truth == j).sum()))
                for value, score in ((one.recall, recall_score), (one.precision, precision_score)):
                    assert value is None or value == pytest.approx(
                        score(truth == j, predicted == j, zero_division=0), abs=1e-6
                    )
                assert (one.recall is None) == (j not in there)
                assert (one.precision is None) == (j not in predicted)
                assert one.auroc == (
                    pytest.approx(areas[list(there).index(j)], abs=1e-6) if j in there and areas else None
                )

    def test_as_its_one_versus_rest(self) -> None:
        logits, y = drawn(200, 4, 0)
        p = torch.softmax(logits.double(), dim=1).numpy()
        expected = roc_auc_score(y.numpy(), p, multi_class="ovr", average="macro")
        assert final_scores(logits, y, 1).test.auroc == pytest.approx(expected, abs=1e-6)


class TestByHand:
    def test_calibration_error(self) -> None:
        p = np.array([[0.95, 0.05], [0.95, 0.05], [0.55, 0.45], [0.3, 0.7]])
        right = np.array([True, False, False, True])
        # bins of 1/15: both of 0.95 in one, each of the others alone
        expected = (abs(1 - 1.9) + abs(0 - 0.55) + abs(1 - 0.7)) / 4
        assert calibration_error(p, right) == pytest.approx(expected)

    def test_calibration_of_extremes(self) -> None:
        assert calibration_error(np.array([[1.0, 0.0]] * 3), np.array([True] * 3)) == 0
        assert calibration_error(np.array([[1.0, 0.0]] * 4), np.array([True, False, False, False])) == 0.75
        assert np.isnan(calibration_error(np.array([[NAN, NAN]]), np.array([False])))

    def test_bins_end_at_their_upper_bound(self) -> None:
        # 0.6 is the end of bin 9 of 15, 0.61 lies in bin 10
        two = calibration_error(np.array([[0.6, 0.4], [0.61, 0.39]]), np.array([True, False]))
        assert two == pytest.approx((0.4 + 0.61) / 2)

    def test_aurocs(self) -> None:
        p = np.array([[0.1], [0.4], [0.4], [0.8]])
        # class 0 is the first and the third: (0.1 < 0.4, 0.1 < 0.8), (0.4 = 0.4, 0.4 < 0.8)
        assert aurocs(np.hstack([p, 1 - p]), np.array([0, 1, 0, 1])).tolist() == [0.125, 0.125]
        assert np.isnan(aurocs(np.hstack([p, 1 - p]), np.zeros(4, int))).all()

    def test_outputs_that_are_not_finite_are_wrong(self) -> None:
        logits = torch.tensor([[5.0, 0.0], [NAN, 0.0], [0.0, 5.0], [INF, 0.0]])
        found = final_scores(logits, torch.tensor([0, 0, 1, 1]), 1)
        assert found.test == Scored(4, 0.5, 0.5, None, 0.666667, None)
        assert [(c.recall, c.precision, c.auroc) for c in found.classes] == [(0.5, 1, None), (0.5, 1, None)]

    def test_nothing_but_such_outputs(self) -> None:
        found = final_scores(torch.full((3, 2), NAN), torch.tensor([0, 1, 1]), 1)
        assert found.test == Scored(3, 0.0, 0.0, None, 0.0, None)

    def test_no_samples(self) -> None:
        found = final_scores(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), 1)
        assert found.test == Scored(0, None, None, None, None, None)
        assert [(c.n, c.recall, c.f1) for c in found.classes] == [(0, None, None)] * 2

    def test_names(self) -> None:
        found = final_scores(torch.eye(3), torch.arange(3), 1, classes=("a", "b"))
        assert [c.name for c in found.classes] == ["a", "b", "2"]


class TestClients:
    def test_each_as_if_alone(self) -> None:
        logits, y = drawn(60, 3, 1)
        clients = torch.arange(60) % 4 - 1  # those of -1 are nobody's
        found = final_scores(logits, y, 1, clients=clients, names=("Mitte", "", "St. Anna"))
        assert [(c.client, c.name) for c in found.clients] == [(0, "Mitte"), (1, ""), (2, "St. Anna")]
        for one in found.clients:
            own = clients == one.client
            assert one.scores == final_scores(logits[own], y[own], 1).test
            assert one.scores.n == 15

    def test_one_class_only(self) -> None:
        found = final_scores(torch.tensor([[1.0, 0], [1, 0], [0, 1]]), torch.tensor([0, 0, 0]), 1)
        assert (found.test.accuracy, found.test.auroc) == (pytest.approx(2 / 3, abs=1e-6), None)
        assert found.test.balanced_accuracy == pytest.approx(2 / 3, abs=1e-6)

    def test_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(scoring, "MOST_CLIENTS", 2)
        found = final_scores(torch.eye(4), torch.arange(4), 1, clients=torch.tensor([3, -1, 2, 0]))
        assert [c.client for c in found.clients] == [0, 2]


class TestSimulation:
    def test_accuracy_is_that_of_the_last_record(self, doubles: Any) -> None:
        from tests.federation.conftest import TINY, simulation

        sim = simulation(TINY)
        *_, (state, record) = sim.rounds()
        found = sim.scores(state)
        assert found.test.accuracy == pytest.approx(record.test_accuracy, abs=1e-6)
        assert found.test.n == len(sim.holdings.test.y)
        assert (found.rounds, found.clients) == (4, ())
        assert sum(c.n for c in found.classes) == found.test.n

    def test_personal_batch_norm(self, doubles: Any) -> None:
        from tests.federation.conftest import TINY, simulation

        settings = {**TINY, "model": "doubles:Normed", "local": {"batch_size": 10, "batch_norm": "local"}}
        sim = simulation(settings)
        *_, (state, record) = sim.rounds()
        assert sim.scores(state).test.accuracy == pytest.approx(record.test_accuracy, abs=1e-6)
