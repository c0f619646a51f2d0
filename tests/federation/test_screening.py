"""Which updates reach the defense, and what shapes and types the server takes."""

import gc
import weakref
from typing import Any

import pytest
import torch

from fedsieve.aggregators.mean import Mean
from fedsieve.core.defense import Aggregate, ServerView, Updates
from fedsieve.core.errors import ParameterError
from fedsieve.core.layout import Layout
from fedsieve.federation.screening import screen
from fedsieve.federation.server import Server, ServerState

LAYOUT = Layout.of({"w": torch.zeros(3)}, {"running_mean": torch.zeros(2)})
PLAIN = Layout.of({"w": torch.zeros(4)})
ROW = [0.1, -0.2, 0.1, 0.2]


def reasons(rows: list[list[float]], ids: list[int] | None = None, model: float = 0.5, **more: Any) -> list[str]:
    x = torch.tensor(rows, **more)
    updates = Updates(x, torch.tensor(ids or list(range(len(x)))), PLAIN)
    view = ServerView(0, 0, torch.Generator(), x.new_full((4,), model))
    return list(screen(Mean(), updates, view).reasons)


class TestProportion:
    def test_one_huge_coordinate(self) -> None:
        assert reasons([ROW, ROW, [0, 0, 3e38, 0], ROW]) == ["", "", "out of proportion", ""]

    @pytest.mark.parametrize("value", [1e33, 1e20, 1e7, -1e7])
    def test_a_million_times_the_median_and_the_model(self, value: float) -> None:
        assert reasons([ROW, ROW, [value] * 4]) == ["", "", "out of proportion"]

    def test_the_bound_itself_is_in_proportion(self) -> None:
        unit, limit, beyond = [1.0, 0, 0, 0], [0, 1e6, 0, 0], [0, 1e6 + 1, 0, 0]
        assert reasons([unit, unit, limit, beyond], model=0.0) == ["", "", "", "out of proportion"]

    def test_a_model_whose_squared_length_overflows_its_type(self) -> None:
        assert reasons([ROW, ROW, [1e28] * 4], model=1e20) == ["", "", "out of proportion"]

    @pytest.mark.parametrize("value", [1e5, -1000.0, 100.0])
    def test_scaled_updates_are_for_the_defense_to_judge(self, value: float) -> None:
        assert reasons([ROW, ROW, [value * v for v in ROW]]) == ["", "", ""]

    def test_a_huge_half(self) -> None:
        assert reasons([ROW, [1e30] * 4]) == ["", "out of proportion"]
        assert reasons([ROW, ROW, [1e30] * 4, [1e30] * 4]) == ["", "", "out of proportion", "out of proportion"]

    def test_lengths_that_overflow_a_sum_are_never_in_proportion(self) -> None:
        # most clients are malicious, so that the median length is theirs
        assert reasons([ROW, [3e38] * 4, [3e38] * 4]) == ["", "out of proportion", "out of proportion"]
        assert reasons([ROW, [1.7e308] * 4], dtype=torch.float64) == ["", "out of proportion"]

    def test_tiny_updates_do_not_put_the_others_out_of_proportion(self) -> None:
        tiny = [1e-38] * 4
        assert reasons([tiny, tiny, tiny, ROW]) == [""] * 4
        assert reasons([tiny, tiny, tiny, ROW], model=0.0) == ["", "", "", "out of proportion"]  # tiny is usual there
        assert reasons([tiny, ROW, ROW], model=0.0) == [""] * 3

    def test_updates_of_zero_do_not_count(self) -> None:
        assert reasons([[0.0] * 4] * 5 + [ROW], model=0.0) == [""] * 6
        assert reasons([[0.0] * 4] * 3, model=0.0) == [""] * 3

    def test_statistics_are_measured_by_themselves(self) -> None:
        x = torch.tensor([[0.1] * 5, [0.1] * 5, [0.1, 0.1, 0.1, 3e38, 0.1], [0.1, 0.1, 0.1, 0.1, torch.nan]])
        updates = Updates(x, torch.arange(4), LAYOUT)
        found = screen(Mean(), updates, ServerView(0, 0, torch.Generator(), torch.ones(5)))
        assert found.reasons == ("", "", "out of proportion", "not finite")
        assert found.kept.tolist() == [True, True, False, False]

    def test_statistics_are_measured_by_the_models_statistics(self) -> None:
        x = torch.tensor([[0.1] * 5, [0.1] * 5, [0.1, 0.1, 0.1, 1e9, 0.1], [1e9, 0.1, 0.1, 0.1, 0.1]])
        params = torch.tensor([0.0, 0.0, 0.0, 1e4, 0.0])
        found = screen(Mean(), Updates(x, torch.arange(4), LAYOUT), ServerView(0, 0, torch.Generator(), params))
        assert found.reasons == ("", "", "", "out of proportion")

    @pytest.mark.parametrize("ids", [[0, 1, 2, 3, 4]])
    def test_a_mean_goes_on(self, ids: list[int]) -> None:
        server, state = Server(Mean(), PLAIN, learning_rate=1.0), ServerState(torch.zeros(4))
        rows = torch.tensor([ROW] * 4 + [[0, 0, 3e38, 0]])
        for _ in range(15):
            state, decision = server.step(state, Updates(rows, torch.tensor(ids), PLAIN))
            assert (decision.applied, decision.note) == (True, "")
        torch.testing.assert_close(state.params, 15 * torch.tensor(ROW))


