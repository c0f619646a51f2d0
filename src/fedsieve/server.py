"""The server's half of a round: screen, defend, step. A pure function of its state and the clients' updates.

The simulator and a real federation both drive this one class, so a rule can't behave differently in the two.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fedsieve.defenses.chain import tolerable
from fedsieve.seeding import stream
from fedsieve.types import Aggregate, Defense, Layout, Network, Root, ServerView, Updates


@dataclass(frozen=True)
class ServerState:
    """All that the server carries from one round to the next.

    Attributes:
        params: The global model.
        round: The round to come, from 0.
        defense: The defense's own state.
        optimizer: The optimizer's tensors, by name.
        personal: What simulated clients keep to themselves between rounds; the server hands it on unread.
        attacker: What a simulated attacker remembers of its rehearsals; the server hands it on unread.
    """

    params: Float[Tensor, " d"]
    round: int = 0
    defense: Any = None
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    personal: Tensor | None = None
    attacker: Any = None


@dataclass(frozen=True)
class Decision:
    """What the server did with one round's updates.

    Attributes:
        aggregate: Per client as the updates came in; a screened client has weight 0 and is not accepted.
        screened: Whose update was not finite. They never reach the defense.
        applied: Whether the global model moved.
        note: Why not, or "".
    """

    aggregate: Aggregate
    screened: Bool[Tensor, " n"]
    applied: bool
    note: str


@dataclass(frozen=True)
class Server:
    """Screens, defends and steps.

    Attributes:
        defense: Aggregates the finite updates.
        layout: Of the model; statistics behind the parameters take the aggregate in full.
        seed: Of the experiment; the defense's randomness follows from it and the round.
        assumed_malicious: f, what the defense is told.
        learning_rate: α in the papers, the share of the aggregate that is added; or the optimizer's.
        optimizer: A class of ``torch.optim``, fed with the negative aggregate as gradient; None adds it.
        optimizer_options: Its keyword arguments.
        root: Makes the round's view of the root data from the global model and the round, if there is root data.
        network: The architecture, if the server can run the model.
    """

    defense: Defense
    layout: Layout
    seed: int = 0
    assumed_malicious: int = 0
    learning_rate: float = 0.5
    optimizer: type[torch.optim.Optimizer] | None = None
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    root: Callable[[Tensor, int], Root] | None = None
    network: Network | None = None

    def step(self, state: ServerState, updates: Updates) -> tuple[ServerState, Decision]:
        """One round: the next state, and what was decided on the way."""
        finite = torch.isfinite(updates.matrix).all(dim=1)
        if not finite.any():
            zero = torch.zeros_like(updates.matrix[0])
            nobody = Aggregate(zero, zero.new_zeros(len(finite)), torch.zeros_like(finite), state=state.defense)
            return replace(state, round=state.round + 1), Decision(nobody, ~finite, False, "no update was finite")
        view = ServerView(
            round=state.round,
            # a flood of NaN must not break a bound in mid-run
            n_malicious=tolerable(self.defense, int(finite.sum()), self.assumed_malicious),
            generator=stream(self.seed, "defense", state.round),
            global_params=state.params,
            state=state.defense,
            root=self.root(state.params, state.round) if self.root else None,
            network=self.network,
        )
        clean = updates if finite.all() else updates.select(finite)
        aggregate = _spread(self.defense(clean, view), finite)
        reason = _reason_to_stay(aggregate)
        params, optimizer = (state.params, state.optimizer) if reason else self._moved(state, aggregate.update)
        if not torch.isfinite(params).all():
            params, optimizer, reason = state.params, state.optimizer, "the model would have overflowed"
        following = replace(state, params=params, round=state.round + 1, defense=aggregate.state, optimizer=optimizer)
        return following, Decision(aggregate, ~finite, not reason, reason)

    def _moved(
        self, state: ServerState, update: Float[Tensor, " d"]
    ) -> tuple[Float[Tensor, " d"], Mapping[str, Tensor]]:
        n = self.layout.n_parameters
        params = state.params + update
        if self.optimizer is None:
            params[:n] = state.params[:n] + self.learning_rate * update[:n]
            return params, {}
        weight = torch.nn.Parameter(state.params[:n].clone())
        optimizer = self.optimizer([weight], lr=self.learning_rate, **self.optimizer_options)  # type: ignore[call-arg]
        if state.optimizer:
            optimizer.load_state_dict(
                {**optimizer.state_dict(), "state": {0: {k: t.clone() for k, t in state.optimizer.items()}}}
            )
        weight.grad = -update[:n]
        optimizer.step()
        params[:n] = weight.detach()
        kept = optimizer.state_dict()["state"].get(0, {})
        return params, {name: value for name, value in kept.items() if isinstance(value, Tensor)}


def _spread(aggregate: Aggregate, finite: Bool[Tensor, " n"]) -> Aggregate:
    """The defense's answer on all clients, screened ones included."""
    if finite.all():
        return aggregate
    weights = aggregate.weights.new_zeros(len(finite)).masked_scatter(finite, aggregate.weights)
    accepted = aggregate.accepted
    if accepted is not None:
        accepted = torch.zeros_like(finite).masked_scatter(finite, accepted)
    suspicion = aggregate.suspicion
    if suspicion is not None:
        suspicion = suspicion.new_full((len(finite),), torch.nan).masked_scatter(finite, suspicion)
    diagnosis = aggregate.diagnosis.spread(finite) if aggregate.diagnosis is not None else None
    return Aggregate(aggregate.update, weights, accepted, suspicion, aggregate.state, diagnosis)


def _reason_to_stay(aggregate: Aggregate) -> str:
    """Why the global model must not move, or ""."""
    if not torch.isfinite(aggregate.update).all():
        return "the aggregate overflowed"
    if aggregate.accepted is not None and not aggregate.accepted.any():
        return "nobody was accepted"
    if not torch.isfinite(aggregate.weights).all():
        return "the defense's weights were not finite"
    if not aggregate.weights.any():
        return "nobody had any weight"
    return ""
