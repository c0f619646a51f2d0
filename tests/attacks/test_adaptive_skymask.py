"""The adaptive attack: where it pushes, what masks see of it, and what it sends after rehearsing."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsieve.attacks.adaptive_skymask import AdaptiveSkyMask, hidden_push
from fedsieve.defenses.skymask.joint import mask_gradient
from fedsieve.types import Aggregate, AttackView, Objective, ParameterError, Witnesses

F64 = torch.float64


class TestHiddenPush:
    own = torch.tensor([[2.0, 2.0, -2.0, -2.0, 0.0], [-1.0, 3.0, 1.0, -5.0, 2.0]], dtype=F64)
    slope = torch.tensor([3.0, -1.0, 2.0, -4.0, 1.0], dtype=F64)

    def test_by_hand(self) -> None:
        # around the mean 0, row 0 is uphill in columns 0 and 3, row 1 in columns 2, 3 and 4
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

    def test_nothing_uphill(self) -> None:
        down = -self.slope.expand(2, -1)
        assert not hidden_push(down, torch.zeros(5, dtype=F64), self.slope, 1.0).any()

    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(seed=st.integers(0, 10**6), share=st.sampled_from([0.05, 0.3, 1.0]), strength=st.floats(0.01, 100))
    def test_goes_uphill_and_its_masks_stay_what_they_were(self, seed: int, share: float, strength: float) -> None:
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(9, 40, generator=g, dtype=F64)
        slope, mean, masks = torch.randn(40, generator=g, dtype=F64), x.mean(dim=0), torch.ones(9, 40, dtype=F64)
        push = hidden_push(x[:1], mean, slope, share)
        assert float(push @ slope) > 0
        before = mask_gradient(x, masks, slope)
        pushed = x.clone()
        pushed[:1] += strength * push
        after = mask_gradient(pushed, masks, slope)
        # the way a mask moves is all that binarising keeps: the pusher's are the same in every coordinate
        assert torch.equal(before[0].sign(), after[0].sign())


@dataclass(frozen=True)
class Slope:
    """Clean data whose loss rises along ``direction`` alone."""

    direction: Tensor

    def loss(self, flat: Tensor, /) -> Tensor:
        return self.direction @ flat

    def gradient(self, flat: Tensor, objective: Objective = "cross-entropy", /) -> tuple[Tensor, Tensor]:
        return self.loss(flat), self.direction

    def update(self) -> Tensor:
        return -self.direction

    def witnesses(self) -> Witnesses:
        raise AssertionError("nothing here asks for witnesses")


ATTACK = AdaptiveSkyMask(shares=(0.1, 1.0), strengths=(1.0, 4.0))
MakeView = Callable[..., AttackView]


def tries(make_view: MakeView, limit: float, full: bool = True) -> tuple[AttackView, Tensor, list[Tensor]]:
    """A view with a defense that drops rows longer than ``limit``; what was sent; what was rehearsed."""
    g = torch.Generator().manual_seed(0)
    rows, asked = torch.randn(8, 30, generator=g, dtype=F64), []

    def defense(matrix: Tensor) -> Aggregate:
        asked.append(matrix.clone())
        kept = matrix[matrix.norm(dim=1) <= limit]
        return Aggregate(kept.sum(dim=0) / max(1, len(kept)), torch.full((len(matrix),), 1 / len(matrix), dtype=F64))

    direction = torch.randn(30, generator=g, dtype=F64)
    view = make_view(rows[:3], rows[3:] if full else None, rehearse=defense, root=Slope(direction))
    return view, ATTACK.craft(view), asked


class TestCraft:
    def test_sends_what_did_most_harm_in_rehearsal(self, make_view: MakeView) -> None:
        view, sent, asked = tries(make_view, limit=1e9)
        assert len(asked) == 5
        assert torch.equal(asked[0], view.known)
        assert view.others is not None
        for matrix in asked:
            assert torch.equal(matrix[3:], view.others)
        harms = [float(view.root.loss(matrix.mean(dim=0))) for matrix in asked]
        assert torch.equal(sent, asked[harms.index(max(harms))][:3])
        assert max(harms) > harms[0]
        # without a limit: the longest push, along every coordinate that is uphill
        push = hidden_push(view.own, view.known.mean(dim=0), view.root.gradient(view.own[0])[1], 1.0)
        torch.testing.assert_close(sent, view.own + 4 * view.known.norm(dim=1).median() * push)

    def test_a_limit_is_kept(self, make_view: MakeView) -> None:
        limit = 10.0
        view, sent, _ = tries(make_view, limit)
        assert view.own.norm(dim=1).max() < sent.norm(dim=1).max() <= limit
        assert tries(make_view, 1e9)[1].norm(dim=1).max() > limit

    def test_honest_where_nothing_beats_that(self, make_view: MakeView) -> None:
        view, sent, asked = tries(make_view, limit=0.0)
        assert len(asked) == 5
        assert torch.equal(sent, view.own)
        assert sent is not view.own

    def test_partial_knowledge_rehearses_with_its_own(self, make_view: MakeView) -> None:
        view, sent, asked = tries(make_view, 1e9, full=False)
        assert view.others is None
        assert all(torch.equal(matrix[3:], view.own) for matrix in asked)
        assert not torch.equal(sent, view.own)

    def test_overflow_is_no_success(self, make_view: MakeView) -> None:
        view, _, _ = tries(make_view, 1e9)
        attack = AdaptiveSkyMask(shares=(1.0,), strengths=(1.0, 1e308))
        sent = attack.craft(view)
        assert sent.norm(dim=1).max() < 1e6

    def test_defense_not_granted(self, make_view: MakeView) -> None:
        with pytest.raises(ParameterError, match="grant it with knows_defense=true"):
            ATTACK.craft(make_view(torch.zeros(2, 3)))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"shares": ()}, "adaptive-skymask: shares must be in (0, 1], got []"),
        ({"shares": (0.5, 1.5)}, "adaptive-skymask: shares must be in (0, 1], got [0.5, 1.5]"),
        ({"strengths": (0.0,)}, "adaptive-skymask: strengths must be positive, got [0.0]"),
    ],
)
def test_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError) as error:
        AdaptiveSkyMask(**parameters)
    assert str(error.value) == message
