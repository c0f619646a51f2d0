"""Clients weighted by their numbers of samples, up to a bound."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedsieve.aggregators.chain import Chain
from fedsieve.aggregators.mean import Mean
from fedsieve.aggregators.median import Median
from fedsieve.aggregators.weighting import CAP, WeightedMean, capped_weights, check_weighable, weighted
from fedsieve.config import registry
from fedsieve.config.experiment import Experiment
from fedsieve.core.defense import Aggregate, Detection, ServerView, Updates
from fedsieve.core.errors import ParameterError
from fedsieve.core.layout import Layout

VIEW: Any = ServerView(0, 0, torch.Generator(), torch.zeros(2))


def updates(*rows: tuple[float, float], ids: list[int] | None = None) -> Updates:
    x = torch.tensor(rows, dtype=torch.float32)
    return Updates(x, torch.tensor(ids or [*range(len(x))]), Layout.of({"w": torch.zeros(2)}))


def of(*samples: int) -> Any:
    return lambda ids: torch.tensor(samples)[ids]


class First:
    """Rejects the first client."""

    def detect(self, updates: Updates, view: ServerView, /) -> Detection:
        return Detection(torch.arange(len(updates.matrix)) > 0)


class TestCappedWeights:
    @pytest.mark.parametrize(
        ("samples", "cap", "expected"),
        [
            ([10, 20, 30], 3.0, [10, 20, 30]),
            ([10, 20, 10**9], 3.0, [10, 20, 60]),
            ([10, 20, 30, 10**9], 2.0, [10, 20, 30, 40]),  # of two medians the lower one, which no minority can raise
            ([5, 5, 7], 1.0, [5, 5, 5]),
            ([0, 0, 9], 3.0, [0, 0, 0]),
            ([4], 1.0, [4]),
            ([], 2.0, []),
        ],
    )
    def test_by_hand(self, samples: list[int], cap: float, expected: list[float]) -> None:
        assert capped_weights(torch.tensor(samples), cap).tolist() == expected

    def test_refused(self) -> None:
        with pytest.raises(ParameterError, match=r"at least 1, got 0\.5"):
            capped_weights(torch.tensor([1]), 0.5)
        with pytest.raises(ParameterError, match="at least 0, got -3"):
            capped_weights(torch.tensor([1, -3]))
        with pytest.raises(ParameterError, match="got nan"):
            capped_weights(torch.tensor([torch.nan]))

    @given(st.lists(st.integers(0, 10**12), min_size=5, max_size=30), st.integers(0, 10**18))
    def test_a_fifth_has_less_than_half(self, honest: list[int], claimed: int) -> None:
        """Whatever it reports, where the others report alike; and never more than the cap times the median."""
        honest = [100] * (4 * (len(honest) // 4))
        weights = capped_weights(torch.tensor([*honest, *[claimed] * (len(honest) // 4)]), CAP)
        assert weights[len(honest) :].sum() < weights.sum() / 2


class TestWeightedMean:
    def test_by_hand(self) -> None:
        found = WeightedMean(of(1, 3))(updates((0, 4), (8, 0)), VIEW)
        # of two, the median is 1 and nobody counts more than 3
        assert found.update.tolist() == [6, 1]
        assert found.weights.tolist() == [0.25, 0.75]
        assert found.accepted is None

    def test_equal_numbers_are_the_mean(self) -> None:
        x = updates((0, 4), (8, 0), (1, 5))
        equal: Aggregate = Mean()(x, VIEW)
        torch.testing.assert_close(WeightedMean(of(7, 7, 7))(x, VIEW).update, equal.update)

    def test_nobody_has_samples(self) -> None:
        assert WeightedMean(of(0, 0))(updates((0, 4), (8, 0)), VIEW).update.tolist() == [4, 2]

    def test_by_id(self) -> None:
        assert WeightedMean(of(0, 1, 1, 3))(updates((0, 4), (8, 0), ids=[3, 1]), VIEW).weights.tolist() == [0.75, 0.25]


class TestWeighted:
    def test_a_rejected_client_has_no_say(self) -> None:
        chain = weighted(Chain((First(),), Mean()), of(10**6, 1, 3))
        found = chain(updates((9, 9), (0, 4), (8, 0)), VIEW)
        assert found.update.tolist() == [6, 1]
        assert found.weights.tolist() == [0, 0.25, 0.75]
        assert found.accepted is not None
        assert found.accepted.tolist() == [False, True, True]

    @pytest.mark.parametrize("name", ["mean", "fldetector", "skymask", "norm-clipping,mean", "norm-clipping,skymask"])
    def test_ends_in_the_mean(self, name: str) -> None:
        check_weighable(registry.build_defense(name, {}), name)

    @pytest.mark.parametrize(
        ("name", "last"), [("median", "Median"), ("sieve", "Sieve"), ("skymask,trimmed-mean", "TrimmedMean")]
    )
    def test_refused(self, name: str, last: str) -> None:
        with pytest.raises(ParameterError, match=f"{name} ends in {last}, which decides by itself"):
            Experiment.of({"defense": name, "malicious": 1, "server": {"weighting": "samples"}})

    def test_refused_without_a_name(self) -> None:
        with pytest.raises(ParameterError, match="but Median ends in Median"):
            weighted(Median(), of(1))


class TestSettings:
    def test_off_is_not_written(self) -> None:
        server = Experiment.of({}).model_dump(mode="json")["server"]
        assert not {"weighting", "weight_cap"} & server.keys()
        assert Experiment.of({}).key == Experiment.of({"server": {"weighting": "equal"}}).key

    def test_the_cap_is_written(self) -> None:
        server = {"weighting": "samples"}
        found = Experiment.of({"defense": "mean", "server": server})
        assert found.model_dump(mode="json")["server"].items() >= {"weighting": "samples", "weight_cap": 3.0}.items()
        assert found.key == Experiment.of({"defense": "mean", "server": {**server, "weight_cap": 3}}).key

    def test_a_cap_without_effect(self) -> None:
        with pytest.raises(ParameterError, match="weight_cap=5 has no effect with weighting=equal"):
            Experiment.of({"server": {"weight_cap": 5}})
        with pytest.raises(ParameterError, match="weight_cap"):
            Experiment.of({"defense": "mean", "server": {"weighting": "samples", "weight_cap": 0.5}})


def test_in_a_simulation() -> None:
    from tests.federation.conftest import DIGITS, simulation

    more = {"partition": {"name": "dirichlet", "alpha": 0.5}, "malicious": 0, "rounds": 1}
    plain, by_samples = (
        simulation(DIGITS, **more, server={"weighting": kind, **cap})
        for kind, cap in (("equal", {}), ("samples", {"weight_cap": 2}))
    )
    (_, equal), (_, found) = next(plain.rounds()), next(by_samples.rounds())
    sizes = plain.holdings.sizes.double()
    expected: Tensor = sizes.clamp(max=2 * float(sizes.sort().values[3]))
    assert found.weights == pytest.approx((expected / expected.sum()).tolist(), rel=1e-6)
    assert equal.weights == pytest.approx([1 / 8] * 8, rel=1e-6)
    assert found.update_norm != equal.update_norm
