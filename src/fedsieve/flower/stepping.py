"""What is left to the wrapped strategy: its own step from the defense's aggregate, and the evaluation."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy
from jaxtyping import Float
from torch import Tensor

from fedsieve.core.errors import ParameterError
from fedsieve.core.escaping import shown
from fedsieve.federation.server import Decision, ServerState
from fedsieve.flower.arrays import Arrays
from fedsieve.flower.metrics import averaged, comparable, told_of
from fedsieve.flower.replies import Dropped, UnusableReplyError, Usable, evaluated, reason_of, sorted_out

LOG = logging.getLogger("flwr")


@dataclass(frozen=True)
class Sent:
    """What went out in a round.

    Attributes:
        record: The model.
        flat: The same as a vector.
        asked: The nodes that were asked, with their client ids.
    """

    record: ArrayRecord
    flat: Float[Tensor, " d"]
    asked: Mapping[int, int]


def moved(
    strategy: Strategy,
    server_round: int,
    arrays: Arrays,
    sent: Sent,
    ours: tuple[ServerState, Decision],
    usable: Sequence[Usable],
    key: str,
    cap: int | float,
) -> tuple[ServerState, Decision, ArrayRecord, dict[str, Any]]:
    """The model after the strategy's own step from the defense's aggregate; the one that was sent where it stays.

    The strategy is given one reply that holds the aggregate. Its parameters count, the running statistics are the
    defense's. Where it fails, or a parameter is missing, of another shape or not finite, the aggregate is the model.

    Args:
        strategy: The wrapped strategy.
        server_round: Counts from 1.
        arrays: The layout of the model.
        sent: What went out.
        ours: State of the server and decision of the defense.
        usable: The replies about which it was taken.
        key: Of the number of samples.
        cap: Largest number of samples that counts in metrics, in medians.

    Returns:
        State, decision, model, and metrics of the accepted replies.
    """
    state, decision = ours
    aggregate = arrays.record(state.params, sent.record) if decision.applied else None
    if aggregate is None:
        if decision.applied:
            decision = replace(decision, applied=False, note="the model would overflow the type of its arrays")
        return replace(state, params=sent.flat), decision, sent.record, {}
    accepted = decision.aggregate.accepted
    rows = [not why for why in decision.reasons] if accepted is None else accepted.tolist()
    heard = [reply for reply, ok in zip(usable, rows, strict=True) if ok]
    contents = [reply.content for reply in comparable(heard, key, cap)]
    metrics, before = averaged(contents, key), dict(vars(strategy))
    message, place = heard[0].message, getattr(strategy, "arrayrecord_key", "arrays")
    message.content = RecordDict({place: aggregate, "metrics": MetricRecord({**metrics, key: 1})})
    try:
        with told_of(strategy, contents):
            theirs, found = strategy.aggregate_train(server_round, [message])
        model = None if theirs is None else arrays.record(_merged(arrays, state.params, theirs), sent.record)
        if model is None:
            raise ValueError("it returned no model" if theirs is None else "its step overflows")
        return state, decision, model, metrics if found is None else dict(found)
    except Exception as error:
        vars(strategy).clear()
        vars(strategy).update(before)
        LOG.warning(
            "fedsieve: %s failed on the aggregate, which is the model now: %s: %s",
            *(type(strategy).__name__, type(error).__name__, error),
        )
        return state, decision, aggregate, metrics


def _merged(arrays: Arrays, ours: Float[Tensor, " d"], theirs: ArrayRecord) -> Float[Tensor, " d"]:
    """The strategy's parameters with the defense's running statistics.

    Raises:
        ValueError: If a parameter is missing, of another shape or not finite.
    """
    flat = ours.cpu().clone()
    for s in arrays.layout.segments:
        if s.start >= arrays.layout.n_parameters:
            break
        name = arrays.names[s.name]
        values = theirs[name].numpy() if name in theirs else None
        if values is None or values.shape != s.shape or not np.isfinite(values).all():
            what = "has no" if values is None else "has another shape of" if values.shape != s.shape else "broke"
            raise ValueError(f"it {what} array {name}")
        flat[s.start : s.stop] = torch.from_numpy(np.array(values).reshape(-1))
    return flat


def evaluation(
    strategy: Strategy, server_round: int, replies: Sequence[Any], asked: Mapping[int, int], key: str, cap: int | float
) -> MetricRecord | None:
    """What the strategy makes of those evaluations that it can take.

    Args:
        strategy: The wrapped strategy.
        server_round: Counts from 1.
        replies: As they came.
        asked: Nodes whose evaluation counts, with the place of each.
        key: Of the number of samples.
        cap: Largest number of samples that counts, in medians.
    """
    dropped: list[Dropped] = []
    usable: dict[int, Usable] = {}
    for node, reply in sorted_out(replies, asked, dropped):
        try:
            if node in usable:
                raise UnusableReplyError("second reply")
            usable[node] = evaluated(node, reply, key)
        except Exception as error:
            dropped.append(Dropped(node, reason_of(error)))
    for lost in dropped:
        LOG.info("fedsieve: dropped an evaluation of node %s: %s", lost.node, lost.reason)
    kept = comparable(list(usable.values()), key, cap)
    if len(kept) < len(usable):
        LOG.info("fedsieve: %d evaluations are not comparable with the others", len(usable) - len(kept))
    if not kept:
        return None
    for reply in kept:
        reply.message.content = reply.content
    try:
        found: MetricRecord | None = strategy.aggregate_evaluate(server_round, [r.message for r in kept])
        return found
    except Exception as error:
        LOG.warning("fedsieve: the strategy failed on the evaluation: %s: %s", type(error).__name__, error)
        return MetricRecord(averaged([r.content for r in kept], key))


def check_wrapped(strategy: Any) -> None:
    """See that a strategy can be wrapped.

    Raises:
        ParameterError: If it is none, or one that a defense would undo.
    """
    if not isinstance(strategy, Strategy):
        raise ParameterError(
            f"strategy must be a strategy of flwr.serverapp.strategy, such as FedAvg(), got {shown(strategy)}"
        )
    name = type(strategy).__name__
    if name.startswith("DifferentialPrivacy"):
        raise ParameterError(
            f"{name} adds its noise to the mean of all clients, which a defense replaces: wrap the other way round, "
            f"{name}(Defended(FedAvg(), ...), ...)"
        )
    if type(strategy).start is not Strategy.start:
        LOG.warning("fedsieve: %s.start is not used, only its other methods", name)
