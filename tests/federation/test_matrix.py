"""Defenses on a bare matrix of updates: what a user passes, what comes back, and what every mistake says."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import fedsieve
from fedsieve.config import registry
from fedsieve.core.defense import ServerView, Updates
from fedsieve.core.errors import FedSieveError, MissingDataError, ParameterError
from fedsieve.core.layout import Layout
from fedsieve.core.seeding import stream
from fedsieve.federation.root import RootClient

X = torch.randn(10, 5, generator=stream(0, "matrix"))
LABELS = torch.randn(10, 3, generator=stream(0, "labels"))  # of this linear function


def samples(n: int, client: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, 10, generator=stream(0, "samples", client=client))
    return x, (x @ LABELS).argmax(dim=1)


def global_model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 3))


ROOT = fedsieve.root_data(global_model(), *samples(60, 99), learning_rate=0.3, steps=3)


def client_update(root: RootClient, client: int) -> Tensor:
    """What a user's own client computes."""
    model = global_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    x, y = samples(200, client)
    for step in range(3):
        batch = slice(32 * step, 32 * step + 32)
        optimizer.zero_grad()
        cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    return root.layout.flatten(model.state_dict()) - root.params


@pytest.fixture(scope="module")
def planted() -> Tensor:
    """Ten clients' updates, of which the first three are reversed."""
    rows = torch.stack([client_update(ROOT, client) for client in range(10)])
    rows[:3] *= -1
    return rows


