"""FedBN: BatchNorm parameters and statistics stay with the clients."""

from types import ModuleType
from typing import Any

import pytest
import torch

from fedsieve.core.errors import FedSieveError
from tests.federation.conftest import TINY, simulation

PERSONAL: dict[str, Any] = {
    **TINY, "model": "doubles:Normed", "clients": 4, "malicious": 1, "attack": "doubles:Spy", "defense": "mean",
    "local": {"batch_size": 10, "batch_norm": "local"}, "rounds": 3,
}  # fmt: skip


class TestPersonalNormalisation:
    """FedBN: what belongs to BatchNorm stays with the clients."""

    def test_stays_with_its_client(self, doubles: ModuleType) -> None:
        sim = simulation(PERSONAL)
        bn = sim.trainer.model.normalisation
        names = [s.name for s in sim.trainer.model.layout.segments if s.start in bn.tolist()]
        assert names == ["layers.1.weight", "layers.1.bias", "layers.1.running_mean", "layers.1.running_var"]
        params, personal = sim.initial.server.params, sim.initial.personal
        assert personal is not None
        for state, _ in sim.rounds():
            rows = []
            for i in range(4):
                begin = params.clone()
                begin[bn] = personal[i]
                rows.append(begin + sim.trainer.updates(begin, {i: sim.holdings.clients[i]}, state.round - 1)[0])
            local = torch.stack(rows)
            sent = local - params
            bad = sim.holdings.malicious[0]
            sent[bad] *= -3
            sent[:, bn] = 0
            torch.testing.assert_close(state.server.params[:15], (params + 0.5 * sent.mean(dim=0))[:15])
            torch.testing.assert_close(state.server.params[bn], sim.initial.server.params[bn], rtol=0, atol=0)
            torch.testing.assert_close(state.personal, local[:, bn])
            params, personal = state.server.params, state.personal
        assert not torch.equal(personal[0], personal[1])

    def test_is_evaluated_with_the_benign_clients_mean(self, doubles: ModuleType) -> None:
        sim = simulation(PERSONAL)
        bn = sim.trainer.model.normalisation
        benign = [i for i in range(4) if i not in sim.holdings.malicious]
        for state, record in sim.rounds():
            assert state.personal is not None
            params = state.server.params.clone()
            params[bn] = state.personal[benign].mean(dim=0)
            hit = sim.trainer.model.logits(params, sim.holdings.test.x).argmax(dim=1) == sim.holdings.test.y
            assert record.test_accuracy == pytest.approx(float(hit.double().mean()))

    def test_who_is_not_drawn_keeps_it(self, doubles: ModuleType) -> None:
        sim = simulation(PERSONAL, clients_per_round=2, rounds=6)
        before = sim.initial.personal
        for state, record in sim.rounds():
            assert before is not None
            assert state.personal is not None
            changed = (state.personal != before).any(dim=1)
            assert changed.tolist() == [i in record.clients for i in range(4)]
            before = state.personal

    def test_a_model_without_batch_norm(self, doubles: ModuleType) -> None:
        with pytest.raises(FedSieveError, match=r"model doubles:Linear has no BatchNorm layer"):
            simulation(TINY, local={"batch_norm": "local"})
