"""What is kept of each round. Every table, figure and page is made from these records alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isqrt


def seen_id(client: int, used: int, n_clients: int) -> int:
    """The id under which the server sees a client that has used up ``used`` ids: one that no other client ever has.

    Only malicious clients change their ids (:class:`fedsieve.core.attack.Identities`).

    Args:
        client: The client, in 0 to ``n_clients - 1``; its first id.
        used: Number of ids that it has used up.
        n_clients: Number of clients.

    >>> [seen_id(3, used, n_clients=10) for used in range(4)]
    [3, 13, 23, 33]
    """
    return client + used * n_clients


def client_behind(seen: int, n_clients: int) -> int:
    """The client that the server sees under an id: inverse of :func:`seen_id`.

    >>> client_behind(33, n_clients=10)
    3
    """
    return seen % n_clients


def client_name(names: Sequence[str], client: int) -> str:
    """A client's name, or ``client 3`` where it has none.

    >>> client_name(["St. Anna", ""], 0), client_name(["St. Anna", ""], 1)
    ('St. Anna', 'client 1')
    """
    return (names[client] if 0 <= client < len(names) else "") or f"client {client}"


def decided(record: "RoundRecord") -> bool:
    """Whether the defense took a decision; not if it could not yet, or if every update was dropped before it."""
    return record.rejected is not None and len(record.screened) < len(record.clients)


def pictured(round: int) -> bool:
    """Whether the record of a round, counted from 0, holds the positions of clients that pictures are made of.

    They would be the largest part of a record, and pictures show few rounds. It is every round whose number, counted
    from 1, is a square: 50 of 2,500, the last one among them. The choice does not depend on the length of the run,
    which may be made longer.

    >>> [k for k in range(40) if pictured(k)]
    [0, 3, 8, 15, 24, 35]
    """
    return isqrt(round + 1) ** 2 == round + 1


@dataclass(frozen=True)
class DiagnosisRecord:
    """A :class:`fedsieve.core.defense.Diagnosis` as it is stored: rounded; None for clients that were not examined.

    Attributes:
        coordinates: Position of each client in the detector's feature space, two numbers; empty in rounds that are not
            :func:`pictured`, as are ``layers`` and ``kept``.
        root: Position of the server's own root model; None without one.
        layers: Names of the model's layers.
        kept: Share of each layer's parameters that the client's mask keeps, by client, in [0, 1]; empty without layers.
        reasons: Why each client was rejected, or "".
        updates: Position of each client's update along the two principal components of the updates themselves, or of
            100 of them drawn at random where there are more; None in rounds that are not pictured.
    """

    coordinates: tuple[tuple[float | None, float | None], ...]
    root: tuple[float, float] | None
    layers: tuple[str, ...]
    kept: tuple[tuple[float | None, ...], ...]
    reasons: tuple[str, ...]
    updates: tuple[tuple[float | None, float | None], ...] | None = None


@dataclass(frozen=True)
class RoundRecord:
    """All that is kept of one round.

    Client lists hold ids, as the server saw them: a malicious client may take part under new ones (:func:`seen_id`).
    Rates are in [0, 1] and None where they are undefined: the defense rejects nobody or cannot
    decide yet, no benign or no malicious client took part, it is not known who is malicious, the round was not
    evaluated, the attack has no backdoor.

    Attributes:
        round: Counts from 0.
        clients: Clients that took part, in the order of every other per-client list.
        malicious: Which of them are malicious: the ground truth. None where nobody knows: in a federation that is not
            simulated, or on a user's own data without attack.
        rejected: Which of them the defense rejected; None if it takes no such decision.
        screened: Clients whose update was dropped before the defense.
        screened_reasons: Why, for each of them.
        weights: Share of each client in the aggregate; None where it is not finite.
        scores: Anomaly score of each client; None as a whole or for a client where the defense has none.
        update_norm: Euclidean norm of the aggregate; None if it is not finite.
        applied: False where the global model was left unchanged, for the reason in ``note``.
        note: What is special about this round, or "".
        test_accuracy: Accuracy of the global model after the round, on the whole test set.
        test_loss: Mean cross-entropy there; None also if it is not finite.
        attack_success_rate: Share of the triggered test samples of other classes that are classified as the attacker's
            class.
        attack_success_rate_all: The same over all triggered test samples, as the SkyMask paper counts.
        false_positive_rate: Share of the benign clients that were rejected.
        false_negative_rate: Share of the malicious clients that were accepted.
        diagnosis: Why the defense decided so, if it tells.
        seconds: Wall time of the phases; the only field that differs between two runs of one experiment.
    """

    round: int
    clients: tuple[int, ...]
    malicious: tuple[int, ...] | None
    rejected: tuple[int, ...] | None
    screened: tuple[int, ...]
    weights: tuple[float | None, ...]
    scores: tuple[float | None, ...] | None
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
    screened_reasons: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