class TestAggregate:
    @pytest.mark.parametrize("name", ["mean", "median", "krum", "multi-krum", "trimmed-mean", "bulyan", "flame"])
    def test_is_the_defense_itself(self, name: str) -> None:
        f = 1 if name == "bulyan" else 2
        found = fedsieve.aggregate(X, name, n_malicious=f, seed=3)
        updates = Updates(X, torch.arange(10), Layout.of({"updates": X[0]}))
        view = ServerView(0, f, stream(3, "defense", 0), torch.zeros(5))
        expected = registry.build_defense(name, {})(updates, view)
        assert torch.equal(found.update, expected.update)
        assert torch.equal(found.weights, expected.weights)

    @pytest.mark.parametrize(
        "given",
        [
            X.numpy(),
            X.tolist(),
            list(X),
            tuple(X),
            [row.numpy() for row in X],
            X.numpy()[::-1][::-1],
            np.asfortranarray(X.numpy()),
            X.numpy().astype(">f4"),
            X.clone().requires_grad_(),
            list(X.clone().requires_grad_()),
        ],
        ids=["array", "list", "rows", "tuple", "arrays", "view", "fortran", "big-endian", "gradient", "gradients"],
    )
    def test_takes_arrays_and_lists(self, given: Any) -> None:
        expected = fedsieve.aggregate(X, "krum", n_malicious=2).update
        found = fedsieve.aggregate(given, "krum", n_malicious=2).update
        torch.testing.assert_close(found, expected, check_dtype=False, rtol=0, atol=0)
        assert not found.requires_grad

    def test_takes_arrays_that_cannot_be_written(self) -> None:
        array = X.double().numpy().copy()
        array.setflags(write=False)
        assert fedsieve.aggregate(array[::-1], "mean").update.dtype == torch.float64

    @pytest.mark.parametrize("name", ["norm-clipping", "median", "flame", "momentum,sign-majority"])
    def test_writes_to_nothing(self, name: str) -> None:
        given, array = X.clone(), X.numpy().copy()
        fedsieve.aggregate(given, name, n_malicious=2)
        fedsieve.aggregate(array, name, n_malicious=2)
        assert torch.equal(given, X)
        assert (array == X.numpy()).all()

    def test_rows_that_are_not_finite(self) -> None:
        rows = X.clone()
        rows[0, 1], rows[7, 4] = torch.nan, -torch.inf
        found = fedsieve.aggregate(rows, "multi-krum", n_malicious=2)
        expected = fedsieve.aggregate(X[[1, 2, 3, 4, 5, 6, 8, 9]], "multi-krum", n_malicious=2)
        assert torch.equal(found.update, expected.update)
        assert found.accepted is not None
        assert (found.weights[0], found.weights[7]) == (0, 0)
        assert not found.accepted[[0, 7]].any()
        nothing = fedsieve.aggregate(torch.full((4, 2), torch.nan), "mean")
        assert nothing.accepted is not None
        assert not nothing.accepted.any()
        assert not nothing.update.any()

    def test_a_detector_is_followed_by_the_mean(self, planted: Tensor) -> None:
        found = fedsieve.aggregate(planted, "tolpegin")
        keep = fedsieve.detect(planted, "tolpegin").accepted
        assert keep is not None
        assert found.accepted is not None
        assert torch.equal(found.accepted, keep)
        torch.testing.assert_close(found.update, planted[keep].mean(dim=0))

    def test_parameters(self) -> None:
        by_hand = X.sort(dim=0).values[3:-3].mean(dim=0)
        for defense, parameters in (
            ("trimmed-mean", {"trim": 3}),
            ({"name": "trimmed-mean", "trim": 3}, {}),
            ({"name": "trimmed-mean"}, {"trim": 3}),
            ("norm-clipping,trimmed-mean", {"norm-clipping": {"max_norm": 1e6}, "trimmed-mean": {"trim": 3}}),
            (["norm-clipping", {"name": "trimmed-mean", "trim": 3}], {"norm-clipping": {"max_norm": 1e6}}),
        ):
            torch.testing.assert_close(fedsieve.aggregate(X, defense, **parameters).update, by_hand)

    def test_state_is_carried_over_rounds(self) -> None:
        state = None
        for k in range(3):
            found = fedsieve.aggregate((k + 1) * X, {"name": "momentum", "beta": 0.5}, state=state, round=k)
            state = found.state
        torch.testing.assert_close(found.update, (0.25 * 1 + 0.25 * 2 + 0.5 * 3) * X.mean(dim=0))
        alone = fedsieve.aggregate(3 * X, {"name": "momentum", "beta": 0.5})
        torch.testing.assert_close(alone.update, 3 * X.mean(dim=0))  # without the state it is a first round

    def test_clients_are_known_by_their_ids(self) -> None:
        defense, ids = "momentum,median", np.array([70, 3, 12, 5, 44, 8, 9, 10, 11, 2])
        order = torch.randperm(10, generator=stream(0, "order"))
        second = torch.randn(10, 5, generator=stream(1, "matrix"))
        state = fedsieve.aggregate(X, defense, client_ids=ids).state
        straight = fedsieve.aggregate(second, defense, client_ids=ids, state=state).update
        turned = fedsieve.aggregate(second[order], defense, client_ids=ids[order.numpy()].tolist(), state=state).update
        torch.testing.assert_close(turned, straight)
        assert not torch.allclose(
            fedsieve.aggregate(second[order], defense, client_ids=ids, state=state).update, turned
        )

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("name", ["median", "multi-krum", "momentum,flame"])
    def test_half_precision_is_computed_in_float32(self, dtype: torch.dtype, name: str) -> None:
        found, expected = (fedsieve.aggregate(x, name, n_malicious=2) for x in (X.to(dtype), X.to(dtype).float()))
        assert torch.equal(found.update, expected.update.to(dtype))
        assert torch.equal(found.weights, expected.weights)

    def test_half_precision_detection(self) -> None:
        found, expected = (fedsieve.detect(x, "tolpegin") for x in (X.half(), X.half().float()))
        assert torch.equal(found.accepted, expected.accepted)
        assert torch.equal(found.scores, expected.scores)

    def test_the_seed_and_the_round_decide_the_noise(self) -> None:
        one = fedsieve.aggregate(X, "weak-dp").update
        assert torch.equal(fedsieve.aggregate(X, "weak-dp").update, one)
        assert not torch.equal(fedsieve.aggregate(X, "weak-dp", seed=1).update, one)
        assert not torch.equal(fedsieve.aggregate(X, "weak-dp", round=1).update, one)


