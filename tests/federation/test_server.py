"""The server's part of a round: which updates reach the defense, how the model moves, what the state holds."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsieve.aggregators.mean import Mean
from fedsieve.aggregators.trimmed_mean import TrimmedMean
from fedsieve.core.defense import Aggregate, Root, ServerView, Updates
from fedsieve.core.layout import Layout
from fedsieve.core.seeding import stream
from fedsieve.federation.server import Decision, Server, ServerState

# Three parameters, then two running statistics.
LAYOUT = Layout.of({"w": torch.zeros(3)}, {"mean": torch.zeros(2)})
NAN, INF = float("nan"), float("inf")


def updates_of(rows: list[list[float]], ids: list[int] | None = None, dtype: torch.dtype = torch.float32) -> Updates:
    matrix = torch.tensor(rows, dtype=dtype)
    return Updates(matrix, torch.tensor(list(range(len(rows))) if ids is None else ids), LAYOUT)


@dataclass(frozen=True)
class Spy:
    """A mean that keeps what it saw; weights, decisions and scores are given."""

    seen: list[tuple[Updates, ServerView]] = field(default_factory=list)
    weights: tuple[float, ...] | None = None
    accepted: tuple[bool, ...] | None = None
    scores: tuple[float, ...] | None = None
    factor: float = 1.0

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
        self.seen.append((updates, view))
        n = len(updates.matrix)
        return Aggregate(
            updates.matrix.mean(dim=0) * self.factor,
            torch.full((n,), 1 / n) if self.weights is None else torch.tensor(self.weights, dtype=torch.float32),
            None if self.accepted is None else torch.tensor(self.accepted),
            None if self.scores is None else torch.tensor(self.scores),
            state=(view.state or 0) + 1,
        )


@dataclass(frozen=True)
class Overflows:
    """A mean with one coordinate that is infinite."""

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
        result = Mean()(updates, view)
        result.update[1] = INF
        return result


@dataclass(frozen=True)
class FixedRoot:
    """A root dataset whose loss is a parabola around ``centre``."""

    centre: Tensor
    round: int

    def loss(self, flat: Tensor, /) -> Tensor:
        return (flat - self.centre).square().sum()

    def gradient(self, flat: Tensor, loss: Any = "cross-entropy", /) -> tuple[Tensor, Tensor]:
        return self.loss(flat), 2 * (flat - self.centre)

    def update(self) -> Tensor:
        return torch.ones_like(self.centre)

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        return torch.zeros(0, 1), torch.zeros(0, dtype=torch.long)

    @property
    def n_classes(self) -> int:
        return 2

    def train(self, datasets: Any, /) -> Tensor:
        raise AssertionError("nothing here trains")


def same(a: Tensor, b: Tensor | list[float] | list[bool]) -> None:
    b = b if isinstance(b, Tensor) else torch.tensor(b, dtype=a.dtype)
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


GOOD, OTHER = [1.0, 2.0, 3.0, 4.0, 5.0], [3.0, 4.0, 5.0, 6.0, 7.0]


class TestScreening:
    @pytest.mark.parametrize("poison", [NAN, INF, -INF])
    @pytest.mark.parametrize("coordinate", [0, 4])
    def test_what_is_not_finite_never_reaches_the_defense(self, poison: float, coordinate: int) -> None:
        bad = list(GOOD)
        bad[coordinate] = poison
        spy = Spy(weights=(1, 0), accepted=(True, False), scores=(0.5, 9.0))
        updates = updates_of([bad, GOOD, bad, OTHER], ids=[8, 3, 5, 6])
        before = updates.matrix.clone()
        following, decision = Server(spy, LAYOUT).step(ServerState(torch.zeros(5)), updates)
        assert len(spy.seen) == 1
        seen = spy.seen[0][0]
        same(seen.matrix, torch.tensor([GOOD, OTHER]))
        assert seen.client_ids.tolist() == [3, 6]
        assert seen.layout == LAYOUT
        assert decision.screened.tolist() == [True, False, True, False]
        assert decision.applied
        assert decision.note == ""
        same(decision.aggregate.weights, [0, 1, 0, 0])
        assert decision.reasons == ("not finite", "", "not finite", "")
        assert decision.aggregate.accepted is not None
        assert decision.aggregate.accepted.tolist() == [False, True, False, False]
        assert decision.aggregate.scores is not None
        same(decision.aggregate.scores, [NAN, 0.5, NAN, 9.0])
        assert torch.isfinite(following.params).all()
        same(updates.matrix, before)

    def test_an_aggregator_that_does_not_reject_has_no_decisions(self) -> None:
        _, decision = Server(Mean(), LAYOUT).step(ServerState(torch.zeros(5)), updates_of([GOOD, [NAN] * 5, OTHER]))
        assert decision.aggregate.accepted is None
        assert decision.aggregate.scores is None
        same(decision.aggregate.weights, [0.5, 0, 0.5])
        same(decision.aggregate.update, [2, 3, 4, 5, 6])

    def test_finite_updates_pass_as_they_are(self) -> None:
        spy = Spy()
        updates = updates_of([GOOD, OTHER])
        _, decision = Server(spy, LAYOUT).step(ServerState(torch.zeros(5)), updates)
        same(spy.seen[0][0].matrix, updates.matrix)
        assert spy.seen[0][0].client_ids.tolist() == [0, 1]
        assert not decision.screened.any()

    def test_no_update_is_finite(self) -> None:
        spy = Spy()
        params = torch.arange(5.0)
        state = ServerState(params, round=4, defense="kept", optimizer={"momentum_buffer": torch.ones(3)})
        following, decision = Server(spy, LAYOUT, optimizer=torch.optim.SGD).step(
            state, updates_of([[NAN] * 5, [INF] * 5])
        )
        assert spy.seen == []
        same(following.params, params)
        assert (following.round, following.defense) == (5, "kept")
        same(following.optimizer["momentum_buffer"], [1, 1, 1])
        assert not decision.applied
        assert decision.note == "no update was finite"
        assert decision.screened.tolist() == [True, True]
        same(decision.aggregate.weights, [0, 0])
        assert decision.aggregate.accepted is not None
        assert not decision.aggregate.accepted.any()
        same(decision.aggregate.update, torch.zeros(5))


class TestModelIsNotChanged:
    @pytest.mark.parametrize(
        ("spy", "rows", "note"),
        [
            (Spy(weights=(0, 0), accepted=(False, False)), [GOOD, OTHER], "no client was accepted"),
            (Spy(weights=(0, 0)), [GOOD, OTHER], "every client had weight 0"),
            (Spy(weights=(NAN, 0.5)), [GOOD, OTHER], "the defense's weights were not finite"),
            (Spy(factor=INF), [GOOD, OTHER], "the aggregate overflowed"),
        ],
    )
    def test_the_note_says_why(self, spy: Spy, rows: list[list[float]], note: str) -> None:
        params = torch.arange(5.0)
        buffer = torch.ones(3)
        state = ServerState(params, round=1, defense=7, optimizer={"momentum_buffer": buffer})
        server = Server(spy, LAYOUT, optimizer=torch.optim.SGD, optimizer_options={"momentum": 0.9})
        following, decision = server.step(state, updates_of(rows))
        assert len(spy.seen) == 1
        assert not decision.applied
        assert decision.note == note
        same(following.params, params)
        same(following.optimizer["momentum_buffer"], buffer)
        assert following.round == 2
        assert following.defense == 8  # the defense's state is kept all the same

    def test_one_coordinate_that_overflows(self) -> None:
        following, decision = Server(Overflows(), LAYOUT).step(ServerState(torch.zeros(5)), updates_of([GOOD, OTHER]))
        assert (decision.applied, decision.note) == (False, "the aggregate overflowed")
        same(following.params, torch.zeros(5))

    def test_changed_where_there_is_no_reason_not_to(self) -> None:
        spy = Spy(weights=(1, 0), accepted=(True, False))
        following, decision = Server(spy, LAYOUT).step(ServerState(torch.zeros(5)), updates_of([GOOD, OTHER]))
        assert decision.applied
        assert decision.note == ""
        assert (following.params != 0).all()

    @pytest.mark.parametrize("optimizer", [None, torch.optim.SGD])
    def test_a_model_that_would_overflow(self, optimizer: type[torch.optim.Optimizer] | None) -> None:
        params = torch.full((5,), 3e38)
        server = Server(Mean(), LAYOUT, learning_rate=1e8, optimizer=optimizer)
        following, decision = server.step(ServerState(params), updates_of([[1e31] * 5]))
        same(following.params, params)
        assert not decision.applied
        assert decision.note == "the model would overflow"


class TestPlainStep:
    def test_parameters_move_by_a_share_and_statistics_in_full(self) -> None:
        params = torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0])
        following, decision = Server(Mean(), LAYOUT, learning_rate=0.25).step(
            ServerState(params), updates_of([[4.0] * 5, [12.0] * 5])
        )
        same(following.params, [12, 22, 32, 48, 58])
        same(decision.aggregate.update, [8] * 5)
        same(params, [10, 20, 30, 40, 50])
        assert following.optimizer == {}

    def test_no_variance_becomes_negative(self) -> None:
        named = {"a.running_var": torch.zeros(2), "a.running_mean": torch.zeros(1)}
        layout = Layout.of({"b.running_var": torch.zeros(1)}, named)  # the first is a parameter all the same
        rows = torch.tensor([[-2.0, -3.0, 1.0, -2.0]])
        state = ServerState(torch.tensor([0.0, 1.0, 1.0, 0.0]))
        following, _ = Server(Mean(), layout, learning_rate=1.0).step(state, Updates(rows, torch.arange(1), layout))
        assert following.params.tolist() == [-2, 0, 2, -2]

    def test_dtype_is_kept(self) -> None:
        state = ServerState(torch.zeros(5, dtype=torch.float64))
        following, _ = Server(Mean(), LAYOUT).step(state, updates_of([GOOD], dtype=torch.float64))
        assert following.params.dtype == torch.float64

    def test_rounds_are_counted(self) -> None:
        state = ServerState(torch.zeros(5))
        for k in range(3):
            assert state.round == k
            state, _ = Server(Mean(), LAYOUT).step(state, updates_of([GOOD]))
        assert state.round == 3


OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {}),
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    ("Adam", {}),
    ("Adam", {"betas": (0.5, 0.9), "eps": 1e-3}),
    ("Adam", {"amsgrad": True}),
    ("AdamW", {}),
    ("Adamax", {}),
    ("Adagrad", {}),
    ("Adadelta", {}),
    ("RMSprop", {"momentum": 0.5, "centered": True}),
    ("NAdam", {}),
    ("RAdam", {}),
    ("Rprop", {}),
    ("ASGD", {}),
]


class TestOptimizers:
    @pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
    def test_equal_torch_over_rounds(self, name: str, options: Mapping[str, Any]) -> None:
        optimizer = getattr(torch.optim, name)
        server = Server(Mean(), LAYOUT, learning_rate=0.05, optimizer=optimizer, optimizer_options=options)
        generator = stream(0, "optimizers")
        start = torch.randn(5, generator=generator, dtype=torch.float64)
        state = ServerState(start.clone())
        weight = torch.nn.Parameter(start[:3].clone())
        by_hand = optimizer([weight], lr=0.05, **options)
        statistics = start[3:].clone()
        for _ in range(6):
            rows = torch.randn(4, 5, generator=generator, dtype=torch.float64)
            state, decision = server.step(state, Updates(rows, torch.arange(4), LAYOUT))
            assert decision.applied
            weight.grad = -rows.mean(dim=0)[:3]
            by_hand.step()
            statistics += rows.mean(dim=0)[3:]
            torch.testing.assert_close(state.params[:3], weight.detach(), rtol=1e-8, atol=1e-8)
            torch.testing.assert_close(state.params[3:], statistics, rtol=1e-8, atol=1e-8)
            # all that is carried is tensors, so that it can be checkpointed
            assert all(isinstance(value, Tensor) for value in state.optimizer.values())
        assert not torch.allclose(state.params[:3], start[:3])
        assert not state.params.requires_grad

    def test_state_makes_a_difference(self) -> None:
        server = Server(Mean(), LAYOUT, optimizer=torch.optim.Adam)
        state, _ = server.step(ServerState(torch.zeros(5)), updates_of([GOOD]))
        assert set(state.optimizer) >= {"step", "exp_avg", "exp_avg_sq"}
        with_state, _ = server.step(state, updates_of([[-1.0] * 5]))
        without, _ = server.step(dataclasses.replace(state, optimizer={}), updates_of([[-1.0] * 5]))
        assert not torch.allclose(with_state.params[:3], without.params[:3])

    def test_only_tensors_are_carried(self) -> None:
        class Counting(torch.optim.SGD):
            def step(self, closure: Any = None) -> None:
                super().step()
                for weight in self.param_groups[0]["params"]:
                    self.state[weight].update(count=3, sum=torch.ones(3))

        state, _ = Server(Mean(), LAYOUT, optimizer=Counting).step(ServerState(torch.zeros(5)), updates_of([GOOD]))
        assert list(state.optimizer) == ["sum"]

    @pytest.mark.parametrize(("name", "options"), [("SGD", {"momentum": 0.9}), ("Adam", {}), ("Adagrad", {})])
    def test_a_step_changes_no_state_that_went_in(self, name: str, options: Mapping[str, Any]) -> None:
        server = Server(Mean(), LAYOUT, optimizer=getattr(torch.optim, name), optimizer_options=options)
        state, _ = server.step(ServerState(torch.zeros(5)), updates_of([GOOD]))
        before = {k: v.clone() for k, v in state.optimizer.items()}
        one, _ = server.step(state, updates_of([OTHER]))
        assert before
        for key, value in before.items():
            same(state.optimizer[key], value)
        two, _ = server.step(state, updates_of([OTHER]))
        same(one.params, two.params)


class TestView:
    def test_the_state_holds_the_servers_things_only(self) -> None:
        assert {f.name for f in dataclasses.fields(ServerState)} == {"params", "round", "defense", "optimizer"}

    def test_is_of_this_round_and_holds_no_more_than_it_should(self) -> None:
        spy = Spy()
        params = torch.arange(5.0)
        server = Server(spy, LAYOUT, seed=11, assumed_malicious=2, root=lambda at, k: FixedRoot(at + 1, k))
        server.step(ServerState(params, round=3, defense=41), updates_of([GOOD, OTHER]))
        view = spy.seen[0][1]
        assert (view.round, view.n_malicious, view.state) == (3, 2, 41)
        same(view.global_params, params)
        assert isinstance(view.root, Root)
        same(view.root.loss(params + 1), torch.tensor(0.0))
        expected = torch.rand(4, generator=stream(11, "defense", 3))
        same(torch.rand(4, generator=view.generator), expected)
        assert {f.name for f in dataclasses.fields(view)} == {
            "round", "n_malicious", "generator", "global_params", "state", "root", "network", "learning_rate"
        }  # fmt: skip
        assert {f.name for f in dataclasses.fields(Updates)} == {"matrix", "client_ids", "layout"}

    def test_defaults(self) -> None:
        spy = Spy()
        server = Server(spy, LAYOUT)
        following, _ = server.step(ServerState(torch.zeros(5)), updates_of([GOOD]))
        view = spy.seen[0][1]
        assert (view.round, view.n_malicious, view.state, view.root, view.network) == (0, 0, None, None, None)
        same(torch.rand(4, generator=view.generator), torch.rand(4, generator=stream(0, "defense", 0)))
        same(following.params, [0.5, 1, 1.5, 4, 5])  # half of the parameters' update

    @pytest.mark.parametrize(("optimizer", "known"), [(None, 0.25), (torch.optim.SGD, 1.0), (torch.optim.Adam, 1.0)])
    def test_says_which_share_of_the_aggregate_is_added(
        self, optimizer: type[torch.optim.Optimizer] | None, known: float
    ) -> None:
        spy = Spy()
        server = Server(spy, LAYOUT, learning_rate=0.25, optimizer=optimizer)
        server.step(ServerState(torch.zeros(5)), updates_of([GOOD]))
        assert spy.seen[0][1].learning_rate == known

    def test_screening_leaves_f_as_it_is(self) -> None:
        spy = Spy()
        Server(spy, LAYOUT, assumed_malicious=2).step(
            ServerState(torch.zeros(5)), updates_of([GOOD, [torch.nan] * 5, OTHER])
        )
        assert spy.seen[0][1].n_malicious == 2

    def test_screening_breaks_no_bound(self) -> None:
        rows = [GOOD, OTHER, OTHER, [torch.nan] * 5, [torch.nan] * 5]
        server = Server(TrimmedMean(), LAYOUT, assumed_malicious=2)  # 5 > 4, but 3 are left
        _, decision = server.step(ServerState(torch.zeros(5)), updates_of(rows))
        assert decision.applied
        same(decision.aggregate.update, OTHER)

    def test_no_root_data(self) -> None:
        spy = Spy()
        Server(spy, LAYOUT).step(ServerState(torch.zeros(5)), updates_of([GOOD]))
        assert spy.seen[0][1].root is None

    def test_the_defenses_state_comes_back(self) -> None:
        spy = Spy()
        server, state = Server(spy, LAYOUT), ServerState(torch.zeros(5))
        for k in range(3):
            state, decision = server.step(state, updates_of([GOOD]))
            assert state.defense == decision.aggregate.state == k + 1
        assert [view.state for _, view in spy.seen] == [None, 1, 2]

    def test_f_reaches_the_aggregator(self) -> None:
        rows = updates_of([[v] * 5 for v in (-1000.0, 1.0, 2.0, 6.0, 1000.0)])
        _, decision = Server(TrimmedMean(), LAYOUT, assumed_malicious=1).step(ServerState(torch.zeros(5)), rows)
        same(decision.aggregate.update[:3], [3] * 3)


def test_a_step_is_a_pure_function() -> None:
    server = Server(TrimmedMean(), LAYOUT, seed=1, assumed_malicious=1)
    state, updates = ServerState(torch.arange(5.0), round=2), updates_of([GOOD, OTHER, [0.0] * 5, [NAN] * 5])
    before = state.params.clone(), updates.matrix.clone()
    answers = [server.step(state, updates) for _ in range(2)]
    assert all(isinstance(decision, Decision) for _, decision in answers)
    same(answers[0][0].params, answers[1][0].params)
    same(state.params, before[0])
    same(updates.matrix, before[1])
    assert state.round == 2
