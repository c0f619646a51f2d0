"""What every registered defense must do; the plain mean, as a control, must fail under attack."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fedsieve.config import registry
from fedsieve.core.defense import Aggregate

NAMES = registry.names("defenses")
DETECTORS = tuple(name for name in NAMES if registry.stage(name) == "detector")
# No defenses by themselves: momentum helps the aggregator behind it, and here that is the mean.
NOT_ROBUST = ("fedavg", "mean", "momentum")
# Cannot decide before it has seen some rounds; its own tests have the rounds in which it must find attackers.
NEEDS_ROUNDS = ("fldetector",)
ROBUST = tuple(name for name in NAMES if name not in (*NOT_ROBUST, *NEEDS_ROUNDS))
# Only clip a reversed update: attackers keep their weight, with no more than the median length. (DeepSight looks for
# updates that were trained on few classes, which a reversed one is not.)
ONLY_CLIPS = {"deepsight", "norm-clipping", "sparsefed", "weak-dp"}
# Moves some coordinates and saves the others for later rounds: only those that it moves can be compared.
PARTIAL = {"sparsefed"}
# Makes steps of one size: only their signs can be compared.
ONLY_SIGNS = {"sign-majority"}
# Keeps the densest majority: it rejects some benign clients as well.
DENSEST = {"flame"}
# Takes one update as it is, with all of its noise; the others average.
ONE_CLIENT = {"krum", "root-only"}
# Applies the root update whatever clients send: weights are equal, and mean nothing.
NO_CLIENT = {"root-only"}
N, M = 11, 3
every_defense = pytest.mark.parametrize("name", NAMES)


def tolerance(name: str) -> float:
    """Largest distance from the benign mean that is close, in lengths of that mean; one client's noise is about 0.3."""
    return 0.4 if name in ONE_CLIENT else 0.25


def most_error(name: str, n: int) -> float:
    """Largest distance by which a blatant attack may move the aggregate: if only clipped, M rows by two lengths."""
    return 2 * M / n + 0.1 if name in ONLY_CLIPS else tolerance(name)


def test_registry_is_complete() -> None:
    assert {"mean", "fedavg", "fltrust", "root-only", "trimmed-mean", "skymask", "skymask-nr"} <= set(NAMES)
    assert len(NAMES) >= 6
    assert len(ROBUST) == len(NAMES) - len(NOT_ROBUST) - len(NEEDS_ROUNDS)
    assert list(NAMES) == sorted(NAMES)


Play = Callable[..., tuple[SimpleNamespace, Aggregate]]


@pytest.fixture(scope="module")
def play(make: SimpleNamespace) -> Play:
    """One round of a defense on a quadratic, under an attack by 3 of 11 clients (or of as many as it needs)."""

    def played(name: str, factor: float = -1000, f: int = M, **more: Any) -> tuple[SimpleNamespace, Aggregate]:
        fed = make.federation(make.clients(name), M, factor, **more)
        return fed, make.build(name)(fed.updates, make.view(fed.updates, f=f, root=fed.root))

    return played


def same(one: Aggregate, other: Aggregate) -> None:
    assert torch.equal(one.update, other.update)
    assert torch.equal(one.weights, other.weights)
    for a, b in ((one.accepted, other.accepted), (one.scores, other.scores)):
        assert (a is None) == (b is None)
        assert a is None or b is None or torch.equal(a, b)


@every_defense
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [1, -1, -1000])
def test_well_formed(make: SimpleNamespace, play: Play, name: str, dtype: torch.dtype, factor: float) -> None:
    fed, result = play(name, factor, dtype=dtype)
    make.well_formed(result, fed.updates.matrix)


@pytest.mark.parametrize("name", [*NAMES, "norm-clipping,median"])  # before the mean it clips no update
def test_input_is_unchanged(make: SimpleNamespace, name: str) -> None:
    fed = make.federation(make.clients(name), M, -5)
    view = make.view(fed.updates, f=M, root=fed.root)
    held = (fed.updates.matrix, fed.updates.client_ids, view.global_params, fed.root.target, fed.root.sent)
    before = [tensor.clone() for tensor in held]
    result = make.build(name)(fed.updates, view)
    result.update.fill_(7)  # nor is the result a view of the input
    result.weights.fill_(7)
    assert all(torch.equal(a, b) for a, b in zip(held, before, strict=True))


