"""What a stage returns is checked once; what it is given can't be written to."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsieve.aggregators.chain import Chain
from fedsieve.aggregators.mean import Mean
from fedsieve.core import contract
from fedsieve.core.defense import Aggregate, Detection, Diagnosis, PreAggregated, ServerView, Updates
from fedsieve.core.errors import StageError, UnusableResultError
from fedsieve.core.layout import Layout

LAYOUT = Layout.of({"w": torch.zeros(2)}, {"mean": torch.zeros(1)})
MATRIX = torch.tensor([[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]])
NAN = float("nan")
LOOP: list[Any] = []
LOOP.append(LOOP)


def updates() -> Updates:
    return Updates(MATRIX.clone(), torch.tensor([7, 9]), LAYOUT)


def view(**more: Any) -> ServerView:
    given = {"round": 0, "n_malicious": 0, "generator": torch.Generator(), "global_params": torch.ones(3), **more}
    return ServerView(**given)


def unchecked(cls: type, **fields: Any) -> Any:
    """An instance of a frozen dataclass, made without the type checks that only the tests switch on."""
    made = object.__new__(cls)
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    return made


def aggregate_of(**fields: Any) -> Any:
    good = {"update": MATRIX.mean(dim=0), "weights": torch.tensor([0.5, 0.5]), "accepted": None, "scores": None}
    return unchecked(Aggregate, **{**good, "state": None, "diagnosis": None, **fields})


def detection_of(**fields: Any) -> Any:
    good = {"accepted": torch.tensor([True, False]), "scores": None, "state": None, "diagnosis": None}
    return unchecked(Detection, **{**good, **fields})


@dataclass(frozen=True)
class Strange:
    """A third party's stage of every kind that returns what it was told to."""

    result: Any

    def __call__(self, updates: Any, view: Any, /) -> Any:
        return self.result

    def detect(self, updates: Any, view: Any, /) -> Any:
        return self.result

    def preaggregate(self, updates: Any, view: Any, /) -> Any:
        return self.result


SHARES = "; weights are shares: none below 0, their sum 1, or all 0"
WRONG_AGGREGATES: list[tuple[Any, str]] = [
    (None, "Strange returned NoneType, expected a Aggregate"),
    (torch.zeros(3), "Strange returned float32 of shape [3], expected a Aggregate"),
    (aggregate_of(update=torch.zeros(4)), "Strange returned an aggregate float32 of shape [4], expected floats [3]"),
    (aggregate_of(update=torch.zeros(3, 1)), "Strange returned an aggregate float32 of shape [3, 1], expected floats [3]"),  # noqa: E501
    (
        aggregate_of(update=torch.zeros(3, dtype=torch.long)),
        "Strange returned an aggregate int64 of shape [3], expected floats [3]",
    ),
    (
        aggregate_of(update=torch.zeros(3, dtype=torch.cfloat)),
        "Strange returned an aggregate complex64 of shape [3], expected floats [3]",
    ),
    (aggregate_of(weights=torch.ones(3) / 3), "Strange returned weights float32 of shape [3], expected floats [2]"),
    (aggregate_of(weights=[0.5, 0.5]), "Strange returned weights list, expected floats [2]"),
    (
        aggregate_of(weights=torch.tensor([1.5, -0.5])),
        "Strange returned weights that sum to 1, the least -0.5" + SHARES,
    ),
    (
        aggregate_of(weights=torch.tensor([105.0, 105.0])),
        "Strange returned weights that sum to 210, the least 105" + SHARES,
    ),
    (
        aggregate_of(accepted=torch.tensor([1, 0])),
        "Strange returned accepted int64 of shape [2], expected None or bools [2]",
    ),
    (
        aggregate_of(accepted=torch.tensor([1.0, 0.0])),
        "Strange returned accepted float32 of shape [2], expected None or bools [2]",
    ),
    (
        aggregate_of(accepted=torch.tensor([True, False])),
        "Strange returned a weight above 0 for 1 rejected clients",
    ),
    (aggregate_of(weights=torch.tensor([0.25, 0.25])),
     "Strange returned weights that sum to 0.5, the least 0.25" + SHARES),
    (aggregate_of(weights=torch.tensor([0.5, 0.502])),
     "Strange returned weights that sum to 1.002, the least 0.5" + SHARES),
    (aggregate_of(weights=torch.tensor([3e38, 3e38])),
     "Strange returned weights that sum to 6e+38, the least 3e+38" + SHARES),
    (aggregate_of(accepted=torch.tensor([False, False]), weights=torch.tensor([1.0, 0.0])),
     "Strange returned a weight above 0 for 1 rejected clients"),
    (aggregate_of(diagnosis="because"), "Strange returned str, expected a Diagnosis"),
    (aggregate_of(scores=torch.zeros(1)), "Strange returned scores float32 of shape [1], expected None or floats [2]"),
    (
        aggregate_of(state={"a": [torch.zeros(1, requires_grad=True)]}),
        "Strange returned a state.a.0 that requires grad; detach it, or its memory grows each round",
    ),
    (
        aggregate_of(state=(1, {2: {3}})),
        "Strange returned set in its state.1.2; a state is made of tensors, numbers, text, lists, tuples and dicts",
    ),
    (
        aggregate_of(diagnosis=unchecked(
            Diagnosis, coordinates=torch.zeros(2, 2), kept=torch.zeros(1, 1), layers=("a",), reasons=("", ""), root=None
        )),
        "Strange returned a diagnosis with coordinates float32 of shape [2, 2], kept float32 of shape [1, 1] and 2 reasons, "  # noqa: E501
        "expected floats [2, 2], floats [2, 1] and 2",
    ),
]  # fmt: skip


