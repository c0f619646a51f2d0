"""Client momentum, against the recursion, client by client."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsieve.aggregators.chain import Chain
from fedsieve.aggregators.mean import Mean
from fedsieve.aggregators.trimmed_mean import TrimmedMean
from fedsieve.core.defense import PreAggregator, Updates
from fedsieve.core.errors import ParameterError
from fedsieve.core.layout import Layout
from fedsieve.preaggregators.momentum import Momentum, averaged, momentum

VALUES = st.floats(-100, 100).map(lambda v: round(v, 3))
Round = dict[int, list[float]]


def published(rounds: list[Round], beta: float) -> list[Round]:
    """m_1 = u_1, then m_t = beta m_{t-1} + (1 - beta) u_t, where a client's t counts the rounds it was in."""
    averages: Round = {}
    sent = []
    for clients in rounds:
        for i, update in clients.items():
            past = averages.get(i, update)
            averages[i] = [beta * m + (1 - beta) * u for m, u in zip(past, update, strict=True)]
        sent.append({i: averages[i] for i in clients})
    return sent


@st.composite
def histories(draw: st.DrawFn) -> list[Round]:
    d = draw(st.integers(1, 3))
    row = st.lists(VALUES, min_size=d, max_size=d)
    return draw(st.lists(st.dictionaries(st.integers(0, 5), row, min_size=1, max_size=5), min_size=1, max_size=6))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(rounds=histories(), beta=st.sampled_from([0.0, 0.5, 0.9]))
def test_as_published(make: SimpleNamespace, rounds: list[Round], beta: float) -> None:
    state = None
    for t, (clients, expected) in enumerate(zip(rounds, published(rounds, beta), strict=True)):
        u = make.updates(torch.tensor(list(clients.values()), dtype=torch.float64), list(clients))
        done = Momentum(beta).preaggregate(u, make.view(u, state=state, round=t))
        state = done.state
        assert torch.equal(done.updates.client_ids, u.client_ids)
        torch.testing.assert_close(done.updates.matrix.tolist(), list(expected.values()), rtol=1e-12, atol=1e-12)
        assert state["ids"].tolist() == sorted({i for seen in rounds[: t + 1] for i in seen})


def test_is_a_pre_aggregator() -> None:
    assert isinstance(Momentum(), PreAggregator)


def test_by_hand(make: SimpleNamespace) -> None:
    stage = Momentum(beta=0.5)
    u = make.updates([[8.0], [4.0]], [7, 3])
    first = stage.preaggregate(u, make.view(u))
    assert first.updates.matrix.tolist() == [[8], [4]]
    found = {name: torch.as_tensor(value).tolist() for name, value in first.state.items()}
    assert found == {"ids": [3, 7], "momentum": [[4], [8]], "absent": [0, 0], "most": 40}
    u = make.updates([[0.0], [100.0]], [3, 5])  # 7 is away, 5 is new
    second = stage.preaggregate(u, make.view(u, state=first.state))
    assert second.updates.matrix.tolist() == [[2], [100]]
    assert second.state["ids"].tolist() == [3, 5, 7]
    assert second.state["momentum"].tolist() == [[2], [100], [8]]
    u = make.updates([[0.0], [0.0]], [5, 7])
    third = stage.preaggregate(u, make.view(u, state=second.state))
    assert third.updates.matrix.tolist() == [[50], [4]]


def test_clients_that_do_not_come_back_are_forgotten(make: SimpleNamespace) -> None:
    for away, expected in ((1, 2.0), (2, 2.0), (3, 0.0)):
        stage, state = Momentum(beta=0.5, forget_after=3), None
        for ids in ([3, 7], *[[7]] * away, [3, 7]):
            u = make.updates([[4.0] if state is None else [0.0]] * len(ids), ids)
            done = stage.preaggregate(u, make.view(u, state=state))
            state = done.state
        assert done.updates.matrix[0].item() == expected
        assert state["absent"].tolist() == [0, 0]


def test_noise_shrinks_and_a_repeated_attack_does_not(make: SimpleNamespace) -> None:
    # benign clients send 1 with noise of 3; a malicious minority sends 4, within the noise of any one round
    g = torch.Generator().manual_seed(0)
    state, stage = None, Momentum()
    for _ in range(60):
        x = 1 + 3 * torch.randn(10, 50, generator=g, dtype=torch.float64)
        x[:3] = 4.0
        u = make.updates(x)
        done = stage.preaggregate(u, make.view(u, state=state))
        state = done.state
    found = done.updates.matrix
    assert found[:3].mean().item() == pytest.approx(4)
    # the exponential average has (1 - beta) / (1 + beta) of the variance
    assert found[3:].std().item() == pytest.approx(3 * (0.1 / 1.9) ** 0.5, rel=0.15)


