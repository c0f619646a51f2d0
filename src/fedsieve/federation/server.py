"""The server's part of a round: screen updates, run the defense, move the global model.

The simulation and a real federation use this one class, so that a defense behaves the same in both.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fedsieve.aggregators.mean import Mean
from fedsieve.aggregators.root_only import RootOnly
from fedsieve.aggregators.weighting import WeightedMean
from fedsieve.core import contract
from fedsieve.core.defense import Aggregate, Aggregator, Network, Root, ServerView, Updates
from fedsieve.core.errors import UnusableResultError
from fedsieve.core.layout import Layout
from fedsieve.core.seeding import stream
from fedsieve.federation.screening import NOT_FINITE, Screened, check_updates, screen
from fedsieve.federation.statistics import combined


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
        reasons: Why each update was dropped before the defense, n texts; "" for the others.
        applied: Whether the global model was changed.
        note: Why it was not changed, else what the defense says of the round, or "".
    """

    aggregate: Aggregate
    reasons: tuple[str, ...]
    applied: bool
    note: str

    @property
    def screened(self) -> Bool[Tensor, " n"]:
        """Which updates were dropped before the defense, [n]."""
        return torch.tensor([bool(reason) for reason in self.reasons], dtype=torch.bool)


def defend(defense: Aggregator, updates: Updates, view: ServerView) -> Decision:
    """Screen the updates, let ``defense`` aggregate the others, and combine their running statistics.

    Running statistics of a plain mean are averaged like everything else, since it is the undefended baseline, and those
    of the root update alone are its own; those of all other defenses are combined by
    :func:`fedsieve.federation.statistics.combined`.

    Returns:
        The decision over all rows; ``applied`` if the aggregate can be added to a model.
    """
    seen = screen(defense, updates, view)
    note = _unusable(seen, len(updates.matrix))
    if not note:
        try:
            result = contract.aggregate(defense, seen.updates, seen.view)
        except UnusableResultError as error:
            note = str(error)
    if note:
        zero, nobody = updates.matrix.new_zeros(updates.matrix.shape[1]), torch.zeros_like(seen.kept)
        nothing = Aggregate(zero, zero.new_zeros(len(nobody)), nobody, state=view.state)
        return Decision(nothing, seen.reasons, False, note)
    note, p = _reason_to_stay(result), updates.layout.n_parameters
    if updates.statistics.shape[1] and not isinstance(defense, Mean | WeightedMean | RootOnly):
        statistics = combined(seen.updates.statistics, result)
        result = replace(result, update=torch.cat([result.update[:p], statistics]))
    return Decision(result.scattered(seen.kept), seen.reasons, not note, note or result.note)


def _unusable(seen: Screened, n: int) -> str:
    """Why no update reaches the defense, or ""."""
    if not n:
        return "no client answered"
    if seen.kept.any():
        return ""
    return "no update was finite" if set(seen.reasons) == {NOT_FINITE} else "no update passed the screening"


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

    @property
    def added(self) -> float:
        """Share of the aggregate that is added to the model; 1 where an optimizer takes the step."""
        return self.learning_rate if self.optimizer is None else 1.0

    def step(self, state: ServerState, updates: Updates) -> tuple[ServerState, Decision]:
        """Run one round.

        One reply counts for each client id: who is a client has to be decided, and authenticated, before.

        Args:
            state: The state before the round.
            updates: What the clients sent; none is a round in which the model stays as it is.

        Returns:
            The state after the round, and the decision.

        Raises:
            ParameterError: If shape, type, ids or layout of the updates are not the model's.
            StageError: If a stage of the defense returns something of a wrong type or shape.
        """
        updates = check_updates(updates, self.layout, state.params)
        view = ServerView(
            round=state.round,
            n_malicious=self.assumed_malicious,
            generator=stream(self.seed, "defense", state.round),
            global_params=state.params,
            state=state.defense,
            root=self.root(state.params, state.round) if self.root else None,
            network=self.network,
            learning_rate=self.added,
        )
        decision = defend(self.defense, updates, view)
        params, optimizer = state.params, state.optimizer
        if decision.applied:
            params, optimizer = self._moved(state, decision.aggregate.update)
            if not torch.isfinite(params).all():
                params, optimizer = state.params, state.optimizer
                decision = replace(decision, applied=False, note="the model would overflow")
        return ServerState(params, state.round + 1, decision.aggregate.state, optimizer), decision

    def _moved(
        self, state: ServerState, update: Float[Tensor, " d"]
    ) -> tuple[Float[Tensor, " d"], Mapping[str, Tensor]]:
        """The global model [d] after the update, and the optimizer's tensors by name."""
        n = self.layout.n_parameters
        params = state.params + update
        for segment in self.layout.segments:
            if segment.start >= n and segment.name.endswith("running_var"):
                params[segment.start : segment.stop].clamp_(min=0)  # a negative variance would make outputs NaN
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
