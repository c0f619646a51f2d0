"""Stages and attacks of other packages that return nonsense or write into what they are given.

Each case says what must happen: an error, a round that is not applied, or a round as if nothing was wrong.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedsieve.aggregators.chain import Chain
from fedsieve.aggregators.mean import Mean
from fedsieve.config.experiment import Experiment
from fedsieve.core.attack import AttackView, PoisonView
from fedsieve.core.defense import Aggregate, Detection, Diagnosis, PreAggregated, ServerView, Updates
from fedsieve.core.errors import FedSieveError, StageError
from fedsieve.core.layout import Layout
from fedsieve.federation.server import Server, ServerState
from fedsieve.federation.simulation import Simulation
from torture.common import SETTINGS, Context, Row, Tally, expect

N, D = 5, 6
Made = Callable[[Updates, ServerView], Any]


@dataclass(frozen=True)
class Rule:
    """An aggregator that returns whatever ``made`` makes."""

    made: Made

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:  # noqa: D102
        return self.made(updates, view)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Finder:
    """A detector that returns whatever ``made`` makes."""

    made: Made

    def detect(self, updates: Updates, view: ServerView, /) -> Detection:  # noqa: D102
        return self.made(updates, view)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Changer:
    """A pre-aggregator that returns whatever ``made`` makes."""

    made: Made

    def preaggregate(self, updates: Updates, view: ServerView, /) -> PreAggregated:  # noqa: D102
        return self.made(updates, view)  # type: ignore[no-any-return]


def good(updates: Updates, view: ServerView) -> Aggregate:
    """What a mean returns."""
    n = len(updates.matrix)
    return Aggregate(updates.matrix.mean(dim=0), updates.matrix.new_full((n,), 1 / n))


def but(**changed: Any) -> Made:
    """The mean's result with other fields."""
    return lambda updates, view: replace(good(updates, view), **changed)


def after(action: Callable[[Updates, ServerView], object]) -> Made:
    """The mean's result, after ``action`` on the inputs."""

    def made(updates: Updates, view: ServerView) -> Aggregate:
        result = good(updates, view)
        action(updates, view)
        return replace(result, state=[torch.ones(3)])

    return made


def grad(*shape: int) -> Tensor:
    """A tensor with a history of gradients."""
    return 2 * torch.ones(*shape, requires_grad=True)


