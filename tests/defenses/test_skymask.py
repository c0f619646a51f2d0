"""The decisions of SkyMask and its variants, on planted attackers, and what they say of them."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsieve.clients import ClientData, LocalTraining, RootClient, Trainer
from fedsieve.defenses.chain import Chain
from fedsieve.defenses.mean import Mean
from fedsieve.defenses.skymask import SkyMask
from fedsieve.defenses.skymask.joint import principal_components, train_masks
from fedsieve.defenses.skymask.without_root import SkyMaskNR
from fedsieve.models.flat import FlatModel
from fedsieve.models.mlp import MLP
from fedsieve.types import MissingDataError, Objective, ParameterError, Verdict, Witnesses

# Mask training's rates are made for the gradients of a network's mean loss; these fit the quadratic's.
FITS: dict[str, Any] = {"mask_learning_rate": 1e6, "mask_clip": 1e-7}
ANCHORED, PAPER, OFFICIAL = SkyMask(), SkyMask("paper", **FITS), SkyMask("official", **FITS)
NR = SkyMaskNR(**FITS)
with_root = pytest.mark.parametrize("rule", [ANCHORED, PAPER, OFFICIAL], ids=lambda rule: rule.preset)
every = pytest.mark.parametrize("rule", [ANCHORED, PAPER, NR], ids=["anchored", "paper", "nr"])


def judge(make: SimpleNamespace, fed: SimpleNamespace, rule: SkyMask | SkyMaskNR = ANCHORED) -> Verdict:
    return rule.judge(fed.updates, make.view(fed.updates, root=fed.root))


class TestDecision:
    @with_root
    @pytest.mark.parametrize("share", [0.2, 0.6, 0.8])
    @pytest.mark.parametrize("n", [20, 30])
    @pytest.mark.parametrize("factor", [-1, -1000])
    @pytest.mark.parametrize("seed", range(3))
    def test_planted_attackers(
        self, make: SimpleNamespace, rule: SkyMask, share: float, n: int, factor: float, seed: int
    ) -> None:
        m = round(share * n)
        fed = make.federation(n, m, factor, seed=seed)
        verdict = judge(make, fed, rule)
        assert verdict.accepted.tolist() == (~fed.malicious).tolist()
        assert verdict.suspicion is not None
        assert verdict.suspicion[fed.malicious].min() > verdict.suspicion[~fed.malicious].max()

    @with_root
    @pytest.mark.parametrize("share", [0.2, 0.6, 0.8])
    def test_attackers_that_all_send_the_same(self, make: SimpleNamespace, rule: SkyMask, share: float) -> None:
        fed = make.federation(20, round(share * 20), 1)
        fed.updates.matrix[fed.malicious] = -fed.root.sent
        assert judge(make, fed, rule).accepted.tolist() == (~fed.malicious).tolist()

    @pytest.mark.parametrize("n", [2, 25, 100])
    @pytest.mark.parametrize("seed", range(5))
    def test_without_attack_everybody_stays(self, make: SimpleNamespace, seed: int, n: int) -> None:
        assert judge(make, make.federation(n, 0, 1, seed=seed)).accepted.all()

    @every
    def test_identical_updates(self, make: SimpleNamespace, rule: SkyMask | SkyMaskNR) -> None:
        fed = make.federation(12, 0, 1)
        same = SimpleNamespace(updates=make.updates(fed.root.sent.expand(12, -1).clone()), root=fed.root)
        assert judge(make, same, rule).accepted.all()

    @pytest.mark.parametrize("rule", [PAPER, NR], ids=["paper", "nr"])
    def test_zero_root_gradient_leaves_constant_masks(self, make: SimpleNamespace, rule: SkyMask | SkyMaskNR) -> None:
        fed = make.federation(12, 4, -1000)
        assert judge(make, SimpleNamespace(updates=fed.updates, root=Flat()), rule).accepted.all()

    @with_root
    def test_everybody_malicious(self, make: SimpleNamespace, rule: SkyMask) -> None:
        fed = make.federation(20, 20, -1)
        verdict = judge(make, fed, rule)
        assert not verdict.accepted.any()
        result = Chain((rule,), Mean())(fed.updates, make.view(fed.updates, root=fed.root))
        assert not result.update.any()
        assert not result.weights.any()
        assert result.accepted is not None
        assert not result.accepted.any()
        assert result.diagnosis is not None

    @every
    def test_one_client(self, make: SimpleNamespace, rule: SkyMask | SkyMaskNR) -> None:
        assert judge(make, make.federation(1, 0, 1), rule).accepted.tolist() == [True]

    def test_one_malicious_client_alone(self, make: SimpleNamespace) -> None:
        assert judge(make, make.federation(1, 1, -1000)).accepted.tolist() == [False]
        # the paper's masks have nothing to compare it with
        assert judge(make, make.federation(1, 1, -1000), PAPER).accepted.tolist() == [True]

    @with_root
    def test_root_model_is_no_client(self, make: SimpleNamespace, rule: SkyMask) -> None:
        fed = make.federation(20, 4, -1)
        assert judge(make, fed, rule).accepted.shape == (20,)
        result = Chain((rule,), Mean())(fed.updates, make.view(fed.updates, root=fed.root))
        torch.testing.assert_close(result.update, fed.benign_mean)

    @with_root
    def test_order_of_clients_is_irrelevant(self, make: SimpleNamespace, rule: SkyMask) -> None:
        for seed in range(5):
            fed = make.federation(20, 8, -1, noise=0.2, seed=seed)
            order = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
            moved = SimpleNamespace(updates=make.updates(fed.updates.matrix[order]), root=fed.root)
            assert torch.equal(judge(make, moved, rule).accepted, judge(make, fed, rule).accepted[order])

    @pytest.mark.parametrize("factor", [1e10, 1e30])
    @pytest.mark.parametrize("preset", ["anchored", "paper", "official"])
    def test_one_huge_client_does_not_open_the_door(self, make: SimpleNamespace, factor: float, preset: Any) -> None:
        # finite in float32, but too large for a network's loss: its gradient is not finite any more
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
        view = replace(make.view(u, root=root), global_params=start)
        accepted = SkyMask(preset).judge(u, view).accepted
        assert not accepted[0]
        if preset == "anchored":
            assert accepted[1:].all()


class Flat:
    """Root data of which no parameter matters."""

    def loss(self, flat: Tensor, /) -> Tensor:
        return flat.new_zeros(())

    def gradient(self, flat: Tensor, objective: Objective = "cross-entropy", /) -> tuple[Tensor, Tensor]:
        return flat.new_zeros(()), torch.zeros_like(flat)

    def update(self) -> Tensor:
        return -torch.ones(240)

    def witnesses(self) -> Witnesses:
        raise AssertionError("nothing here asks for witnesses")


class TestEvidence:
    """What no single round shows adds up."""

    def test_rounds_add_up(self, make: SimpleNamespace) -> None:
        rule, state, found = SkyMask(), None, []
        target = make.federation(10, 0, 1).root.target
        for k in range(25):
            g = torch.Generator().manual_seed(1000 + k)
            x = 0.1 * target + 0.3 * torch.randn(10, 240, generator=g)
            x[:2] -= 0.2 * target
            u = make.updates(x)
            root = make.Quadratic(target, x[-1], 0.3)
            verdict = rule.judge(u, make.view(u, root=root, state=state, round=k))
            state = verdict.state
            found.append(verdict.accepted.tolist())
        assert found[0] == [True] * 10
        assert found[-1] == [False] * 2 + [True] * 8

    def test_memory_is_of_clients_not_of_rows(self, make: SimpleNamespace) -> None:
        fed, state = make.federation(8, 2, -1), None
        for k in range(10):
            state = SkyMask().judge(fed.updates, make.view(fed.updates, root=fed.root, state=state, round=k)).state
        # then the attackers send what is neither good nor bad, and come in other rows
        honest = make.federation(8, 0, 1).updates.matrix
        honest[:2] = 0.03 * torch.randn(2, 240, generator=torch.Generator().manual_seed(3))
        order = torch.tensor([4, 1, 7, 0, 2, 5, 3, 6])
        u = make.updates(honest[order], fed.updates.client_ids[order])
        remembered = SkyMask().judge(u, make.view(u, root=fed.root, state=state, round=10)).accepted
        assert remembered.tolist() == [True, False, True, False, True, True, True, True]
        assert SkyMask().judge(u, make.view(u, root=fed.root, round=10)).accepted.all()

    def test_state_does_not_change_in_place(self, make: SimpleNamespace) -> None:
        fed = make.federation(8, 2, -1)
        first = judge(make, fed)
        before = {name: tensor.clone() for name, tensor in first.state["ledger"].items()}
        for _ in range(2):
            SkyMask().judge(fed.updates, make.view(fed.updates, root=fed.root, state=first.state, round=1))
        assert all(torch.equal(first.state["ledger"][name], before[name]) for name in before)


class TestDiagnosis:
    @every
    def test_every_client_has_a_place(self, make: SimpleNamespace, rule: SkyMask | SkyMaskNR) -> None:
        fed = make.federation(20, 6, -1)
        verdict = judge(make, fed, rule)
        seen = verdict.diagnosis
        assert seen is not None
        assert seen.coordinates.shape == (20, 2)
        assert seen.layers == ("body", "out")
        assert seen.kept.shape == (20, 2)
        assert ((seen.kept >= 0) & (seen.kept <= 1)).all()
        assert (seen.root is None) == isinstance(rule, SkyMaskNR)
        assert [not reason for reason in seen.reasons] == verdict.accepted.tolist()
        # the malicious masks keep less of every layer, and lie together, away from the others
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
        seen = judge(make, fed).diagnosis
        assert seen is not None
        assert "harm" in seen.reasons[0]
        assert "strangeness" in seen.reasons[1]
        assert seen.reasons[2] == seen.reasons[3]
        assert "copy" in seen.reasons[2].split(", ")
        assert set(seen.reasons[4:]) == {""}

    def test_overflow_is_told(self, make: SimpleNamespace) -> None:
        class Narrow(make.Quadratic):  # type: ignore[misc, name-defined]
            def gradient(self, flat: Tensor, objective: Objective = "cross-entropy", /) -> tuple[Tensor, Tensor]:
                value, slope = super().gradient(flat)
                return value, slope if value < 1e6 else slope * math.nan

        fed = make.federation(10, 1, 1e9)
        verdict = judge(make, SimpleNamespace(updates=fed.updates, root=Narrow(fed.root.target, fed.root.sent)), PAPER)
        assert verdict.diagnosis is not None
        assert [reason == "overflow" for reason in verdict.diagnosis.reasons] == [True] + [False] * 9
        assert verdict.diagnosis.coordinates[0].isnan().all()


class TestWithoutRootModel:
    @pytest.mark.parametrize("m", [4, 9])
    def test_keeps_the_larger_cluster(self, make: SimpleNamespace, m: int) -> None:
        fed = make.federation(20, m, -1)
        assert judge(make, fed, NR).accepted.tolist() == (~fed.malicious).tolist()

    def test_which_is_the_malicious_one_beyond_half(self, make: SimpleNamespace) -> None:
        fed = make.federation(20, 14, -1)
        assert judge(make, fed, NR).accepted.tolist() == fed.malicious.tolist()

    def test_tie(self, make: SimpleNamespace) -> None:
        fed = make.federation(20, 10, -1)
        assert not judge(make, fed, NR).accepted.any()
        result = Chain((NR,), Mean())(fed.updates, make.view(fed.updates, root=fed.root))
        assert not result.update.any()
        assert not result.weights.any()

    def test_root_update_is_not_asked_for(self, make: SimpleNamespace) -> None:
        fed = make.federation(20, 4, -1)
        root = type("NoUpdate", (make.Quadratic,), {"update": lambda self: pytest.fail("asked")})
        blind = SimpleNamespace(updates=fed.updates, root=root(fed.root.target, fed.root.sent))
        assert judge(make, blind, NR).accepted.tolist() == (~fed.malicious).tolist()


class TestErrors:
    @pytest.mark.parametrize(
        ("rule", "message"),
        [
            (SkyMask(), "skymask needs root data, and the server has none"),
            (SkyMaskNR(), "skymask-nr trains its masks on root data, and the server has none"),
        ],
    )
    def test_no_root_data(self, make: SimpleNamespace, rule: SkyMask | SkyMaskNR, message: str) -> None:
        u = make.updates([[1.0], [2.0]])
        with pytest.raises(MissingDataError) as error:
            rule.judge(u, make.view(u))
        assert str(error.value) == message

    @pytest.mark.parametrize(("rule", "name"), [(SkyMask, "skymask"), (SkyMaskNR, "skymask-nr")])
    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"tau": 0.0}, "tau must be in (0, 1), got 0.0"),
            ({"tau": 1.0}, "tau must be in (0, 1), got 1.0"),
            ({"tau": math.nan}, "tau must be in (0, 1), got nan"),
            ({"mask_steps": 0}, "mask_steps and n_components must be at least 1, got 0 and 2"),
            ({"n_components": 0}, "mask_steps and n_components must be at least 1, got 20 and 0"),
            ({"mask_learning_rate": 0.0}, "mask_learning_rate and mask_clip must be positive, got 0.0 and 1e-07"),
            ({"mask_clip": -1.0}, "mask_learning_rate and mask_clip must be positive, got 10000000.0 and -1.0"),
        ],
    )
    def test_out_of_range(self, rule: type, name: str, parameters: dict[str, Any], message: str) -> None:
        with pytest.raises(ParameterError) as error:
            rule(**parameters)
        assert str(error.value) == f"{name}: {message}"

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"harm": -0.1}, "harm must be in [0, 1), got -0.1"),
            ({"opposition": 1.0}, "opposition must be in [0, 1), got 1.0"),
            ({"copies": math.nan}, "copies must be in [0, 1), got nan"),
            (
                {"strangeness": 0.0},
                "strangeness must be positive, memory in [0, 1) and error_rate in (0, 0.5), got 0.0",
            ),
            ({"memory": 1.0}, "strangeness must be positive, memory in [0, 1) and error_rate in (0, 0.5), got 1.75"),
            ({"error_rate": 0.5}, "strangeness must be positive, memory in [0, 1) and error_rate in (0, 0.5), got"),
        ],
    )
    def test_evidence_out_of_range(self, parameters: dict[str, Any], message: str) -> None:
        with pytest.raises(ParameterError) as error:
            SkyMask(**parameters)
        assert str(error.value).startswith(f"skymask: {message}")

    @pytest.mark.parametrize("rule", [SkyMask, SkyMaskNR])
    def test_limits_are_allowed(self, rule: type) -> None:
        rule(mask_steps=1, n_components=1, tau=0.999)


@pytest.mark.parametrize("tau", [0.3, 0.5, 0.7])
def test_tau_is_a_threshold_on_the_gate(make: SimpleNamespace, tau: float, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def watched(binary: Tensor, n_components: int) -> np.ndarray:
        seen.append(binary)
        return principal_components(binary, n_components)

    monkeypatch.setattr("fedsieve.defenses.skymask.joint.principal_components", watched)
    fed = make.federation(10, 3, -1, dtype=torch.float64)
    judge(make, fed, SkyMask("paper", **FITS, tau=tau))
    candidates = torch.cat([fed.updates.matrix, fed.root.sent[None]])
    start = torch.zeros_like(fed.root.sent)
    masks, _ = train_masks(candidates, start, fed.root, learning_rate=1e6, clip=1e-7, max_steps=20, tolerance=1e-3)
    (binary,) = seen
    clear = (masks.sigmoid() - tau).abs() > 1e-9  # a mask on the threshold may fall to either side
    assert clear.double().mean() > 0.5
    assert torch.equal(binary[clear], (masks.sigmoid() > tau)[clear])
    assert 0 < binary.double().mean() < 1
