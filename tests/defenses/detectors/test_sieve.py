"""What Sieve decides in one round about planted attackers, as a detector and as an aggregator, and its parameters."""

import ast
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import is_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedsieve.aggregators.chain import Chain
from fedsieve.aggregators.mean import Mean
from fedsieve.config import registry
from fedsieve.core.defense import Aggregate, Detection
from fedsieve.core.errors import MissingDataError, ParameterError
from fedsieve.detectors import sieve
from fedsieve.detectors.sieve import Sieve
from fedsieve.federation.clients import ClientData, LocalTraining, Trainer
from fedsieve.federation.root import RootClient
from fedsieve.models.flat import FlatModel
from fedsieve.models.mlp import MLP
from fedsieve.runs.packing import pack, unpack


def detect(make: SimpleNamespace, fed: SimpleNamespace, state: Any = None, round: int = 0) -> Detection:
    return Sieve().detect(fed.updates, make.view(fed.updates, root=fed.root, state=state, round=round))


def aggregate(make: SimpleNamespace, fed: SimpleNamespace, state: Any = None, round: int = 0) -> Aggregate:
    return Sieve()(fed.updates, make.view(fed.updates, root=fed.root, state=state, round=round))


def accepted(found: Detection | Aggregate) -> list[bool]:
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

    @pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 25, 100])
    @pytest.mark.parametrize("seed", range(3))
    def test_without_attack_all_clients_stay(self, make: SimpleNamespace, seed: int, n: int) -> None:
        fed = make.federation(n, 0, 1, seed=seed)
        result = aggregate(make, fed)
        assert all(accepted(result))
        assert result.note == ""
        assert float((result.update - fed.benign_mean).norm() / fed.benign_mean.norm()) < 0.3

    @pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
    def test_a_huge_update_among_few(self, make: SimpleNamespace, n: int) -> None:
        fed = make.federation(n, 1, -1000)
        result = aggregate(make, fed)
        make.well_formed(result, fed.updates.matrix)
        # of one or two nobody can say who is unusual; but neither moves the model backwards, or by more than a step
        assert n <= 2 or accepted(result) == [False] + [True] * (n - 1)
        assert result.update @ fed.root.target >= 0
        assert result.update.norm() < 1.5 * fed.root.sent.norm()

    @pytest.mark.parametrize("factor", [-1, -1000])
    def test_all_clients_malicious(self, make: SimpleNamespace, factor: float) -> None:
        fed = make.federation(20, 20, factor)
        result = aggregate(make, fed)
        make.well_formed(result, fed.updates.matrix)
        # nobody stands apart; but they move the model neither backwards nor by more than a step
        assert result.update @ fed.root.target > -1e-3 * fed.root.target.norm() * fed.root.sent.norm()
        assert result.update.norm() < fed.root.sent.norm()

    @pytest.mark.parametrize("n", [6, 20])
    @pytest.mark.parametrize("share", [0.5, 0.8])
    def test_zeros_neither_count_nor_convict(self, make: SimpleNamespace, n: int, share: float) -> None:
        m = round(share * n)
        fed = make.federation(n, m, 0)
        result = aggregate(make, fed)
        assert all(accepted(result))
        assert result.weights.tolist() == pytest.approx([0] * m + [1 / (n - m)] * (n - m))
        assert float((result.update - fed.benign_mean).norm() / fed.benign_mean.norm()) < 0.3

    def test_all_updates_zero(self, make: SimpleNamespace) -> None:
        fed = make.federation(8, 8, 0)
        result = aggregate(make, fed)
        make.well_formed(result, fed.updates.matrix)
        assert all(accepted(result))
        assert not result.update.any()
        assert not result.weights.any()

    @pytest.mark.parametrize("factor", [1e10, 1e30])
    def test_one_huge_update_is_rejected(self, make: SimpleNamespace, factor: float) -> None:
        # finite in float32, but so large that the gradient of a network's loss is not
        with torch.random.fork_rng(devices=[]):
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
        result = Sieve()(u, replace(make.view(u, root=root), global_params=start))
        assert accepted(result) == [False] + [True] * 11
        assert result.update.norm() < 3 * rows[1:].norm(dim=1).max()

    def test_a_small_minority_that_is_different_is_not_rejected(self, make: SimpleNamespace) -> None:
        # three of 30 with four times the noise keep what root data explain
        fed = make.federation(30, 0, 1)
        noise = torch.randn(3, 240, generator=torch.Generator().manual_seed(5))
        fed.updates.matrix[:3] += 0.12 * noise
        result = aggregate(make, fed)
        assert all(accepted(result))
        assert (result.weights[:3] <= result.weights[3:].min()).all()

    @pytest.mark.parametrize("jitter", [0.0, 0.3])
    def test_copies_that_root_data_explain_better_do_not_convict_all_others(
        self, make: SimpleNamespace, jitter: float
    ) -> None:
        # 24 clients with twice the noise that references have, and six who agree on one update that has less
        fed = make.federation(30, 0, 1)
        x, generator = fed.updates.matrix, torch.Generator().manual_seed(5)
        noise = x - fed.benign_mean
        x[6:] += noise[6:]
        x[:6] = fed.benign_mean + 0.5 * noise[0]
        x[:6] += (
            jitter * 0.5 * noise[0].norm() * torch.nn.functional.normalize(torch.randn(6, 240, generator=generator))
        )
        result = aggregate(make, fed)
        assert sum(accepted(result)[6:]) >= 22
        assert result.weights[:6].sum() < 0.1