ERROR, STAYS, MOVES = "an error", "the model stays", "the model moves"
OTHERS = Diagnosis(torch.zeros(2, 2), None, (), torch.zeros(2, 0), ("", ""))
looped: list[Any] = []
looped.append(looped)
UNKEPT = {
    "a set": {1},
    "an array": torch.ones(2).numpy(),
    "a function": len,
    "a graph": grad(2),
    "a lambda inside": [(len,)],
}
AGGREGATES: dict[str, tuple[str, Made]] = {
    "None": (ERROR, lambda u, v: None),
    "a tensor": (ERROR, lambda u, v: u.matrix.mean(0)),
    "a tuple": (ERROR, lambda u, v: (u.matrix.mean(0), torch.ones(N) / N)),
    "a Detection": (ERROR, lambda u, v: Detection(None)),
    "an update too long": (ERROR, but(update=torch.ones(D + 1))),
    "an update too short": (ERROR, but(update=torch.ones(D - 1))),
    "one number": (ERROR, but(update=torch.tensor(1.0))),
    "the whole matrix": (ERROR, but(update=torch.ones(N, D))),
    "integers as update": (ERROR, but(update=torch.ones(D, dtype=torch.long))),
    "complex numbers": (ERROR, but(update=torch.ones(D, dtype=torch.complex64))),
    "a list as update": (ERROR, but(update=[0.0] * D)),
    "an array as update": (ERROR, but(update=torch.ones(D).numpy())),
    "no update": (ERROR, but(update=None)),
    "a float64 update": (MOVES, but(update=torch.ones(D, dtype=torch.float64))),
    "an update with a graph": (MOVES, but(update=grad(D))),
    "an update of NaN": (STAYS, but(update=torch.full((D,), torch.nan))),
    "an infinite update": (STAYS, but(update=torch.full((D,), torch.inf))),
    "an update beyond float32": (STAYS, but(update=torch.full((D,), 1e300, dtype=torch.float64))),
    "no weights": (ERROR, but(weights=None)),
    "too few weights": (ERROR, but(weights=torch.ones(N - 1) / (N - 1))),
    "integers as weights": (ERROR, but(weights=torch.ones(N, dtype=torch.long))),
    "a negative weight": (ERROR, but(weights=torch.tensor([-1.0, 0.5, 0.5, 0.5, 0.5]))),
    "weights that sum to 210": (ERROR, but(weights=torch.full((N,), 42.0))),
    "weights that sum to 0.5": (ERROR, but(weights=torch.full((N,), 0.1))),
    "weights of NaN": (STAYS, but(weights=torch.full((N,), torch.nan))),
    "infinite weights": (STAYS, but(weights=torch.full((N,), torch.inf))),
    "all weights 0": (STAYS, but(weights=torch.zeros(N))),
    "weights with a graph": (MOVES, but(weights=grad(N) / (2 * N))),
    "integers as accepted": (ERROR, but(accepted=torch.ones(N, dtype=torch.long))),
    "floats as accepted": (ERROR, but(accepted=torch.ones(N))),
    "a list as accepted": (ERROR, but(accepted=[True] * N)),
    "too many accepted": (ERROR, but(accepted=torch.ones(N + 1, dtype=torch.bool))),
    "nobody accepted": (ERROR, but(accepted=torch.zeros(N, dtype=torch.bool))),
    "nobody accepted, no weights": (STAYS, but(accepted=torch.zeros(N, dtype=torch.bool), weights=torch.zeros(N))),
    "scores of NaN": (STAYS, but(scores=torch.full((N,), torch.nan))),
    "scores too few": (ERROR, but(scores=torch.zeros(N - 2))),
    "integers as scores": (ERROR, but(scores=torch.arange(N))),
    "infinite scores": (MOVES, but(scores=torch.full((N,), torch.inf))),
    "scores with a graph": (MOVES, but(scores=grad(N))),
    "a diagnosis that is a dict": (ERROR, but(diagnosis={})),
    "a diagnosis of others": (ERROR, but(diagnosis=OTHERS)),
    "a state in itself": (ERROR, but(state=looped)),
    **{f"a state with {what}": (ERROR, but(state={"kept": value})) for what, value in UNKEPT.items()},
    "a state of all that can be kept": (MOVES, but(state={"a": [torch.ones(2), (1, None, "x", 0.5, True)], 3: {}})),
    # writes into its inputs: the round is that of the mean all the same
    "it writes updates": (MOVES, after(lambda u, v: u.matrix.fill_(1e6))),
    "it writes updates through numpy": (MOVES, after(lambda u, v: u.matrix.numpy().fill(1e6))),
    "it writes a view of the updates": (MOVES, after(lambda u, v: u.parameters[0].zero_())),
    "it writes ids": (MOVES, after(lambda u, v: u.client_ids.zero_())),
    "it writes the model": (MOVES, after(lambda u, v: v.global_params.fill_(torch.nan))),
    "it writes the model through numpy": (MOVES, after(lambda u, v: v.global_params.numpy().fill(7))),
    "it resizes the model": (MOVES, after(lambda u, v: v.global_params.resize_(1))),
    "it makes the model require a gradient": (MOVES, after(lambda u, v: v.global_params.requires_grad_())),
    "it writes its state": (MOVES, after(lambda u, v: v.state and v.state[0].fill_(9))),
    "it draws much": (MOVES, after(lambda u, v: torch.rand(10**5, generator=v.generator))),
    "it returns a view of the updates": (MOVES, lambda u, v: replace(good(u, v), update=u.matrix[0])),
}  # fmt: skip
DETECTIONS: dict[str, tuple[str, Made]] = {
    "None": (ERROR, lambda u, v: None),
    "a mask": (ERROR, lambda u, v: torch.ones(N, dtype=torch.bool)),
    "integers as accepted": (ERROR, lambda u, v: Detection(torch.ones(N, dtype=torch.long))),
    "indices as accepted": (ERROR, lambda u, v: Detection(torch.tensor([0, 1]))),
    "too few accepted": (ERROR, lambda u, v: Detection(torch.ones(N - 1, dtype=torch.bool))),
    "nobody accepted": (STAYS, lambda u, v: Detection(torch.zeros(N, dtype=torch.bool))),
    "cannot decide": (MOVES, lambda u, v: Detection(None)),
    "scores of NaN": (STAYS, lambda u, v: Detection(None, torch.full((N,), torch.nan))),
    "a state with a set": (ERROR, lambda u, v: Detection(None, state={1, 2})),
    "it writes updates": (MOVES, lambda u, v: (u.matrix.fill_(1e6), Detection(None))[1]),
    "it writes the model": (MOVES, lambda u, v: (v.global_params.fill_(1e6), Detection(None))[1]),
}
PREAGGREGATES: dict[str, tuple[str, Made]] = {
    "None": (ERROR, lambda u, v: None),
    "Updates": (ERROR, lambda u, v: u),
    "a matrix": (ERROR, lambda u, v: PreAggregated(u.matrix)),
    "other clients": (ERROR, lambda u, v: PreAggregated(Updates(u.matrix, u.client_ids + 1, u.layout))),
    "another order": (ERROR, lambda u, v: PreAggregated(Updates(u.matrix.flip(0), u.client_ids.flip(0), u.layout))),
    "fewer clients": (ERROR, lambda u, v: PreAggregated(Updates(u.matrix[1:], u.client_ids[1:], u.layout))),
    "fewer coordinates": (ERROR, lambda u, v: PreAggregated(u.with_matrix(u.matrix[:, 1:]))),
    "integers": (ERROR, lambda u, v: PreAggregated(u.with_matrix(u.matrix.long()))),
    "NaN": (STAYS, lambda u, v: PreAggregated(u.with_matrix(u.matrix * torch.nan))),
    "a graph": (MOVES, lambda u, v: PreAggregated(u.with_matrix(u.matrix * grad(1)))),
    "float64": (MOVES, lambda u, v: PreAggregated(u.with_matrix(u.matrix.double()))),
    "a state with a function": (ERROR, lambda u, v: PreAggregated(u, state=len)),
    "it writes updates": (MOVES, lambda u, v: PreAggregated(Updates(u.matrix.mul_(2), u.client_ids, u.layout))),
}