class TestAggregate:
    @pytest.mark.parametrize("k", range(len(WRONG_AGGREGATES)))
    def test_what_is_wrong_is_said(self, k: int) -> None:
        found, message = WRONG_AGGREGATES[k]
        with pytest.raises(StageError) as error:
            contract.aggregate(Strange(found), updates(), view())
        assert str(error.value) == message

    def test_a_key_that_cannot_be_stored(self) -> None:
        with pytest.raises(StageError, match=r"^Strange returned frozenset in .*key of state; a state is made of"):
            contract.aggregate(Strange(aggregate_of(state={frozenset({1}): 2})), updates(), view())

    def test_levels_of_a_state(self) -> None:
        def nested(levels: int) -> Any:
            state: Any = 1.0
            for _ in range(levels):
                state = (state,)
            return state

        for fits in (nested(50), {nested(49): 0}, {0: nested(49)}):
            assert contract.aggregate(Strange(aggregate_of(state=fits)), updates(), view()).state == fits
        for deep in (nested(51), {nested(50): 0}, {0: nested(50)}):
            with pytest.raises(StageError, match="more than 50 levels"):
                contract.aggregate(Strange(aggregate_of(state=deep)), updates(), view())

    def test_scores_of_nan(self) -> None:
        with pytest.raises(UnusableResultError, match=r"^Strange returned 1 of 2 scores that are NaN$"):
            contract.aggregate(Strange(aggregate_of(scores=torch.tensor([NAN, 1.0]))), updates(), view())

    def test_what_is_right_passes_in_the_updates_type_and_without_gradients(self) -> None:
        given = aggregate_of(
            update=torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True),
            weights=torch.tensor([1.0, 0.0], requires_grad=True),
            accepted=torch.tensor([True, False]),
            scores=torch.tensor([-torch.inf, torch.inf], dtype=torch.float16),
            state={"a": torch.zeros(2), 3: [None, "x", 1, 2.5, (True,)]},
        )
        found = contract.aggregate(Strange(given), updates(), view())
        assert found.update.tolist() == [1, 2, 3]
        assert found.weights.tolist() == [1, 0]
        assert found.scores is not None
        assert found.scores.tolist() == [-torch.inf, torch.inf]
        assert all(
            t.dtype == torch.float32 and not t.requires_grad for t in (found.update, found.weights, found.scores)
        )

    def test_other_types_and_gradients_are_left_behind(self) -> None:
        given = aggregate_of(
            weights=torch.tensor([0.25, 0.75], dtype=torch.float64), scores=torch.ones(2, requires_grad=True)
        )
        found = contract.aggregate(Strange(given), updates(), view())
        assert found.weights.dtype == torch.float32
        assert found.scores is not None
        assert not found.scores.requires_grad

    def test_weights_that_sum_to_one_up_to_rounding(self) -> None:
        found = contract.aggregate(Strange(aggregate_of(weights=torch.tensor([0.5, 0.5005]))), updates(), view())
        assert found.weights.tolist() == pytest.approx([0.5, 0.5005])

    def test_the_aggregate_may_have_the_parameters_only(self) -> None:
        found = contract.aggregate(Strange(aggregate_of(update=torch.tensor([1.0, 2.0]))), updates(), view())
        assert found.update.tolist() == [1, 2]

    def test_no_client_may_have_a_weight(self) -> None:
        found = contract.aggregate(Strange(aggregate_of(weights=torch.zeros(2))), updates(), view())
        assert found.weights.tolist() == [0, 0]


