"""The vocabulary: what every other module speaks in.

Axes: ``n`` clients in the round, ``m`` malicious among them, ``d`` coordinates of the flattened model.
Sign: ``update = local_params - global_params``; the server adds it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# --- Errors: each is a user's mistake, said in one line with the numbers and the alternatives ---------------


class FedSieveError(Exception):
    """Anything the user can put right; the command line prints it and exits 2."""


class UnknownNameError(FedSieveError):
    """A name that nothing is registered under."""


class ParameterError(FedSieveError):
    """A parameter that does not exist, has the wrong type or is out of range."""


class BoundError(FedSieveError):
    """A rule's bound on the number of malicious clients does not hold."""


class MissingDataError(FedSieveError):
    """A file that is not there and could not be fetched, or root data that a rule needs."""


class CorruptDataError(FedSieveError):
    """A file whose checksum or format is wrong."""


# --- The model as a vector ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Segment:
    """One tensor's place in the flat vector."""

    name: str
    shape: tuple[int, ...]
    start: int

    @property
    def stop(self) -> int:
        """One past the last coordinate."""
        return self.start + prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the tensors in a flat model vector: parameters first, running statistics last.

    Attributes:
        segments: Every tensor, in the order of the vector.
        n_parameters: The first ``n_parameters`` coordinates are trained; the rest are running statistics
            (BatchNorm's means and variances), which travel along and are averaged but have no gradient.
    """

    segments: tuple[Segment, ...]
    n_parameters: int

    @classmethod
    def of(cls, parameters: Mapping[str, Tensor], statistics: Mapping[str, Tensor] | None = None) -> "Layout":
        """The layout that packs ``parameters``, then ``statistics``, in their own order."""
        segments: list[Segment] = []
        start = 0
        for name, tensor in [*parameters.items(), *(statistics or {}).items()]:
            segments.append(Segment(name, tuple(tensor.shape), start))
            start = segments[-1].stop
        return cls(tuple(segments), sum(tensor.numel() for tensor in parameters.values()))

    @property
    def size(self) -> int:
        """Coordinates in all (``d``)."""
        return self.segments[-1].stop if self.segments else 0

    @property
    def layers(self) -> tuple["Segment", ...]:
        """The parameters by module ("conv1" of "conv1.weight"), each a segment without a shape of its own."""
        found: list[Segment] = []
        for s in self.segments:
            module = s.name.rpartition(".")[0] or s.name
            if s.start >= self.n_parameters:
                break
            if found and found[-1].name == module:
                found[-1] = Segment(module, (s.stop - found[-1].start,), found[-1].start)
            else:
                found.append(Segment(module, (s.stop - s.start,), s.start))
        return tuple(found)

    def unflatten(self, flat: Float[Tensor, "*batch d"]) -> dict[str, Tensor]:
        """Views of ``flat``, one per tensor, shaped ``[*batch, *shape]``; nothing is copied."""
        lead = flat.shape[:-1]
        return {s.name: flat[..., s.start : s.stop].view((*lead, *s.shape)) for s in self.segments}

    def flatten(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, "*batch d"]:
        """The inverse of :meth:`unflatten`; leading batch axes are kept."""
        parts = []
        for s in self.segments:
            tensor = tensors[s.name]
            parts.append(tensor.reshape(*tensor.shape[: tensor.dim() - len(s.shape)], -1))
        return torch.cat(parts, dim=-1)


@dataclass(frozen=True)
class Updates:
    """One round's client updates, stacked.

    Attributes:
        matrix: Row i is ``local_params - global_params`` of client ``client_ids[i]``.
        client_ids: Who sent which row; a name, never a position.
        layout: What the coordinates mean.
    """

    matrix: Float[Tensor, "n d"]
    client_ids: Int[Tensor, " n"]
    layout: Layout

    def select(self, rows: Bool[Tensor, " n"]) -> "Updates":
        """The chosen rows, in order."""
        return Updates(self.matrix[rows], self.client_ids[rows], self.layout)


# --- What a defense sees and says ---------------------------------------------------------------------------


# What is asked of a model on the root data; :mod:`fedsieve.losses` has the formulas.
Objective = Literal["cross-entropy", "batch", "margin"]


@dataclass(frozen=True)
class Witnesses:
    """Updates that the server trained itself, from the global model on its root data, so that it knows what they are.

    Attributes:
        model: The root model's: trained as a client is.
        parts: Each trained on one root sample, or a few of the same class.
        classes: The class of each part.
        folds: Each part's, from 0; every class is spread over them.
        held_out: One for each fold, trained as a client is, on the samples of its parts, all classes in equal shares.
        lying: Trained with every label moved on to another class, all classes in equal shares.
        complete: Whether the root data have every class that there is.
    """

    model: Float[Tensor, " d"]
    parts: Float[Tensor, "r d"]
    classes: Int[Tensor, " r"]
    folds: Int[Tensor, " r"]
    held_out: Float[Tensor, "f d"]
    lying: Float[Tensor, "k d"]
    complete: bool

    @property
    def honest(self) -> Float[Tensor, "c d"]:
        """What a client of each class alone would send: the mean of the class's parts."""
        return torch.stack([self.parts[self.classes == c].mean(dim=0) for c in torch.unique(self.classes)])


@runtime_checkable
class Root(Protocol):
    """The server's own small clean dataset, seen through the model."""

    def loss(self, flat: Float[Tensor, " d"], /) -> Float[Tensor, ""]:
        """Mean cross-entropy of the model ``flat`` on the root data."""
        ...

    def gradient(
        self, flat: Float[Tensor, " d"], objective: Objective = "cross-entropy", /
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " d"]]:
        """A loss of the model ``flat`` on the root data, and its gradient; 0 where running statistics are."""
        ...

    def update(self) -> Float[Tensor, " d"]:
        """The update of a client that trained from the global model on the root data."""
        ...

    def witnesses(self) -> Witnesses:
        """Updates of known kinds, made on the root data."""
        ...