class TestRepliesOfOneClient:
    def test_the_first_counts(self) -> None:
        bad, good = [9.0] * 4, ROW
        x = torch.tensor([bad, good, good])
        state, decision = Server(Mean(), PLAIN, learning_rate=1.0).step(
            ServerState(torch.zeros(4)), Updates(x, torch.tensor([5, 5, 8]), PLAIN)
        )
        assert decision.reasons == ("", "second reply", "")
        assert decision.screened.tolist() == [False, True, False]
        assert decision.aggregate.weights.tolist() == [0.5, 0, 0.5]
        torch.testing.assert_close(state.params, (x[0] + x[2]) / 2)

    def test_many(self) -> None:
        assert reasons([ROW] * 6, [3, 1, 3, 1, 1, 2]) == ["", "", *["second reply"] * 3, ""]

    def test_a_second_reply_has_no_say_in_what_is_usual(self) -> None:
        many = [[1e20] * 4] * 5
        assert reasons([ROW, *many, ROW, ROW], [0, *[1] * 5, 2, 3]) == [
            "", "out of proportion", *["second reply"] * 4, "", ""
        ]  # fmt: skip


class TestShapesAndTypes:
    def step(self, x: Any, ids: Any, layout: Layout = PLAIN) -> ServerState:
        updates = object.__new__(Updates)  # without the type checks that only the tests switch on
        for name, value in (("matrix", x), ("client_ids", ids), ("layout", layout)):
            object.__setattr__(updates, name, value)
        return Server(Mean(), PLAIN).step(ServerState(torch.zeros(4)), updates)[0]

    @pytest.mark.parametrize(
        ("x", "said"),
        [
            (torch.ones(2, 1), "float32 of shape [2, 1]"),
            (torch.ones(2, 5), "float32 of shape [2, 5]"),
            (torch.ones(4), "float32 of shape [4]"),
            (torch.ones(2, 4, 1), "float32 of shape [2, 4, 1]"),
            (torch.ones(2, 4, dtype=torch.cfloat), "complex64 of shape [2, 4]"),
            (torch.ones(2, 4, dtype=torch.long), "int64 of shape [2, 4]"),
            (torch.ones(2, 4, dtype=torch.bool), "bool of shape [2, 4]"),
            ([[1.0] * 4] * 2, "list"),
        ],
    )
    def test_of_updates(self, x: Any, said: str) -> None:
        with pytest.raises(ParameterError) as error:
            self.step(x, torch.arange(2))
        assert str(error.value) == f"updates must be floats of shape [n, 4], as long as the model, got {said}"

    @pytest.mark.parametrize(
        ("ids", "said"),
        [
            (torch.arange(1), "int64 of shape [1]"),
            (torch.arange(3), "int64 of shape [3]"),
            (torch.zeros(2, 1, dtype=torch.long), "int64 of shape [2, 1]"),
            (torch.zeros(2), "float32 of shape [2]"),
            (torch.tensor([True, False]), "bool of shape [2]"),
            ([0, 1], "list"),
        ],
    )
    def test_of_ids(self, ids: Any, said: str) -> None:
        with pytest.raises(ParameterError) as error:
            self.step(torch.ones(2, 4), ids)
        assert str(error.value) == f"client_ids must be 2 integers, one per update, got {said}"

    def test_another_models_layout(self) -> None:
        with pytest.raises(ParameterError) as error:
            self.step(torch.ones(2, 4), torch.arange(2), Layout.of({"a": torch.zeros(2)}, {"b": torch.zeros(2)}))
        assert str(error.value) == (
            "the updates have the layout of another model: 2 tensors, 2 parameters; the server's has 1 and 4"
        )

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
    def test_the_model_keeps_its_type(self, dtype: torch.dtype) -> None:
        state = self.step(torch.full((2, 4), 0.5, dtype=dtype), torch.arange(2, dtype=torch.int32))
        assert state.params.dtype == torch.float32
        assert state.params.tolist() == [0.25] * 4

    @pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64])
    def test_the_defense_gets_ids_of_one_type(self, dtype: torch.dtype) -> None:
        seen = []

        class Spy:
            def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
                seen.append(updates)
                return Mean()(updates, view)

        updates = Updates(torch.ones(2, 4), torch.tensor([4, 2], dtype=dtype), PLAIN)
        Server(Spy(), PLAIN).step(ServerState(torch.zeros(4)), updates)
        assert seen[0].client_ids.dtype == torch.long
        assert seen[0].client_ids.tolist() == [4, 2]

    def test_float64_beyond_the_models_range_is_not_finite(self) -> None:
        x = torch.tensor([[1.0] * 4, [1e300] * 4], dtype=torch.float64)
        _, decision = Server(Mean(), PLAIN).step(ServerState(torch.zeros(4)), Updates(x, torch.arange(2), PLAIN))
        assert decision.reasons == ("", "not finite")

    def test_gradients_are_cut_off_and_nothing_is_kept_alive(self) -> None:
        server, state = Server(Mean(), PLAIN), ServerState(torch.zeros(4))

        held = []
        for _ in range(3):
            x = torch.ones(2, 4, requires_grad=True)
            held.append(weakref.ref(x))
            state, decision = server.step(state, Updates(x * 2, torch.arange(2), PLAIN))
            assert not state.params.requires_grad
            assert not decision.aggregate.update.requires_grad
        del x
        gc.collect()
        assert [ref() for ref in held] == [None] * 3


class TestNobodyAnswers:
    def test_the_model_stays_and_the_record_says_so(self) -> None:
        server = Server(Mean(), LAYOUT)
        state = ServerState(torch.arange(5.0), round=3, defense="kept", optimizer={"a": torch.ones(1)})
        updates = Updates(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long), LAYOUT)
        following, decision = server.step(state, updates)
        assert torch.equal(following.params, state.params)
        assert (following.round, following.defense) == (4, "kept")
        assert following.optimizer["a"].tolist() == [1]
        assert (decision.applied, decision.note, decision.reasons) == (False, "no client answered", ())
        assert len(decision.aggregate.weights) == 0

    def test_nothing_passes_for_several_reasons(self) -> None:
        x = torch.tensor([[torch.nan] * 4, [3e38] * 4])
        _, decision = Server(Mean(), PLAIN).step(ServerState(torch.zeros(4)), Updates(x, torch.arange(2), PLAIN))
        assert (decision.applied, decision.note) == (False, "no update passed the screening")
