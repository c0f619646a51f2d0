"""What a defense sees, what it returns, and the three kinds of stage it is made of."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from fedsieve.core.layout import Layout
from fedsieve.core.loss import Loss, LossName


def scatter(
    values: Shaped[Tensor, "k *rest"], rows: Bool[Tensor, " n"], fill: float | int
) -> Shaped[Tensor, "n *rest"]:
    """Put ``values`` at the k chosen of n rows and ``fill`` at the others.

    >>> scatter(torch.tensor([1.0, 2.0]), torch.tensor([True, False, True]), 0.0)
    tensor([1., 0., 2.])
    """
    result = values.new_full((len(rows), *values.shape[1:]), fill)
    result[rows] = values
    return result


@dataclass(frozen=True)
class Updates:
    """The client updates of one round.

    Attributes:
        matrix: Row i is ``local_params - global_params`` of client ``client_ids[i]``, [n, d].
        client_ids: Client id of each row, [n]. Ids identify clients across rounds; they are not positions.
        layout: What the coordinates mean.
    """

    matrix: Float[Tensor, "n d"]
    client_ids: Int[Tensor, " n"]
    layout: Layout

    @property
    def parameters(self) -> Float[Tensor, "n p"]:
        """The trained coordinates, a view."""
        return self.matrix[:, : self.layout.n_parameters]

    @property
    def statistics(self) -> Float[Tensor, "n s"]:
        """The running statistics, a view; no columns for a model without."""
        return self.matrix[:, self.layout.n_parameters :]

    def select(self, rows: Bool[Tensor, " n"]) -> "Updates":
        """The chosen rows, in order; not copied where all are chosen."""
        if rows.all():
            return self
        return Updates(self.matrix[rows], self.client_ids[rows], self.layout)

    def with_matrix(self, matrix: Float[Tensor, "n d"]) -> "Updates":
        """The same clients with other updates."""
        return Updates(matrix, self.client_ids, self.layout)


# --- What the server may know -------------------------------------------------------------------------------


@runtime_checkable
class Root(Protocol):
    """The server's own small clean dataset, seen from the global model of one round."""

    @property
    def data(self) -> tuple[Tensor, Int[Tensor, " k"]]:
        """Samples [k, *input_shape] and their classes [k]."""
        ...

    @property
    def n_classes(self) -> int:
        """Number of classes of the task, whether the root data have all of them or not."""
        ...

    def loss(self, flat: Float[Tensor, " d"], /) -> Float[Tensor, ""]:
        """Mean cross-entropy of the model ``flat`` on the root data, without gradient."""
        ...

    def gradient(
        self, flat: Float[Tensor, " d"], loss: LossName | Loss = "cross-entropy", /
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " d"]]:
        """A loss of the model ``flat`` on the root data and its gradient, which is 0 at running statistics."""
        ...

    def update(self) -> Float[Tensor, " d"]:
        """The update of a client that trains from the global model on the root data."""
        ...

    def train(self, datasets: Sequence[tuple[Tensor, Int[Tensor, " _"]]], /) -> Float[Tensor, "k d"]:
        """One update per dataset (samples, classes), trained from the global model as a client trains.

        The first dataset gets the random numbers that :meth:`update` uses, so that the root data in first place
        return :meth:`update`.
        """
        ...


