"""The adaptive attack on Sieve: its losses, how it hides a direction, and what it sends after a simulated defense."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsieve.attacks.adaptive_sieve import AdaptiveSieve
from fedsieve.attacks.hiding import leading, lowered_margin, pieces, with_cosines
from fedsieve.attacks.searching import missed, wrong
from fedsieve.config.experiment import Experiment
from fedsieve.core.attack import AttackView, Crafted, PoisonView, Task
from fedsieve.core.defense import Aggregate
from fedsieve.core.errors import ParameterError
from fedsieve.federation.simulation import Simulation

F64 = torch.float64
MakeView = Callable[..., AttackView]


class TestLosses:
    logits = torch.tensor([[4.0, 0.0], [2.0, 0.0], [0.0, 3.0]], dtype=F64)
    y = torch.tensor([0, 0, 1])

    @pytest.mark.parametrize("c", [0, 1])
    def test_margin_by_hand(self, c: int) -> None:
        # centred over logits, class 0 has mean 1.5 at logit 0 and -1.5 at logit 1, class 1 has -1.5 and 1.5
        assert float(lowered_margin(c)(self.logits, self.y)) == pytest.approx(-1.5)

    def test_wrong_is_lowest_where_every_sample_is_misclassified(self) -> None:
        sure = 100 * self.logits
        assert float(wrong(sure, self.y)) == pytest.approx(0)
        assert float(wrong(sure, 1 - self.y)) == pytest.approx(-10)

    def test_missed_is_zero_where_the_wanted_class_is_far_ahead(self) -> None:
        wanted = torch.tensor([0, 0, 0])
        assert float(missed(self.logits * 100, torch.tensor([0, 0, 1]))) == pytest.approx(0)
        assert float(missed(self.logits * 100, wanted)) == pytest.approx(100)


class TestHiding:
    rows = torch.randn(6, 40, generator=torch.Generator().manual_seed(1), dtype=F64)

    @pytest.mark.parametrize("share", [0.3, 0.9, 1.0])
    def test_leading_directions_hold_the_share(self, share: float) -> None:
        found = leading(self.rows, share)
        torch.testing.assert_close(found @ found.T, torch.eye(len(found), dtype=F64))
        held = [float((self.rows @ f.T).square().sum() / self.rows.square().sum()) for f in (found, found[:-1])]
        assert held[0] >= share - 1e-9 > held[1] - 1e-9

    def test_pieces_are_units_of_other_coordinates(self) -> None:
        found = pieces(self.rows[0], 4, 0.25, torch.Generator().manual_seed(0))
        torch.testing.assert_close(found.norm(dim=1), torch.ones(4, dtype=F64))
        assert ((found != 0).sum(dim=0) == 1).all()  # together they have every coordinate, each once
        assert (found * self.rows[0] >= 0).all()

    def test_cosines_are_restored(self) -> None:
        slopes, wanted = self.rows[:2], torch.tensor([[-0.3, -0.4]] * 4, dtype=F64)
        found = with_cosines(self.rows[2:], slopes, wanted)
        cosines = found @ slopes.T / found.norm(dim=1, keepdim=True) / slopes.norm(dim=1)
        torch.testing.assert_close(cosines, wanted, atol=0.02, rtol=0)

    def test_lower_cosines_stay(self) -> None:
        slopes = self.rows[:2]
        assert torch.equal(with_cosines(-slopes, slopes, torch.ones(2, 2, dtype=F64)), -slopes)


def tries(make_view: MakeView, limit: float, goal: Any = "backdoor", **more: Any) -> tuple[AttackView, Crafted, list]:
    """A view with a defense that accepts rows up to ``limit``; what was sent; the matrices that were simulated."""
    rows, asked = torch.randn(8, 30, generator=torch.Generator().manual_seed(0), dtype=F64), []

    def defense(matrix: Tensor) -> Aggregate:
        asked.append(matrix.clone())
        accepted = matrix.norm(dim=1) <= limit
        kept = matrix[accepted]
        weights = accepted.to(F64) / max(1, int(accepted.sum()))
        return Aggregate(kept.sum(dim=0) / max(1, len(kept)), weights, accepted)

    view = make_view(rows[:3], rows[3:], n_clients=8, simulate_defense=defense)
    view = replace(view, **more)
    return view, AdaptiveSieve(goal=goal).craft(view), asked


class TestCraft:
    @pytest.mark.parametrize("goal", ["accuracy", "backdoor", "both"])
    def test_sends_what_does_most_damage(self, make_view: MakeView, goal: str) -> None:
        view, sent, asked = tries(make_view, 1e9, goal)
        assert view.benign_updates is not None
        aims = [view.root] * (goal != "backdoor")
        if goal != "accuracy":
            aims.append(view.on_samples(torch.ones(2, 25), torch.zeros(2, dtype=torch.long)))  # type: ignore[misc]
        # the doubles' losses are bowls: their lowest point is what the attacker wants
        losses = [sum(float(a.loss(view.global_params + x.mean(dim=0))) for a in aims) for x in asked]
        assert all(torch.equal(matrix[3:], view.benign_updates) for matrix in asked)
        assert torch.equal(sent.updates, asked[losses.index(min(losses))][:3])
        assert len(asked) <= 20

    def test_a_limit_is_kept(self, make_view: MakeView) -> None:
        view, sent, _ = tries(make_view, 7.0)
        assert sent.updates.norm(dim=1).max() <= 7.0
        assert not torch.equal(sent.updates, view.malicious_updates)

    def test_what_no_size_hides_is_not_sent(self, make_view: MakeView) -> None:
        view, sent, _ = tries(make_view, 0.0)
        # nothing is accepted: the malicious clients train on clean data
        torch.testing.assert_close(sent.updates, view.train(view.global_params, poisoned=False))

    def test_partial_knowledge(self, make_view: MakeView) -> None:
        view, sent, asked = tries(make_view, 1e9, "accuracy", benign_updates=None)
        assert all(matrix.shape == (8, 30) for matrix in asked)
        assert all(torch.equal(matrix[3:], asked[0][3:]) for matrix in asked)  # the same stand-ins for all
        assert sent.updates.shape == view.malicious_updates.shape

    def test_memory_dares_less_where_the_model_did_not_move(self, make_view: MakeView) -> None:
        view, sent, _ = tries(make_view, 1e9)
        memory = sent.memory
        assert memory["expected"] > 0
        believed = view.global_params + memory["plain"] + memory["meant"] * memory["expected"]
        for params, change in ((believed, 0.05), (view.global_params + memory["plain"], -0.25)):
            again = AdaptiveSieve(goal="backdoor").craft(replace(view, memory=memory, global_params=params))
            assert again.memory["level"] == pytest.approx(memory["level"] + change)

    def test_defense_not_granted(self, make_view: MakeView) -> None:
        with pytest.raises(ParameterError, match="grant it with knows_defense=true"):
            AdaptiveSieve().craft(make_view(torch.zeros(2, 3)))


class TestData:
    y = torch.tensor([0, 1, 2, 0])
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.9

    def test_trigger(self, make_poison_view: Callable[..., PoisonView]) -> None:
        x, y = AdaptiveSieve(target=1, share=1.0).poison(self.x, self.y, make_poison_view(3))
        assert len(x) == 8
        assert (x[4:, :, :5, :5] == 1).all()
        assert (y[4:] == 1).all()

    def test_source(self, make_poison_view: Callable[..., PoisonView]) -> None:
        attack = AdaptiveSieve(source=0, target=2)
        x, y = attack.poison(self.x, self.y, make_poison_view(3))
        assert torch.equal(x, self.x)
        assert y.tolist() == [2, 1, 2, 2]
        found = attack.triggered(self.x, self.y, Task(3, Path()))
        assert found is not None
        assert torch.equal(found.x, self.x[[0, 3]])
        assert found.wanted.tolist() == [2, 2]

    def test_accuracy_changes_no_data(self, make_poison_view: Callable[..., PoisonView]) -> None:
        attack = AdaptiveSieve(goal="accuracy")
        assert torch.equal(attack.poison(self.x, self.y, make_poison_view(3))[1], self.y)
        assert attack.triggered(self.x, self.y, Task(3, Path())) is None


@pytest.mark.parametrize("knowledge", ["full", "partial"])
def test_on_digits(knowledge: str) -> None:
    """Two rounds against the server's own defense: finite, and other than without the attack."""
    experiment = Experiment.of(
        {
            "dataset": "digits",
            "clients": 10,
            "malicious": 3,
            "rounds": 2,
            "defense": "sieve",
            "attack": {"name": "adaptive-sieve", "goal": "both"},
            "knowledge": knowledge,
            "knows_defense": True,
        }
    )
    records = [r for _, r in Simulation.of(experiment, Path("not used"), torch.device("cpu")).rounds()]
    assert [r.applied for r in records] == [True, True]
    assert all(r.attack_success_rate is not None for r in records)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"source": -1}, "adaptive-sieve: source must be at least 0, got -1"),
        ({"source": 0}, "adaptive-sieve: source must be at least 0 and another class than target, got 0 for both"),
        ({"share": 0.0}, "adaptive-sieve: share must be in (0, 1], got 0.0"),
    ],
)
def test_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError) as error:
        AdaptiveSieve(**parameters)
    assert str(error.value) == message
