"""Calls the stages of a defense: protects what they are given and checks what they return, once and in one place.

A stage of another package gets copies, so that it can't write to the global model, the updates, the root data or its
own state of the last round. What it returns has the stage's name and the numbers in its error message.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fedsieve.core.defense import (
    Aggregate,
    Aggregator,
    Detection,
    Detector,
    Diagnosis,
    PreAggregated,
    PreAggregator,
    Root,
    ServerView,
    Stage,
    Updates,
)
from fedsieve.core.direct import described, finite
from fedsieve.core.errors import StageError, UnusableResultError
from fedsieve.core.loss import Loss, LossName
from fedsieve.core.several import gradients, losses

_DEEPEST = 50  # levels of a state


def detect(detector: Detector, updates: Updates, view: ServerView) -> Detection:
    """The detector's result, checked.

    Raises:
        StageError: If it is not what :class:`fedsieve.core.defense.Detection` says.
        UnusableResultError: If a score is NaN.
    """
    found, name = detector.detect(*_protected(detector, updates, view)), type(detector).__name__
    _check_type(name, found, Detection)
    n = len(updates.matrix)
    accepted, scores = _per_client(name, found.accepted, found.scores, n, updates.matrix)
    _check_diagnosis(name, found.diagnosis, n)
    check_state(name, found.state)
    return replace(found, accepted=accepted, scores=scores)


def preaggregate(stage: PreAggregator, updates: Updates, view: ServerView) -> PreAggregated:
    """The pre-aggregator's result, checked.

    Raises:
        StageError: If it does not hold the same clients in the same order.
        UnusableResultError: If a value is not finite.
    """
    found, name = stage.preaggregate(*_protected(stage, updates, view)), type(stage).__name__
    _check_type(name, found, PreAggregated)
    _check_type(name, found.updates, Updates)
    x, ids = found.updates.matrix, found.updates.client_ids
    if not isinstance(x, Tensor) or x.shape != updates.matrix.shape or not x.is_floating_point():
        raise StageError(f"{name} returned updates {described(x)}, expected floats {list(updates.matrix.shape)}")
    if not isinstance(ids, Tensor) or not torch.equal(ids, updates.client_ids):
        raise StageError(f"{name} returned other clients, or the same in another order")
    check_state(name, found.state)
    x = x.detach().to(updates.matrix)
    if not finite(x):
        broken = int((~torch.isfinite(x).all(dim=1)).sum())
        raise UnusableResultError(f"{name} made {broken} of {len(x)} updates not finite")
    return replace(found, updates=updates.with_matrix(x))


def aggregate(aggregator: Aggregator, updates: Updates, view: ServerView) -> Aggregate:
    """The aggregator's result, checked.

    ``update`` may have the parameters only, [p], since running statistics are combined elsewhere.

    Values that are not finite pass: the server leaves the model unchanged and keeps the state.

    Raises:
        StageError: If it is not what :class:`fedsieve.core.defense.Aggregate` says.
        UnusableResultError: If a score is NaN.
    """
    found, name = aggregator(*_protected(aggregator, updates, view)), type(aggregator).__name__
    _check_type(name, found, Aggregate)
    x, (n, d), p = updates.matrix, updates.matrix.shape, updates.layout.n_parameters
    if not _floats(found.update, (d,)) and not _floats(found.update, (p,)):
        raise StageError(f"{name} returned an aggregate {described(found.update)}, expected floats [{d}]")
    if not _floats(found.weights, (n,)):
        raise StageError(f"{name} returned weights {described(found.weights)}, expected floats [{n}]")
    accepted, scores = _per_client(name, found.accepted, found.scores, n, x)
    _check_diagnosis(name, found.diagnosis, n)
    check_state(name, found.state)
    update, weights = found.update.detach().to(x), found.weights.detach().to(x)
    least, total = float(weights.min()), float(weights.double().sum())
    if isfinite(total) and (least < 0 or (abs(total - 1) > 1e-3 and total != 0)):
        raise StageError(
            f"{name} returned weights that sum to {total:g}, the least {least:g}; "
            "weights are shares: none below 0, their sum 1, or all 0"
        )
    if accepted is not None and (weights[~accepted] > 0).any():
        raise StageError(f"{name} returned a weight above 0 for {int((weights[~accepted] > 0).sum())} rejected clients")
    return replace(found, update=update, weights=weights, accepted=accepted, scores=scores)


def _protected(stage: Stage, updates: Updates, view: ServerView) -> tuple[Updates, ServerView]:
    """What a stage is given: copies, unless the stage is one of this package, whose tests show that it writes nothing.

    Copies of everything in every round would cost a plain mean a third of its time.
    """
    if type(stage).__module__.partition(".")[0] == "fedsieve":
        return updates, view
    copied = Updates(updates.matrix.clone(), updates.client_ids.clone(), updates.layout)
    root = None if view.root is None else _ReadOnlyRoot(view.root)
    params, state = view.global_params.clone(), copy.deepcopy(view.state)
    return copied, replace(view, global_params=params, state=state, root=root)


@dataclass(frozen=True)
class _ReadOnlyRoot:
    """The root dataset of a round, handed out in copies. Implements :class:`fedsieve.core.defense.Root`."""

    root: Root

    @property
    def data(self) -> tuple[Tensor, Int[Tensor, " k"]]:
        x, y = self.root.data
        return x.clone(), y.clone()

    @property
    def n_classes(self) -> int:
        return self.root.n_classes

    def loss(self, flat: Float[Tensor, " d"], /) -> Float[Tensor, ""]:
        return self.root.loss(flat)

    def gradient(
        self, flat: Float[Tensor, " d"], loss: LossName | Loss = "cross-entropy", /
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " d"]]:
        return self.root.gradient(flat, loss)

    def losses(self, flats: Float[Tensor, "m d"], loss: LossName | Loss = "cross-entropy", /) -> Float[Tensor, " m"]:
        return losses(self.root, flats, loss)

    def gradients(self, flat: Float[Tensor, " d"], wanted: Any, /) -> tuple[Float[Tensor, " l"], Float[Tensor, "l d"]]:
        return gradients(self.root, flat, wanted)

    def update(self) -> Float[Tensor, " d"]:
        return self.root.update().clone()

    def train(self, datasets: Any, /) -> Float[Tensor, "k d"]:
        return self.root.train(datasets).clone()


def _check_type(name: str, found: Any, wanted: type) -> None:
    if not isinstance(found, wanted):
        raise StageError(f"{name} returned {described(found)}, expected a {wanted.__name__}")


def _floats(x: Any, shape: tuple[int, ...]) -> bool:
    return isinstance(x, Tensor) and x.shape == shape and x.is_floating_point()


def _per_client(name: str, accepted: Any, scores: Any, n: int, like: Tensor) -> tuple[Any, Any]:
    """``accepted`` and ``scores``, each None or one value per client, on the updates' device."""
    if accepted is not None:
        if not isinstance(accepted, Tensor) or accepted.shape != (n,) or accepted.dtype != torch.bool:
            raise StageError(f"{name} returned accepted {described(accepted)}, expected None or bools [{n}]")
        accepted = accepted.to(like.device)
    if scores is not None:
        if not _floats(scores, (n,)):
            raise StageError(f"{name} returned scores {described(scores)}, expected None or floats [{n}]")
        scores = scores.detach().to(like)
        if bad := int(scores.isnan().sum()):
            raise UnusableResultError(f"{name} returned {bad} of {n} scores that are NaN")
    return accepted, scores


