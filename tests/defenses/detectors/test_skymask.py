"""What SkyMask decides about planted attackers, with and without a root model, and its diagnosis."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsieve.aggregators.chain import Chain
from fedsieve.aggregators.mean import Mean
from fedsieve.core.defense import Detection
from fedsieve.core.errors import MissingDataError
from fedsieve.detectors.skymask import SkyMask
from fedsieve.detectors.skymask.without_root import SkyMaskNR
from fedsieve.federation.clients import ClientData, LocalTraining, Trainer
from fedsieve.federation.root import RootClient
from fedsieve.models.flat import FlatModel
from fedsieve.models.mlp import MLP

# The rates of mask training are made for the gradients of a network's mean loss; these fit the quadratic's.
FITS: dict[str, Any] = {"mask_learning_rate": 1e6, "mask_clip": 1e-7}
PAPER, CODE, NR = SkyMask("paper", **FITS), SkyMask("code", **FITS), SkyMaskNR(**FITS)
GAP = SkyMask(clusters="gap", gap_references=3, **FITS)
with_root = pytest.mark.parametrize("detector", [PAPER, CODE], ids=["paper", "code"])
every = pytest.mark.parametrize("detector", [PAPER, CODE, NR], ids=["paper", "code", "nr"])


def detect(make: SimpleNamespace, fed: SimpleNamespace, detector: SkyMask | SkyMaskNR = PAPER) -> Detection:
    return detector.detect(fed.updates, make.view(fed.updates, root=fed.root))


class TestDecision:
    @with_root
    @pytest.mark.parametrize("share", [0.2, 0.6, 0.8])
    @pytest.mark.parametrize("n", [20, 30])
    @pytest.mark.parametrize("factor", [-1, -1000])
    @pytest.mark.parametrize("seed", range(3))
    def test_planted_attackers(
        self, make: SimpleNamespace, detector: SkyMask, share: float, n: int, factor: float, seed: int
    ) -> None:
        m = round(share * n)
        fed = make.federation(n, m, factor, seed=seed)
        found = detect(make, fed, detector)
        assert found.accepted is not None
        assert found.accepted.tolist() == (~fed.malicious).tolist()
        assert found.scores is not None
        assert found.scores[fed.malicious].min() > found.scores[~fed.malicious].max()

    @pytest.mark.parametrize("share", [0.2, 0.6, 0.8])
    def test_planted_attackers_by_gap_statistic(self, make: SimpleNamespace, share: float) -> None:
        fed = make.federation(20, round(share * 20), -1)
        found = detect(make, fed, GAP)
        assert found.accepted is not None
        assert found.accepted.tolist() == (~fed.malicious).tolist()

    @with_root
    @pytest.mark.parametrize("share", [0.2, 0.6, 0.8])
    def test_attackers_with_equal_updates(self, make: SimpleNamespace, detector: SkyMask, share: float) -> None:
        fed = make.federation(20, round(share * 20), 1)
        fed.updates.matrix[fed.malicious] = -fed.root.sent
        found = detect(make, fed, detector)
        assert found.accepted is not None
        assert found.accepted.tolist() == (~fed.malicious).tolist()

    def test_without_attack_two_clusters_reject_benign_clients(self, make: SimpleNamespace) -> None:
        # a limit of clusters=two, which the published code always has
        found = [detect(make, make.federation(25, 0, 1, seed=seed), CODE).accepted for seed in range(5)]
        assert all(accepted is not None and not accepted.all() for accepted in found)

    @every
    def test_equal_updates_of_all_clients(self, make: SimpleNamespace, detector: SkyMask | SkyMaskNR) -> None:
        fed = make.federation(12, 0, 1)
        same = SimpleNamespace(updates=make.updates(fed.root.sent.expand(12, -1).clone()), root=fed.root)
        found = detect(make, same, detector)
        assert found.accepted is not None
        assert found.accepted.all()

    @every
    def test_root_gradient_of_zero_leaves_equal_masks(
        self, make: SimpleNamespace, detector: SkyMask | SkyMaskNR
    ) -> None:
        class Flat(make.Quadratic):  # type: ignore[misc, name-defined]
            def gradient(self, flat: Tensor, loss: Any = "cross-entropy", /) -> tuple[Tensor, Tensor]:
                return flat.new_zeros(()), torch.zeros_like(flat)

        fed = make.federation(12, 4, -1000)
        root = Flat(fed.root.target, fed.root.sent)
        found = detect(make, SimpleNamespace(updates=fed.updates, root=root), detector)
        assert found.accepted is not None
        assert found.accepted.all()

    @with_root
    def test_all_clients_malicious(self, make: SimpleNamespace, detector: SkyMask) -> None:
        fed = make.federation(20, 20, -1)
        found = detect(make, fed, detector)
        assert found.accepted is not None
        assert not found.accepted.any()
        result = Chain((detector,), Mean())(fed.updates, make.view(fed.updates, root=fed.root))
        assert not result.update.any()
        assert not result.weights.any()
        assert result.accepted is not None
        assert not result.accepted.any()
        assert result.diagnosis is not None

    @every
    @pytest.mark.parametrize("factor", [1, -1000])
    def test_one_client_cannot_be_clustered(
        self, make: SimpleNamespace, detector: SkyMask | SkyMaskNR, factor: float
    ) -> None:
        found = detect(make, make.federation(1, 1, factor), detector)
        assert found.accepted is not None
        assert found.accepted.tolist() == [True]

    @with_root
    def test_root_model_is_no_client(self, make: SimpleNamespace, detector: SkyMask) -> None:
        fed = make.federation(20, 4, -1)
        found = detect(make, fed, detector)
        assert found.accepted is not None
        assert found.accepted.shape == (20,)
        result = Chain((detector,), Mean())(fed.updates, make.view(fed.updates, root=fed.root))
        torch.testing.assert_close(result.update, fed.benign_mean)

    @every
    def test_order_of_clients_is_irrelevant(self, make: SimpleNamespace, detector: SkyMask | SkyMaskNR) -> None:
        for seed in range(5):
            fed = make.federation(20, 8, -1, noise=0.2, seed=seed)
            order = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
            moved = SimpleNamespace(updates=make.updates(fed.updates.matrix[order]), root=fed.root)
            one, other = detect(make, fed, detector).accepted, detect(make, moved, detector).accepted
            assert one is not None
            assert other is not None
            assert torch.equal(other, one[order])

    @pytest.mark.parametrize("factor", [1e10, 1e30])
    @pytest.mark.parametrize("detector", [SkyMask("paper"), SkyMask("code"), SkyMaskNR()], ids=["paper", "code", "nr"])
    def test_one_huge_update_is_rejected(
        self, make: SimpleNamespace, factor: float, detector: SkyMask | SkyMaskNR
    ) -> None:
        # finite in float32, but so large that the gradient of a network's loss is not
        torch.manual_seed(0)
        model, start = FlatModel.of(MLP((20,), 5, hidden=(10,)))
        x = torch.randn(240, 20, generator=torch.Generator().manual_seed(0))
        y = x[:, :5].argmax(dim=1)
        trainer = Trainer(model, LocalTraining(0.1, 10, 1), seed=0)
        cohort = {i: ClientData(x[i * 16 : i * 16 + 16], y[i * 16 : i * 16 + 16]) for i in range(12)}
        rows = trainer.updates(start, cohort, 0)
        rows[0] = factor * torch.randn(len(start), generator=torch.Generator().manual_seed(2))
        u = replace(make.updates(rows), layout=model.layout)
        root = RootClient(trainer, ClientData(x[192:], y[192:]), 5, start, 0)
        found = detector.detect(u, replace(make.view(u, root=root), global_params=start))
        assert found.accepted is not None
        assert not found.accepted[0]
        assert found.accepted[1:].any()


class TestDiagnosis:
    @every
    def test_fields(self, make: SimpleNamespace, detector: SkyMask | SkyMaskNR) -> None:
        fed = make.federation(20, 6, -1)
        found = detect(make, fed, detector)
        seen = found.diagnosis
        assert seen is not None
        assert found.accepted is not None
        assert seen.coordinates.shape == (20, 2)
        assert seen.layers == ("body", "out")
        assert seen.kept.shape == (20, 2)
        assert ((seen.kept >= 0) & (seen.kept <= 1)).all()
        assert (seen.root is None) == isinstance(detector, SkyMaskNR)
        assert [not reason for reason in seen.reasons] == found.accepted.tolist()
        # malicious masks keep less of every layer, and their positions are apart from the others
        assert (seen.kept[fed.malicious].amax(dim=0) < seen.kept[~fed.malicious].amin(dim=0)).all()
        middle = seen.coordinates[fed.malicious].mean(dim=0)
        distance = (seen.coordinates - middle).norm(dim=1)
        assert distance[fed.malicious].max() < distance[~fed.malicious].min()

    @every
    def test_overflow_is_the_reason(self, make: SimpleNamespace, detector: SkyMask | SkyMaskNR) -> None:
        class Narrow(make.Quadratic):  # type: ignore[misc, name-defined]
            def gradient(self, flat: Tensor, loss: Any = "cross-entropy", /) -> tuple[Tensor, Tensor]:
                value, slope = super().gradient(flat)
                return value, slope if value < 1e6 else slope * math.nan

        fed = make.federation(10, 1, 1e9)
        root = Narrow(fed.root.target, fed.root.sent)
        found = detect(make, SimpleNamespace(updates=fed.updates, root=root), detector)
        assert found.diagnosis is not None
        assert [reason == "overflow" for reason in found.diagnosis.reasons] == [True] + [False] * 9
        assert found.diagnosis.coordinates[0].isnan().all()
        assert found.diagnosis.coordinates[1:].isfinite().all()
        assert found.scores is not None
        assert found.scores[0] == 1

    @with_root
    def test_a_root_model_that_overflows_convicts_nobody(self, make: SimpleNamespace, detector: SkyMask) -> None:
        fed = make.federation(20, 6, -1)
        root = replace(fed.root, sent=fed.root.sent * math.nan)
        found = detect(make, SimpleNamespace(updates=fed.updates, root=root), detector)
        assert found.accepted is not None
        assert found.accepted.all()
        assert found.diagnosis is not None
        assert (found.diagnosis.kept == 1).all()

    @every
    def test_an_overflow_does_not_hide_the_others(self, make: SimpleNamespace, detector: SkyMask | SkyMaskNR) -> None:
        class Narrow(make.Quadratic):  # type: ignore[misc, name-defined]
            def gradient(self, flat: Tensor, loss: Any = "cross-entropy", /) -> tuple[Tensor, Tensor]:
                value, slope = super().gradient(flat)
                return value, slope if value < 1e6 else slope * math.nan

        fed = make.federation(20, 6, -1)
        root = Narrow(fed.root.target, fed.root.sent)
        alone = detect(make, SimpleNamespace(updates=fed.updates, root=root), detector)
        rows = torch.cat([fed.updates.matrix[:4], 1e9 * fed.updates.matrix[:1], fed.updates.matrix[4:]])
        found = detect(make, SimpleNamespace(updates=make.updates(rows), root=root), detector)
        assert found.accepted is not None
        assert alone.accepted is not None
        assert alone.accepted.tolist() == (~fed.malicious).tolist()
        assert found.accepted.tolist() == [*alone.accepted[:4].tolist(), False, *alone.accepted[4:].tolist()]


class TestWithoutRootModel:
    @pytest.mark.parametrize("m", [4, 9])
    def test_keeps_the_larger_cluster(self, make: SimpleNamespace, m: int) -> None:
        fed = make.federation(20, m, -1)
        found = detect(make, fed, NR).accepted
        assert found is not None
        assert found.tolist() == (~fed.malicious).tolist()

    def test_a_malicious_majority_is_the_larger_cluster(self, make: SimpleNamespace) -> None:
        fed = make.federation(20, 14, -1)
        found = detect(make, fed, NR).accepted
        assert found is not None
        assert found.tolist() == fed.malicious.tolist()

    def test_clusters_of_equal_size_are_both_rejected(self, make: SimpleNamespace) -> None:
        fed = make.federation(20, 10, -1)
        found = detect(make, fed, NR).accepted
        assert found is not None
        assert not found.any()
        result = Chain((NR,), Mean())(fed.updates, make.view(fed.updates, root=fed.root))
        assert not result.update.any()
        assert not result.weights.any()

    def test_trains_no_root_model(self, make: SimpleNamespace) -> None:
        fed = make.federation(20, 4, -1)
        root = type("NoUpdate", (make.Quadratic,), {"update": lambda self: pytest.fail("a root model was trained")})
        without = SimpleNamespace(updates=fed.updates, root=root(fed.root.target, fed.root.sent))
        found = detect(make, without, NR).accepted
        assert found is not None
        assert found.tolist() == (~fed.malicious).tolist()


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        (SkyMask(), "skymask needs root data, and the server has none"),
        (SkyMaskNR(), "skymask-nr trains its masks on root data, and the server has none"),
    ],
)
def test_no_root_data(make: SimpleNamespace, detector: SkyMask | SkyMaskNR, message: str) -> None:
    u = make.updates([[1.0], [2.0]])
    with pytest.raises(MissingDataError) as error:
        detector.detect(u, make.view(u))
    assert str(error.value) == message
