"""DeepSight, against the paper's algorithms as loops, and a case on which only it finds the attackers."""

import sys
from dataclasses import dataclass
from math import exp, inf, sqrt
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import HDBSCAN
from torch import Tensor, nn

from fedsieve.aggregators.deepsight import (
    DeepSight,
    accept_clusters,
    apart,
    deepsight,
    division_differences,
    ensemble,
    neups,
    output_updates,
    suspicious_updates,
    threshold_exceedings,
)
from fedsieve.aggregators.flame import FLAME
from fedsieve.core.defense import Aggregate, ServerView, Updates
from fedsieve.core.errors import MissingDataError, ParameterError
from fedsieve.core.layout import Layout

C, H = 5, 3  # classes, features
LAYOUT = Layout.of(
    {"body": torch.empty(4), "out.weight": torch.empty(C, H), "out.bias": torch.empty(C)},
    {"bn.running_mean": torch.empty(2)},
)


@dataclass(frozen=True)
class Net:
    """The output layer of ``layout`` on the sample."""

    layout: Layout = LAYOUT

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (H,)

    def logits(self, flat: Tensor, x: Tensor, /) -> Tensor:
        tensors = self.layout.unflatten(flat)
        return x @ tensors["out.weight"].T + tensors["out.bias"]


def softmax(logits: list[float]) -> list[float]:
    powers = [exp(v) for v in logits]
    return [p / sum(powers) for p in powers]


def predictions(flat: list[float], inputs: list[list[float]]) -> list[list[float]]:
    weight, bias = flat[4 : 4 + C * H], flat[4 + C * H : 4 + C * H + C]
    return [softmax([sum(weight[c * H + h] * x[h] for h in range(H)) + bias[c] for c in range(C)]) for x in inputs]


def cluster(table: list[list[float]]) -> list[int]:
    """HDBSCAN with the published names of its settings; no pair in these tests is at distance 0 except in votes."""
    model = HDBSCAN(min_cluster_size=2, min_samples=1, metric="precomputed", allow_single_cluster=True, copy=True)
    return [int(v) for v in model.fit(np.maximum(table, 1e-100)).labels_]


def votes(labels: list[int]) -> list[list[float]]:
    """distsFromClust."""
    n = len(labels)
    return [[float(i != j and (labels[i] == -1 or labels[i] != labels[j])) for j in range(n)] for i in range(n)]


def euclidean(rows: list[list[float]]) -> list[list[float]]:
    return [[sqrt(sum((v - w) ** 2 for v, w in zip(a, b, strict=True))) for b in rows] for a in rows]


def cosines(rows: list[list[float]]) -> list[list[float]]:
    lengths = [sqrt(sum(v * v for v in row)) for row in rows]
    products = [[sum(v * w for v, w in zip(a, b, strict=True)) for b in rows] for a in rows]
    n = range(len(rows))
    return [[max(0.0, 1 - products[i][j] / lengths[i] / lengths[j]) if i != j else 0.0 for j in n] for i in n]