def _check_diagnosis(name: str, found: Any, n: int) -> None:
    if found is None:
        return
    _check_type(name, found, Diagnosis)
    fields = (found.coordinates, (n, 2)), (found.kept, (n, len(found.layers)))
    if not all(_floats(x, shape) for x, shape in fields) or len(found.reasons) != n:
        raise StageError(
            f"{name} returned a diagnosis with coordinates {described(found.coordinates)}, "
            f"kept {described(found.kept)} and {len(found.reasons)} reasons, "
            f"expected floats [{n}, 2], floats [{n}, {len(found.layers)}] and {n}"
        )


def check_state(name: str, state: Any, where: str = "state", level: int = 0) -> None:
    """Raise where a state can't be kept in a checkpoint: better in the first round than at the end of a run."""
    kind = where.removeprefix("a key of ").partition(".")[0]
    if level > _DEEPEST:
        raise StageError(f"{name} returned a {kind} of more than {_DEEPEST} levels; does it hold itself?")
    if isinstance(state, Mapping):
        for key, value in state.items():
            check_state(name, key, f"a key of {where}", level + 1)
            check_state(name, value, f"{where}.{key}", level + 1)
    elif isinstance(state, list | tuple):
        for k, value in enumerate(state):
            check_state(name, value, f"{where}.{k}", level + 1)
    elif isinstance(state, Tensor):
        if state.requires_grad:
            raise StageError(f"{name} returned a {where} that requires grad; detach it, or its memory grows each round")
    elif state is not None and not isinstance(state, bool | int | float | str):
        raise StageError(
            f"{name} returned {described(state)} in its {where}; a {kind} is made of tensors, numbers, text, "
            "lists, tuples and dicts"
        )