@runtime_checkable
class Network(Protocol):
    """The model's architecture, which the server knows as well as any client does."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        ...

    def logits(self, flat: Float[Tensor, " d"], x: Tensor, /) -> Float[Tensor, "k c"]:
        """What the model ``flat`` says of ``x`` [k, *input_shape], without gradient."""
        ...


@dataclass(frozen=True)
class ServerView:
    """All that a defense may know. The truth about who is malicious is not in it.

    Attributes:
        round: Counts from 0.
        n_malicious: How many malicious clients the rule should *assume* (``f`` in the papers). Less only where the
            rule's bound would not hold for the clients that screening and earlier stages of a chain left.
        generator: The only source of randomness.
        global_params: The model the clients started from.
        state: What the defense returned as ``state`` last round, or None.
        root: The root dataset, if the server has one.
        network: The architecture, if the server can run the model.
    """

    round: int
    n_malicious: int
    generator: torch.Generator
    global_params: Float[Tensor, " d"]
    state: Any = None
    root: Root | None = None
    network: Network | None = None


@dataclass(frozen=True)
class Diagnosis:
    """Why a filter decided as it did, for a person to look at.

    Attributes:
        coordinates: Where each client lies, seen by the filter, in two dimensions.
        root: Where the server's own root model lies; None without one.
        layers: Names of the model's layers.
        kept: The share of each layer's parameters that the client's mask keeps.
        reasons: Why each client was rejected, or "".
    """

    coordinates: Float[Tensor, "n 2"]
    root: Float[Tensor, " 2"] | None
    layers: tuple[str, ...]
    kept: Float[Tensor, "n l"]
    reasons: tuple[str, ...]

    def spread(self, rows: Bool[Tensor, " n"]) -> "Diagnosis":
        """The same of more clients, of whom only ``rows`` were looked at; numbers of the others are not a number."""
        coordinates = self.coordinates.new_full((len(rows), 2), torch.nan)
        kept = self.kept.new_full((len(rows), self.kept.shape[1]), torch.nan)
        coordinates[rows], kept[rows], reasons = self.coordinates, self.kept, iter(self.reasons)
        return Diagnosis(
            coordinates, self.root, self.layers, kept, tuple(next(reasons) if seen else "" for seen in rows.tolist())
        )


@dataclass(frozen=True)
class Aggregate:
    """What a defense returns.

    Attributes:
        update: To be added to the global model.
        weights: The part of the result due to each client; sums to 1, or all 0 when nobody is accepted.
        accepted: Who passed; None if the rule takes no such decision.
        suspicion: Higher is more suspicious, on the rule's own scale; None if it has no such score.
        state: Handed back in the next round's view.
        diagnosis: Why it decided so, of all clients; None if it can't tell.
    """

    update: Float[Tensor, " d"]
    weights: Float[Tensor, " n"]
    accepted: Bool[Tensor, " n"] | None = None
    suspicion: Float[Tensor, " n"] | None = None
    state: Any = None
    diagnosis: Diagnosis | None = None


@dataclass(frozen=True)
class Verdict:
    """What a filter returns: who stays. Fields as in :class:`Aggregate`."""

    accepted: Bool[Tensor, " n"]
    suspicion: Float[Tensor, " n"] | None = None
    state: Any = None
    diagnosis: Diagnosis | None = None


@dataclass(frozen=True)
class Transformed:
    """What a transform returns: the same clients' updates, changed. ``state`` as in :class:`Aggregate`."""

    updates: Updates
    state: Any = None


