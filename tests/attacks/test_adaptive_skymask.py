"""The adaptive attack: its deviation, the masks, the stand-ins, and what it sends after simulating the defense."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsieve.attacks.adaptive_skymask import AdaptiveSkyMask, hidden_push
from fedsieve.attacks.stand_ins import stand_ins
from fedsieve.config.experiment import Experiment
from fedsieve.core.attack import AttackView
from fedsieve.core.defense import Aggregate
from fedsieve.core.errors import ParameterError
from fedsieve.detectors.skymask.masks import mask_gradient
from fedsieve.federation.simulation import Simulation

F64 = torch.float64


class TestHiddenPush:
    own = torch.tensor([[2.0, 2.0, -2.0, -2.0, 0.0], [-1.0, 3.0, 1.0, -5.0, 2.0]], dtype=F64)
    slope = torch.tensor([3.0, -1.0, 2.0, -4.0, 1.0], dtype=F64)

    def test_by_hand(self) -> None:
        # with mean 0, row 0 has the slope's sign in columns 0 and 3, row 1 in columns 2, 3 and 4
        mean = torch.zeros(5, dtype=F64)
        found = hidden_push(self.own, mean, self.slope, 1.0)
        expected = torch.tensor([[3.0, 0, 0, -4, 0], [0, 0, 2, -4, 1]], dtype=F64)
        torch.testing.assert_close(found, expected / torch.tensor([[5.0], [21**0.5]], dtype=F64))

    @pytest.mark.parametrize(("share", "count"), [(0.001, 1), (0.2, 1), (0.4, 2), (0.6, 3), (1.0, 3)])
    def test_share_takes_the_steepest(self, share: float, count: int) -> None:
        row = hidden_push(self.own, torch.zeros(5, dtype=F64), self.slope, share)[1]
        steepest = [3, 2, 4][:count]
        assert row.nonzero().squeeze(1).tolist() == sorted(steepest)
        assert row.norm() == pytest.approx(1)

    def test_no_coordinate_qualifies(self) -> None:
        down = -self.slope.expand(2, -1)
        assert not hidden_push(down, torch.zeros(5, dtype=F64), self.slope, 1.0).any()

    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(seed=st.integers(0, 10**6), share=st.sampled_from([0.05, 0.3, 1.0]), strength=st.floats(0.01, 100))
    def test_raises_the_loss_and_keeps_the_masks(self, seed: int, share: float, strength: float) -> None:
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(9, 40, generator=g, dtype=F64)
        slope, mean, masks = torch.randn(40, generator=g, dtype=F64), x.mean(dim=0), torch.ones(9, 40, dtype=F64)
        push = hidden_push(x[:1], mean, slope, share)
        assert float(push @ slope) > 0
        before = mask_gradient(x, masks, slope)
        pushed = x.clone()
        pushed[:1] += strength * push
        after = mask_gradient(pushed, masks, slope)
        # a binary mask depends on the sign of its steps, which stay the same in every coordinate
        assert torch.equal(before[0].sign(), after[0].sign())


@dataclass(frozen=True)
class Slope:
    """Clean data with a linear loss, of gradient ``direction``."""

    direction: Tensor

    def loss(self, flat: Tensor, /) -> Tensor:
        return self.direction @ flat

    def gradient(self, flat: Tensor, loss: Any = "cross-entropy", /) -> tuple[Tensor, Tensor]:
        return self.loss(flat), self.direction

    def update(self) -> Tensor:
        return -self.direction

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        return torch.zeros(0, 1), torch.zeros(0, dtype=torch.long)  # isinstance of a protocol reads properties

    @property
    def n_classes(self) -> int:
        return 2

    def train(self, datasets: Any, /) -> Tensor:
        raise AssertionError("no attack trains on root data")


class TestStandIns:
    @pytest.mark.parametrize("m", [2, 3, 6])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_by_loops(self, m: int, dtype: torch.dtype) -> None:
        own = torch.randn(m, 7, generator=torch.Generator().manual_seed(1), dtype=dtype)
        found = stand_ins(own, 5, torch.Generator().manual_seed(2))
        weights = torch.randn(5, m, generator=torch.Generator().manual_seed(2)).tolist()
        rows = own.tolist()
        mean = [sum(row[j] for row in rows) / m for j in range(7)]
        expected = [
            [
                mean[j] + sum(w * (row[j] - mean[j]) for w, row in zip(ws, rows, strict=True)) / (m - 1) ** 0.5
                for j in range(7)
            ]
            for ws in weights
        ]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=dtype))

    @pytest.mark.parametrize("m", [2, 3, 10])
    def test_mean_and_covariance_are_those_of_the_rows(self, m: int) -> None:
        own = 3 + torch.randn(m, 4, generator=torch.Generator().manual_seed(m), dtype=F64)
        b = 200_000
        found = stand_ins(own, b, torch.Generator().manual_seed(0))
        covariance, mean = torch.cov(own.T), own.mean(dim=0)
        assert ((found.mean(dim=0) - mean).abs() <= 5 * (covariance.diag() / b).sqrt()).all()  # five standard errors
        widest = float(covariance.diag().max())
        assert (torch.cov(found.T) - covariance).abs().max() < 5 * (2 / b) ** 0.5 * widest

    def test_one_row(self) -> None:
        own, b = torch.tensor([[2.0, -0.5, 0.0, 30.0]], dtype=F64), 200_000
        found = stand_ins(own, b, torch.Generator().manual_seed(0))
        assert torch.equal(found[:, 2], torch.zeros(b, dtype=F64))
        scaled = ((found - own) / own.abs())[:, [0, 1, 3]]
        assert scaled.mean(dim=0).abs().max() < 5 / b**0.5
        assert (torch.cov(scaled.T) - torch.eye(3, dtype=F64)).abs().max() < 5 * (2 / b) ** 0.5

    @pytest.mark.parametrize("m", [1, 2, 3, 6])
    @pytest.mark.parametrize("seed", range(3))
    def test_no_duplicates(self, m: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        own = torch.randn(m, 50, generator=g)
        rows = torch.cat([own, stand_ins(own, 12, g)])
        distances = torch.cdist(rows, rows) + 1e9 * torch.eye(len(rows))
        assert distances.min() > 1e-3 * own.norm(dim=1).median()

    @pytest.mark.parametrize("m", [1, 3])
    def test_none(self, m: int) -> None:
        assert stand_ins(torch.ones(m, 4), 0, torch.Generator()).shape == (0, 4)


ATTACK = AdaptiveSkyMask(shares=(0.1, 1.0), strengths=(1.0, 4.0))
MakeView = Callable[..., AttackView]


def tries(make_view: MakeView, limit: float, full: bool = True) -> tuple[AttackView, Tensor, list[Tensor]]:
    """A view with a defense that drops rows longer than ``limit``; what was sent; the matrices it was simulated on."""
    g = torch.Generator().manual_seed(0)
    rows, asked = torch.randn(8, 30, generator=g, dtype=F64), []

    def defense(matrix: Tensor) -> Aggregate:
        asked.append(matrix.clone())
        kept = matrix[matrix.norm(dim=1) <= limit]
        return Aggregate(kept.sum(dim=0) / max(1, len(kept)), torch.full((len(matrix),), 1 / len(matrix), dtype=F64))

    direction = torch.randn(30, generator=g, dtype=F64)
    benign = rows[3:] if full else None
    view = make_view(rows[:3], benign, n_clients=8, simulate_defense=defense, root=Slope(direction))
    return view, ATTACK.craft(view), asked


class TestCraft:
    def test_sends_the_candidate_with_the_largest_loss(self, make_view: MakeView) -> None:
        view, sent, asked = tries(make_view, limit=1e9)
        assert len(asked) == 5
        assert torch.equal(asked[0], view.known_updates)
        assert view.benign_updates is not None
        for matrix in asked:
            assert torch.equal(matrix[3:], view.benign_updates)
        losses = [float(view.root.loss(matrix.mean(dim=0))) for matrix in asked]
        assert torch.equal(sent, asked[losses.index(max(losses))][:3])
        assert max(losses) > losses[0]
        # without a limit: the largest strength and share
        own, slope = view.malicious_updates, view.root.gradient(view.malicious_updates[0])[1]
        push = hidden_push(own, view.known_updates.mean(dim=0), slope, 1.0)
        torch.testing.assert_close(sent, own + 4 * view.known_updates.norm(dim=1).median() * push)
        # no random number is drawn with full knowledge
        assert torch.equal(view.generator.get_state(), torch.Generator().manual_seed(0).get_state())

    def test_a_limit_is_kept(self, make_view: MakeView) -> None:
        limit = 10.0
        view, sent, _ = tries(make_view, limit)
        assert view.malicious_updates.norm(dim=1).max() < sent.norm(dim=1).max() <= limit
        assert tries(make_view, 1e9)[1].norm(dim=1).max() > limit

    def test_honest_updates_where_no_candidate_has_a_larger_loss(self, make_view: MakeView) -> None:
        view, sent, asked = tries(make_view, limit=0.0)
        assert len(asked) == 5
        assert torch.equal(sent, view.malicious_updates)
        assert sent is not view.malicious_updates

    def test_partial_knowledge_simulates_a_whole_round_with_stand_ins(self, make_view: MakeView) -> None:
        view, sent, asked = tries(make_view, 1e9, full=False)
        assert view.benign_updates is None
        assert len(asked) == 5
        expected = stand_ins(view.malicious_updates, 5, torch.Generator().manual_seed(0))
        assert torch.equal(asked[0][:3], view.malicious_updates)
        assert all(torch.equal(matrix[3:], expected) for matrix in asked)  # the same for every candidate
        assert not torch.equal(sent, view.malicious_updates)

    def test_partial_knowledge_with_malicious_clients_only(self, make_view: MakeView) -> None:
        view, _, _ = tries(make_view, 1e9, full=False)
        alone = replace(view, n_clients=3)
        assert ATTACK.craft(alone).shape == (3, 30)

    def test_candidates_that_overflow_are_not_sent(self, make_view: MakeView) -> None:
        view, _, _ = tries(make_view, 1e9)
        attack = AdaptiveSkyMask(shares=(1.0,), strengths=(1.0, 1e308))
        sent = attack.craft(view)
        assert sent.norm(dim=1).max() < 1e6

    def test_defense_not_granted(self, make_view: MakeView) -> None:
        with pytest.raises(ParameterError, match="grant it with knows_defense=true"):
            ATTACK.craft(make_view(torch.zeros(2, 3)))


@dataclass(frozen=True)
class Recording:
    """The attack with a record of each round: its honest updates, what it sent, and the simulated results."""

    attack: AdaptiveSkyMask
    rounds: list[tuple[Tensor, Tensor, list[Aggregate]]] = field(default_factory=list)

    def craft(self, view: AttackView, /) -> Tensor:
        assert view.benign_updates is None
        simulate, results = view.simulate_defense, []
        assert simulate is not None

        def recorded(matrix: Tensor) -> Aggregate:
            assert len(matrix) == view.n_clients
            results.append(simulate(matrix))
            return results[-1]

        sent = self.attack.craft(replace(view, simulate_defense=recorded))
        self.rounds.append((view.malicious_updates, sent, results))
        return sent


@pytest.mark.parametrize("defense", ["sieve", "skymask"])
def test_partial_knowledge_on_digits(defense: str) -> None:
    """The simulated defense accepts most of the stand-ins and a candidate with a larger loss."""
    experiment = Experiment.of(
        {
            "dataset": "digits",
            "clients": 10,
            "malicious": 3,
            "rounds": 1,
            "defense": defense,
            "attack": "adaptive-skymask",
            "knowledge": "partial",
            "knows_defense": True,
        }
    )
    simulation = Simulation.of(experiment, Path("not used"), torch.device("cpu"))
    attack = Recording(AdaptiveSkyMask(shares=(0.1,), strengths=(0.5, 1.0)))
    watched = replace(simulation, adversary=replace(simulation.adversary, attack=attack))
    assert len(list(watched.rounds())) == 1
    ((honest, sent, results),) = attack.rounds
    assert len(results) == 3
    for result in results:
        assert result.accepted is not None
        assert result.accepted[3:].sum() >= 6  # of 7 stand-ins
    assert not torch.equal(sent, honest)
    assert sent.isfinite().all()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"shares": ()}, "adaptive-skymask: shares must be in (0, 1], got []"),
        ({"shares": (0.5, 1.5)}, "adaptive-skymask: shares must be in (0, 1], got [0.5, 1.5]"),
        ({"strengths": (0.0,)}, "adaptive-skymask: strengths must be positive and finite, got [0.0]"),
        ({"strengths": (1.0, math.inf)}, "adaptive-skymask: strengths must be positive and finite, got [1.0, inf]"),
        ({"strengths": (math.nan,)}, "adaptive-skymask: strengths must be positive and finite, got [nan]"),
    ],
)
def test_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError) as error:
        AdaptiveSkyMask(**parameters)
    assert str(error.value) == message