def rows(context: Context) -> Iterator[Row]:
    """Run the chapter."""
    torch.manual_seed(context.seed)
    for what, cases, defense in (
        ("aggregators", AGGREGATES, Rule),
        ("detectors", DETECTIONS, lambda made: Chain((Finder(made),), Mean())),
        ("pre-aggregators", PREAGGREGATES, lambda made: Chain((Changer(made),), Mean())),
    ):
        tally = Tally("stages", f"{what} of others, through Server.step", 20)
        for name, (wanted, made) in cases.items():
            tally.case(name, partial(stepped, defense(made), wanted))
        yield tally.row()
    tally = Tally("stages", "attacks of others, through Simulation", 60)
    for name, wanted in list(ATTACKS.items())[: context.some(len(ATTACKS), 3)]:
        tally.case(name.__name__, partial(simulated, name.__name__, wanted))
    yield tally.row()


def stepped(defense: Any, wanted: str) -> None:
    """Two rounds of a server; inputs, model and state must be what they were."""
    layout = Layout.of({"w": torch.zeros(D)})
    server = Server(defense, layout, learning_rate=1.0)
    state = ServerState(torch.full((D,), 0.25))
    for _ in range(2):
        updates = Updates(torch.randn(N, D), torch.arange(N) * 7, layout)
        tensors = [updates.matrix, updates.client_ids, state.params]
        tensors += state.defense if isinstance(state.defense, list) else []
        before = [tensor.clone() for tensor in tensors]
        try:
            following, decision = server.step(state, updates)
        except StageError:
            expect(wanted == ERROR, f"an error where {wanted} was expected")
            raise
        finally:
            expect(all(map(torch.equal, tensors, before)), "an input was written to")
            expect(not any(tensor.requires_grad for tensor in tensors), "an input requires a gradient")
        expect(wanted != ERROR, "no error")
        expect(decision.applied == (wanted == MOVES), f"applied {decision.applied} ({decision.note}): {wanted}")
        expect(decision.applied or bool(decision.note), "no reason is given")
        expect(decision.applied or torch.equal(following.params, state.params), "not applied, but the model moved")
        expect(bool(torch.isfinite(following.params).all()), "the model is not finite")
        expect(not following.params.requires_grad and following.params.dtype == torch.float32, "the model has changed")
        state = following


