"""FedBN: BatchNorm parameters and statistics stay with the clients."""

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch

from fedsieve.core.attack import AttackView
from fedsieve.core.errors import FedSieveError
from fedsieve.federation.simulation import Simulation
from fedsieve.runs.packing import pack, unpack
from tests.federation.conftest import TINY, simulation

PERSONAL: dict[str, Any] = {
    **TINY, "model": "doubles:Normed", "clients": 4, "malicious": 1, "attack": "doubles:Spy", "defense": "mean",
    "local": {"batch_size": 10, "batch_norm": "local"}, "rounds": 3,
}  # fmt: skip


def one_by_one(settings: dict[str, Any], **more: Any) -> Simulation:
    """A simulation that trains each client by itself, since the last bits of a batched computation depend on all."""
    sim = simulation(settings, **more)
    trainer = replace(sim.trainer, vectorize=False)
    return replace(sim, trainer=trainer, adversary=replace(sim.adversary, trainer=trainer))


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

    @pytest.mark.parametrize("per_round", [6, 3])
    @pytest.mark.parametrize(
        "attack",
        [
            {"name": "sleeper", "attack": "label-flip", "start": 9},
            {"name": "sleeper", "attack": "sign-flip", "start": 9},
            {"name": "sleeper", "attack": {"name": "jitter", "attack": "targeted-flip"}, "start": 9},
            {"name": "on-off", "attack": "label-flip", "period": 9},
            {"name": "mixture", "attacks": [{"name": "sleeper", "attack": "label-flip", "start": 9}, "none"]},
        ],
        ids=["poisons data", "poisons none", "nested", "on-off", "mixture"],
    )
    def test_who_waits_is_an_honest_client(self, doubles: ModuleType, attack: dict[str, Any], per_round: int) -> None:
        """Every update of a run without attack, to the last bit, whatever the data that the attack has ready."""
        settings = {**PERSONAL, "clients": 6, "malicious": 2, "clients_per_round": per_round, "rounds": 6}
        waiting, benign = one_by_one(settings, attack=attack), one_by_one(settings, attack="none")
        for (state, _), (expected, _) in zip(waiting.rounds(), benign.rounds(), strict=True):
            assert torch.equal(state.server.params, expected.server.params)
        assert waiting.holdings.malicious
        if attack["name"] != "mixture" and attack["attack"] != "sign-flip":
            bad = list(waiting.holdings.malicious)  # their layers have followed the poisoned data
            assert state.personal is not None
            assert expected.personal is not None
            assert not torch.equal(state.personal[bad], expected.personal[bad])
            own = torch.stack([state.adversary["personal"][i] for i in bad])
            assert torch.equal(own, expected.personal[bad])

    def test_honest_rounds_between_attacks(self, doubles: ModuleType) -> None:
        """The server ignores everybody, so that the rounds are those of a run without attack."""
        settings = {**PERSONAL, "defense": "root-only", "clients": 6, "malicious": 2, "rounds": 6}
        attack = {"name": "on-off", "attack": "label-flip", "period": 2}
        found: list[dict[int, torch.Tensor]] = []
        for each in (attack, "none"):
            sim = one_by_one(settings, attack=each)
            sent, state = [], sim.initial
            malicious = simulation(settings, attack=attack).holdings.malicious
            bad = torch.tensor([i in malicious for i in range(6)])
            for _ in range(6):
                honest, _ = sim._trained(list(range(6)), state)
                if each != "none":
                    honest, _ = sim.adversary.send(
                        honest, list(range(6)), bad, state.server.params, state.round, state.adversary, state.personal
                    )
                sent.append(honest[bad])
                state, _ = sim.run_round(state)
            found.append(dict(enumerate(sent)))
        same = [torch.equal(found[0][k], found[1][k]) for k in range(6)]
        assert same == [True, False, True, False, True, False]

    @pytest.mark.parametrize("poisoned", [True, False])
    def test_attackers_train_from_it(self, doubles: ModuleType, poisoned: bool) -> None:
        sim = one_by_one(PERSONAL, attack="doubles:Forger", malicious=2)
        states = [sim.initial, *(state for state, _ in sim.rounds())]
        views = [entry for entry in doubles.seen if isinstance(entry, AttackView)]
        bn, clean = sim.trainer.model.normalisation, dict(sim.holdings.clean)
        own = dict.fromkeys(clean, sim.initial.server.params[bn])
        for k, view in enumerate(views):
            here, params = sorted(clean), states[k].server.params
            assert torch.equal(view.train(params), view.malicious_updates)
            expected = sim.trainer.updates(params, {i: clean[i] for i in here}, k, own)
            assert torch.equal(view.train(params, poisoned=False), expected)
            own = {i: params[bn] + row[bn] for i, row in zip(here, expected, strict=True)}
            personal = states[k].personal
            assert personal is not None
            data = {i: (sim.holdings.clients if poisoned else clean)[i] for i in here}
            start = params + 1
            values = {i: personal[i] for i in here} if poisoned else view.train.clean_own
            expected = sim.trainer.updates(start, data, k, values)
            assert torch.equal(view.train(start, poisoned=poisoned), expected)

    def test_a_resumed_run_goes_on_alike(self, doubles: ModuleType) -> None:
        attack = {"name": "sleeper", "attack": "label-flip", "start": 9}
        sim = simulation(PERSONAL, attack=attack, malicious=2, rounds=4)
        states = [state for state, _ in sim.rounds()]
        tensors: dict[str, torch.Tensor] = {}
        kept = unpack(pack(states[1].adversary, "memory", tensors), tensors)
        *_, (last, _) = sim.rounds(replace(states[1], adversary=kept))
        assert torch.equal(last.server.params, states[-1].server.params)

    def test_a_model_without_batch_norm(self, doubles: ModuleType) -> None:
        with pytest.raises(FedSieveError, match=r"model doubles:Linear has no BatchNorm layer"):
            simulation(TINY, local={"batch_norm": "local"})