class TestMistakes:
    @pytest.mark.parametrize(
        ("updates", "said"),
        [
            (
                torch.ones(4, 3, dtype=torch.int64),
                "updates must be float16, bfloat16, float32 or float64 of shape [n, d] with n and d at least 1, "
                "got int64 of shape [4, 3]",
            ),
            (X.to_sparse(), "got sparse or nested float32 of shape [10, 5]"),
            (X.to("meta"), "updates must hold values, got a tensor on the device meta"),
            (X.to(torch.complex64), "got complex64"),
            (np.ones((4, 3), dtype=bool), "got bool"),
            (np.ma.masked_equal(np.ones((4, 3)), 1.0), "updates has masked values; fill them, or leave out their rows"),
            ([[1, 2], [3, 4]], "got int64 of shape [2, 2]"),
            (X[0], "got float32 of shape [5]"),
            (X[None], "got float32 of shape [1, 10, 5]"),
            (X[:0], "got float32 of shape [0, 5]"),
            (X[:, :0], "got float32 of shape [10, 0]"),
            ([], "of shape [0]"),
            ([[1.0, 2.0], [3.0]], "updates are no numbers in rows of equal length: "),
            ([X[0], X[1, :3]], "updates are no numbers in rows of equal length: "),
            ([["a", "b"]], "updates are no numbers in rows of equal length: "),
            ([None, None], "updates are no numbers in rows of equal length: "),
            ({"w": X}, "updates are no numbers in rows of equal length: "),
        ],
    )
    def test_updates(self, updates: Any, said: str) -> None:
        for call, name in ((fedsieve.aggregate, "mean"), (fedsieve.detect, "tolpegin")):
            with pytest.raises(ParameterError) as error:
                call(updates, name)  # type: ignore[operator]
            assert said in str(error.value)
            assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("defense", "options", "said"),
        [
            ("krumm", {}, "unknown defense 'krumm'; did you mean krum"),
            ("krum", {"f": 2}, "defense krum has no parameter 'f'"),
            ("trimmed-mean", {"trim": "x"}, "defense trimmed-mean: trim"),
            ("median,krum", {}, "median is an aggregator, so it must come last"),
            ("krum", {"n_malicious": 5}, "krum needs n >= 2f + 3, got n=10 clients and f=5 assumed malicious"),
            ("krum", {"n_malicious": -1}, "n_malicious must be an integer in 0 to 10, the number of updates, got -1"),
            ("krum", {"n_malicious": 11}, "n_malicious must be an integer in 0 to 10"),
            ("mean", {"client_ids": [1, 2]}, "client_ids must be 10 different integers, one per row of updates"),
            ("mean", {"client_ids": [1] * 10}, "client_ids must be 10 different integers"),
            ("mean", {"client_ids": [0.5 * k for k in range(10)]}, "client_ids must be 10 different integers"),
            ("mean", {"client_ids": list("abcdefghij")}, "client_ids are no numbers"),
            ("mean", {"client_ids": [True, False] * 5}, "got bool of shape [10]"),
            ("mean", {"client_ids": torch.arange(10).to(torch.uint64)}, "got uint64 of shape [10]"),
            ("mean", {"client_ids": [0, *range(9)]}, "got int64 of shape [10], 9 different"),
            ("mean", {"client_ids": torch.arange(10, device="meta")}, "client_ids must be 10 different integers"),
            ("mean", {"global_params": torch.zeros(4)}, "float64 of shape [5], got float32 of shape [4]"),
            ("mean", {"global_params": [0, 0, 0, 0, 0]}, "global_params must be float16, bfloat16, float32 or float64"),
            ("mean", {"global_params": [0.0, 0.0, 1e39, 0.0, 0.0]}, "global_params are not all finite in float32"),
            ("mean", {"round": -1}, "round must be at least 0, got -1"),
            ("momentum", {"state": "kept"}, "state does not fit: it must be the state of the last result of momentum"),
            ("momentum,median", {"state": fedsieve.aggregate(X[:, :3], "momentum,median").state}, "state does not fit"),
            ("mean", {"root": ROOT}, "updates have 5 coordinates, the model of the root data has 227"),
            ({"trim": 3}, {}, "defense must be a name, a mapping with a name, or a list of these, got {'trim': 3}"),
            ("sieve", {}, "sieve needs root data, and the server has none; pass root=fedsieve.root_data(model, x, y)"),
            ("deepsight", {}, "; pass root=fedsieve.root_data(model, x, y)"),
        ],
    )
    def test_arguments(self, defense: Any, options: dict[str, Any], said: str) -> None:
        with pytest.raises(FedSieveError) as error:
            fedsieve.aggregate(X, defense, **options)
        assert said in str(error.value)
        assert "\n" not in str(error.value)

    def test_global_params_beside_root(self, planted: Tensor) -> None:
        with pytest.raises(ParameterError, match="root has the global model already"):
            fedsieve.aggregate(planted, "mean", root=ROOT, global_params=ROOT.params)