# --- Attacks, which experiments name as torture.stages:Class --------------------------------------------------------


class _Attack:
    def craft(self, view: AttackView, /) -> Any:
        return view.malicious_updates


class Nothing(_Attack):
    """Returns None."""

    def craft(self, view: AttackView, /) -> Any:  # noqa: D102
        return None


class OneRow(_Attack):
    """Returns one row for all."""

    def craft(self, view: AttackView, /) -> Any:  # noqa: D102
        return view.malicious_updates[0]


class Integers(_Attack):
    """Returns integers."""

    def craft(self, view: AttackView, /) -> Any:  # noqa: D102
        return view.malicious_updates.long()


class Array(_Attack):
    """Returns an array."""

    def craft(self, view: AttackView, /) -> Any:  # noqa: D102
        return view.malicious_updates.numpy()


class NotANumber(_Attack):
    """Sends NaN."""

    def craft(self, view: AttackView, /) -> Any:  # noqa: D102
        return view.malicious_updates * torch.nan


class Vast(_Attack):
    """Sends the largest number."""

    def craft(self, view: AttackView, /) -> Any:  # noqa: D102
        return torch.full_like(view.malicious_updates, 3.4e38)


class Graph(_Attack):
    """Sends updates with a history of gradients."""

    def craft(self, view: AttackView, /) -> Any:  # noqa: D102
        return view.malicious_updates * torch.ones(1, requires_grad=True)


class Writer(_Attack):
    """Sends honest updates, and writes into all that it sees."""

    def craft(self, view: AttackView, /) -> Any:  # noqa: D102
        sent = view.malicious_updates.clone()
        assert view.benign_updates is not None
        x, y = view.root.data
        for tensor in (view.malicious_updates, view.benign_updates, view.global_params, x, y, view.members):
            tensor.numpy().fill(3)
        return sent


class FewClasses(_Attack):
    """Poisons data with a class that is not there."""

    def poison(self, x: Tensor, y: Tensor, view: PoisonView, /) -> Any:  # noqa: D102
        return x, y + 1000


class NoSamples(_Attack):
    """Poisons data until nothing is left."""

    def poison(self, x: Tensor, y: Tensor, view: PoisonView, /) -> Any:  # noqa: D102
        return x[:0], y[:0]


class DataWriter(_Attack):
    """Returns the data as they were, and writes into what it was given."""

    def poison(self, x: Tensor, y: Tensor, view: PoisonView, /) -> Any:  # noqa: D102
        kept = x.clone(), y.clone()
        x.fill_(9), y.fill_(0)
        return kept


HONEST = "as if it were honest"
ATTACKS: Mapping[type, str] = {
    Nothing: ERROR, Writer: HONEST, NotANumber: MOVES, OneRow: ERROR, Integers: ERROR, Array: ERROR, Vast: MOVES,
    Graph: HONEST, FewClasses: ERROR, NoSamples: ERROR, DataWriter: HONEST,
}  # fmt: skip


class Honest(_Attack):
    """Sends honest updates."""


def simulated(name: str, wanted: str) -> None:
    """Three rounds against an attack of this name."""
    try:
        states = [_played(name, honest_too) for honest_too in (False, wanted == HONEST)]
    except FedSieveError:
        expect(wanted == ERROR, "an error")
        raise
    expect(wanted != ERROR, "no error")
    expect(bool(torch.isfinite(states[0]).all()), "the model is not finite")
    expect(wanted != HONEST or torch.equal(*states), "the model is another than with honest clients")


def _played(name: str, honest: bool) -> Tensor:
    settings = {**SETTINGS, "attack": f"torture.stages:{'Honest' if honest else name}", "rounds": 3}
    simulation = Simulation.of(Experiment.of(settings), Path(), torch.device("cpu"))
    state = simulation.initial
    for state, record in simulation.rounds():  # noqa: B007 (the last one is used)
        expect(record.applied, f"round {record.round} was not applied: {record.note}")
    expect(state.round == 3, f"{state.round} rounds")
    return state.server.params