class TestStages:
    def test_last_it_bounds_influence_before_another_stage_it_detects(self, make: SimpleNamespace) -> None:
        fed = make.federation(20, 4, -1)
        one = registry.build_defense("sieve", {})(fed.updates, make.view(fed.updates, root=fed.root))
        chain = registry.build_defense("sieve,mean", {})
        assert chain == Chain((Sieve(),), Mean())
        other = chain(fed.updates, make.view(fed.updates, root=fed.root))
        assert accepted(one) == accepted(other) == (~fed.malicious).tolist()
        assert torch.equal(one.scores, other.scores)
        torch.testing.assert_close(other.update, fed.benign_mean)  # the root model is no client
        assert not torch.equal(one.update, other.update)

    def test_behind_another_stage_it_keeps_reasons_and_note(self, make: SimpleNamespace) -> None:
        fed = make.federation(20, 4, -1)
        result = registry.build_defense("norm-clipping,sieve", {})(fed.updates, make.view(fed.updates, root=fed.root))
        assert accepted(result) == (~fed.malicious).tolist()
        assert result.diagnosis is not None
        assert [reason == "" for reason in result.diagnosis.reasons] == accepted(result)

    def test_state_can_be_stored(self, make: SimpleNamespace) -> None:
        fed, state = make.federation(12, 3, -1), None
        for t in range(3):
            state = aggregate(make, fed, state, t).state
        tensors: dict[str, torch.Tensor] = {}
        stored = unpack(pack(state, "state", tensors), tensors)
        one, other = (aggregate(make, fed, s, 3) for s in (state, stored))
        assert torch.equal(one.update, other.update)
        assert torch.equal(one.weights, other.weights)

    def test_old_state_is_unchanged(self, make: SimpleNamespace) -> None:
        fed = make.federation(8, 2, -1)
        state = aggregate(make, fed).state

        def numbers(tree: Any) -> Any:
            return {k: numbers(v) for k, v in tree.items()} if isinstance(tree, dict) else torch.as_tensor(tree).clone()

        def same(one: Any, other: Any) -> bool:
            if isinstance(one, dict):
                return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
            return torch.equal(torch.as_tensor(one), torch.as_tensor(other))

        before = numbers(state)
        for _ in range(2):
            aggregate(make, fed, state, 1)
        assert same(state, before)


class Reads(TorchDispatchMode):
    """The operations that read a tensor's memory while it is entered."""

    def __init__(self, of: torch.Tensor) -> None:
        super().__init__()
        self.of, self.names = of.untyped_storage().data_ptr(), list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        shares = [t.numel() and t.untyped_storage().data_ptr() == self.of for t in tree_leaves(args) if is_tensor(t)]
        if any(shares) and not (is_tensor(result) and result.untyped_storage().data_ptr() == self.of):
            self.names.append(func.overloadpacket.__name__)
        return result


@pytest.mark.parametrize("factor", [1, -1])
def test_updates_are_read_four_times(make: SimpleNamespace, factor: float) -> None:
    """For products with themselves, with the subsets, and with gradients and held-out references; and for the mean."""
    fed = make.federation(12, 3, factor)
    view = make.view(fed.updates, root=fed.root)
    with Reads(fed.updates.matrix) as reads:
        Sieve()(fed.updates, view)
    assert reads.names == ["mm"] * 4


