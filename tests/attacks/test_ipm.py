"""Inner product manipulation: the formula, and from which epsilon on it reverses the average."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsieve.attacks.ipm import IPM
from fedsieve.core.attack import AttackView
from fedsieve.core.errors import ParameterError

VALUE = st.integers(-1000, 1000).map(lambda v: v / 100)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 4).flatmap(lambda d: st.lists(st.lists(VALUE, min_size=d, max_size=d), min_size=2, max_size=6)),
    epsilon=st.floats(0.01, 10),
)
def test_as_published(make_view: Callable[..., AttackView], rows: list[list[float]], epsilon: float) -> None:
    x = torch.tensor(rows, dtype=torch.float64)
    expected = [-epsilon * sum(column) / len(rows) for column in zip(*rows, strict=True)]
    sent = IPM(epsilon).craft(make_view(x[:1], x[1:]))
    torch.testing.assert_close(sent[0].tolist(), expected, rtol=1e-12, atol=1e-12)


# four benign clients and two malicious ones: the average is reversed above (6 - 2) / 2 = 2
@pytest.mark.parametrize(("epsilon", "reversed_"), [(0.5, False), (1.9, False), (2.1, True)])
def test_reverses_the_average_above_its_threshold(
    make_view: Callable[..., AttackView], epsilon: float, reversed_: bool
) -> None:
    honest = torch.tensor([[1.0, 2.0]])
    others = honest.repeat(4, 1)
    sent = IPM(epsilon).craft(make_view(honest.repeat(2, 1), others))
    average = torch.cat([sent, others]).mean(dim=0)
    assert bool(average @ honest[0] < 0) == reversed_


def test_partial_knowledge_uses_malicious_updates_only(make_view: Callable[..., AttackView]) -> None:
    own = torch.tensor([[1.0, 0.0], [3.0, -2.0]])
    assert IPM().craft(make_view(own, n_clients=9)).tolist() == [[-1, 0.5]] * 2
    assert IPM().craft(make_view(own, torch.zeros(2, 2))).tolist() == [[-0.5, 0.25]] * 2


def test_rows_share_no_memory(make_view: Callable[..., AttackView]) -> None:
    sent = IPM().craft(make_view(torch.ones(3, 2)))
    sent[0] = 7
    assert not (sent[1:] == 7).any()


@pytest.mark.parametrize("epsilon", [0.0, -0.5, float("nan")])
def test_out_of_range(epsilon: float) -> None:
    with pytest.raises(ParameterError) as error:
        IPM(epsilon=epsilon)
    assert str(error.value) == f"ipm: epsilon must be positive, got {epsilon}"