@every_defense
def test_same_seed_same_result(play: Play, name: str) -> None:
    same(play(name)[1], play(name)[1])
    same(play(name, 1)[1], play(name, 1)[1])


@every_defense
@pytest.mark.parametrize("factor", [1, -1, -1000])
@pytest.mark.parametrize("seed", range(3))
def test_client_order_is_irrelevant(make: SimpleNamespace, name: str, factor: float, seed: int) -> None:
    fed = make.federation(make.clients(name), M, factor, dtype=torch.float64, seed=seed)
    order = torch.randperm(make.clients(name), generator=torch.Generator().manual_seed(seed))
    moved = make.updates(fed.updates.matrix[order], fed.updates.client_ids[order])
    one, other = (make.build(name)(u, make.view(u, f=M, root=fed.root)) for u in (fed.updates, moved))
    torch.testing.assert_close(other.update, one.update, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(other.weights, one.weights[order], rtol=1e-9, atol=1e-12)
    assert (one.accepted is None) == (other.accepted is None)
    if one.accepted is not None and other.accepted is not None:
        assert torch.equal(other.accepted, one.accepted[order])
    assert (one.scores is None) == (other.scores is None)
    if one.scores is not None and other.scores is not None:
        torch.testing.assert_close(other.scores, one.scores[order], rtol=1e-9, atol=1e-9)


def comparable(name: str, update: torch.Tensor, aim: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What can be compared of an aggregate, and of the vector that it should be close to."""
    if name in ONLY_SIGNS:
        return update.sign() * aim.abs(), aim
    if name in PARTIAL:
        assert update.any()
        return update[update != 0], aim[update != 0]
    return update, aim


def error(name: str, fed: SimpleNamespace, result: Aggregate) -> float:
    """Distance of the aggregate from the benign mean, in lengths of that mean."""
    update, aim = comparable(name, result.update, fed.benign_mean)
    return float((update - aim).norm() / aim.norm())


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("factor", [-1000, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_blatant_attack_is_survived(play: Play, name: str, factor: float, seed: int) -> None:
    fed, result = play(name, factor, seed=seed)
    assert error(name, fed, result) < most_error(name, len(fed.malicious))


@pytest.mark.parametrize("name", NOT_ROBUST)
@pytest.mark.parametrize("factor", [-1000, 1000])
def test_control_the_mean_does_not_survive(play: Play, name: str, factor: float) -> None:
    fed, result = play(name, factor)
    assert error(name, fed, result) > 100


@pytest.mark.parametrize("name", [name for name in ROBUST if name not in ONLY_CLIPS])
@pytest.mark.parametrize("factor", [-1, -1000])
def test_is_not_the_mean(play: Play, name: str, factor: float) -> None:
    fed, result = play(name, factor)
    mean = fed.updates.matrix.mean(dim=0)
    assert (result.update - mean).norm() > 0.1 * fed.benign_mean.norm()
    assert name in NO_CLIENT or result.weights.max() - result.weights.min() > 1e-3


@pytest.mark.parametrize("name", [name for name in ROBUST if name not in ONLY_CLIPS | NO_CLIENT])
def test_blatant_attackers_have_little_weight(make: SimpleNamespace, play: Play, name: str) -> None:
    fed, result = play(name)
    assert result.weights[fed.malicious].max() < 0.5 / make.clients(name)
    if result.accepted is not None:
        assert not result.accepted[fed.malicious].any()
        assert result.accepted[~fed.malicious].all() or name in DENSEST


@every_defense
def test_no_client_assumed_malicious(make: SimpleNamespace, play: Play, name: str) -> None:
    fed, result = play(name, 1, f=0)
    make.well_formed(result, fed.updates.matrix)
    assert error(name, fed, result) < tolerance(name)


@every_defense
@pytest.mark.parametrize("n", [2, N])
def test_identical_rows(make: SimpleNamespace, name: str, n: int) -> None:
    fed = make.federation(n, 0, 1)
    row = fed.root.sent  # the root update as well, so that nothing is to be rescaled
    u = make.updates(row.expand(n, -1).clone())
    result = make.build(name)(u, make.view(u, root=fed.root))
    make.well_formed(result, u.matrix)
    torch.testing.assert_close(*comparable(name, result.update, row))
    torch.testing.assert_close(result.weights, torch.full((n,), 1 / n))


@every_defense
def test_all_zero(make: SimpleNamespace, name: str) -> None:
    fed = make.federation(make.clients(name), 0, 1)
    u = make.updates(torch.zeros_like(fed.updates.matrix))
    result = make.build(name)(u, make.view(u, f=M, root=fed.root))
    make.well_formed(result, u.matrix)
    assert torch.equal(result.update, fed.root.sent if name in NO_CLIENT else torch.zeros_like(fed.root.sent))


@every_defense
def test_one_client(make: SimpleNamespace, name: str) -> None:
    fed = make.federation(1, 0, 1)
    result = make.build(name)(fed.updates, make.view(fed.updates, root=fed.root))
    make.well_formed(result, fed.updates.matrix)
    assert result.weights.tolist() == [1]
    aim = fed.root.sent if name in NO_CLIENT else fed.updates.matrix[0]
    cosine = torch.cosine_similarity(*comparable(name, result.update, aim), dim=0)
    assert cosine == pytest.approx(1, abs=1e-5)


@every_defense
def test_one_coordinate(make: SimpleNamespace, name: str) -> None:
    fed = make.federation(make.clients(name), 0, 1, d=1)
    result = make.build(name)(fed.updates, make.view(fed.updates, f=M, root=fed.root))
    make.well_formed(result, fed.updates.matrix)


@every_defense
def test_global_randomness_is_left_alone(make: SimpleNamespace, name: str) -> None:
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state(legacy=False)  # noqa: NPY002
    for factor in (-1000, 1):  # with the defaults, noise included
        fed = make.federation(make.clients(name), M, factor)
        registry.build_defense(name, {})(fed.updates, make.view(fed.updates, f=M, root=fed.root))
    numpy_after = np.random.get_state(legacy=False)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_before)
    np.testing.assert_equal(numpy_after, numpy_before)


@every_defense
def test_state_of_the_last_round_is_accepted(make: SimpleNamespace, name: str) -> None:
    fed = make.federation(make.clients(name), M, -1000)
    defense = make.build(name)
    first = defense(fed.updates, make.view(fed.updates, f=M, root=fed.root))
    second = defense(fed.updates, make.view(fed.updates, f=M, root=fed.root, state=first.state, round=1))
    make.well_formed(second, fed.updates.matrix)


@every_defense
def test_traits_are_complete(name: str) -> None:
    traits = registry.traits("defenses", name)
    assert traits.summary
    assert traits.paper or "unpublished" in traits.summary
    assert traits.cost
    assert traits.breaks_at or traits.bound or name in NOT_ROBUST
    assert set(traits.needs) <= {"root data", "network", "f", "state"}


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("factor", [1, -1000])
def test_detection_is_well_formed(make: SimpleNamespace, name: str, factor: float) -> None:
    fed = make.federation(N, M, factor)
    detector = registry.build("defenses", name, make.parameters.get(name, {}))
    found = detector.detect(fed.updates, make.view(fed.updates, f=M, root=fed.root))
    assert (found.accepted is None) == (name in NEEDS_ROUNDS)
    assert found.accepted is None or (found.accepted.shape, found.accepted.dtype) == ((N,), torch.bool)
    assert found.scores is not None
    assert found.scores.shape == (N,)
    assert found.scores.dtype == fed.updates.matrix.dtype
    assert found.scores.isfinite().all()
    if found.diagnosis is not None and found.accepted is not None:
        assert [reason == "" for reason in found.diagnosis.reasons] == found.accepted.tolist()


@pytest.mark.parametrize("name", NEEDS_ROUNDS)
def test_undecided_detectors_change_nothing(play: Play, name: str) -> None:
    fed, result = play(name)
    assert result.accepted is None
    assert torch.equal(result.weights, torch.full((N,), 1 / N))
    torch.testing.assert_close(result.update, fed.updates.matrix.mean(dim=0))


@pytest.mark.parametrize("name", DETECTORS)
def test_only_detectors_with_state_may_be_undecided(name: str) -> None:
    assert name not in NEEDS_ROUNDS or "state" in registry.traits("defenses", name).needs
