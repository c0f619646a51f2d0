"""The whole loop against one written by hand: training, sampling, seeds, records."""

from types import ModuleType
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from fedsieve.core.attack import AttackView
from fedsieve.federation.clients import ClientData
from fedsieve.federation.statistics import robust_mean
from tests.federation.conftest import DIGITS, TINY, records_of, simulation, timeless


def softmax_gradient(weights: Float[Tensor, "c f+1"], data: ClientData) -> Float[Tensor, "c f+1"]:
    """Gradient of the mean cross-entropy of logistic regression, from the formula; the bias is the last column."""
    x = torch.cat([data.x, data.x.new_ones(len(data.x), 1)], dim=1)
    wrong = (x @ weights.T).softmax(dim=1) - torch.nn.functional.one_hot(data.y, len(weights))
    return wrong.T @ x / len(x)


def as_matrix(flat: Float[Tensor, " d"]) -> Float[Tensor, "3 5"]:
    """Weights [3, 4] and biases [3], as the model keeps them."""
    return torch.cat([flat[:12].view(3, 4), flat[12:].view(3, 1)], dim=1)


def accuracy(weights: Float[Tensor, "c f+1"], data: ClientData) -> float:
    logits = data.x @ weights[:, :-1].T + weights[:, -1]
    return float((logits.argmax(dim=1) == data.y).double().mean())


class TestClosedForm:
    @pytest.mark.parametrize("steps", [1, 3])
    def test_federated_averaging(self, doubles: ModuleType, steps: int) -> None:
        alpha, beta = 0.7, 0.4
        sim = simulation(
            TINY,
            clients=5,
            server={"learning_rate": alpha},
            local={"learning_rate": beta, "steps": steps},
        )
        weights = as_matrix(sim.initial.server.params)
        rounds = list(sim.rounds())
        assert len(rounds) == 4
        for k, (state, record) in enumerate(rounds):
            moved = []
            for data in sim.holdings.clients.values():
                local = weights
                for _ in range(steps):
                    local = local - beta * softmax_gradient(local, data)
                moved.append(local - weights)
            mean = torch.stack(moved).mean(dim=0)
            weights = weights + alpha * mean
            torch.testing.assert_close(as_matrix(state.server.params), weights, rtol=1e-10, atol=1e-12)
            assert record.round == k
            assert record.clients == (0, 1, 2, 3, 4)
            assert record.weights == pytest.approx((0.2,) * 5)
            assert record.update_norm == pytest.approx(float(mean.norm()))
            assert record.test_accuracy == pytest.approx(accuracy(weights, sim.holdings.test))
            logits = sim.holdings.test.x @ weights[:, :-1].T + weights[:, -1]
            loss = torch.nn.functional.cross_entropy(logits, sim.holdings.test.y)
            assert record.test_loss == pytest.approx(float(loss))
            assert (record.malicious, record.rejected, record.screened) == ((), None, ())
            assert (record.false_positive_rate, record.false_negative_rate) == (None, None)
            assert (record.attack_success_rate, record.scores) == (None, None)
            assert (record.applied, record.note) == (True, "")
            assert set(record.seconds) == {"train", "attack", "defend", "evaluate", "record"}
        assert rounds[-1][1].test_loss < rounds[0][1].test_loss

    def test_with_an_attack_in_the_middle(self, doubles: ModuleType) -> None:
        """Two of six send minus three times their honest update."""
        sim = simulation(TINY, clients=6, malicious=2, attack="doubles:Spy")
        assert len(sim.holdings.malicious) == 2
        weights = as_matrix(sim.initial.server.params)
        for state, record in sim.rounds():
            moved = [
                (-3 if client in sim.holdings.malicious else 1) * -0.5 * softmax_gradient(weights, data)
                for client, data in sim.holdings.clients.items()
            ]
            weights = weights + 0.5 * torch.stack(moved).mean(dim=0)
            torch.testing.assert_close(as_matrix(state.server.params), weights, rtol=1e-10, atol=1e-12)
            assert record.malicious == tuple(sorted(sim.holdings.malicious))

    def test_root_client_trains_like_any(self, doubles: ModuleType) -> None:
        sim = simulation(TINY, defense="doubles:Watch", local={"learning_rate": 0.4})
        list(sim.rounds())
        views = [entry[1] for entry in doubles.seen if isinstance(entry, tuple)]
        assert len(views) == 4
        for view in views:
            root = view.root
            samples = ClientData(*root.data)
            assert len(samples.y) == 6
            expected = -0.4 * softmax_gradient(as_matrix(view.global_params), samples)
            torch.testing.assert_close(as_matrix(root.update()), expected, rtol=1e-10, atol=1e-12)

    def test_server_optimizer(self, doubles: ModuleType) -> None:
        server = {"optimizer": {"name": "Adam", "eps": 0.001}, "learning_rate": 0.1}
        sim = simulation(TINY, server=server)
        weights = torch.nn.Parameter(sim.initial.server.params.clone())
        by_hand = torch.optim.Adam([weights], lr=0.1, eps=0.001)
        for state, _ in sim.rounds():
            matrix = as_matrix(weights.detach())
            clients = sim.holdings.clients.values()
            mean = torch.stack([-0.5 * softmax_gradient(matrix, data) for data in clients]).mean(dim=0)
            weights.grad = -torch.cat([mean[:, :-1].flatten(), mean[:, -1]])
            by_hand.step()
            torch.testing.assert_close(state.server.params, weights.detach(), rtol=1e-9, atol=1e-12)