@dataclass(frozen=True)
class Traits:
    """What a registered attack, defense, dataset or model says of itself; ``fedsieve list`` prints it.

    Attributes:
        summary: One line.
        paper: Authors, title, venue and year, or "" for what no paper owns.
        needs: Of {"root data", "network", "f", "state"} for a defense. For an attack, of {"data", "updates"} what it
            touches, and "defense" if it must know that.
        bound: What n and f must fulfil, in words, or "".
        cost: Time per round, in n and d, or "".
    """

    summary: str
    paper: str = ""
    needs: tuple[str, ...] = ()
    bound: str = ""
    cost: str = ""


@runtime_checkable
class Defense(Protocol):
    """A robust aggregation rule: a pure function of a matrix of updates."""

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
        """Aggregate n >= 1 finite updates."""
        ...


@runtime_checkable
class Filter(Protocol):
    """A detector: says who stays, and leaves the averaging to the rule that follows it."""

    def judge(self, updates: Updates, view: ServerView, /) -> Verdict:
        """Judge n >= 1 finite updates."""
        ...


@runtime_checkable
class Transform(Protocol):
    """A change to every update before the next stage sees it: clipping, momentum."""

    def transform(self, updates: Updates, view: ServerView, /) -> Transformed:
        """As many rows as came, of the same clients, in the same order; n >= 1, all finite."""
        ...


@runtime_checkable
class Bounded(Protocol):
    """A defense whose guarantee holds only for some n and f."""

    def check(self, n_clients: int, n_malicious: int, /) -> None:
        """Raise :class:`BoundError`, with the numbers, where the bound does not hold."""
        ...


# --- What an attacker sees and does -------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """What is learned, as every client knows it.

    Attributes:
        n_classes: Classes are 0 to ``n_classes - 1``.
        folder: Where data files lie; an attack may bring samples of its own from there.
        encode: Raw samples as the dataset's files have them (images: uint8 [k, height, width, channels]; text: a
            list of strings) to inputs of the model; None where the dataset has no such form.
    """

    n_classes: int
    folder: Path
    encode: Callable[[Any], Tensor] | None = None


@dataclass(frozen=True)
class PoisonView:
    """All that one malicious client knows when it poisons its data, before any round.

    Attributes:
        task: What is learned.
        member: Which of the malicious clients it is, from 0; the same in every round.
        generator: The only source of randomness.
    """

    task: Task
    member: int
    generator: torch.Generator


@runtime_checkable
class Training(Protocol):
    """Local training as the malicious clients can do it themselves, each on its own data."""

    def __call__(
        self, start: Float[Tensor, " d"], /, *, poisoned: bool = True, proximal: float = 0.0
    ) -> Float[Tensor, "m d"]:
        """``local_params - start`` of each malicious client, trained from ``start`` with the experiment's settings.

        Args:
            start: Where training begins.
            poisoned: Whether on the data as :meth:`Attack.poison` left it, or as it was before.
            proximal: Weight of half the squared distance to ``start``, added to the loss.
        """
        ...


@dataclass(frozen=True)
class AttackView:
    """All that the attacker may know in one round; what the threat model does not grant is None.

    Attributes:
        round: Counts from 0.
        own: What the malicious clients would have sent, had they trained honestly (on data that
            :meth:`Attack.poison` may have changed).
        others: The benign clients' updates, if granted.
        n_clients: Clients in this round, malicious ones included.
        global_params: The model all clients received.
        generator: The only source of randomness.
        layout: What the coordinates mean.
        members: Which malicious client each row of ``own`` is: :attr:`PoisonView.member`.
        train: Local training on the malicious clients' data, for what else they want to know.
        root: The malicious clients' own clean data, all together: their guess at the server's root dataset.
        rehearse: The server's defense, if granted: what it makes of n updates, own ones first, with ``root`` for its
            root data. It remembers what was sent in earlier rounds, if the attacker sees what others send.
    """

    round: int
    own: Float[Tensor, "m d"]
    others: Float[Tensor, "b d"] | None
    n_clients: int
    global_params: Float[Tensor, " d"]
    generator: torch.Generator
    layout: Layout
    members: Int[Tensor, " m"]
    train: Training
    root: Root
    rehearse: Callable[[Float[Tensor, "n d"]], Aggregate] | None = None

    @property
    def known(self) -> Float[Tensor, "k d"]:
        """Every honest update the attacker has seen: its own, and the others' where granted."""
        return self.own if self.others is None else torch.cat([self.own, self.others])


