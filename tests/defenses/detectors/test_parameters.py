"""Every parameter of every registered detector changes what the detector finds."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsieve.config import registry
from fedsieve.core.defense import Detection, Detector, ServerView, Updates
from fedsieve.federation.clients import ClientData, LocalTraining, Trainer
from fedsieve.federation.root import RootClient
from fedsieve.models.flat import FlatModel
from fedsieve.models.mlp import MLP

DETECTORS = tuple(name for name in registry.names("defenses") if registry.stage(name) == "detector")
N, M, ROUNDS, CLASSES = 12, 3, 8, 5
# Rates and bounds with which masks are neither saturated nor unmoved at this model's gradients.
_GENTLE: dict[str, Any] = {"mask_learning_rate": 1e3, "mask_clip": 1e-3}
_GAP = {"clusters": "gap", "gap_references": 1, "n_components": 1}
_SKYMASK: dict[str, tuple[dict[str, Any], Any]] = {
    "preset": ({}, "code"),
    "clusters": ({"n_components": 1}, "two"),
    "loss": (_GENTLE, "batch"),
    "reduction": (_GENTLE, "sum"),
    "mask_learning_rate": (_GENTLE, 3e3),
    "mask_clip": ({}, None),
    "mask_steps": (_GENTLE, 5),
    "tolerance": (_GENTLE, 0.5),
    # masks barely move, so that the loss does not fall; the threshold is the initial gate
    "early_stop": ({"mask_learning_rate": 10.0, "mask_clip": None, "tolerance": 0.0, "tau": 0.7310586}, True),
    "tau": (_GENTLE, 0.7),
    "n_components": ({"clusters": "two"}, 1),
    "gap_references": (_GAP, 9),
    "update_scale": (_GENTLE, 0.5),
    "slices": ({}, True),
}
# What malicious updates are multiplied by, where a detector finds nobody otherwise.
STRENGTH = {"sieve": 3.0}
# By detector and parameter: other parameters, and a value that differs from the one without it.
CHANGES: dict[str, dict[str, tuple[dict[str, Any], Any]]] = {
    "skymask": _SKYMASK,
    "skymask-nr": _SKYMASK,
    "sieve": {
        "least_evidence": ({}, 9.0),
        "minority": ({}, 0.5),
        "memory": ({}, 0.3),
        "forget_after": ({}, 1),
    },
    "tolpegin": {"label": ({}, 1), "layer": ({}, "all")},
    "fldetector": {
        "window": ({"start": 1}, 2),
        "start": ({"window": 1}, 4),
        "references": ({"window": 1, "start": 0, "references": 1}, 30),
        "forget_after": ({"window": 3, "start": 0}, 1),
    },
}


Detections = Callable[[Detector, float], list[Detection]]


@dataclass(frozen=True)
class Round:
    updates: Updates
    params: Tensor
    root: RootClient


@pytest.fixture(scope="module")
def played() -> list[Round]:
    """Rounds of a small network, three clients of which flip labels; the server adds the mean of benign updates.

    In round 5 one malicious client is away.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, params = FlatModel.of(MLP((20,), CLASSES, hidden=(40,)))
    g = torch.Generator().manual_seed(0)
    x = torch.randn(N * 16 + 48, 20, generator=g)
    y = (x[:, :CLASSES] + 0.5 * torch.randn(len(x), CLASSES, generator=g)).argmax(dim=1)
    trainer = Trainer(model, LocalTraining(0.3, 10, 3), seed=0)
    data = {i: ClientData(x[i * 16 : i * 16 + 16], y[i * 16 : i * 16 + 16]) for i in range(N)}
    data |= {i: ClientData(data[i].x, (data[i].y + 1) % CLASSES) for i in range(M)}
    held, found = ClientData(x[N * 16 :], y[N * 16 :]), []
    for t in range(ROUNDS):
        rows = trainer.updates(params, data, t)
        root = RootClient(trainer, held, CLASSES, params, t)
        here = torch.arange(N) != (0 if t == 5 else N)
        found.append(Round(Updates(rows[here], torch.arange(100, 100 + N)[here], model.layout), params, root))
        params = params + rows[M:].mean(dim=0)
    return found


@pytest.fixture(scope="module")
def detections(played: list[Round]) -> Detections:
    """What a detector finds in each round; remembered, since most comparisons share one side."""

    @cache
    def of(detector: Detector, strength: float) -> list[Detection]:
        found: list[Detection] = []
        for t, part in enumerate(played):
            state = found[-1].state if found else None
            view = ServerView(t, M, torch.Generator().manual_seed(t), part.params, state, part.root)
            malicious = (part.updates.client_ids < 100 + M)[:, None]
            matrix = torch.where(malicious, strength * part.updates.matrix, part.updates.matrix)
            found.append(detector.detect(part.updates.with_matrix(matrix), view))
        return found

    return of


def differ(one: Detection, other: Detection) -> bool:
    """Whether acceptance, scores, or the diagnosis differ."""
    reasons = [None if found.diagnosis is None else found.diagnosis.reasons for found in (one, other)]
    if reasons[0] != reasons[1]:
        return True

    def tensors(found: Detection) -> list[Tensor | None]:
        seen = found.diagnosis
        return [found.accepted, found.scores, *([] if seen is None else [seen.coordinates, seen.kept])]

    pairs = zip(tensors(one), tensors(other), strict=True)
    return any((a is None) != (b is None) or (a is not None and not torch.equal(a, b)) for a, b in pairs)


@pytest.mark.parametrize("name", DETECTORS)
def test_no_parameter_is_left_out(name: str) -> None:
    assert set(CHANGES[name]) == {f.name for f in fields(registry.load("defenses", name))}


@pytest.mark.parametrize(("name", "parameter"), [(name, p) for name in CHANGES for p in CHANGES[name]])
def test_parameter_has_an_effect(detections: Detections, name: str, parameter: str) -> None:
    others, value = CHANGES[name][parameter]
    before = registry.build("defenses", name, others)
    after = registry.build("defenses", name, {**others, parameter: value})
    assert before != after
    one, two = (detections(detector, STRENGTH.get(name, 1.0)) for detector in (before, after))
    assert any(differ(*pair) for pair in zip(one, two, strict=True))