class TestSampling:
    def test_cohorts(self, doubles: ModuleType) -> None:
        records = records_of(TINY, clients=10, clients_per_round=4, malicious=3, attack="label-flip", rounds=8)
        malicious = simulation(TINY, clients=10, malicious=3, attack="label-flip").holdings.malicious
        assert len(records) == 8
        for record in records:
            assert len(record.clients) == len(set(record.clients)) == len(record.weights) == 4
            assert list(record.clients) == sorted(record.clients)
            assert set(record.clients) <= set(range(10))
            assert set(record.malicious) == set(record.clients) & set(malicious)
        assert len({record.clients for record in records}) >= 5
        assert set().union(*(record.clients for record in records)) == set(range(10))
        again = records_of(TINY, clients=10, clients_per_round=4, malicious=3, attack="label-flip", rounds=8)
        assert again == records

    def test_a_round_without_attackers(self, doubles: ModuleType) -> None:
        records = records_of(TINY, clients=10, clients_per_round=2, malicious=1, attack="doubles:Spy", rounds=12)
        views = [entry for entry in doubles.seen if isinstance(entry, AttackView)]
        attacked = [record.round for record in records if record.malicious]
        assert 0 < len(attacked) < 12
        assert [view.round for view in views] == attacked
        assert all(view.malicious_updates.shape == (1, 15) and view.n_clients == 2 for view in views)

    def test_rows_carry_the_ids_of_the_cohort(self, doubles: ModuleType) -> None:
        sim = simulation(TINY, clients=10, clients_per_round=4, defense="doubles:Watch", rounds=3)
        records = [record for _, record in sim.rounds()]
        watched = [entry for entry in doubles.seen if isinstance(entry, tuple)]
        assert len(watched) == 3
        for record, (updates, view) in zip(records, watched, strict=True):
            assert updates.client_ids.tolist() == list(record.clients)
            for client, row in zip(record.clients, updates.matrix, strict=True):
                alone = sim.trainer.updates(view.global_params, {client: sim.holdings.clients[client]}, view.round)[0]
                torch.testing.assert_close(row, alone, rtol=1e-10, atol=1e-12)


class TestSeeds:
    @pytest.mark.parametrize(
        "settings",
        [
            {**TINY, "attack": "doubles:Noise", "defense": "doubles:Momentum", "clients_per_round": 4},
            {**DIGITS, "attack": "min-max", "defense": {"name": "skymask", "mask_steps": 3}, "clients": 8},
            {**DIGITS, "attack": "scaling", "defense": "fltrust", "partition": "dirichlet"},
        ],
    )
    def test_decide_everything(self, doubles: ModuleType, settings: dict[str, Any]) -> None:
        before = torch.random.get_rng_state()
        one = records_of(settings, seed=3)
        assert torch.equal(torch.random.get_rng_state(), before)
        torch.manual_seed(12345)
        assert records_of(settings, seed=3) == one
        other = records_of(settings, seed=4)
        assert [r.update_norm for r in other] != [r.update_norm for r in one]

    def test_differ_in_every_draw(self) -> None:
        one, two = (simulation(DIGITS, seed=seed, attack="label-flip", clients=20, malicious=10) for seed in (1, 2))
        assert one.holdings.malicious != two.holdings.malicious
        assert not torch.equal(one.initial.server.params, two.initial.server.params)
        assert not torch.equal(one.holdings.test.x, two.holdings.test.x)
        assert not torch.equal(one.holdings.clients[0].y[:20], two.holdings.clients[0].y[:20])
        assert one._cohort(0) == two._cohort(0) == list(range(20))

    def test_any_round_can_be_the_first(self, doubles: ModuleType) -> None:
        settings = {**TINY, "attack": "doubles:Noise", "defense": "doubles:Momentum", "clients_per_round": 4}
        sim = simulation(settings)
        straight = list(sim.rounds())
        third = sim.rounds(straight[1][0])
        rest = list(third)
        assert [r.round for _, r in rest] == [2, 3]
        assert timeless([r for _, r in rest]) == timeless([r for _, r in straight[2:]])
        assert torch.equal(rest[-1][0].server.params, straight[-1][0].server.params)


