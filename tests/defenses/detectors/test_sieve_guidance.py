"""The step that sieve takes: the nearest one after which no class is worse off, and not one that raises root loss."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedsieve.core.loss import Loss, LossName
from fedsieve.detectors.sieve.guidance import Lately, guide, halved, nearest, slopes_of_classes, steady
from fedsieve.detectors.sieve.margin import balanced_loss, margin_of
from fedsieve.detectors.sieve.reference import ReferenceUpdates

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-300)


@dataclass(frozen=True)
class Linear:
    """Root data of a linear model without bias, flat = weights [c, f] row by row."""

    x: Tensor
    y: Tensor
    classes: int

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        return self.x, self.y

    @property
    def n_classes(self) -> int:
        return self.classes

    def loss(self, flat: Tensor, /) -> Tensor:
        return self.gradient(flat)[0]

    def gradient(self, flat: Tensor, loss: LossName | Loss = "cross-entropy", /) -> tuple[Tensor, Tensor]:
        at = flat.clone().requires_grad_()
        function = cross_entropy if isinstance(loss, str) else loss
        value = function(self.x @ at.view(self.classes, -1).T, self.y)
        return value.detach(), torch.autograd.grad(value, at)[0]

    def update(self) -> Tensor:
        raise AssertionError

    def train(self, datasets: object, /) -> Tensor:
        raise AssertionError


def linear(classes: int = 3, features: int = 4, per_class: int = 5, seed: int = 0) -> Linear:
    y = torch.arange(classes).repeat(per_class)
    centres = 2 * normal(classes, features, seed=seed)
    return Linear(centres[y] + 0.3 * normal(len(y), features, seed=seed + 1), y, classes)


def references(held: Tensor, balanced: int | None = None) -> ReferenceUpdates:
    n = len(held)
    return ReferenceUpdates(
        root=held[:1].sum(dim=0),
        subsets=held,
        classes=torch.arange(n),
        held_out=held,
        others=torch.ones(n, n, dtype=torch.bool),
        n_balanced=n if balanced is None else balanced,
        complete=True,
    )


def own_steps(root: Linear, params: Tensor, size: float = 0.5) -> Tensor:
    """Steps that training on root data would make: down the gradient, with some noise."""
    slope = -size * root.gradient(params, balanced_loss)[1]
    return slope + 0.1 * slope.norm() / len(slope) ** 0.5 * normal(5, len(slope), seed=9)


def brute(update: Tensor, slopes: Tensor, limits: Tensor) -> Tensor:
    """Of the projections onto all intersections of the planes, the nearest that is on the right side of every plane."""
    best, distance = update, float("inf")
    for k in range(len(slopes) + 1):
        for chosen in combinations(range(len(slopes)), k):
            rows = list(chosen)
            planes = slopes[rows]
            found = update - (torch.linalg.pinv(planes) @ (planes @ update - limits[rows]) if k else 0)
            apart = float((found - update).norm())
            if (slopes @ found <= limits + 1e-9 * update.norm()).all() and apart < distance:
                best, distance = found, apart
    return best


def projected(update: Tensor, slopes: Tensor, limits: Tensor) -> Tensor:
    """The nearest vector whose products with the slopes are at most the limits."""
    return update - nearest(slopes @ update - limits, slopes @ slopes.T) @ slopes


class TestNearest:
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(
        count=st.integers(1, 6),
        seed=st.integers(0, 10**6),
        size=st.sampled_from([1e-30, 1e-12, 1.0, 1e6]),
        share=st.sampled_from([0.0, 0.5, 1.0]),
    )
    def test_against_brute_force(self, count: int, seed: int, size: float, share: float) -> None:
        slopes, update = unit(normal(count, 8, seed=seed)), size * normal(8, seed=seed + 1)
        limits = share * (slopes @ (size * normal(8, seed=seed + 2)))
        found = projected(update, slopes, limits)
        torch.testing.assert_close(found / size, brute(update, slopes, limits) / size, rtol=1e-4, atol=1e-4)
        assert (slopes @ found <= limits + 1e-5 * size).all()

    def test_unchanged_where_nothing_is_over(self) -> None:
        slopes = unit(normal(4, 8))
        update = torch.linalg.lstsq(slopes, -torch.ones(4, 1, dtype=F64)).solution[:, 0]
        zeros = torch.zeros(4, dtype=F64)
        assert torch.equal(projected(update, slopes, zeros), update)
        assert torch.equal(projected(0 * update, slopes, zeros), 0 * update)
        assert torch.equal(projected(update, 0 * slopes, zeros), update)

    @pytest.mark.parametrize("seed", range(20))
    def test_planes_that_are_nearly_the_same_or_opposite(self, seed: int) -> None:
        one = normal(1, 30, seed=seed)
        rows = torch.cat([one.expand(6, -1), -one, one + 1e-7 * normal(6, 30, seed=seed + 1), 0 * one, normal(3, 30)])
        slopes, update = unit(rows), normal(30, seed=seed + 2)
        found = projected(update, slopes, torch.zeros(len(slopes), dtype=F64))
        assert found.norm() <= update.norm() * (1 + 1e-9)
        assert (slopes @ found <= 1e-4 * update.norm()).all()

    @pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
    def test_projecting_brings_updates_closer(self, share: float) -> None:
        # so that what clients can move the mean by holds for the step as well
        slopes, own = unit(normal(4, 8)), normal(8, seed=7)
        limits = share * (slopes @ own)
        for seed in range(30):
            one, other = normal(8, seed=seed), normal(8, seed=seed + 100)
            steps = [projected(update, slopes, limits) for update in (one, other)]
            assert (steps[0] - steps[1]).norm() <= (one - other).norm() * (1 + 1e-6)
            assert steps[0].norm() <= one.norm() + 2 * share * own.norm() + 1e-6


class TestSlopes:
    def test_two_for_each_class(self) -> None:
        root, params = linear(), normal(12, seed=3)
        slopes = slopes_of_classes(root, params, 12, torch.Generator())
        expected = []
        for c in range(3):
            expected += [
                root.gradient(params, margin_of(c))[1],
                root.gradient(params, lambda logits, y, c=c: cross_entropy(logits[y == c], y[y == c]))[1],
            ]
        torch.testing.assert_close(slopes, unit(torch.stack(expected)))

    def test_twenty_of_many_classes_are_drawn(self) -> None:
        root = linear(40, 4, 1)
        every = slopes_of_classes(
            Linear(root.x[:20], root.y[:20], 40), torch.zeros(160, dtype=F64), 160, torch.Generator()
        )
        assert len(every) == 40
        found = [
            slopes_of_classes(root, torch.zeros(160, dtype=F64), 160, torch.Generator().manual_seed(seed))
            for seed in (101, 101, 102)
        ]
        assert [len(rows) for rows in found] == [40] * 3
        assert torch.equal(found[0], found[1])
        assert not torch.equal(found[0], found[2])


def guided(update: Tensor, held: Tensor, root: Linear, params: Tensor, **more: int) -> tuple[Tensor, float]:
    return guide(update, references(held, **more), root, params, torch.Generator())[:2]


class TestGuide:
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("size", [0.02, 0.5])
    def test_no_class_is_worse_off_to_first_order(self, seed: int, size: float) -> None:
        root, params = linear(seed=seed), 0.1 * normal(12, seed=seed + 5)
        step, factor = guided(size * normal(12, seed=seed + 6), own_steps(root, params), root, params)
        slopes = slopes_of_classes(root, params, 12, torch.Generator())
        own = own_steps(root, params).mean(dim=0)
        assert (slopes @ step <= factor * (slopes @ own).clamp(min=0) + 1e-6).all()

    def test_a_pull_of_all_inputs_to_one_class(self) -> None:
        # margins, centred over the classes, don't show it
        root = linear(features=5)
        root = replace(root, x=torch.cat([root.x[:, :4], torch.ones(15, 1, dtype=F64)], dim=1))
        params = torch.zeros(15, dtype=F64)
        pull = torch.zeros(3, 5, dtype=F64)
        pull[0, 4] = 1
        margins = torch.stack([root.gradient(params, margin_of(c))[1] for c in range(3)])
        assert margins @ pull.flatten() == pytest.approx(torch.zeros(3), abs=1e-12)
        slopes = slopes_of_classes(root, params, 15, torch.Generator())
        assert (slopes @ pull.flatten()).max() > 0.1
        step, _ = guided(pull.flatten(), torch.zeros(5, 15, dtype=F64), root, params)
        assert (slopes @ step).max() <= 1e-6
        assert root.gradient(step, balanced_loss)[0] <= root.gradient(params, balanced_loss)[0]

    def test_makes_up_for_updates_that_do_nothing(self) -> None:
        root, params = linear(), torch.zeros(12, dtype=F64)
        held = own_steps(root, params, 0.05)
        step, factor = guided(torch.zeros(12, dtype=F64), held, root, params)
        slopes, own = slopes_of_classes(root, params, 12, torch.Generator()), held.mean(dim=0)
        assert factor == 1
        assert (slopes @ step <= 0.5 * (slopes @ own) + 1e-6).all()
        assert step.norm() <= own.norm()

    def test_takes_what_leaves_the_lowest_loss(self) -> None:
        # as much progress as the server's own updates, whose length is far too great, would overshoot
        root, params = linear(per_class=40), torch.zeros(12, dtype=F64)
        root = replace(root, x=root.x + 3 * normal(120, 4, seed=8))
        held = own_steps(root, params, 500.0)
        update = -0.5 * root.gradient(params, balanced_loss)[1]
        step, factor = guided(update, held, root, params)
        assert factor == 1
        assert torch.equal(step, update)

    @pytest.mark.parametrize("seed", range(5))
    def test_is_at_most_so_long(self, seed: int) -> None:
        root, params = linear(seed=seed), normal(12, seed=seed)
        held = own_steps(root, params)
        update = 3 * normal(12, seed=seed + 1)
        step, _ = guided(update, held, root, params)
        assert step.norm() <= update.norm() + held.mean(dim=0).norm() + 1e-6

    def test_without_held_out_updates(self) -> None:
        root, params = linear(), torch.zeros(12, dtype=F64)
        step, factor = guided(-root.gradient(params)[1], torch.zeros(1, 12, dtype=F64), root, params, balanced=0)
        assert factor == 1
        torch.testing.assert_close(step, -root.gradient(params)[1])

    def test_asks_for_the_loss_after_the_servers_own_updates_only_where_it_matters(self) -> None:
        class Counted(Linear):
            def losses(self, flats: Tensor, loss: LossName | Loss = "cross-entropy", /) -> Tensor:
                asked.append(len(flats))
                return torch.stack([self.gradient(flat, loss)[0] for flat in flats])

            def gradients(self, flat: Tensor, losses: Sequence[LossName | Loss], /) -> tuple[Tensor, Tensor]:
                values, gradients = zip(*(self.gradient(flat, loss) for loss in losses), strict=True)
                return torch.stack(values), torch.stack(gradients)

        plain, params = linear(), torch.zeros(12, dtype=F64)
        root, held = Counted(plain.x, plain.y, plain.classes), own_steps(plain, params, 0.05)
        downhill = -plain.gradient(params, balanced_loss)[1]
        for size, expected in ((0.05, [3]), (1e3, [3, 5, 3])):
            asked: list[int] = []
            step, factor = guided(size * downhill, held, root, params)
            assert asked == expected
            other, same = guided(size * downhill, held, plain, params)
            assert torch.equal(step, other)
            assert factor == same == (1 if len(expected) == 1 else 1 / 8)


class TestHalved:
    @pytest.mark.parametrize(
        ("update", "factor"),
        [
            ([2.0, 0.0], 1),
            ([2.1, 0.0], 1 / 2),
            ([3.9, 0.0], 1 / 2),
            ([7.9, 0.0], 1 / 4),
            ([1e9, 0.0], 1 / 8),
            ([-1.0, 0.0], 1 / 8),
        ],
    )
    def test_until_the_loss_does_not_rise(self, update: list[float], factor: float) -> None:
        loss = paraboloid([1.0, 0.0])  # at 0 it is half of 1
        step = torch.tensor(update, dtype=F64)
        found, shorter = halved(step, loss(step), 0.5, torch.inf, each(loss))
        assert shorter == factor
        assert found.tolist() == [v * factor for v in update]

    @pytest.mark.parametrize(("update", "factor"), [([2.1, 0.0], 1 / 2), ([-1.0, 0.0], 1 / 16), ([1e9, 0.0], 1 / 64)])
    def test_further_where_the_training_would_end(self, update: list[float], factor: float) -> None:
        loss, step = paraboloid([1.0, 0.0]), torch.tensor(update, dtype=F64)
        assert halved(step, loss(step), 0.5, 0.6, each(loss))[1] == factor

    def test_a_loss_that_is_no_number(self) -> None:
        step = torch.tensor([torch.inf, 0.0], dtype=F64)
        assert halved(step, float("nan"), 0.5, 0.6, each(paraboloid([1.0, 0.0])))[1] == 1 / 64

    def test_where_root_data_dont_fit_it_may_rise_by_a_nat(self) -> None:
        root, params = linear(), 0.5 * normal(12, seed=3)
        before, uphill = root.gradient(params, balanced_loss)
        for size, cut in ((0.1, False), (5.0, True)):
            step, factor, _ = steady(size * uphill, root, params)
            assert (factor < 1) == cut
            assert float(before) < float(root.gradient(params + step, balanced_loss)[0]) <= float(before) + 1

    @pytest.mark.parametrize("guided", [False, True], ids=["steady", "guide"])
    @pytest.mark.parametrize(
        ("rate", "share", "judged"),
        [(1 / 2, 0.5, 1.0), (1 / 2, 0.51, 1 / 2), (1 / 50, 0.51, 1 / 50), (2.0, 0.0, 2.0), (2.0, 0.51, 2.0)],
    )
    def test_by_what_the_server_adds_while_most_steps_would_be_halved(
        self, guided: bool, rate: float, share: float, judged: float
    ) -> None:
        root, params = linear(), 0.5 * normal(12, seed=3)
        before, uphill = root.gradient(params, balanced_loss)

        def step_of(update: Tensor, lately: Lately, rate: float = 1.0) -> tuple[Tensor, float, Lately]:
            if not guided:
                return steady(update, root, params, lately, rate)
            own = references(torch.zeros(5, 12, dtype=F64))  # after which nothing rises
            return guide(update, own, root, params, torch.Generator(), 1.0, lately, rate)

        update, aside = 5 * uphill, Lately(0.31, float(before), share)
        step, factor, then = step_of(update, aside, rate)
        added, expected, _ = step_of(judged * update, aside)
        assert factor == expected
        assert torch.allclose(judged * step, added)
        assert (factor < 1) == (guided or judged > 1 / 50)
        assert then.halved == pytest.approx(share + (1 - share) / 200)  # of the whole step, whatever was done

    def test_the_servers_own_updates_are_shortened_as_the_step_is(self) -> None:
        root, params = linear(), torch.zeros(12, dtype=F64)
        before, uphill = root.gradient(params, balanced_loss)
        update = 20 * uphill / uphill.norm()
        edge = Lately(0.31, float(before) + 100, 0.51)
        for size, factor in ((1.0, 1.0), (0.3, 1 / 4)):
            own = references(size * update.expand(5, -1))
            assert guide(update, own, root, params, torch.Generator(), 1.0, edge, 0.1)[1] == factor

    def test_may_rise_as_much_as_after_the_servers_own_updates_on_average(self) -> None:
        root, params = linear(), 0.5 * normal(12, seed=3)
        uphill = root.gradient(params, balanced_loss)[1]
        update = 0.5 * uphill
        with_own = guided(update, uphill[None].expand(5, -1), root, params)
        # the server's own updates raise every class's loss more, so that nothing is projected or halved
        assert with_own[1] == 1

    def test_the_aggregate_itself_where_all_updates_are_too_long_for_first_order(self) -> None:
        root, params = linear(), torch.zeros(12, dtype=F64)
        downhill = -root.gradient(params, balanced_loss)[1]
        across = normal(12, seed=5)
        before = float(root.gradient(params, balanced_loss)[0])
        update = 300 * (downhill / downhill.norm() + across / across.norm())
        after = float(root.gradient(params + update, balanced_loss)[0])
        assert after > before + 0.1
        long, short = (references(size * (update + normal(5, 12, seed=6))) for size in (1.5, 1e-4))
        step, factor, then = guide(update, long, root, params, torch.Generator())
        assert then.too_long == 1 / 50
        assert then.loss == pytest.approx(before)
        assert not torch.allclose(step, factor * update)  # not yet
        often = Lately(0.31, after)  # a loss as it has been lately
        step, factor, then = guide(update, long, root, params, torch.Generator(), 1.0, often)
        assert torch.equal(step, update)
        assert factor == 1
        assert then.too_long > often.too_long
        step, factor, then = guide(update, short, root, params, torch.Generator())
        assert factor < 1  # those lower the loss: the step is projected, and cut
        assert then.too_long == 0
        assert not torch.allclose(step, factor * update)

    def test_not_a_step_that_ends_the_training_though_the_servers_own_updates_do_too(self) -> None:
        root, params = linear(), torch.zeros(12, dtype=F64)
        before, uphill = root.gradient(params, balanced_loss)
        update = 20 * uphill / uphill.norm()
        assert root.gradient(params + update, balanced_loss)[0] > before + 1
        own = references(2 * update.expand(5, -1))
        for lately, most in ((Lately(0.31), before + 1), (Lately(0.31, 5.0), 6.0), (Lately(0.31, -3.0), before)):
            step, factor, _ = guide(update, own, root, params, torch.Generator(), 1.0, lately)
            assert torch.equal(step, factor * update)
            assert root.gradient(params + step, balanced_loss)[0] <= most or factor == 1 / 64
            assert root.gradient(params + 2 * step, balanced_loss)[0] > most

    @pytest.mark.parametrize(("share", "projects"), [(0.0, True), (0.3, True), (0.31, False)])
    def test_while_updates_were_too_long_lately(self, share: float, projects: bool) -> None:
        root, params = linear(), torch.zeros(12, dtype=F64)
        held, update = references(own_steps(root, params, 0.05)), 0.05 * normal(12, seed=2)
        lately = Lately(share, 1.0)
        step, _, then = guide(update, held, root, params, torch.Generator(), 1.0, lately)
        assert then.too_long == pytest.approx(0.98 * share)  # this round it could
        assert torch.allclose(step / step.norm(), update / update.norm()) != projects


class TestLately:
    def test_running_means(self) -> None:
        lately = Lately()
        for _ in range(50):
            lately = lately.then(2.0, True, True)
        assert lately.loss == 2.0
        assert lately.too_long == pytest.approx(1 - 0.98**50)
        assert lately.halved == pytest.approx(1 - 0.995**50)
        assert lately.then(7.0, False).loss == pytest.approx(2.1)
        assert lately.then(7.0, False).halved == pytest.approx(0.995 * lately.halved)
        assert lately.then(7.0, False).too_long == lately.too_long  # where nothing was asked

    def test_comes_back_from_a_state(self) -> None:
        assert Lately.of(Lately().state) == Lately()
        lately = Lately(0.25, 1.5, 0.125)
        assert Lately.of({**lately.state, "history": torch.zeros(1)}) == lately


def paraboloid(optimum: list[float]) -> Callable[[Tensor], float]:
    return lambda step: float(0.5 * (step - torch.tensor(optimum, dtype=F64)).square().sum())


def each(loss: Callable[[Tensor], float]) -> Callable[[Tensor], list[float]]:
    return lambda steps: [loss(step) for step in steps]
