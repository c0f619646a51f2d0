"""SparseFed, against Algorithm 1, round by round."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsieve.aggregators.sparsefed import SparseFed, largest, sparsefed
from fedsieve.core.errors import ParameterError

VALUES = st.one_of(st.sampled_from([-1.0, 0.0, 1.0, 2.0]), st.floats(-100, 100).map(lambda v: round(v, 3)))
Table = list[list[float]]


def published(rounds: list[Table], k: int, bound: float, rho: float) -> tuple[list[list[float]], list[float]]:
    """The steps, one per round, and how close each came to another choice of coordinates.

    Clip by bound / |u|; momentum u <- rho u + mean; memory W <- W + u; the step is W's k largest; both are 0 there.
    """
    d = len(rounds[0][0])
    momentum, memory = [0.0] * d, [0.0] * d
    steps, gaps = [], []
    for rows in rounds:
        for j in range(d):
            mean = 0.0
            for row in rows:
                length = math.sqrt(sum(value * value for value in row))
                mean += row[j] * min(1.0, bound / length if length else 1.0) / len(rows)
            momentum[j] = rho * momentum[j] + mean
            memory[j] += momentum[j]
        ranked = sorted(range(d), key=lambda j: (-abs(memory[j]), j))
        gaps.append(abs(memory[ranked[k - 1]]) - abs(memory[ranked[k]]) if k < d else 1.0)
        step = [0.0] * d
        for j in ranked[:k]:
            step[j] = memory[j]
            if step[j]:
                momentum[j] = memory[j] = 0.0
        steps.append(step)
    return steps, gaps


def steps_of(make: SimpleNamespace, rounds: list[Any], aggregator: SparseFed) -> list[list[float]]:
    state, steps = None, []
    for t, rows in enumerate(rounds):
        u = make.updates(torch.as_tensor(rows, dtype=torch.float64))
        result = aggregator(u, make.view(u, state=state, round=t))
        assert result.weights.tolist() == pytest.approx([1 / len(rows)] * len(rows))
        assert (result.accepted, result.scores) == (None, None)
        state = result.state
        steps.append(result.update.tolist())
    return steps


def histories(d: int) -> st.SearchStrategy[tuple[list[Table], int]]:
    rows = st.lists(st.lists(VALUES, min_size=d, max_size=d), min_size=1, max_size=4)
    return st.tuples(st.lists(rows, min_size=1, max_size=5), st.integers(1, d))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(case=st.integers(1, 5).flatmap(histories), bound=st.floats(0.1, 200), rho=st.sampled_from([0.0, 0.5, 0.9]))
def test_as_published(make: SimpleNamespace, case: tuple[list[Table], int], bound: float, rho: float) -> None:
    rounds, k = case
    d = len(rounds[0][0])
    expected, gaps = published(rounds, k, bound, rho)
    # where two coordinates are almost equal, rounding chooses between them, and later rounds are not comparable
    sure = next((t for t, gap in enumerate(gaps) if gap < 1e-9), len(rounds))
    # with keep=1 no momentum is left after a round, whatever rho, and SparseFed refuses it
    found = steps_of(make, rounds, SparseFed(keep=k / d, max_norm=bound, momentum=rho if k < d else None))
    torch.testing.assert_close(found[:sure], expected[:sure], rtol=1e-9, atol=1e-9)


def test_by_hand(make: SimpleNamespace) -> None:
    # one client, no clipping, rho = 0.5, one coordinate of three:
    #   update      momentum            memory              step
    #   (4, 3, 1)   (4, 3, 1)           (4, 3, 1)           (4, 0, 0), left: momentum (0, 3, 1), memory (0, 3, 1)
    #   (1, 0, 1)   (1, 1.5, 1.5)       (1, 4.5, 2.5)       (0, 4.5, 0), left: (1, 0, 1.5) and (1, 0, 2.5)
    #   (0, 0, 0)   (0.5, 0, 0.75)      (1.5, 0, 3.25)      (0, 0, 3.25)
    #   (0, 0, -2)  (0.25, 0, -2)       (1.75, 0, -2)       (0, 0, -2)
    rounds = [[[4.0, 3.0, 1.0]], [[1.0, 0.0, 1.0]], [[0.0, 0.0, 0.0]], [[0.0, 0.0, -2.0]]]
    steps = steps_of(make, rounds, SparseFed(keep=0.3, momentum=0.5, max_norm=100.0))
    assert steps == [[4, 0, 0], [0, 4.5, 0], [0, 0, 3.25], [0, 0, -2]]


def test_nothing_is_lost_without_momentum(make: SimpleNamespace) -> None:
    x = torch.randn(30, 1, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rounds = [*x, *[torch.zeros(1, 20)] * 10]
    steps = torch.tensor(steps_of(make, rounds, SparseFed(keep=0.1, momentum=0.0, max_norm=1e9)), dtype=torch.float64)
    assert ((steps != 0).sum(dim=1) <= 2).all()
    torch.testing.assert_close(steps.sum(dim=0), x.sum(dim=(0, 1)))


class TestLargest:
    @pytest.mark.parametrize(
        ("values", "k", "chosen"),
        [
            ([3.0, -5.0, 4.0, 1.0], 2, [1, 2]),
            ([2.0, -2.0, 2.0, -2.0], 1, [0]),  # ties: the lowest coordinate, whatever its sign
            ([1.0, -2.0, 3.0, 2.0, -2.0], 3, [1, 2, 3]),
            ([0.0, 0.0, 7.0], 2, [2]),
            ([0.0, 0.0], 1, []),
            ([1.0, 2.0], 2, [0, 1]),
            ([1.0, 2.0], 0, []),
        ],
    )
    def test_by_hand(self, values: list[float], k: int, chosen: list[int]) -> None:
        assert largest(torch.tensor(values), k).nonzero().squeeze(1).tolist() == chosen

    def test_is_a_stable_sort(self) -> None:
        x = torch.randint(-9, 10, (500,), generator=torch.Generator().manual_seed(0)).double()
        for k in (1, 7, 100, 400):
            expected = sorted(range(500), key=lambda j: (-abs(float(x[j])), j))[:k]
            assert largest(x, k).nonzero().squeeze(1).tolist() == sorted(expected)

    def test_none_of_nothing(self) -> None:
        assert largest(torch.zeros(0), 0).tolist() == []

    @pytest.mark.parametrize(("keep", "d", "moved"), [(0.1, 240, 24), (0.1, 241, 25), (0.07, 100, 7), (1.0, 9, 9)])
    def test_share_of_the_coordinates(self, make: SimpleNamespace, keep: float, d: int, moved: int) -> None:
        # 0.07 * 100 is 7.000000000000001 in floating point
        u = make.updates(torch.arange(1.0, d + 1)[None])
        update = SparseFed(keep=keep)(u, make.view(u)).update
        assert update.nonzero().squeeze(1).tolist() == list(range(d - moved, d))


class TestState:
    def test_is_not_written_to(self, make: SimpleNamespace) -> None:
        u = make.updates(torch.randn(4, 10, generator=torch.Generator().manual_seed(0)))
        aggregator = SparseFed()
        state = aggregator(u, make.view(u)).state
        before = {name: tensor.clone() for name, tensor in state.items()}
        aggregator(u, make.view(u, state=state))
        assert set(state) == {"memory", "momentum"}
        assert all(torch.equal(state[name], before[name]) for name in before)

    def test_matters(self, make: SimpleNamespace) -> None:
        u = make.updates(torch.randn(4, 10, generator=torch.Generator().manual_seed(0)))
        first = SparseFed()(u, make.view(u))
        assert not torch.equal(SparseFed()(u, make.view(u, state=first.state)).update, first.update)


def test_clips_to_the_median_length(make: SimpleNamespace) -> None:
    u = make.updates(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, -1e30]]))
    update = SparseFed(keep=1.0)(u, make.view(u)).update
    torch.testing.assert_close(update.tolist(), [1.0, -2 / 3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype(make: SimpleNamespace, dtype: torch.dtype) -> None:
    u = make.updates(torch.ones(2, 3, dtype=dtype))
    result = SparseFed()(u, make.view(u))
    tensors = [result.update, result.weights, *result.state.values()]
    assert all(tensor.dtype == dtype for tensor in tensors)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"keep": 0.0}, "sparsefed: keep must be in (0, 1], got 0.0"),
        ({"keep": 1.1}, "sparsefed: keep must be in (0, 1], got 1.1"),
        ({"max_norm": -1.0}, "sparsefed: max_norm must be finite and positive, got -1.0"),
        ({"momentum": 1.0}, "sparsefed: momentum must be in [0, 1), got 1.0"),
        ({"momentum": -0.1}, "sparsefed: momentum must be in [0, 1), got -0.1"),
        ({"momentum": 0.5, "keep": 1.0}, "sparsefed: momentum=0.5 has no effect with keep=1; it needs keep below 1"),
    ],
)
def test_parameters(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError) as error:
        SparseFed(**parameters)
    assert str(error.value) == message
    with pytest.raises(ParameterError) as other:
        sparsefed(torch.ones(3, 2), **{"rho" if name == "momentum" else name: v for name, v in parameters.items()})
    assert str(other.value) == message.replace("momentum", "rho")


def test_momentum_is_0_9_by_default(make: SimpleNamespace) -> None:
    x = torch.randn(5, 4, 20, generator=torch.Generator().manual_seed(0))
    assert steps_of(make, list(x), SparseFed()) == steps_of(make, list(x), SparseFed(momentum=0.9))
    assert steps_of(make, list(x), SparseFed()) != steps_of(make, list(x), SparseFed(momentum=0.8))


def test_function_is_the_class_on_a_matrix_of_parameters(make: SimpleNamespace) -> None:
    rounds = list(torch.randn(5, 4, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    momentum, memory, steps = None, None, []
    for x in rounds:
        step, momentum, memory = sparsefed(x, momentum, memory, keep=0.3, max_norm=2.0, rho=0.5)
        steps.append(step.tolist())
    assert steps == steps_of(make, rounds, SparseFed(keep=0.3, max_norm=2.0, momentum=0.5))