class TestHistory:
    def test_belongs_to_clients_not_to_rows(self, make: SimpleNamespace) -> None:
        fed, state = make.federation(20, 5, -1), None
        for k in range(4):
            state = detect(make, fed, state, k).state
        # then all are honest, and come in other rows
        honest = make.federation(20, 0, 1)
        order = torch.randperm(20, generator=torch.Generator().manual_seed(101))
        moved = SimpleNamespace(
            updates=make.updates(honest.updates.matrix[order], honest.updates.client_ids[order]), root=honest.root
        )
        ids = moved.updates.client_ids
        assert accepted(detect(make, moved, state, 4)) == (ids >= 105).tolist()
        assert all(accepted(detect(make, moved, None, 4)))

    def test_who_is_honest_again_is_believed_again(self, make: SimpleNamespace) -> None:
        fed, state = make.federation(20, 5, -1), None
        for k in range(4):
            state = detect(make, fed, state, k).state
        honest, found = make.federation(20, 0, 1), None
        for k in range(4, 40):
            found = detect(make, honest, state, k)
            state = found.state
        assert found is not None
        assert all(accepted(found))


class TestDiagnosis:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_fields(self, make: SimpleNamespace, dtype: torch.dtype) -> None:
        fed = make.federation(20, 6, -1, dtype=dtype)
        found = detect(make, fed)
        seen = found.diagnosis
        assert seen is not None
        assert found.scores is not None
        assert found.scores.dtype == dtype
        assert seen.coordinates.shape == (20, 2)
        assert seen.root is not None
        assert seen.layers == ()
        assert seen.kept.shape == (20, 0)
        assert [not reason for reason in seen.reasons] == accepted(found)
        # the references are at the origin, malicious clients apart
        distance = seen.coordinates.norm(dim=1)
        assert distance[fed.malicious].min() > distance[~fed.malicious].max()

    def test_reasons(self, make: SimpleNamespace) -> None:
        fed = make.federation(20, 4, -1)
        fed.updates.matrix[0] *= 1000
        seen = detect(make, fed).diagnosis
        assert seen is not None
        assert "far outside the references" in seen.reasons[0]
        assert "loss alignment of a group" in seen.reasons[1].split(", ")
        assert set(seen.reasons[4:]) == {""}


class TestErrors:
    def test_no_root_data(self, make: SimpleNamespace) -> None:
        u = make.updates([[1.0], [2.0]])
        for stage in (Sieve(), Sieve().detect):
            with pytest.raises(MissingDataError) as error:
                stage(u, make.view(u))
            assert str(error.value) == "sieve needs root data, and the server has none"

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"least_evidence": 0.0}, "least_evidence must be positive and finite, got 0.0"),
            ({"least_evidence": -1.0}, "least_evidence must be positive and finite, got -1.0"),
            ({"least_evidence": math.inf}, "least_evidence must be positive and finite, got inf"),
            ({"least_evidence": math.nan}, "least_evidence must be positive and finite, got nan"),
            ({"minority": -0.1}, "minority must be in [0, 0.5], got -0.1"),
            ({"minority": 0.51}, "minority must be in [0, 0.5], got 0.51"),
            ({"minority": math.nan}, "minority must be in [0, 0.5], got nan"),
            ({"memory": 1.0}, "memory must be in [0, 1), got 1.0"),
            ({"memory": -0.1}, "memory must be in [0, 1), got -0.1"),
            ({"memory": math.nan}, "memory must be in [0, 1), got nan"),
            ({"forget_after": 0}, "forget_after must be at least 1, got 0"),
        ],
    )
    def test_out_of_range(self, parameters: dict[str, Any], message: str) -> None:
        with pytest.raises(ParameterError) as error:
            Sieve(**parameters)
        assert str(error.value) == f"sieve: {message}"

    def test_the_ends_of_the_ranges(self) -> None:
        Sieve(least_evidence=1e-9, minority=0.0, memory=0.0, forget_after=1)
        Sieve(minority=0.5)


def test_numpy_gets_copies_on_the_cpu() -> None:
    """On a GPU, tensors have to be moved before numpy can read them."""
    folder = Path(sieve.__file__).parent
    calls = 0
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr == "numpy":
                source = ast.unparse(node.value)
                assert source.endswith(".cpu()"), f"{file.name}, line {node.lineno}: {source}.numpy()"
                calls += 1
    assert calls >= 2
