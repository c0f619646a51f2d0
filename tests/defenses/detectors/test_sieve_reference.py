"""Reference updates: what they are trained on, folds and halves, awkward root data, and models with BatchNorm."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedsieve.core.layout import Layout
from fedsieve.core.loss import Loss, LossName
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
        return torch.stack([torch.tensor([k, float(x.double().mean()), 9]) for k, (x, _) in enumerate(datasets)])


def trained(y: Sequence[int], layout: Layout = PLAIN, seed: int = 0, **more: int) -> tuple[ReferenceUpdates, Recorder]:
    root = Recorder(torch.tensor(y), **more)
    return train_references(root, layout, torch.Generator().manual_seed(seed)), root


def samples(datasets: list[tuple[Tensor, Tensor]]) -> list[list[int]]:
    return [x.squeeze(1).tolist() for x, _ in datasets]


root_data = st.lists(st.integers(0, 3), min_size=1, max_size=130)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(y=root_data, normalised=st.booleans(), seed=st.integers(0, 99))
def test_every_set_of_samples(y: list[int], normalised: bool, seed: int) -> None:
    found, root = trained(y, NORMALISED if normalised else PLAIN, seed, n_classes=4)
    r, h = len(found.subsets), len(found.held_out)
    whole, subsets, held = samples(root.datasets[:1])[0], samples(root.datasets[1 : r + 1]), samples(root.datasets[-h:])
    assert len(root.datasets) == 1 + r + h
    for x, labels in root.datasets:  # no label is changed
        assert [y[k] for k in x.squeeze(1).tolist()] == labels.tolist()
    assert whole == list(range(len(y)))
    assert sorted(k for subset in subsets for k in subset) == whole  # each sample is in one subset, of one class
    assert [{y[k] for k in subset} for subset in subsets] == [{c} for c in found.classes.tolist()]
    least = 4 if normalised else 1
    size = max(least, -(-len(y) // 100))
    for c in set(y):
        cut = [len(s) for s, k in zip(subsets, found.classes.tolist(), strict=True) if k == c]
        assert min(cut) >= min(size, y.count(c))
        assert max(cut) - min(cut) <= 1
    # a held-out update has all samples of the subsets that are not among its others, and of no other
    assert found.others.shape == (h, r)
    for k in range(h):
        own = {s for j in range(r) if not found.others[k, j] for s in subsets[j]}
        assert set(held[k]) == own
        assert own
    # folds: each subset in one; classes balanced
    folds = (~found.others[: found.n_balanced]).sum(dim=0)
    assert folds.tolist() == [1 if found.n_balanced else 0] * r
    assert found.n_balanced == (min(5, r) if r > 1 else 0)
    for _, labels in root.datasets[1 + r : 1 + r + found.n_balanced]:
        assert len(set(torch.unique(labels, return_counts=True)[1].tolist())) == 1
    # then half of the subsets of each class that has two
    several = [c for c in sorted(set(y)) if found.classes.tolist().count(c) > 1]
    halves = found.others[found.n_balanced :]
    of_class = []
    for row in halves:
        classes = found.classes[~row].unique().tolist()
        assert len(classes) == 1
        of_class += classes
        assert int((~row).sum()) == found.classes.tolist().count(classes[0]) // 2
    assert sorted(of_class) == several
    assert found.complete == (len(set(y)) == 4)


def test_updates_are_in_the_order_of_their_datasets_and_without_statistics() -> None:
    found, root = trained([0, 1, 2, 2, 0, 1, 2, 2, 0, 2])
    assert found.root.tolist() == [0, 4.5]
    assert found.subsets[:, 0].tolist() == list(range(1, 11))
    assert found.held_out[:, 0].tolist() == list(range(11, len(root.datasets)))
    assert [float(x.double().mean()) for x, _ in root.datasets[11:]] == pytest.approx(found.held_out[:, 1].tolist())


@pytest.mark.parametrize(("y", "subsets", "balanced_ones", "halves"), [
    ([0], 1, 0, 0),
    ([1, 1], 2, 2, 1),
    ([0, 2], 2, 2, 0),
    ([0, 1, 1], 3, 3, 1),
    ([2] * 7, 7, 5, 1),
    ([0] * 250, 83, 5, 1),
    ([k % 3 for k in range(100)], 100, 5, 3),
])  # fmt: skip
def test_how_many(y: list[int], subsets: int, balanced_ones: int, halves: int) -> None:
    found, _ = trained(y)
    assert (len(found.subsets), found.n_balanced, len(found.held_out)) == (
        subsets,
        balanced_ones,
        balanced_ones + halves,
    )
    assert found.others.shape == (balanced_ones + halves, subsets)
    assert found.classes.unique().tolist() == sorted(set(y))


def test_halves_of_ten_classes_at_most() -> None:
    found, _ = trained([k // 2 for k in range(30)], n_classes=15)
    assert len(found.held_out) - found.n_balanced == 10
    drawn = [
        sorted(found.classes[~row].tolist()[0] for row in found.others[found.n_balanced :])
        for found in (trained([k // 2 for k in range(30)], n_classes=15, seed=s)[0] for s in range(6))
    ]
    assert len({tuple(classes) for classes in drawn}) > 1


def test_every_class_is_spread_over_the_folds() -> None:
    found, _ = trained([0] * 10 + [1] * 5 + [2] * 5)
    fold_of = (~found.others[:5]).long().argmax(dim=0)
    for c in range(3):
        assert fold_of[found.classes == c].unique().tolist() == list(range(5))


@pytest.mark.parametrize("layout", [PLAIN, NORMALISED])
def test_the_generator_decides_what_an_attacker_must_not_know(layout: Layout) -> None:
    y = [0] * 40 + [1] * 40

    def drawn(seed: int) -> tuple[list[list[bool]], list[list[int]]]:
        found, root = trained(y, layout, seed, n_classes=2)
        return found.others.tolist(), samples(root.datasets)

    one, again, other = drawn(101), drawn(101), drawn(102)
    assert one == again
    assert one[0] != other[0]
    assert one[1] != other[1]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(y=st.lists(st.integers(0, 4), min_size=1, max_size=12), data=st.data())
def test_balanced_against_loops(y: list[int], data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.sampled_from(range(len(y))), min_size=1, unique=True))
    groups = {c: [k for k in rows if y[k] == c] for c in sorted({y[k] for k in rows})}
    most = max(map(len, groups.values()))
    expected = [group[k % len(group)] for group in groups.values() for k in range(most)]
    assert balanced(y, rows) == expected


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


@pytest.mark.parametrize("y", [[0] * 8 + [1, 2], [0], [0, 1], [1, 1, 1]])
def test_batch_norm_with_one_sample_of_a_class(y: list[int]) -> None:
    root, model = root_client(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)), y)
    found = train_references(root, model.layout, torch.Generator())
    assert found.classes.tolist() == ([0, 0, 1, 2] if len(y) == 10 else sorted(set(y)))
    for tensor in (found.root, found.subsets, found.held_out):
        assert tensor.isfinite().all()
        assert tensor.shape[-1] == model.layout.n_parameters
