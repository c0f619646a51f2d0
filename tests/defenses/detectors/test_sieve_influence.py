"""Bounded influence: no update counts for more than its bound, and copies share weight."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsieve.detectors.sieve import influence
from fedsieve.detectors.sieve.evidence import Evidence, gather
from fedsieve.detectors.sieve.influence import Limited
from fedsieve.detectors.sieve.measurements import Measurements, measure
from fedsieve.detectors.sieve.reference import ReferenceUpdates

F64 = torch.float64
P, FOLDS = 60, 4


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def references_of(seed: int = 0, d: int = P, r: int = 12) -> ReferenceUpdates:
    """Noisy steps along one direction."""
    drawn = normal(d, seed=seed) + 0.7 * normal(r + 8, d, seed=seed + 1)
    drawn[:r] += normal(r, d, seed=seed + 2)
    classes, folds = torch.arange(r) % 3, torch.arange(r) % FOLDS
    others = [folds != k for k in range(FOLDS)] + [classes != c for c in range(3)]
    return ReferenceUpdates(drawn[-1], drawn[:r], classes, drawn[r : r + 7], torch.stack(others), FOLDS, True)


def benign(n: int, seed: int = 0, d: int = P) -> Tensor:
    return normal(d, seed=seed) + 0.7 * normal(n, d, seed=seed + 3)


def gradients_of(seed: int = 0, d: int = P) -> Tensor:
    return -normal(d, seed=seed) + 0.5 * normal(2, d, seed=seed + 4)


@dataclass(frozen=True)
class Round:
    x: Tensor
    w: ReferenceUpdates
    gradients: Tensor
    m: Measurements
    e: Evidence
    limited: Limited

    @property
    def vectors(self) -> Tensor:
        """The limited updates, written out."""
        span = self.m.basis.T @ self.w.subsets.double()
        rows = self.limited.scale[:, None] * self.x.double() + self.limited.explained @ span
        return rows - self.limited.slope[:, None] * self.gradients[0].double()

    def combined(self, weights: Tensor, missing: float = 0.0) -> Tensor:
        return influence.combine(self.x, self.limited, weights, missing, self.m, self.gradients[0], self.w)


def played(x: Tensor, seed: int = 0, unusual: Any = (), complete: bool = True, w: Any = None) -> Round:
    w = w or references_of(seed, x.shape[1])
    w = replace(w, **{name: getattr(w, name).to(x) for name in ("root", "subsets", "held_out")})
    gradients = gradients_of(seed, x.shape[1]).to(x)
    m = measure(x, gradients, w)
    e = gather(m, w.n_balanced, complete, None, 0.9)
    flags = torch.zeros(len(x), dtype=torch.bool)
    flags[list(unusual)] = True
    return Round(x, w, gradients, m, e, influence.limit(m, e, flags))


class TestLimit:
    @settings(max_examples=80, deadline=None, derandomize=True)
    @given(
        n=st.integers(1, 12),
        seed=st.integers(0, 10**6),
        exponents=st.lists(st.sampled_from([-40, -3, -1, 0, 1, 3, 12, 37]), min_size=1, max_size=4),
        kind=st.sampled_from(["noise", "own", "minus", "gradient", "in span", "mixed"]),
        unusual=st.booleans(),
        complete=st.booleans(),
        dtype=st.sampled_from([torch.float32, F64]),
    )
    def test_no_limited_update_is_longer_than_the_bound(
        self, n: int, seed: int, exponents: list[int], kind: str, unusual: bool, complete: bool, dtype: torch.dtype
    ) -> None:
        w, x = references_of(seed), benign(n, seed)
        sent = {
            "noise": normal(n, P, seed=seed + 5),
            "own": x,
            "minus": -x,
            "gradient": gradients_of(seed)[:1].expand(n, P),
            "in span": normal(n, 12, seed=seed + 6) @ w.subsets,
            "mixed": w.subsets[:1] + 0.01 * normal(n, P, seed=seed + 5),
        }[kind].clone()
        for k in range(n):
            sent[k] *= 10.0 ** exponents[k % len(exponents)]
        x = torch.cat([sent, benign(3, seed + 9)]).clamp(-3e38, 3e38).to(dtype)
        found = played(x, seed, range(n if unusual else 0), complete)
        lengths = found.vectors.norm(dim=1)
        assert lengths.isfinite().all()
        assert float(lengths.max()) <= found.limited.bound * (1 + 1e-3)

    @pytest.mark.parametrize("seed", range(3))
    def test_against_parts(self, seed: int) -> None:
        """Each part by itself, from least squares."""
        x = benign(8, seed)
        x[1] *= 100
        x[2] *= -1
        x[3] += 40 * normal(P, seed=9)
        found = played(x, seed, unusual=[4])
        w, e, g = found.w, found.e, found.gradients[0]
        assert e.longest is not None
        for i, row in enumerate(x):
            inside = w.subsets.T @ torch.linalg.lstsq(w.subsets.T, row[:, None]).solution[:, 0]
            outside = row - inside
            cut = min(1, e.longest / float(inside.norm()))
            kept = 0 if i == 4 else min(1, e.limit / (cut * float(e.residual[i])))
            expected = cut * (inside + kept * outside)
            rising = float(expected @ g)
            expected = expected - max(rising, 0) / float(g @ g) * g
            torch.testing.assert_close(found.vectors[i], expected, rtol=1e-3, atol=1e-3)
            assert float(found.vectors[i] @ g) < 1e-3
            assert (rising > 0) == (float(found.limited.slope[i]) > 0)

    def test_usual_updates_are_unchanged(self) -> None:
        found = played(benign(10))
        assert found.e.trusted
        inside = (found.e.cut == 1) & (found.e.residual < found.e.limit) & (found.m.slopes[:, 0] < 0)
        assert inside.sum() >= 8
        torch.testing.assert_close(found.vectors[inside], found.x[inside])

    @pytest.mark.parametrize("complete", [True, False])
    def test_nothing_is_taken_away_where_root_data_cannot_be_trusted(self, complete: bool) -> None:
        found = played(torch.cat([-benign(2), benign(8)]), complete=complete)
        assert (found.limited.slope[:2] > 0).tolist() == [complete] * 2

    def test_without_references_nobody_counts_for_more_than_the_median(self) -> None:
        w = references_of()
        w = replace(w, held_out=w.held_out[:0], others=w.others[:0], n_balanced=0)
        x = benign(5) * torch.tensor([1.0, 50.0, 0.1, 2.0, 0.0], dtype=F64)[:, None]
        found = played(x, w=w)
        middle = float(x.norm(dim=1).median())
        assert found.limited.bound == middle
        expected = [min(float(row.norm()), middle) for row in x]
        assert found.vectors.norm(dim=1).tolist() == pytest.approx(expected)

    def test_a_zero_gradient(self) -> None:
        x, w = benign(4), references_of()
        m = measure(x, torch.zeros(2, P, dtype=F64), w)
        e = gather(m, FOLDS, True, None, 0.9)
        assert not influence.limit(m, e, torch.zeros(4, dtype=torch.bool)).slope.any()


def weighed(
    found: Round, rounds: list[int] | None = None, counted: Any = None, doubt: list[float] | None = None
) -> tuple[Tensor, float]:
    n = len(found.x)
    counted = torch.ones(n, dtype=torch.bool) if counted is None else torch.tensor(counted)
    taken, doubts = torch.tensor(rounds or [5] * n), torch.tensor(doubt or [0.0] * n, dtype=F64)
    return influence.weigh(found.m, found.e, counted, found.limited, taken, doubts)


class TestWeights:
    d = 300  # so that the residuals of honest updates are hardly alike

    def test_usual_updates_count_in_full(self) -> None:
        weights, missing = weighed(played(benign(10, d=self.d)))
        assert weights.tolist() == pytest.approx([1] * 10)
        assert missing == pytest.approx(0)

    @pytest.mark.parametrize("jitter", [0.0, 0.02])
    @pytest.mark.parametrize(("copies", "honest"), [(2, 10), (5, 12), (10, 15), (15, 30)])
    def test_copies_count_as_the_usual_number_together(self, copies: int, honest: int, jitter: float) -> None:
        x = benign(honest, d=self.d)
        x = torch.cat([x[:1] + jitter * normal(copies, self.d, seed=8), x])
        found = played(x)
        weights, missing = weighed(found)
        similar = 1 + (found.m.residual_cosines.clamp(min=0) ** 2).sum(dim=1) - found.m.residual_cosines.diagonal() ** 2
        usual = 1.5 * float(torch.quantile(similar, 0.25))
        assert float(weights[: copies + 1].sum()) <= usual * 1.01
        assert weights[copies + 1 :].tolist() == pytest.approx([1] * (honest - 1))
        assert missing == pytest.approx(float((1 - weights).sum()))

    def test_the_copied_client_does_not_lose_more_than_its_copies(self) -> None:
        x = benign(12, d=self.d)
        weights, _ = weighed(played(torch.cat([x[:1].expand(4, -1), x])))
        assert weights[:5].tolist() == pytest.approx([float(weights[0])] * 5)
        assert weights[0] > 0

    def test_rejected_clients_have_no_weight_and_no_say_in_who_is_alike(self) -> None:
        x = benign(12, d=self.d)
        x[:4] = x[4]
        weights, missing = weighed(played(x), counted=[False] * 4 + [True] * 8)
        assert weights.tolist() == pytest.approx([0] * 4 + [1] * 8)
        assert missing == pytest.approx(4)

    def test_short_and_empty_updates(self) -> None:
        x = benign(10, d=self.d)
        length = float(played(x).m.held_length[:FOLDS].mean())
        for k, share in enumerate((0.0, 0.005, 0.02, 0.125, 0.25, 0.5)):
            x[k] *= share * length / float(x[k].norm())
        weights, missing = weighed(played(x))
        assert weights[:6].tolist() == pytest.approx([0, 0, 0.08, 0.5, 1, 1])
        assert missing == pytest.approx(2)  # of the empty ones; shortness alone is nobody else's weight

    def test_newcomers(self) -> None:
        found = played(benign(8, d=self.d))
        weights, missing = weighed(found, [1, 2, 5, 7, 7, 7, 9, 30])
        assert weights.tolist() == pytest.approx([2 / 8, 3 / 8, 6 / 8, 1, 1, 1, 1, 1])
        assert missing == pytest.approx(3 - 11 / 8)
        # after ten rounds nobody is new; and where all are, nobody is
        assert weighed(found, [10, 40, 40, 40, 40, 40, 40, 40])[0].tolist() == pytest.approx([1] * 8)
        assert weighed(found, [1] * 8)[0].tolist() == pytest.approx([1] * 8)

    def test_doubt(self) -> None:
        found = played(benign(7, d=self.d))
        weights, missing = weighed(found, doubt=[-9, 0, 2, 2.5, 3, 4, 40])
        assert weights.tolist() == pytest.approx([1, 1, 1, 0.75, 0.5, 0, 0])
        assert missing == pytest.approx(2.75)

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(
        n=st.integers(1, 10),
        seed=st.integers(0, 10**6),
        factor=st.sampled_from([0.0, 1e-3, 1.0, 1e6]),
        rounds=st.integers(0, 30),
    )
    def test_weights_are_shares_of_one(self, n: int, seed: int, factor: float, rounds: int) -> None:
        x = benign(n, seed)
        x[::2] *= factor
        weights, missing = weighed(played(x, seed), [(rounds + 7 * k) % 31 for k in range(n)])
        assert ((weights >= 0) & (weights <= 1)).all()
        assert -1e-9 <= missing <= n


class TestCombine:
    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(n=st.integers(1, 8), seed=st.integers(0, 10**6), missing=st.floats(0, 20))
    def test_against_the_vectors(self, n: int, seed: int, missing: float) -> None:
        x = benign(n, seed)
        x[0] *= -300
        found = played(x, seed)
        weights = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=F64) + 0.01
        total = float(weights.sum())
        stand_in = min(missing, total)
        root = found.w.root * min(1, found.limited.bound / float(found.w.root.norm()))
        expected = (weights @ found.vectors + stand_in * root) / (total + stand_in)
        torch.testing.assert_close(found.combined(weights, missing), expected, rtol=1e-4, atol=1e-4)

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(
        m=st.integers(1, 6),
        seed=st.integers(0, 10**6),
        exponent=st.integers(-3, 30),
        kind=st.sampled_from(["noise", "minus", "one direction"]),
    )
    def test_what_undetected_clients_can_move(self, m: int, seed: int, exponent: int, kind: str) -> None:
        """Their part of the mean is at most their share of the weights times the bound, whatever they send."""
        honest = benign(6, seed)
        direction = normal(1, P, seed=seed + 11)
        sent = {"noise": normal(m, P, seed=seed + 12), "minus": -benign(m, seed), "one direction": direction}[kind]
        x = torch.cat([10.0**exponent * sent.expand(m, P), honest])
        found = played(x, seed)
        weights, missing = weighed(found)
        # the same weights and limits, but nothing from the m clients
        limited = found.limited
        rest = torch.cat([torch.zeros(m, dtype=F64), torch.ones(6, dtype=F64)])
        silent = Limited(limited.scale * rest, limited.explained * rest[:, None], limited.slope * rest, limited.bound)
        moved = found.combined(weights, missing) - replace(found, limited=silent).combined(weights, missing)
        total = float(weights.sum())
        share = float(weights[:m].sum()) / (total + min(missing, total))
        assert float(moved.norm()) <= share * limited.bound * (1 + 1e-3)

    def test_nobody_left(self) -> None:
        found = played(benign(3))
        assert not found.combined(torch.zeros(3, dtype=F64), 3.0).any()

    def test_the_stand_in_has_half_at_most_and_is_bounded_too(self) -> None:
        found = played(benign(3))
        weights = torch.tensor([0.1, 0.0, 0.0], dtype=F64)
        huge = replace(found, w=replace(found.w, root=1e9 * found.w.root))
        update = huge.combined(weights, 2.9)
        torch.testing.assert_close(
            2 * update - found.vectors[0], found.limited.bound * found.w.root / found.w.root.norm()
        )