class TestRecords:
    def test_rates(self, doubles: ModuleType) -> None:
        sim = simulation(TINY, clients=8, malicious=3, attack="doubles:Spy", defense={"name": "doubles:Below", "id": 3})
        bad = set(sim.holdings.malicious)
        caught = len(bad & {0, 1, 2})
        assert 0 < caught < 3  # the case is a telling one
        records = [record for _, record in sim.rounds()]
        assert len(records) == 4
        for record in records:
            assert record.rejected == (0, 1, 2)
            assert record.false_positive_rate == pytest.approx((3 - caught) / 5)
            assert record.false_negative_rate == pytest.approx((3 - caught) / 3)
            assert record.scores == (0, -1, -2, -3, -4, -5, -6, -7)
            assert record.weights == pytest.approx((0, 0, 0, 0.2, 0.2, 0.2, 0.2, 0.2))

    @pytest.mark.parametrize(
        ("every", "rounds", "evaluated"), [(1, 4, [0, 1, 2, 3]), (2, 5, [1, 3, 4]), (3, 5, [2, 4]), (9, 5, [4])]
    )
    def test_evaluation_is_due(self, doubles: ModuleType, every: int, rounds: int, evaluated: list[int]) -> None:
        records = records_of({**TINY, "evaluate_every": every, "rounds": rounds})
        assert len(records) == rounds
        assert [r.round for r in records if r.test_accuracy is not None] == evaluated
        assert [r.round for r in records if r.test_loss is not None] == evaluated

    def test_evaluation_changes_no_other_number(self, doubles: ModuleType) -> None:
        often, seldom = (records_of(TINY, evaluate_every=k) for k in (1, 4))
        assert often[-1] == seldom[-1]
        assert [r.update_norm for r in often] == [r.update_norm for r in seldom]


def test_batchnorm_statistics_are_combined_robustly_and_taken_in_full(doubles: ModuleType) -> None:
    sim = simulation(
        {**TINY, "model": "doubles:Normed", "defense": "doubles:Watch", "server": {"learning_rate": 0.3}, "rounds": 2}
    )
    layout = sim.trainer.model.layout
    names = [s.name for s in layout.segments if s.start >= layout.n_parameters]
    assert names == ["layers.1.running_mean", "layers.1.running_var"]
    n, before = layout.n_parameters, sim.initial.server.params
    for k, (state, record) in enumerate(sim.rounds()):
        mean = doubles.seen[-1][0].matrix.mean(dim=0)
        torch.testing.assert_close(state.server.params[:n], before[:n] + 0.3 * mean[:n], rtol=1e-12, atol=1e-14)
        moved = robust_mean(doubles.seen[-1][0].matrix[:, n:])
        torch.testing.assert_close(state.server.params[n:], before[n:] + moved, rtol=1e-12, atol=1e-14)
        if k == 0:  # one step from mean 0, variance 1 with momentum 0.1: a tenth of the clients' mean statistics
            first = sim.trainer.model.layout.unflatten(before)
            hidden = [d.x @ first["layers.0.weight"].T + first["layers.0.bias"] for d in sim.holdings.clients.values()]
            average = robust_mean(torch.stack([h.mean(dim=0) for h in hidden]))
            spread = robust_mean(torch.stack([h.var(dim=0) for h in hidden]))
            torch.testing.assert_close(state.server.params[n : n + 5], 0.1 * average)
            torch.testing.assert_close(state.server.params[n + 5 :], 0.9 + 0.1 * spread)
        # evaluation normalises with the running statistics
        module = sim.trainer.model.module.eval()
        logits = torch.func.functional_call(module, layout.unflatten(state.server.params), (sim.holdings.test.x,))
        right = (logits.argmax(dim=1) == sim.holdings.test.y).double().mean()
        assert record.test_accuracy == pytest.approx(float(right))
        before = state.server.params