def published(updates: list[list[float]], start: list[float], noises: list[list[list[float]]]) -> tuple[Any, ...]:
    """Algorithms 1 to 3: which clients are accepted, and the mean of their updates, clipped to the median length."""
    n = len(updates)
    shares, exceedings, biases = [], [], []
    for u in updates:
        bias = u[4 + C * H : 4 + C * H + C]
        energy = [abs(bias[c]) + sum(abs(u[4 + c * H + h]) for h in range(H)) for c in range(C)]
        total = sum(e**2 for e in energy)
        shares.append([e**2 / total for e in energy])
        limit = max(0.01, 1 / C) * max(shares[-1])
        exceedings.append(sum(1 for v in shares[-1] if v > limit))
        biases.append(bias)
    ranked = sorted(exceedings)
    boundary = (ranked[n // 2] + ranked[(n - 1) // 2]) / 2 / 2
    suspicious = [e <= boundary for e in exceedings]
    tables = []
    for inputs in noises:
        before = predictions(start, inputs)
        ddifs = []
        for u in updates:
            after = predictions([g + v for g, v in zip(start, u, strict=True)], inputs)
            pairs = list(zip(after, before, strict=True))
            ddifs.append([sum(a[c] / b[c] for a, b in pairs) / len(inputs) for c in range(C)])
        tables.append(votes(cluster(euclidean(ddifs))))
    a, b = votes(cluster(cosines(biases))), votes(cluster(euclidean(shares)))
    pairs = [[(i, j) for j in range(n)] for i in range(n)]
    merged = [[(a[i][j] + b[i][j] + sum(t[i][j] for t in tables) / len(tables)) / 3 for i, j in row] for row in pairs]
    labels = cluster(merged)
    accepted = []
    for i in range(n):
        members = [j for j in range(n) if labels[j] == labels[i]] if labels[i] >= 0 else [i]
        accepted.append(sum(suspicious[j] for j in members) / len(members) < 1 / 3)
    chosen = [i for i in range(n) if accepted[i]]
    mean = [0.0] * LAYOUT.n_parameters
    lengths = [sqrt(sum(v**2 for v in u[: LAYOUT.n_parameters])) for u in updates]
    order = sorted(lengths)
    bound = (order[n // 2] + order[(n - 1) // 2]) / 2
    for i in chosen:
        for k in range(LAYOUT.n_parameters):
            mean[k] += updates[i][k] * min(1, bound / lengths[i]) / len(chosen)
    return accepted, mean, exceedings


def seen(start: Tensor, network: Any = None, seed: int = 0) -> ServerView:
    return ServerView(0, 0, torch.Generator().manual_seed(seed), start, network=Net() if network is None else network)


@given(seed=st.integers(0, 2**32), n=st.integers(2, 9), few=st.integers(0, 4))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_against_the_paper(seed: int, n: int, few: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, LAYOUT.size, generator=g, dtype=torch.float64)
    x[:few, 4 : 4 + 4 * H] *= 0.05  # these move the last class's neuron only
    x[:few, 4 + C * H : 4 + C * H + 4] *= 0.05
    start = torch.randn(LAYOUT.size, generator=g, dtype=torch.float64)
    found = DeepSight(seeds=2, samples=4)(Updates(x, torch.arange(n), LAYOUT), seen(start, seed=seed))
    again = torch.Generator().manual_seed(seed)
    noises = [torch.rand(4, H, generator=again).double().tolist() for _ in range(2)]
    accepted, mean, exceedings = published(x.tolist(), start.tolist(), noises)
    assert found.accepted is not None
    assert found.scores is not None
    assert found.accepted.tolist() == accepted
    torch.testing.assert_close(found.update, torch.tensor(mean, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.scores, 1 - torch.tensor(exceedings, dtype=torch.float64) / C)


def backdoored(n: int, m: int, dtype: torch.dtype = torch.float32) -> Updates:
    """Benign clients move every class's neuron, the first ``m`` mostly one; all are as long and go the same way."""
    g = torch.Generator().manual_seed(1)
    x = 1 + 0.1 * torch.randn(n, LAYOUT.size, generator=g, dtype=torch.float64)
    x[:m, 4 : 4 + (C - 1) * H] *= 0.02
    x[:m, 4 + C * H : 4 + C * H + C - 1] *= 0.02
    x[:, : LAYOUT.n_parameters] /= x[:, : LAYOUT.n_parameters].norm(dim=1, keepdim=True)
    return Updates(x.to(dtype), torch.arange(n), LAYOUT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_backdoored_clients_are_found(dtype: torch.dtype) -> None:
    u = backdoored(11, 3, dtype)
    found = DeepSight()(u, seen(torch.zeros(LAYOUT.size, dtype=dtype)))
    assert found.accepted is not None
    assert found.accepted.tolist() == [False] * 3 + [True] * 8
    torch.testing.assert_close(
        found.update, u.parameters[3:].mean(dim=0), rtol=2e-2, atol=0
    )  # half of them are clipped
    torch.testing.assert_close(found.weights, found.accepted.to(dtype) / 8)
    assert found.scores is not None
    assert found.scores.tolist() == pytest.approx([0.8] * 3 + [0] * 8)


def test_reversed_updates_are_accepted_and_clipped(make: SimpleNamespace) -> None:
    # energies depend on neither sign nor length; FLAME, which compares angles, rejects the same clients
    fed = make.federation(11, 3, -1000)
    found = DeepSight()(fed.updates, make.view(fed.updates))
    assert found.accepted is not None
    assert found.accepted.all()
    assert found.update.norm() < fed.benign_mean.norm()
    other = FLAME(0.0)(fed.updates, make.view(fed.updates))
    assert other.accepted is not None
    assert not (other.accepted & fed.malicious).any()


class TestOutputLayer:
    def test_energies_and_shares(self) -> None:
        x = torch.zeros(2, LAYOUT.size)
        x[0, 4 : 4 + H] = torch.tensor([1.0, -2, 0])
        x[0, 4 + C * H : 4 + C * H + 2] = torch.tensor([-1.0, 3])
        energies, biases = output_updates(x, LAYOUT)
        assert energies.tolist() == [[4, 3, 0, 0, 0], [0] * 5]
        assert biases.tolist() == [[-1, 3, 0, 0, 0], [0] * 5]
        assert neups(energies).tolist() == [[0.64, 0.36, 0, 0, 0], [0] * 5]

    def test_without_bias(self) -> None:
        layout = Layout.of({"w": torch.empty(2, 3)})
        energies, biases = output_updates(torch.tensor([[1.0, -2, 4, 0, 1, -1]]), layout)
        assert energies.tolist() == [[7, 2]]
        assert biases.tolist() == [[3, 0]]

    def test_huge(self) -> None:
        energies = torch.tensor([[1e300, 1e300, 0]], dtype=torch.float64)
        assert neups(energies).tolist() == [[0.5, 0.5, 0]]

    def test_threshold(self) -> None:
        # of 4 classes a quarter of the largest share counts, and must be exceeded; of 200 a hundredth
        assert threshold_exceedings(torch.tensor([[0.64, 0.16, 0.17, 0.03]]).double()).tolist() == [2]
        shares = torch.zeros(1, 200, dtype=torch.float64)
        shares[0, :4] = torch.tensor([1.0, 0.0101, 0.0099, 0.006])
        assert threshold_exceedings(shares).tolist() == [2]

    def test_suspicious_updates(self) -> None:
        assert suspicious_updates(torch.tensor([8, 3, 4, 9, 2])).tolist() == [False, False, False, False, True]
        assert suspicious_updates(torch.tensor([8, 4, 10, 8])).tolist() == [False, True, False, False]
        assert suspicious_updates(torch.tensor([0, 0])).tolist() == [True, True]


class TestDivisionDifferences:
    def test_by_hand(self) -> None:
        x = torch.zeros(1, LAYOUT.size, dtype=torch.float64)
        x[0, 4 + C * H] = torch.tensor(2.0).log()  # the first class from 1/5 to 2/6, the others to 1/6
        noises = [torch.rand(7, H).double() for _ in range(2)]
        found = division_differences(Net(), torch.zeros(LAYOUT.size, dtype=torch.float64), x, noises)
        expected = torch.tensor([[[5 / 3, 5 / 6, 5 / 6, 5 / 6, 5 / 6]] * 2], dtype=torch.float64)
        torch.testing.assert_close(found, expected)

    @pytest.mark.parametrize("batch", [1, 5, 7, 1000])
    def test_batches_do_not_matter(self, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
        g = torch.Generator().manual_seed(0)
        x, start = (torch.randn(*shape, generator=g).double() for shape in ((3, LAYOUT.size), (LAYOUT.size,)))
        noises = [torch.rand(7, H, generator=g).double() for _ in range(3)]
        each = [division_differences(Net(), start, x, [noise])[:, 0] for noise in noises]
        monkeypatch.setattr(sys.modules[DeepSight.__module__], "_BATCH", batch)
        torch.testing.assert_close(division_differences(Net(), start, x, noises), torch.stack(each, dim=1))

    @pytest.mark.parametrize("value", [1e30, 3e38])
    def test_overflow_is_capped(self, value: float) -> None:
        x = torch.full((1, LAYOUT.size), value)
        found = division_differences(Net(), torch.randn(LAYOUT.size), x, [torch.ones(7, H)])
        assert found.isfinite().all()
        assert found.max() <= exp(100) * (1 + 1e-9)


class TestClusters:
    def test_apart(self) -> None:
        wanted = [[0, 1, 0, 1, 1], [1, 0, 1, 1, 1], [0, 1, 0, 1, 1], [1, 1, 1, 0, 1], [1, 1, 1, 1, 0]]
        assert apart(torch.tensor([0, -1, 0, 1, -1])).tolist() == wanted

    def test_accept_clusters(self) -> None:
        labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, -1, -1])
        suspicious = torch.tensor([1, 0, 0, 1, 0, 0, 0, 1, 0]).bool()
        # a third of the first cluster is suspicious: not less than a third
        assert accept_clusters(labels, suspicious, 1 / 3).tolist() == [False] * 3 + [True] * 4 + [False, True]
        assert accept_clusters(labels, suspicious, 0.4).tolist() == [True] * 7 + [False, True]

    def test_two_votes_of_three_win(self) -> None:
        two = torch.tensor([[1.0, 0]] * 3 + [[0, 1.0]] * 3).double()
        one = torch.ones(6, 2).double()
        found = ensemble(two, two, torch.stack([one, one], dim=1), 2)
        assert found[:3].unique().numel() == found[3:].unique().numel() == 1
        assert found[0] != found[3]
        assert ensemble(one, one, one[:, None], 2).unique().numel() == 1


class TestEdges:
    @pytest.mark.parametrize("n", [1, 2, 3, 11])
    def test_equal_rows(self, n: int) -> None:
        u = backdoored(1, 0)
        same = Updates(u.matrix.expand(n, -1), torch.arange(n), LAYOUT)
        found = DeepSight()(same, seen(torch.zeros(LAYOUT.size)))
        assert found.accepted is not None
        assert found.accepted.all()
        torch.testing.assert_close(found.update, u.parameters[0])

    def test_zero_rows_move_nothing(self) -> None:
        found = DeepSight()(
            Updates(torch.zeros(4, LAYOUT.size), torch.arange(4), LAYOUT), seen(torch.zeros(LAYOUT.size))
        )
        assert not found.update.any()
        assert found.weights.tolist() == [0] * 4

    @pytest.mark.parametrize("value", [1e30, -3e37])
    def test_huge_row(self, value: float) -> None:
        u = backdoored(11, 0)
        u.matrix[4] *= value
        found = DeepSight()(u, seen(torch.zeros(LAYOUT.size)))
        assert found.update.isfinite().all()
        assert found.update.norm() < 1.1

    @pytest.mark.parametrize("seed", range(5))
    def test_order_is_irrelevant_where_votes_tie(self, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        x = torch.randint(-1, 2, (9, LAYOUT.size), generator=g).double()
        u, order = Updates(x, torch.arange(9), LAYOUT), torch.randperm(9, generator=g)
        moved = Updates(x[order], order, LAYOUT)
        one, other = (DeepSight()(v, seen(torch.zeros(LAYOUT.size).double())) for v in (u, moved))
        assert one.accepted is not None
        assert other.accepted is not None
        assert torch.equal(other.accepted, one.accepted[order])

    def test_seed_and_generator(self) -> None:
        @dataclass(frozen=True)
        class Spy:
            inputs: list[Tensor]

            @property
            def input_shape(self) -> tuple[int, ...]:
                return (H,)

            def logits(self, flat: Tensor, x: Tensor, /) -> Tensor:
                self.inputs.append(x)
                return Net().logits(flat, x)

        spy = Spy([])
        DeepSight(seeds=3, samples=7)(backdoored(2, 0), seen(torch.zeros(LAYOUT.size), spy))
        assert [tuple(x.shape) for x in spy.inputs] == [(21, H)] * 3  # the global model's and two clients', all seeds
        assert all(torch.equal(x, spy.inputs[0]) for x in spy.inputs)
        assert len(set(spy.inputs[0].flatten().tolist())) == 21 * H
        assert min(float(x.min()) for x in spy.inputs) >= 0
        assert max(float(x.max()) for x in spy.inputs) < 1


def test_local_models_predict_with_the_global_models_running_statistics() -> None:
    class Spy(Net):
        def logits(self, flat: Tensor, x: Tensor, /) -> Tensor:
            models.append(flat)
            return super().logits(flat, x)

    models: list[Tensor] = []
    start = torch.randn(LAYOUT.size, generator=torch.Generator().manual_seed(3))
    updates = backdoored(4, 1)
    DeepSight(seeds=1, samples=16)(updates, seen(start, Spy()))
    p = LAYOUT.n_parameters
    assert updates.matrix[:, p:].any()
    assert len(models) == 5
    assert all(torch.equal(model[p:], start[p:]) for model in models)
    torch.testing.assert_close(torch.stack(models[1:])[:, :p], (start + updates.matrix)[:, :p])


class TestErrors:
    def test_no_network(self) -> None:
        view = ServerView(0, 0, torch.Generator(), torch.zeros(LAYOUT.size))
        with pytest.raises(MissingDataError, match=r"^deepsight needs to run the model, and the server can't$"):
            DeepSight()(backdoored(3, 0), view)

    def test_a_model_of_tokens(self) -> None:
        class Tokens(Net):
            def logits(self, flat: Tensor, x: Tensor, /) -> Tensor:
                words: Tensor = nn.functional.embedding(x, flat.view(-1, 1)[:C])
                return words

        wanted = r"^deepsight runs models on random real numbers, and this model does not take them: "
        with pytest.raises(ParameterError, match=wanted):
            DeepSight()(backdoored(3, 0), seen(torch.zeros(LAYOUT.size), Tokens()))

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"seeds": 0}, "deepsight: seeds and samples must be at least 1, got 0 and 256"),
            ({"samples": 0}, "deepsight: seeds and samples must be at least 1, got 3 and 0"),
            ({"tau": 0.0}, "deepsight: tau must be in (0, 1], got 0.0"),
            ({"tau": 1.5}, "deepsight: tau must be in (0, 1], got 1.5"),
            ({"tau": inf}, "deepsight: tau must be in (0, 1], got inf"),
            ({"min_cluster_size": 1}, "deepsight: min_cluster_size must be at least 2, got 1"),
        ],
    )
    def test_parameters(self, parameters: dict[str, Any], message: str) -> None:
        with pytest.raises(ParameterError) as error:
            DeepSight(**parameters)
        assert str(error.value) == message
        with pytest.raises(ParameterError) as other:
            deepsight(
                torch.zeros(3, LAYOUT.size), torch.zeros(LAYOUT.size), LAYOUT, Net(), torch.Generator(), **parameters
            )
        assert str(other.value) == message

    def test_result_is_an_aggregate(self) -> None:
        assert isinstance(DeepSight()(backdoored(1, 0), seen(torch.zeros(LAYOUT.size))), Aggregate)


def test_function_is_the_class() -> None:
    u, start = backdoored(11, 3), torch.randn(LAYOUT.size, generator=torch.Generator().manual_seed(2))
    found = deepsight(u.matrix, start, LAYOUT, Net(), torch.Generator().manual_seed(0), samples=16)
    assert torch.equal(found, DeepSight(samples=16)(u, seen(start)).update)