@runtime_checkable
class Attack(Protocol):
    """What malicious clients do to their data and to their updates; either hook may be the identity."""

    def poison(self, x: Tensor, y: Tensor, view: PoisonView, /) -> tuple[Tensor, Tensor]:
        """One malicious client's training data, before any round: ``x`` [k, ...], ``y`` [k]."""
        ...

    def craft(self, view: AttackView, /) -> Float[Tensor, "m d"]:
        """What the malicious clients send, one row each."""
        ...


@dataclass(frozen=True)
class Triggered:
    """Inputs on which a backdoor's success is measured.

    Attributes:
        x: With the trigger [k, ...].
        wanted: The class the attacker wants for each.
        already: Which of them are of that class anyway.
    """

    x: Tensor
    wanted: Int[Tensor, " k"]
    already: Bool[Tensor, " k"]


@runtime_checkable
class Backdoor(Protocol):
    """An attack that wants inputs with a trigger to be given a class of its choice."""

    def triggered(self, x: Tensor, y: Int[Tensor, " k"], task: Task, /) -> Triggered | None:
        """What to measure success on, made from the test data or brought along; None if there is no backdoor."""
        ...


# --- The only truth -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DiagnosisRecord:
    """A :class:`Diagnosis` as it is kept. Numbers are rounded; None where a client was not looked at.

    Attributes:
        coordinates: Of each client.
        root: Of the server's own root model; None without one.
        layers: Names of the model's layers.
        kept: Of each client, the share of each layer's parameters that its mask keeps.
        reasons: Of each client, or "".
        updates: Where each client's update itself lies, along two principal components, to compare; None in records
            of earlier versions.
    """

    coordinates: tuple[tuple[float | None, float | None], ...]
    root: tuple[float, float] | None
    layers: tuple[str, ...]
    kept: tuple[tuple[float | None, ...], ...]
    reasons: tuple[str, ...]
    updates: tuple[tuple[float | None, float | None], ...] | None = None


@dataclass(frozen=True)
class RoundRecord:
    """All that is kept of one round; every table, figure and page is made from these alone.

    Client lists hold ids. Rates are in [0, 1] and None where they have no meaning: the rule rejects nobody,
    no benign or no malicious client took part, the round was not evaluated, the attack has no backdoor.

    Attributes:
        round: Counts from 0.
        clients: Who took part, in the order of every other per-client list.
        malicious: Who of them was malicious: the ground truth.
        rejected: Whom the defense rejected; None if it takes no such decision.
        screened: Whose update was not finite, so that the server dropped it before the defense.
        weights: The part of the aggregate due to each client; None where the defense's answer is not finite.
        suspicion: The defense's score of each client, None where it has none.
        update_norm: Euclidean norm of the aggregate; None if it is not finite.
        applied: False where the global model was left as it was, and ``note`` says why.
        note: What a person should know of this round, or "".
        test_accuracy: Of the global model after the round, on the whole test set.
        test_loss: Mean cross-entropy there; None also if it is not finite.
        attack_success_rate: Triggered test samples given the attacker's class, of those that are not of it anyway.
        attack_success_rate_all: The same of all triggered test samples, as the SkyMask paper counts.
        false_positive_rate: Benign clients rejected, of the benign ones.
        false_negative_rate: Malicious clients accepted, of the malicious ones.
        diagnosis: Why the defense decided so, if it can tell.
        seconds: Wall time of the phases; the only field that differs between two runs of one experiment.
    """

    round: int
    clients: tuple[int, ...]
    malicious: tuple[int, ...]
    rejected: tuple[int, ...] | None
    screened: tuple[int, ...]
    weights: tuple[float | None, ...]
    suspicion: tuple[float | None, ...] | None
    update_norm: float | None
    applied: bool
    note: str
    test_accuracy: float | None
    test_loss: float | None
    attack_success_rate: float | None
    attack_success_rate_all: float | None
    false_positive_rate: float | None
    false_negative_rate: float | None
    diagnosis: DiagnosisRecord | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