@runtime_checkable
class Network(Protocol):
    """The model's architecture."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        ...

    def logits(self, flat: Float[Tensor, " d"], x: Tensor, /) -> Float[Tensor, "k c"]:
        """Outputs of the model ``flat`` for samples ``x`` [k, *input_shape], without gradient."""
        ...


@dataclass(frozen=True)
class ServerView:
    """All that a defense may know. The ground truth is not in it.

    Attributes:
        round: Counts from 0.
        n_malicious: Number of malicious clients to *assume* (``f`` in the papers). Below the configured number only
            where an aggregator's bound would not hold for the clients that screening and earlier stages left.
        generator: The only source of randomness.
        global_params: The model the clients started from, [d].
        state: What the stage returned as ``state`` in the last round; None in the first.
        root: The root dataset, if the server has one.
        network: The architecture, if the server can run the model.
        learning_rate: Share of the aggregate's trained coordinates that the server adds to the model; 1 where an
            optimizer takes the step, whose length nobody knows before.
    """

    round: int
    n_malicious: int
    generator: torch.Generator
    global_params: Float[Tensor, " d"]
    state: Any = None
    root: Root | None = None
    network: Network | None = None
    learning_rate: float = 1.0


# --- What a defense returns ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Diagnosis:
    """Why a detector decided as it did.

    Attributes:
        coordinates: Position of each client in the detector's two-dimensional feature space, [n, 2].
        root: Position of the server's own root model, [2]; None without one.
        layers: Names of the model's layers.
        kept: Share of each layer's parameters that the client's mask keeps, [n, layers], in [0, 1].
        reasons: Why each client was rejected; "" for accepted ones.
    """

    coordinates: Float[Tensor, "n 2"]
    root: Float[Tensor, " 2"] | None
    layers: tuple[str, ...]
    kept: Float[Tensor, "n l"]
    reasons: tuple[str, ...]

    def scattered(self, rows: Bool[Tensor, " n"], reason: str = "") -> "Diagnosis":
        """The diagnosis over n clients of which only ``rows`` were examined; NaN and ``reason`` for the others."""
        if rows.all():
            return self
        examined = iter(self.reasons)
        return replace(
            self,
            coordinates=scatter(self.coordinates, rows, torch.nan),
            kept=scatter(self.kept, rows, torch.nan),
            reasons=tuple(next(examined) if seen else reason for seen in rows.tolist()),
        )


@dataclass(frozen=True)
class Aggregate:
    """Result of an aggregator.

    Attributes:
        update: The aggregate, added to the global model by the server, [d].
        weights: Share of each client in the aggregate, [n]; sums to 1, or all 0 if no client is accepted.
        accepted: Which clients passed, [n]; None if the aggregator rejects nobody as such.
        scores: Anomaly score of each client on the method's own scale, higher is more anomalous, [n]; None without.
        state: Handed back in the next round's view.
        diagnosis: Why, per client; None if the method has none.
        note: What is special about this round, or "".
    """

    update: Float[Tensor, " d"]
    weights: Float[Tensor, " n"]
    accepted: Bool[Tensor, " n"] | None = None
    scores: Float[Tensor, " n"] | None = None
    state: Any = None
    diagnosis: Diagnosis | None = None
    note: str = ""

    def scattered(self, rows: Bool[Tensor, " n"], score: float = torch.nan) -> "Aggregate":
        """The result over n clients of which only ``rows`` took part: the others have weight 0 and are not accepted.

        Args:
            rows: Which of the n clients took part.
            score: Score of the others.
        """
        if rows.all():
            return self
        return replace(
            self,
            weights=scatter(self.weights, rows, 0.0),
            accepted=None if self.accepted is None else scatter(self.accepted, rows, False),
            scores=None if self.scores is None else scatter(self.scores, rows, score),
            diagnosis=None if self.diagnosis is None else self.diagnosis.scattered(rows),
        )


@dataclass(frozen=True)
class Detection:
    """Result of a detector. Fields as in :class:`Aggregate`.

    Attributes:
        accepted: Which clients stay, [n]; None if the detector cannot decide yet, and then all stay.
        scores: Anomaly scores, [n].
        state: Handed back in the next round's view.
        diagnosis: Why, per client.
    """

    accepted: Bool[Tensor, " n"] | None
    scores: Float[Tensor, " n"] | None = None
    state: Any = None
    diagnosis: Diagnosis | None = None

    def scattered(self, rows: Bool[Tensor, " n"], score: float = 0.0, reason: str = "") -> "Detection":
        """The result over n clients of which only ``rows`` were examined; the others are not accepted."""
        if rows.all():
            return self
        return replace(
            self,
            accepted=None if self.accepted is None else scatter(self.accepted, rows, False),
            scores=None if self.scores is None else scatter(self.scores, rows, score),
            diagnosis=None if self.diagnosis is None else self.diagnosis.scattered(rows, reason),
        )


@dataclass(frozen=True)
class PreAggregated:
    """Result of a pre-aggregator: the same clients' updates, changed, and its state for the next round."""

    updates: Updates
    state: Any = None


# --- The three kinds of stage -------------------------------------------------------------------------------


@runtime_checkable
class Aggregator(Protocol):
    """A robust aggregation rule: a pure function of a matrix of updates."""

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
        """Aggregate n >= 1 finite updates."""
        ...


@runtime_checkable
class Detector(Protocol):
    """Decides which clients stay. Averaging is left to the aggregator that follows."""

    def detect(self, updates: Updates, view: ServerView, /) -> Detection:
        """Examine n >= 1 finite updates."""
        ...


@runtime_checkable
class PreAggregator(Protocol):
    """Changes every update before the next stage sees it: clipping, momentum."""

    def preaggregate(self, updates: Updates, view: ServerView, /) -> PreAggregated:
        """Return as many rows as came, of the same clients in the same order; n >= 1, all finite."""
        ...


Stage = Aggregator | Detector | PreAggregator


@runtime_checkable
class Bounded(Protocol):
    """A stage whose guarantee holds only for some n and f."""

    def check(self, n_clients: int, n_malicious: int, /) -> None:
        """Raise :class:`fedsieve.core.errors.BoundError`, with the numbers, where the bound does not hold."""
        ...