def diagnosis_of(**fields: Any) -> Any:
    good = {"coordinates": torch.zeros(2, 2), "kept": torch.zeros(2, 3), "layers": ("a", "b", "c"), "root": None}
    return unchecked(Diagnosis, **{**good, "reasons": ("", "far"), **fields})


def test_a_diagnosis_that_is_right_passes() -> None:
    given = diagnosis_of()
    assert contract.aggregate(Strange(aggregate_of(diagnosis=given)), updates(), view()).diagnosis is given
    assert contract.detect(Strange(detection_of(diagnosis=given)), updates(), view()).diagnosis is given


@pytest.mark.parametrize(
    "wrong",
    [
        {"coordinates": torch.zeros(2, 3)},
        {"coordinates": torch.zeros(1, 2)},
        {"coordinates": torch.zeros(2, 2, dtype=torch.long)},
        {"kept": torch.zeros(2, 2)},
        {"reasons": ("far",)},
    ],
)
def test_a_diagnosis_that_is_wrong(wrong: dict[str, Any]) -> None:
    given = diagnosis_of(**wrong)
    for call, result in ((contract.aggregate, aggregate_of), (contract.detect, detection_of)):
        with pytest.raises(
            StageError, match=r"^Strange returned a diagnosis with .* floats \[2, 2\], floats \[2, 3\] and 2$"
        ):
            call(Strange(result(diagnosis=given)), updates(), view())


WRONG_DETECTIONS: list[tuple[Any, str]] = [
    (None, "Strange returned NoneType, expected a Detection"),
    (torch.tensor([True, False]), "Strange returned bool of shape [2], expected a Detection"),
    (
        detection_of(accepted=torch.tensor([True])),
        "Strange returned accepted bool of shape [1], expected None or bools [2]",
    ),
    (
        detection_of(accepted=torch.ones(2)),
        "Strange returned accepted float32 of shape [2], expected None or bools [2]",
    ),
    (detection_of(accepted=[True, False]), "Strange returned accepted list, expected None or bools [2]"),
    (
        detection_of(scores=torch.zeros(2, 1)),
        "Strange returned scores float32 of shape [2, 1], expected None or floats [2]",
    ),
    (
        detection_of(state=LOOP),
        "Strange returned a state of more than 50 levels; does it hold itself?",
    ),
    (
        detection_of(state=object()),
        "Strange returned object in its state; a state is made of tensors, numbers, text, lists, tuples and dicts",
    ),
]


@pytest.mark.parametrize("k", range(len(WRONG_DETECTIONS)))
def test_detections(k: int) -> None:
    found, message = WRONG_DETECTIONS[k]
    with pytest.raises(StageError) as error:
        contract.detect(Strange(found), updates(), view())
    assert str(error.value) == message
    with pytest.raises(StageError) as error:  # in a chain too
        Chain((OnlyDetects(found),), Mean())(updates(), view())
    assert str(error.value) == message.replace("Strange", "OnlyDetects")


@dataclass(frozen=True)
class OnlyDetects:
    result: Any

    def detect(self, updates: Any, view: Any, /) -> Any:
        return self.result


def changed(**fields: Any) -> Any:
    good = {"matrix": MATRIX, "client_ids": torch.tensor([7, 9]), "layout": LAYOUT}
    return unchecked(PreAggregated, updates=unchecked(Updates, **{**good, **fields}), state=None)


WRONG_PREAGGREGATES: list[tuple[Any, type[Exception], str]] = [
    (MATRIX, StageError, "Strange returned float32 of shape [2, 3], expected a PreAggregated"),
    (unchecked(PreAggregated, updates=MATRIX, state=None), StageError,
     "Strange returned float32 of shape [2, 3], expected a Updates"),
    (changed(matrix=MATRIX[:1]), StageError, "Strange returned updates float32 of shape [1, 3], expected floats [2, 3]"),  # noqa: E501
    (changed(matrix=MATRIX.long()), StageError, "Strange returned updates int64 of shape [2, 3], expected floats [2, 3]"),  # noqa: E501
    (changed(client_ids=torch.tensor([9, 7])), StageError,
     "Strange returned other clients, or the same in another order"),
    (changed(matrix=MATRIX * NAN), UnusableResultError, "Strange made 2 of 2 updates not finite"),
    (changed(matrix=torch.tensor([[1.0, 2, 3], [4, NAN, 6]])), UnusableResultError,
     "Strange made 1 of 2 updates not finite"),
    (unchecked(PreAggregated, updates=updates(), state={1}), StageError,
     "Strange returned set in its state; a state is made of tensors, numbers, text, lists, tuples and dicts"),
]  # fmt: skip


