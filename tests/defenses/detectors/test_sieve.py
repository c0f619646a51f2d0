"""What Sieve decides about planted attackers in one round and over rounds, its reasons, and its parameters."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fedsieve.aggregators.chain import Chain
from fedsieve.aggregators.mean import Mean
from fedsieve.core.defense import Detection
from fedsieve.core.errors import MissingDataError, ParameterError
from fedsieve.detectors import sieve
from fedsieve.detectors.sieve import Sieve
from fedsieve.detectors.sieve.history import estimates
from fedsieve.federation.clients import ClientData, LocalTraining, Trainer
from fedsieve.federation.root import RootClient
from fedsieve.models.flat import FlatModel
from fedsieve.models.mlp import MLP


def detect(make: SimpleNamespace, fed: SimpleNamespace, state: Any = None, round: int = 0) -> Detection:
    return Sieve().detect(fed.updates, make.view(fed.updates, root=fed.root, state=state, round=round))


def accepted(found: Detection) -> list[bool]:
    assert found.accepted is not None
    return found.accepted.tolist()


class TestDecision:
    @pytest.mark.parametrize("share", [0.2, 0.6, 0.8])
    @pytest.mark.parametrize("n", [20, 30])
    @pytest.mark.parametrize("factor", [-1, -1000])
    @pytest.mark.parametrize("seed", range(3))
    def test_planted_attackers(self, make: SimpleNamespace, share: float, n: int, factor: float, seed: int) -> None:
        fed = make.federation(n, round(share * n), factor, seed=seed)
        found = detect(make, fed)
        assert accepted(found) == (~fed.malicious).tolist()
        assert found.scores is not None
        assert found.scores[fed.malicious].min() > found.scores[~fed.malicious].max()

    @pytest.mark.parametrize("share", [0.2, 0.6, 0.8])
    def test_attackers_with_equal_updates(self, make: SimpleNamespace, share: float) -> None:
        fed = make.federation(20, round(share * 20), 1)
        fed.updates.matrix[fed.malicious] = -fed.root.sent
        assert accepted(detect(make, fed)) == (~fed.malicious).tolist()

    @pytest.mark.parametrize("n", [2, 25, 100])
    @pytest.mark.parametrize("seed", range(5))
    def test_without_attack_all_clients_stay(self, make: SimpleNamespace, seed: int, n: int) -> None:
        assert all(accepted(detect(make, make.federation(n, 0, 1, seed=seed))))

    def test_equal_updates_of_all_clients(self, make: SimpleNamespace) -> None:
        fed = make.federation(12, 0, 1)
        same = SimpleNamespace(updates=make.updates(fed.root.sent.expand(12, -1).clone()), root=fed.root)
        assert all(accepted(detect(make, same)))

    def test_all_clients_malicious(self, make: SimpleNamespace) -> None:
        fed = make.federation(20, 20, -1)
        assert not any(accepted(detect(make, fed)))
        result = Chain((Sieve(),), Mean())(fed.updates, make.view(fed.updates, root=fed.root))
        assert not result.update.any()
        assert not result.weights.any()
        assert result.accepted is not None
        assert not result.accepted.any()
        assert result.diagnosis is not None

    @pytest.mark.parametrize(("m", "factor"), [(0, 1), (1, -1000)])
    def test_one_client(self, make: SimpleNamespace, m: int, factor: float) -> None:
        assert accepted(detect(make, make.federation(1, m, factor))) == [m == 0]

    def test_root_model_is_no_client(self, make: SimpleNamespace) -> None:
        fed = make.federation(20, 4, -1)
        assert len(accepted(detect(make, fed))) == 20
        result = Chain((Sieve(),), Mean())(fed.updates, make.view(fed.updates, root=fed.root))
        torch.testing.assert_close(result.update, fed.benign_mean)

    def test_order_of_clients_is_irrelevant(self, make: SimpleNamespace) -> None:
        for seed in range(5):
            fed = make.federation(20, 8, -1, noise=0.2, seed=seed)
            order = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
            moved = SimpleNamespace(updates=make.updates(fed.updates.matrix[order]), root=fed.root)
            one, other = detect(make, fed).accepted, detect(make, moved).accepted
            assert one is not None
            assert other is not None
            assert torch.equal(other, one[order])

    @pytest.mark.parametrize("factor", [1e10, 1e30])
    def test_one_huge_update_is_rejected(self, make: SimpleNamespace, factor: float) -> None:
        # finite in float32, but so large that the gradient of a network's loss is not
        torch.manual_seed(0)
        model, start = FlatModel.of(MLP((20,), 5, hidden=(10,)))
        x = torch.randn(240, 20, generator=torch.Generator().manual_seed(0))
        y = x[:, :5].argmax(dim=1)
        trainer = Trainer(model, LocalTraining(0.1, 10, 1), seed=0)
        cohort = {i: ClientData(x[i * 16 : i * 16 + 16], y[i * 16 : i * 16 + 16]) for i in range(12)}
        rows = trainer.updates(start, cohort, 0)
        rows[0] = factor * torch.randn(len(start), generator=torch.Generator().manual_seed(2))
        u = replace(make.updates(rows), layout=model.layout)
        root = RootClient(trainer, ClientData(x[192:], y[192:]), 5, start, 0)
        found = Sieve().detect(u, replace(make.view(u, root=root), global_params=start))
        assert accepted(found) == [False] + [True] * 11

    def test_huge_running_statistics_are_rejected(self, make: SimpleNamespace) -> None:
        fed = make.federation(12, 0, 1, statistics=20)
        fed.updates.statistics[:2] *= 1000
        found = detect(make, fed)
        assert accepted(found) == [False] * 2 + [True] * 10
        assert found.diagnosis is not None
        assert "running statistics" in found.diagnosis.reasons[0]


class TestHistory:
    def test_measurements_add_up_over_rounds(self, make: SimpleNamespace) -> None:
        state, found = None, []
        target = make.federation(10, 0, 1).root.target
        for k in range(25):
            g = torch.Generator().manual_seed(1000 + k)
            x = 0.1 * target + 0.3 * torch.randn(10, 240, generator=g)
            x[:2] -= 0.2 * target
            fed = SimpleNamespace(updates=make.updates(x), root=make.Quadratic(target, x[-1], 0.3))
            result = detect(make, fed, state, k)
            state = result.state
            found.append(accepted(result))
        assert found[0] == [True] * 10
        assert found[-1] == [False] * 2 + [True] * 8

    def test_belongs_to_clients_not_to_rows(self, make: SimpleNamespace) -> None:
        fed, state = make.federation(8, 2, -1), None
        for k in range(10):
            state = detect(make, fed, state, k).state
        # then the attackers send noise that no single round rejects, and all clients come in other rows
        x = make.federation(8, 0, 1).updates.matrix
        x[:2] = 0.03 * torch.randn(2, 240, generator=torch.Generator().manual_seed(3))
        order = torch.tensor([4, 1, 7, 0, 2, 5, 3, 6])
        moved = SimpleNamespace(updates=make.updates(x[order], fed.updates.client_ids[order]), root=fed.root)
        assert accepted(detect(make, moved, state, 10)) == [True, False, True, False, True, True, True, True]
        assert all(accepted(detect(make, moved, None, 10)))

    def test_old_state_is_unchanged(self, make: SimpleNamespace) -> None:
        fed = make.federation(8, 2, -1)
        state = detect(make, fed).state
        before = {part: {k: torch.as_tensor(v).clone() for k, v in state[part].items()} for part in state}
        for _ in range(2):
            detect(make, fed, state, 1)
        assert set(state) == {"history", "references"}
        for part, values in before.items():
            assert all(torch.equal(torch.as_tensor(state[part][name]), value) for name, value in values.items())


class TestScores:
    """The docstring of ``_scores`` in plain loops, one round of two parts and running statistics, three of one part."""

    BOUNDS = (
        [-0.3, 0.2, -1.0, 0.1, -0.2, 0.4],
        [0.05, 0.6, 0.3, 0.16, 0.31, 0.0],
        [0.0, 4.0, 9.0, -0.5, 0.2, 0.46],
        [99.0, 700.0, 700.0, 1.0, 1.0, 1.0],
        [-99.0, -50.0, -50.0, -1.0, -1.0, -1.0],
    )

    @pytest.mark.parametrize("complete", [True, False])
    @pytest.mark.parametrize("statistics", [True, False])
    @pytest.mark.parametrize(("parts", "rounds"), [(1, 1.0), (3, 1.0), (2, 2.5)])
    @pytest.mark.parametrize("shifted", [2.0, 0.1, 0.0])
    def test_against_loops(self, complete: bool, statistics: bool, parts: int, rounds: float, shifted: float) -> None:
        of_classes = [[0.1, 0.05, -0.3], [-0.2, 0.3, -0.1]]
        sums = {
            "negative_cosine": torch.tensor([row[:parts] for row in of_classes], dtype=torch.float64),
            "label_shifted": torch.tensor(shifted, dtype=torch.float64),
            "rounds": rounds,
        }
        rows = [row[: 2 + statistics] + row[3 : 3 + parts] for row in self.BOUNDS]
        found = Sieve()._scores(torch.tensor(rows, dtype=torch.float64), sums, complete)

        expected: dict[str, list[float]] = {name: [] for name in found}
        for row in rows:
            tolerated = max(0.2 * shifted / rounds, 0.05)
            expected["gradient alignment"].append(min(max(1 + row[0] / tolerated, 0), 100))
            expected["residual norm"].append(min(math.exp(min(row[1], 100)) / 1.75, 100))
            if statistics:
                expected["running statistics"].append(min(math.exp(min(row[2], 100)) / 1.75, 100))
            opposing = []
            for k in range(parts):
                limit = max(max(row[k] for row in of_classes) / rounds, 0) + (0.3 if k else 0.15)
                opposing.append(max(row[len(row) - parts + k] / limit, 0) * complete)
            expected["negative cosine"].append(opposing[0])
            if parts > 1:
                expected["negative cosine in a layer"].append(max(opposing[1:]))
        assert set(found) == {name for name, values in expected.items() if values}
        for name, values in expected.items():
            assert found[name].tolist() == pytest.approx(values), name

    @pytest.mark.parametrize("statistics", [0, 20])
    def test_prior_deviations(self, make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, statistics: int) -> None:
        seen = []

        def watched(history: Any, ids: torch.Tensor, prior: torch.Tensor) -> Any:
            seen.append(prior.sqrt().tolist())
            return estimates(history, ids, prior)

        monkeypatch.setattr(sieve, "estimates", watched)
        detect(make, make.federation(6, 0, 1, statistics=statistics))
        cosine, norm = 0.2, 0.35
        parts = len(seen[0]) - (3 if statistics else 2)
        assert parts >= 1
        assert seen == [pytest.approx([cosine, norm, *([norm] if statistics else []), *([cosine] * parts)])]


class TestDiagnosis:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_type(self, make: SimpleNamespace, dtype: torch.dtype) -> None:
        found = detect(make, make.federation(6, 0, 1, dtype=dtype))
        assert found.diagnosis is not None
        assert found.diagnosis.root is not None
        assert found.scores is not None
        seen = (found.scores, found.diagnosis.coordinates, found.diagnosis.kept, found.diagnosis.root)
        assert [tensor.dtype for tensor in seen] == [dtype] * 4

    def test_fields(self, make: SimpleNamespace) -> None:
        fed = make.federation(20, 6, -1)
        found = detect(make, fed)
        seen = found.diagnosis
        assert seen is not None
        assert seen.coordinates.shape == (20, 2)
        assert seen.root is not None
        assert seen.layers == ("body", "out")
        assert seen.kept.shape == (20, 2)
        assert ((seen.kept >= 0) & (seen.kept <= 1)).all()
        assert [not reason for reason in seen.reasons] == accepted(found)
        # malicious masks keep less of every layer, and their positions are apart from the others
        assert (seen.kept[fed.malicious].amax(dim=0) < seen.kept[~fed.malicious].amin(dim=0)).all()
        middle = seen.coordinates[fed.malicious].mean(dim=0)
        distance = (seen.coordinates - middle).norm(dim=1)
        assert distance[fed.malicious].max() < distance[~fed.malicious].min()

    def test_reasons(self, make: SimpleNamespace) -> None:
        fed = make.federation(20, 4, 1)
        x = fed.updates.matrix
        x[0] *= -1
        x[1] *= 1000
        x[2] = x[3] = x[3] + 0.1
        seen = detect(make, fed).diagnosis
        assert seen is not None
        assert "gradient alignment" in seen.reasons[0]
        assert "residual norm" in seen.reasons[1]
        assert seen.reasons[2] == seen.reasons[3]
        assert "near-duplicate" in seen.reasons[2].split(", ")
        assert set(seen.reasons[4:]) == {""}


class TestErrors:
    def test_no_root_data(self, make: SimpleNamespace) -> None:
        u = make.updates([[1.0], [2.0]])
        with pytest.raises(MissingDataError) as error:
            Sieve().detect(u, make.view(u))
        assert str(error.value) == "sieve needs root data, and the server has none"

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"gradient_alignment": -0.1}, "gradient_alignment must be in [0, 1), got -0.1"),
            ({"negative_cosine": 1.0}, "negative_cosine must be in [0, 1), got 1.0"),
            ({"near_duplicates": math.nan}, "near_duplicates must be in [0, 1), got nan"),
            ({"memory": 1.0}, "memory must be in [0, 1), got 1.0"),
            ({"residual_norm": 0.0}, "residual_norm must be positive and finite, got 0.0"),
            ({"residual_norm": math.inf}, "residual_norm must be positive and finite, got inf"),
            ({"error_rate": 0.5}, "error_rate must be in (0, 0.5), got 0.5"),
            ({"error_rate": 0.0}, "error_rate must be in (0, 0.5), got 0.0"),
            ({"forget_after": 0}, "forget_after must be at least 1, got 0"),
        ],
    )
    def test_out_of_range(self, parameters: dict[str, Any], message: str) -> None:
        with pytest.raises(ParameterError) as error:
            Sieve(**parameters)
        assert str(error.value) == f"sieve: {message}"
