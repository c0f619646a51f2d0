"""The server's part of a round: screen updates, run the defense, move the global model.

The simulation and a real federation use this one class, so that a defense behaves the same in both.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fedsieve.aggregators.chain import tolerable
from fedsieve.core.defense import Aggregate, Aggregator, Network, Root, ServerView, Stage, Updates
from fedsieve.core.layout import Layout
from fedsieve.core.seeding import stream


@dataclass(frozen=True)
class ServerState:
    """All that the server carries from one round to the next.

    Attributes:
        params: The global model, [d].
        round: The round to come, from 0.
        defense: The defense's own state.
        optimizer: The optimizer's tensors, by name.
    """

    params: Float[Tensor, " d"]
    round: int = 0
    defense: Any = None
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """Result of one round at the server.

    Attributes:
        aggregate: Per client in the order of the updates; a screened client has weight 0 and is not accepted.
        screened: Clients whose update was not finite, [n]. They never reach the defense.
        applied: Whether the global model was changed.
        note: Why it was not changed, or "".
    """

    aggregate: Aggregate
    screened: Bool[Tensor, " n"]
    applied: bool
    note: str


def screen(stage: Stage, updates: Updates, view: ServerView) -> tuple[Updates, ServerView, Bool[Tensor, " n"]]:
    """Drop the updates that are not finite, and lower f where the stage's bound does not hold for the others.

    Returns:
        The finite updates, the view of them, and which of the n updates are finite.
    """
    finite = torch.isfinite(updates.matrix).all(dim=1)
    f = tolerable(stage, int(finite.sum()), view.n_malicious)
    return updates.select(finite), replace(view, n_malicious=f), finite


def defend(defense: Aggregator, updates: Updates, view: ServerView) -> tuple[Aggregate, Bool[Tensor, " n"]]:
    """Screen the updates that are not finite and let ``defense`` aggregate the others.

    f is lowered where the defense's bound does not hold for so few rows: updates of NaN must not end a run.

    Returns:
        The result over all rows, and which rows were screened [n]. If no row is finite: a zero update, no client
        accepted, the state as it was.
    """
    clean, view, finite = screen(defense, updates, view)
    if not finite.any():
        zero = torch.zeros_like(updates.matrix[0])
        return Aggregate(zero, zero.new_zeros(len(finite)), finite, state=view.state), ~finite
    return defense(clean, view).scattered(finite), ~finite


@dataclass(frozen=True)
class Server:
    """Turns the updates of a round into a new global model: a pure function of its state and the updates.

    Attributes:
        defense: Aggregates the finite updates.
        layout: Of the model; running statistics take the aggregate in full.
        seed: Of the experiment; the defense's random numbers follow from it and the round.
        assumed_malicious: f, the number of malicious clients that the defense assumes.
        learning_rate: α in the papers, the share of the aggregate that is added; or the optimizer's learning rate.
        optimizer: A class of ``torch.optim`` that gets the negative aggregate as gradient; None adds ``learning_rate``
            times the aggregate.
        optimizer_options: Its keyword arguments.
        root: Makes the round's :class:`fedsieve.core.defense.Root` from the global model and the round; None without
            root data.
        network: The architecture; None if the server cannot run the model.
    """

    defense: Aggregator
    layout: Layout
    seed: int = 0
    assumed_malicious: int = 0
    learning_rate: float = 0.5
    optimizer: type[torch.optim.Optimizer] | None = None
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    root: Callable[[Tensor, int], Root] | None = None
    network: Network | None = None

    def step(self, state: ServerState, updates: Updates) -> tuple[ServerState, Decision]:
        """Run one round.

        Args:
            state: The state before the round.
            updates: What the clients sent.

        Returns:
            The state after the round, and the decision.
        """
        view = ServerView(
            round=state.round,
            n_malicious=self.assumed_malicious,
            generator=stream(self.seed, "defense", state.round),
            global_params=state.params,
            state=state.defense,
            root=self.root(state.params, state.round) if self.root else None,
            network=self.network,
        )
        aggregate, screened = defend(self.defense, updates, view)
        reason = "no update was finite" if screened.all() else _reason_to_stay(aggregate)
        params, optimizer = (state.params, state.optimizer) if reason else self._moved(state, aggregate.update)
        if not torch.isfinite(params).all():
            params, optimizer, reason = state.params, state.optimizer, "the model would overflow"
        following = ServerState(params, state.round + 1, aggregate.state, optimizer)
        return following, Decision(aggregate, screened, not reason, reason)

    def _moved(
        self, state: ServerState, update: Float[Tensor, " d"]
    ) -> tuple[Float[Tensor, " d"], Mapping[str, Tensor]]:
        """The global model [d] after the update, and the optimizer's tensors by name."""
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


def _reason_to_stay(aggregate: Aggregate) -> str:
    """Why the global model must not be changed, or ""."""
    if not torch.isfinite(aggregate.update).all():
        return "the aggregate overflowed"
    if aggregate.accepted is not None and not aggregate.accepted.any():
        return "no client was accepted"
    if not torch.isfinite(aggregate.weights).all():
        return "the defense's weights were not finite"
    if not aggregate.weights.any():
        return "every client had weight 0"
    return ""