class TestDetect:
    def test_sieve_finds_reversed_updates(self, planted: Tensor) -> None:
        found = fedsieve.detect(planted, "sieve", root=ROOT)
        assert found.accepted is not None
        assert found.accepted.tolist() == [False] * 3 + [True] * 7
        assert found.scores is not None
        assert found.scores[:3].min() > found.scores[3:].max()
        assert found.diagnosis is not None
        assert all(bool(reason) == (k < 3) for k, reason in enumerate(found.diagnosis.reasons))
        signs = torch.tensor([-1.0] * 3 + [1.0] * 7)[:, None]
        honest = fedsieve.detect(signs * planted, "sieve", root=ROOT)
        assert honest.accepted is not None
        assert honest.accepted.all()

    @pytest.mark.parametrize("name", ["skymask", "skymask-nr"])
    def test_skymask(self, planted: Tensor, name: str) -> None:
        found = fedsieve.detect(planted, name, root=ROOT)
        assert found.accepted is not None
        assert found.accepted.shape == (10,)
        assert found.scores is not None
        with pytest.raises(MissingDataError, match=r"pass root=fedsieve\.root_data"):
            fedsieve.detect(planted, name)

    def test_is_the_detector_itself(self, planted: Tensor) -> None:
        found = fedsieve.detect(planted, "tolpegin", n_malicious=3)
        updates = Updates(planted, torch.arange(10), Layout.of({"updates": planted[0]}))
        view = ServerView(0, 3, stream(0, "defense", 0), torch.zeros(planted.shape[1]))
        expected = registry.build("defenses", "tolpegin", {}).detect(updates, view)
        assert torch.equal(found.accepted, expected.accepted)
        assert torch.equal(found.scores, expected.scores)

    def test_rows_that_are_not_finite(self, planted: Tensor) -> None:
        rows = planted.clone()
        rows[4, 100] = torch.nan
        found = fedsieve.detect(rows, "sieve", root=ROOT)
        assert found.accepted is not None
        assert found.accepted.tolist() == [False] * 3 + [True, False] + [True] * 5
        assert found.scores is not None
        assert found.scores.isnan().tolist() == [k == 4 for k in range(10)]
        assert found.diagnosis is not None
        assert found.diagnosis.reasons[4] == "not finite"
        nothing = fedsieve.detect(torch.full((3, 2), torch.inf), "tolpegin", state="kept")
        assert nothing.accepted is not None
        assert not nothing.accepted.any()
        assert nothing.state == "kept"

    def test_cannot_decide_yet(self, planted: Tensor) -> None:
        found = fedsieve.detect(planted, "fldetector")
        assert found.accepted is None
        rows = planted.clone()
        rows[4, 100] = torch.inf
        accepted = fedsieve.detect(rows, "fldetector").accepted  # nor can a row of these be averaged
        assert accepted is not None
        assert accepted.tolist() == [k != 4 for k in range(10)]

    def test_state_is_carried_over_rounds(self, planted: Tensor) -> None:
        state = None
        for k in range(3):
            found = fedsieve.detect(planted, "sieve", root=ROOT, state=state, round=k)
            state = found.state
        first = fedsieve.detect(planted, "sieve", root=ROOT, round=2)
        assert found.diagnosis is not None
        assert first.diagnosis is not None
        assert "evidence over rounds" in found.diagnosis.reasons[0]
        assert not any("evidence over rounds" in reason for reason in first.diagnosis.reasons)

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("krum", "krum is not a detector but of kind aggregator, which fedsieve.aggregate takes; detectors are "),
            ("momentum", "momentum is not a detector but of kind pre-aggregator"),
            ("momentum,sieve", "detect takes one detector, got the chain 'momentum,sieve'"),
            ("sive", "unknown defense 'sive'; did you mean sieve"),
        ],
    )
    def test_wrong_names(self, name: str, said: str) -> None:
        with pytest.raises(FedSieveError) as error:
            fedsieve.detect(X, name)
        assert said in str(error.value)
        assert "sieve" in str(error.value)  # the message names detectors


