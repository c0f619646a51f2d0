"""Reference updates: the datasets they are trained on, subsets and folds, and models with BatchNorm."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from fedsieve.core.defense import Loss, LossName
from fedsieve.core.layout import Layout
from fedsieve.detectors.sieve.reference import ReferenceUpdates, balanced, train_references
from fedsieve.federation.clients import ClientData, LocalTraining, Trainer
from fedsieve.federation.root import RootClient
from fedsieve.models.flat import FlatModel

PLAIN = Layout.of({"w": torch.empty(2)})
NORMALISED = Layout.of({"w": torch.empty(2)}, {"running_mean": torch.empty(1)})


@dataclass(frozen=True)
class Recorder:
    """Root data whose samples are their own numbers; an update is the number of its dataset and the mean sample."""

    y: Tensor
    n_classes: int = 3
    datasets: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        return torch.arange(len(self.y))[:, None], self.y

    def loss(self, flat: Tensor, /) -> Tensor:
        raise AssertionError("reference updates need no loss")

    def gradient(self, flat: Tensor, loss: LossName | Loss = "cross-entropy", /) -> tuple[Tensor, Tensor]:
        raise AssertionError("reference updates need no gradient")

    def update(self) -> Tensor:
        raise AssertionError("reference updates are trained in one cohort")

    def train(self, datasets: Sequence[tuple[Tensor, Tensor]], /) -> Tensor:
        self.datasets.extend(datasets)
        return torch.stack([torch.tensor([k, float(x.double().mean())]) for k, (x, _) in enumerate(datasets)])


def trained(y: Sequence[int], layout: Layout = PLAIN, seed: int = 0, **more: int) -> tuple[ReferenceUpdates, Recorder]:
    root = Recorder(torch.tensor(y), **more)
    return train_references(root, layout, torch.Generator().manual_seed(seed)), root


class TestDatasets:
    y = (0, 1, 2, 2, 0, 1, 2, 2, 0, 2)

    def test_root_model_is_first(self) -> None:
        found, root = trained(self.y)
        x, y = root.datasets[0]
        assert x.squeeze(1).tolist() == list(range(10))
        assert y.tolist() == list(self.y)
        assert found.root.tolist() == [0, 4.5]

    def test_one_subset_per_sample(self) -> None:
        found, root = trained(self.y)
        samples = root.datasets[1:11]
        assert [len(y) for _, y in samples] == [1] * 10
        assert sorted(int(x) for x, _ in samples) == list(range(10))
        assert [int(y) for _, y in samples] == found.classes.tolist() == sorted(self.y)
        assert [self.y[int(x)] for x, _ in samples] == found.classes.tolist()
        assert found.subsets[:, 0].tolist() == list(range(1, 11))

    def test_held_out_references_have_the_samples_of_their_fold(self) -> None:
        found, root = trained(self.y)
        assert len(found.held_out) == 5
        assert found.held_out[:, 0].tolist() == list(range(11, 16))
        for fold, (x, y) in enumerate(root.datasets[11:16]):
            rows = [int(root.datasets[1 + k][0]) for k in range(10) if found.folds[k] == fold]
            assert set(x.squeeze(1).tolist()) == set(rows)
            assert [self.y[row] for row in x.squeeze(1).tolist()] == y.tolist()
            counts = torch.bincount(y)
            assert set(counts[counts > 0].tolist()) == {int(counts.max())}

    def test_label_shifted_references(self) -> None:
        found, root = trained(self.y)
        shifted = root.datasets[16:]
        assert len(shifted) == len(found.label_shifted) == 2  # as many as there are wrong classes
        shifts = []
        for x, y in shifted:
            moved = {(label - self.y[row]) % 3 for row, label in zip(x.squeeze(1).tolist(), y.tolist(), strict=True)}
            assert len(moved) == 1
            shifts += moved
            assert torch.bincount(y).tolist() == [5, 5, 5]
        assert sorted(shifts) == [1, 2]

    @pytest.mark.parametrize(("n_classes", "shifts"), [(2, 1), (4, 3), (10, 3)])
    def test_at_most_three_shifts(self, n_classes: int, shifts: int) -> None:
        assert len(trained([0, 1], n_classes=n_classes)[0].label_shifted) == shifts

    def test_generator_decides_folds_and_shifts(self) -> None:
        y = [0] * 20 + [1] * 20

        def drawn(seed: int) -> tuple[list[int], list[int]]:
            found, root = trained(y, seed=seed, n_classes=10)
            return found.folds.tolist(), [int(y[0]) for _, y in root.datasets[-3:]]

        assert drawn(1) == drawn(1)
        assert drawn(1)[0] != drawn(2)[0]
        assert drawn(1)[1] != drawn(2)[1]


class TestSubsets:
    @pytest.mark.parametrize(("size", "subsets"), [(1, 1), (7, 7), (100, 100), (250, 83)])
    def test_at_most_a_hundred(self, size: int, subsets: int) -> None:
        found, _ = trained([0] * size)
        assert len(found.subsets) == len(found.classes) == len(found.folds) == subsets
        assert len(found.held_out) == min(5, subsets)
        assert found.folds.unique().tolist() == list(range(min(5, subsets)))

    def test_every_class_is_spread_over_the_folds(self) -> None:
        found, _ = trained([0] * 10 + [1] * 5 + [2] * 5)
        for c in range(3):
            assert found.folds[found.classes == c].unique().tolist() == list(range(5))

    def test_batch_norm_needs_four_samples(self) -> None:
        found, root = trained([0] * 9 + [1] * 3 + [2] * 4, NORMALISED)
        assert found.classes.tolist() == [0, 0, 1, 2]
        assert [len(y) for _, y in root.datasets[1:5]] == [5, 4, 3, 4]

    def test_complete(self) -> None:
        assert trained([0, 1, 2, 0])[0].complete
        assert not trained([0, 2, 2, 0])[0].complete

    def test_by_class_is_the_mean_of_a_classs_subsets(self) -> None:
        found, _ = trained([2, 0, 2, 0])
        assert found.classes.tolist() == [0, 0, 2, 2]
        expected = torch.stack([found.subsets[:2].mean(dim=0), found.subsets[2:].mean(dim=0)])
        torch.testing.assert_close(found.by_class, expected)


def test_balanced_repeats_rare_classes() -> None:
    y = torch.tensor([1, 0, 1, 1, 0, 2])
    assert balanced(y, torch.arange(6)).tolist() == [1, 4, 1, 0, 2, 3, 5, 5, 5]
    assert balanced(y, torch.tensor([3, 5])).tolist() == [3, 5]


def root_client(module: nn.Module, y: Sequence[int]) -> tuple[RootClient, FlatModel]:
    """The real root training of a small model."""
    model, params = FlatModel.of(module.double())
    x = torch.randn(len(y), 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    trainer = Trainer(model, LocalTraining(learning_rate=0.3, batch_size=4, steps=3), seed=7)
    return RootClient(trainer, ClientData(x, torch.tensor(y)), 3, params, 3), model


def test_root_reference_is_the_root_update() -> None:
    root, model = root_client(nn.Linear(6, 3), [0, 1, 2, 2])
    found = train_references(root, model.layout, torch.Generator())
    assert torch.equal(found.root, root.update())
    assert not torch.equal(found.label_shifted[0], found.root)


def test_batch_norm_with_one_sample_of_a_class() -> None:
    root, model = root_client(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)), [0] * 8 + [1, 2])
    found = train_references(root, model.layout, torch.Generator())
    assert found.classes.tolist() == [0, 0, 1, 2]
    for tensor in (found.root, found.subsets, found.held_out, found.label_shifted):
        assert tensor.isfinite().all()