def test_before_an_aggregator_and_as_a_state_of_a_chain(make: SimpleNamespace) -> None:
    rows = torch.tensor([[1.0], [2.0], [9.0]])
    for stage, f, expected in ((Mean(), 0, 8.0), (TrimmedMean(), 1, 4.0)):
        chain, state = Chain((Momentum(beta=0.5),), stage), None
        for factor in (1, 3):
            u = make.updates(factor * rows)
            result = chain(u, make.view(u, f=f, state=state))
            state = result.state
        assert result.update.item() == pytest.approx(expected)  # averages 2, 4, 18


def test_order_of_the_clients_is_irrelevant(make: SimpleNamespace) -> None:
    stage = Momentum()
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    u = make.updates(x)
    order = torch.tensor([3, 0, 4, 1, 2])
    moved = make.updates(x[order], u.client_ids[order])
    state = stage.preaggregate(u, make.view(u)).state
    other = stage.preaggregate(moved, make.view(moved)).state
    assert all(torch.equal(state[name], other[name]) for name in ("ids", "momentum", "absent"))
    again = stage.preaggregate(moved, make.view(moved, state=state)).updates.matrix
    assert torch.equal(again, stage.preaggregate(u, make.view(u, state=state)).updates.matrix[order])


def test_input_is_unchanged(make: SimpleNamespace) -> None:
    u = make.updates([[1.0, 2.0], [3.0, 4.0]])
    stage = Momentum()
    state = stage.preaggregate(u, make.view(u)).state
    held = [u.matrix, u.client_ids, *(state[name] for name in ("ids", "momentum", "absent"))]
    before = [tensor.clone() for tensor in held]
    done = stage.preaggregate(u, make.view(u, state=state))
    done.updates.matrix.fill_(7)
    done.state["momentum"].fill_(7)
    assert all(torch.equal(a, b) for a, b in zip(held, before, strict=True))


def test_statistics_pass_through(make: SimpleNamespace) -> None:
    layout = Layout.of({"w": torch.empty(1)}, {"var": torch.empty(1)})
    stage, state = Momentum(beta=0.5), None
    for value, expected in ((4.0, 4.0), (8.0, 6.0)):
        u = Updates(torch.tensor([[value, value]]), torch.tensor([3]), layout)
        done = stage.preaggregate(u, make.view(u, state=state))
        state = done.state
        assert done.updates.matrix.tolist() == [[expected, value]]
        assert state["momentum"].shape == (1, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_huge_rows(make: SimpleNamespace, dtype: torch.dtype) -> None:
    state, stage = None, Momentum()
    for sign in (1, -1, 1):
        u = make.updates(torch.tensor([[1.0], [sign * 3e38]], dtype=dtype))
        done = stage.preaggregate(u, make.view(u, state=state))
        state = done.state
        assert done.updates.matrix.dtype == state["momentum"].dtype == dtype
        assert done.updates.matrix.isfinite().all()
        assert done.updates.matrix[0].item() == pytest.approx(1)


def test_forget_after() -> None:
    with pytest.raises(ParameterError, match=r"momentum: forget_after must be at least 1, got 0"):
        Momentum(forget_after=0)


@pytest.mark.parametrize("beta", [1.0, -0.1, float("nan")])
def test_parameters(beta: float) -> None:
    with pytest.raises(ParameterError) as error:
        Momentum(beta=beta)
    assert str(error.value) == f"momentum: beta must be in [0, 1), got {beta}"
    with pytest.raises(ParameterError) as other:
        momentum(torch.ones(2, 1), torch.ones(2, 1), beta)
    assert str(other.value) == str(error.value)


def test_functions_are_the_class_on_matrices_of_parameters(make: SimpleNamespace) -> None:
    state, past, known = None, None, torch.arange(100, 104)
    for x in torch.randn(4, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64):
        u = make.updates(x, known)
        done = Momentum(0.8).preaggregate(u, make.view(u, state=state))
        other = averaged(x, known, x[:0] if past is None else past, known[:0] if past is None else known, 0.8)
        state, past = done.state, momentum(x, past, beta=0.8)
        assert torch.equal(past, done.updates.matrix)
        assert torch.equal(past, other)