@pytest.mark.parametrize("k", range(len(WRONG_PREAGGREGATES)))
def test_preaggregates(k: int) -> None:
    found, kind, message = WRONG_PREAGGREGATES[k]
    with pytest.raises(kind) as error:
        contract.preaggregate(Strange(found), updates(), view())
    assert str(error.value) == message


def test_preaggregates_keep_the_type_and_have_no_gradients() -> None:
    x = MATRIX.double().requires_grad_()
    found = contract.preaggregate(Strange(changed(matrix=2 * x)), updates(), view()).updates.matrix
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert torch.equal(found, 2 * MATRIX)


# --- Inputs -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Vandal:
    """A third party's stage of every kind that writes to all it can reach."""

    seen: list[Any] = field(default_factory=list)

    def _write(self, updates: Updates, view: ServerView) -> None:
        updates.matrix.numpy()[:] = NAN  # a way around torch's own count of writes
        updates.client_ids.fill_(-1)
        view.global_params.fill_(NAN)
        if view.state is not None:
            view.state["a"].fill_(NAN)
            view.state["b"].append(NAN)
        assert view.root is not None
        for tensor in view.root.data:
            tensor.fill_(0)

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
        result = Aggregate(updates.matrix.mean(dim=0), torch.tensor([0.5, 0.5]))
        self._write(updates, view)
        return result

    def detect(self, updates: Updates, view: ServerView, /) -> Detection:
        self._write(updates, view)
        return Detection(torch.tensor([True, True]))

    def preaggregate(self, updates: Updates, view: ServerView, /) -> PreAggregated:
        result = PreAggregated(Updates(updates.matrix.clone(), updates.client_ids.clone(), updates.layout))
        self._write(updates, view)
        return result


@pytest.mark.parametrize("call", [contract.aggregate, contract.detect, contract.preaggregate])
def test_a_third_partys_stage_can_write_to_nothing(call: Callable[..., Any]) -> None:
    root = SimpleNamespace(
        data=(torch.ones(2, 3), torch.tensor([0, 1])), n_classes=2, loss=0, gradient=0, update=0, train=0
    )
    u, params, state = updates(), torch.ones(3), {"a": torch.ones(2), "b": [1]}
    call(Vandal(), u, view(global_params=params, state=state, root=root))
    assert torch.equal(u.matrix, MATRIX)
    assert u.client_ids.tolist() == [7, 9]
    assert params.tolist() == [1, 1, 1]
    assert state["a"].tolist() == [1, 1]
    assert state["b"] == [1]
    assert root.data[0].sum() == 6
    assert root.data[1].tolist() == [0, 1]


@pytest.mark.parametrize("module", ["fedsieve", "fedsieve.aggregators.new"])
def test_a_stage_of_this_package_gets_no_copies(module: str) -> None:
    seen = []

    class Spy:
        def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
            seen.append((updates, view))
            return Mean()(updates, view)

    given, spied = (updates(), view()), Spy()
    contract.aggregate(spied, *given)
    assert seen[-1][0].matrix is not given[0].matrix
    Spy.__module__ = module
    contract.aggregate(spied, *given)
    assert seen[-1] == given


def test_root_data_of_a_third_partys_stage_do_all_that_root_data_do() -> None:
    class Root:
        data = (torch.ones(2, 3), torch.tensor([0, 1]))
        n_classes = 2

        def loss(self, flat: Tensor, /) -> Tensor:
            return flat.sum()

        def gradient(self, flat: Tensor, loss: Any = "cross-entropy", /) -> tuple[Tensor, Tensor]:
            return flat.sum(), flat * (2 if loss == "cross-entropy" else 3)

        def update(self) -> Tensor:
            return torch.ones(3)

        def train(self, datasets: Any, /) -> Tensor:
            return torch.ones(len(datasets), 3)

    seen = []

    @dataclass(frozen=True)
    class Uses:
        def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
            root = view.root
            assert root is not None
            flat = view.global_params
            seen.extend([root.n_classes, root.loss(flat), root.gradient(flat)[1], root.gradient(flat, "batch")[1]])
            seen.extend([root.update(), root.train([root.data, root.data])])
            return Aggregate(updates.matrix.mean(dim=0), torch.tensor([0.5, 0.5]))

    contract.aggregate(Uses(), updates(), view(root=Root()))
    assert [s.tolist() if isinstance(s, Tensor) else s for s in seen] == [
        2, 3.0, [2.0] * 3, [3.0] * 3, [1.0] * 3, [[1.0] * 3] * 2
    ]  # fmt: skip