class TestRootData:
    def test_precision_follows_the_model(self, planted: Tensor) -> None:
        found = fedsieve.aggregate(planted.double().numpy(), "fltrust", root=ROOT)
        assert found.update.dtype == torch.float32
        torch.testing.assert_close(found.update, fedsieve.aggregate(planted, "fltrust", root=ROOT).update)

    def test_the_model_is_copied(self) -> None:
        model = global_model()
        root = fedsieve.root_data(model, *samples(9, 1))
        before = root.params.clone()
        nn.init.zeros_(model[0].weight)  # type: ignore[index, arg-type]
        assert torch.equal(root.params, before)

    def test_trains_as_the_clients_do(self) -> None:
        x, y = samples(20, 1)
        root = fedsieve.root_data(global_model(), x.numpy(), y.tolist(), learning_rate=0.2, batch_size=20, momentum=0.9,
                                  steps=2, weight_decay=0.01)  # fmt: skip
        model = global_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
        torch.testing.assert_close(root.update(), root.layout.flatten(model.state_dict()) - root.params)
        assert (root.n_classes, root.round) == (3, 0)

    def test_round_and_seed(self) -> None:
        data = samples(60, 1)
        one, other, seeded = (
            fedsieve.root_data(global_model(), *data, round=k, seed=seed).update()
            for k, seed in ((0, 0), (1, 0), (0, 1))
        )
        assert not torch.equal(one, other)
        assert not torch.equal(one, seeded)
        root = fedsieve.root_data(global_model(), *data, round=4)
        noise = fedsieve.aggregate(torch.zeros(3, 227), "weak-dp", root=root).update
        assert torch.equal(noise, fedsieve.aggregate(torch.zeros(3, 227), "weak-dp", round=4).update)

    def test_running_statistics_come_last(self) -> None:
        model = nn.Sequential(nn.Linear(10, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
        root = fedsieve.root_data(model, *samples(12, 1))
        assert [s.name for s in root.layout.segments][-2:] == ["1.running_mean", "1.running_var"]
        moved = copy.deepcopy(model).train()
        moved(samples(12, 1)[0])
        difference = root.layout.flatten(moved.state_dict()) - root.params
        assert not difference[: root.layout.n_parameters].any()
        assert difference[root.layout.n_parameters :].all()

    @pytest.mark.parametrize(
        ("arguments", "settings", "said"),
        [
            ((torch.randn(4, 10), [0, 1, 2]), {}, "got x of shape [4, 10] and y of shape [3], int64"),
            ((torch.randn(3, 10), [0.0, 1.0, 2.0]), {}, "and y of shape [3], float64"),
            ((torch.randn(0, 10), []), {}, "k at least 1"),
            ((torch.randn(3, 9), [0, 1, 2]), {}, "the model can't take samples of shape [9]: "),
            ((torch.randn(3, 10), [0, 1, 3]), {}, "y must be in 0 to 2, the model's outputs, got 0 to 3"),
            ((torch.randn(3, 10), [0, -1, 1]), {}, "y must be in 0 to 2, the model's outputs, got -1 to 1"),
            (("abc", [0, 1, 2]), {}, "x are no numbers"),
            ((torch.randn(3, 10), [0, 1, 2]), {"learning_rte": 1}, "did you mean learning_rate"),
            ((torch.randn(3, 10), [0, 1, 2]), {"learning_rate": 0}, "learning_rate: Input should be greater than 0"),
            ((torch.randn(3, 10), [0, 1, 2]), {"batch_norm": "local"}, "unknown setting batch_norm"),
        ],
    )
    def test_mistakes(self, arguments: Any, settings: dict[str, Any], said: str) -> None:
        with pytest.raises(ParameterError) as error:
            fedsieve.root_data(global_model(), *arguments, **settings)
        assert said in str(error.value)
        assert "\n" not in str(error.value)
