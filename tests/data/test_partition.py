"""Root data and partitions: complete, disjoint, distributed as documented."""

import math
import tracemalloc
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsieve.config import registry
from fedsieve.core.errors import ParameterError
from fedsieve.data.partition import IID, Bootstrap, Dirichlet, Groups, Natural, Partition
from fedsieve.data.parts import Split
from fedsieve.data.root_rows import quotas, root_indices

NAMES = registry.names("partitions")
DISJOINT = [name for name in NAMES if name != "bootstrap"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labels(n: int, n_classes: int) -> Tensor:
    return torch.arange(n)[torch.randperm(n, generator=generator(9))] % n_classes


class TestQuotas:
    @settings(max_examples=200, deadline=None, derandomize=True)
    @given(
        total=st.integers(0, 10_000),
        shares=st.lists(st.floats(0, 1), min_size=1, max_size=20).filter(lambda s: sum(s) > 1e-6),
    )
    def test_add_up_and_are_near(self, total: int, shares: list[float]) -> None:
        counts = quotas(total, shares)
        assert sum(counts) == total
        assert len(counts) == len(shares)
        assert min(counts) >= 0
        for count, share in zip(counts, shares, strict=True):
            assert abs(count - total * share / sum(shares)) < 1 + 1e-6

    @pytest.mark.parametrize(
        ("total", "shares", "expected"),
        [
            (10, [0.5, 0.5], [5, 5]),
            (3, [1.0, 1.0], [2, 1]),  # a tie goes to the first
            (10, [0.1, 0.25, 0.65], [1, 3, 6]),  # 1, 2.5, 6.5: the place left goes to the first of the equal remainders
            (100, [0.1] * 10, [10] * 10),
            (100, [1.0, 2.0, 0.0], [33, 67, 0]),  # 33.3, 66.7
            (0, [0.3, 0.7], [0, 0]),
            (7, [5.0], [7]),
        ],
    )
    def test_by_hand(self, total: int, shares: list[float], expected: list[int]) -> None:
        assert quotas(total, shares) == expected


class TestRootIndices:
    @pytest.mark.parametrize(
        ("size", "bias", "label", "expected"),
        [
            (100, 0.1, 0, [10] * 10),
            (100, 0.55, 3, [5, 5, 5, 55, 5, 5, 5, 5, 5, 5]),
            (20, 1.0, 7, [0] * 7 + [20, 0, 0]),
            (90, 0.0, 0, [0] + [10] * 9),
        ],
    )
    def test_shares(self, size: int, bias: float, label: int, expected: list[int]) -> None:
        y = labels(1000, 10)
        rows = root_indices(y, 10, size, bias, label, generator())
        assert len(rows) == len(set(rows.tolist())) == size
        assert torch.bincount(y[rows], minlength=10).tolist() == expected

    def test_generator_decides(self) -> None:
        y = labels(1000, 10)
        one, same, other = (root_indices(y, 10, 50, 0.1, 0, generator(seed)) for seed in (0, 0, 1))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)

    def test_too_few_samples(self) -> None:
        with pytest.raises(ParameterError) as error:
            root_indices(labels(100, 10), 10, 60, 0.5, 4, generator())
        assert str(error.value) == (
            "root.size=60 takes 30 samples of class 4, of which the training data have 10; root.size=20 is possible, "
            "root.bias=0 with root.label=4 leaves that class out, root.size=0 suits defenses that need no root data"
        )
        assert len(root_indices(labels(100, 10), 10, 20, 0.5, 4, generator())) == 20

    @pytest.mark.parametrize("size", [100, 70, 33, None])
    def test_ten_classes_without_bias_are_as_with_a_tenth(self, size: int | None) -> None:
        y = labels(2000, 10)
        one, other = (root_indices(y, 10, n, b, 0, generator(3)) for n, b in ((size, None), (size or 100, 0.1)))
        assert one.equal(other)

    @pytest.mark.parametrize(
        ("counts", "bias", "expected"),
        [
            ([500, 500], None, [50, 50]),
            ([300, 300, 300], None, [30, 30, 30]),  # a tenth of 900
            ([312, 8], None, [5, 4]),  # half of the rare class
            ([312, 8], 0.5, [9, 8]),  # bias is what the user wants: all that there are
            ([312, 8], 1.0, [32, 0]),
            ([300, 20], 0.9, [29, 3]),
            ([10, 10], None, [1, 1]),  # one of each, even if a tenth is less
            ([20, 20, 20, 20, 20], None, [2] * 5),
            ([60, 60, 1], 0.0, [0, 2, 1]),  # class 0 has no share
        ],
    )
    def test_default_size(self, counts: list[int], bias: float | None, expected: list[int]) -> None:
        y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        found = y[root_indices(y, len(counts), None, bias, 0, generator())]
        assert torch.bincount(found, minlength=len(counts)).tolist() == expected

    def test_too_rare_a_class(self) -> None:
        y = torch.tensor([0] * 60 + [1] * 60 + [2])
        with pytest.raises(ParameterError) as error:
            root_indices(y, 3, None, None, 0, generator(), class_name="class {} (x)".format)
        assert str(error.value) == (
            "root data can't be taken by default, without root.size: class 2 (x) has 1 training samples; "
            "root.size=5 is possible, root.bias=0 with root.label=2 leaves that class out, "
            "root.size=0 suits defenses that need no root data"
        )
        assert torch.bincount(y[root_indices(y, 3, 5, None, 0, generator())]).tolist() == [2, 2, 1]
        assert torch.bincount(y[root_indices(y, 3, None, 0.0, 2, generator())]).tolist() == [6, 6]

    def test_no_owner_loses_all(self) -> None:
        y = torch.arange(100) % 2
        owners = torch.cat([torch.arange(40), torch.full((60,), 40)])
        rows = root_indices(y, 2, None, None, 0, generator(), owners)
        assert len(rows) == 10
        assert (owners[rows] == 40).all()
        assert torch.bincount(y[rows]).tolist() == [5, 5]
        # literally as asked for, where there are no others
        rows = root_indices(y, 2, 70, None, 0, generator(), owners)
        assert len(set(rows.tolist())) == 70
        assert int((owners[rows] == 40).sum()) == 59

    def test_owners_with_one_sample_each(self) -> None:
        y, owners = torch.arange(100) % 2, torch.arange(100)
        with pytest.raises(
            ParameterError, match=r"natural clients would lose their last sample; root\.size=10 takes it"
        ):
            root_indices(y, 2, None, None, 0, generator(), owners)
        assert len(root_indices(y, 2, 10, None, 0, generator(), owners)) == 10

    def test_owners_do_not_matter_as_long_as_all_keep_some(self) -> None:
        y = labels(1000, 10)
        assert root_indices(y, 10, 100, 0.1, 0, generator()).equal(
            root_indices(y, 10, 100, 0.1, 0, generator(), torch.arange(1000) % 9)
        )

    @pytest.mark.parametrize("size", [10**9, 10**15])
    def test_absurd_sizes_are_refused_at_once(self, size: int) -> None:
        with pytest.raises(ParameterError, match=r"root\.size=20 is possible"):
            root_indices(labels(100, 10), 10, size, 0.5, 4, generator())

    def test_all_there_are(self) -> None:
        assert sorted(root_indices(labels(50, 5), 5, 50, 0.2, 0, generator()).tolist()) == list(range(50))


def parts_of(name: str, y: Tensor, n_clients: int, n_classes: int, seed: int = 0, **parameters: Any) -> list[Tensor]:
    owners = torch.arange(len(y)) % n_clients
    return list(registry.build("partitions", name, parameters)(y, owners, n_clients, n_classes, generator(seed)))


def test_registry_is_complete() -> None:
    assert {"groups", "iid", "dirichlet", "natural", "bootstrap"} <= set(NAMES)
    assert len(NAMES) >= 5


@pytest.mark.parametrize("name", DISJOINT)
class TestDisjointPartitions:
    @pytest.mark.parametrize(("n", "n_clients", "n_classes"), [(600, 20, 5), (601, 7, 3), (100, 5, 5), (300, 10, 10)])
    def test_complete_disjoint_none_empty(self, name: str, n: int, n_clients: int, n_classes: int) -> None:
        parts = parts_of(name, labels(n, n_classes), n_clients, n_classes)
        assert len(parts) == n_clients
        assert all(len(part) > 0 for part in parts)
        assert sorted(torch.cat(parts).tolist()) == list(range(n))
        assert all(part.dtype == torch.long for part in parts)

    @pytest.mark.parametrize(("n", "n_clients", "n_classes"), [(601, 7, 3), (90, 3, 5)])
    def test_clients_one_by_one(self, name: str, n: int, n_clients: int, n_classes: int) -> None:
        """Asked for in any order, a client has what it has in the list of all."""
        y, owners = labels(n, n_classes), torch.arange(n) % n_clients
        parts = registry.build("partitions", name, {})(y, owners, n_clients, n_classes, generator())
        assert parts.sizes.tolist() == [len(part) for part in parts]
        for k, part in reversed(list(enumerate(parts))):
            assert torch.equal(parts[k], part)
        assert torch.equal(parts.pool, torch.cat([*parts]))
        inside = torch.randperm(2 * n, generator=generator(1))[:n]
        assert all(torch.equal(a, inside[b]) for a, b in zip(parts.within(inside), parts, strict=True))

    def test_one_client_has_everything(self, name: str) -> None:
        (part,) = parts_of(name, labels(50, 5), 1, 5)
        assert sorted(part.tolist()) == list(range(50))


def test_parts_that_are_given_one_by_one() -> None:
    """As a partition of the user's may return them."""
    listed = [torch.tensor([3, 1]), torch.tensor([0]), torch.tensor([5, 2, 4])]
    parts = Split.listed(listed)
    assert [part.tolist() for part in parts] == [parts[k].tolist() for k in range(3)] == [[3, 1], [0], [5, 2, 4]]
    assert (len(parts), parts.sizes.tolist(), parts.pool.tolist()) == (3, [2, 1, 3], [3, 1, 0, 5, 2, 4])
    with pytest.raises(IndexError):
        parts[3]


@pytest.mark.parametrize("name", NAMES)
class TestEveryPartition:
    def test_none_empty(self, name: str) -> None:
        parts = parts_of(name, labels(601, 3), 7, 3)
        assert len(parts) == 7
        assert all(len(part) > 0 and part.dtype == torch.long for part in parts)
        assert all(0 <= int(part.min()) <= int(part.max()) < 601 for part in parts)

    def test_same_seed_same_parts(self, name: str) -> None:
        y = labels(500, 5)
        one, other = parts_of(name, y, 10, 5), parts_of(name, y, 10, 5)
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

    def test_seed_decides(self, name: str) -> None:
        y = labels(500, 5)
        one, other = parts_of(name, y, 10, 5), parts_of(name, y, 10, 5, seed=1)
        same = all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        assert same == (name == "natural")  # as many clients as owners leaves nothing to draw

    def test_labels_are_unchanged(self, name: str) -> None:
        y = labels(500, 5)
        before = y.clone()
        parts_of(name, y, 10, 5)
        assert torch.equal(y, before)

    def test_global_randomness_is_left_alone(self, name: str) -> None:
        before = torch.get_rng_state()
        parts_of(name, labels(500, 5), 10, 5)
        assert torch.equal(torch.get_rng_state(), before)

    def test_is_one(self, name: str) -> None:
        assert isinstance(registry.build("partitions", name, {}), Partition)


class TestIID:
    def test_equal_parts(self) -> None:
        sizes = [len(part) for part in parts_of("iid", labels(103, 5), 10, 5)]
        assert sorted(sizes) == [10] * 7 + [11] * 3

    def test_classes_are_even(self) -> None:
        y = labels(10_000, 5)
        for part in parts_of("iid", y, 5, 5):
            counts = torch.bincount(y[part], minlength=5)
            # 2,000 draws of 1/5: standard deviation 18
            assert (counts - 400).abs().max() < 90

    def test_too_many_clients(self) -> None:
        with pytest.raises(ParameterError) as error:
            IID()(labels(8, 2), None, 10, 2, generator())
        assert str(error.value) == (
            "iid: 8 samples leave 2 of 10 clients with none; "
            "use fewer clients, or partition bootstrap, in which clients have samples in common"
        )

    @pytest.mark.parametrize("name", ["iid", "groups", "dirichlet"])
    def test_a_million_clients_are_refused_at_once(self, name: str) -> None:
        with pytest.raises(ParameterError, match="1000000 clients"):
            parts_of(name, labels(1000, 10), 1_000_000, 10)


class TestGroups:
    def own_class(self, parts: list[Tensor], y: Tensor) -> tuple[list[int], float]:
        """The most frequent class of each client, and the share of samples that are of their holder's."""
        own = [int(torch.bincount(y[part]).argmax()) for part in parts]
        return own, sum(int((y[part] == k).sum()) for part, k in zip(parts, own, strict=True)) / len(y)

    @pytest.mark.parametrize("q", [0.3, 0.5, 0.8, 0.95])
    def test_share_of_the_own_class_is_q(self, q: float) -> None:
        y = labels(20_000, 5)
        parts = parts_of("groups", y, 10, 5, q=q)
        own, share = self.own_class(parts, y)
        assert abs(share - q) < 5 * math.sqrt(q * (1 - q) / len(y))  # five standard errors
        assert sorted(own) == sorted([0, 1, 2, 3, 4] * 2)
        for part, k in zip(parts, own, strict=True):  # the rest is even
            counts = torch.bincount(y[part], minlength=5).double() / len(part)
            rest = torch.cat([counts[:k], counts[k + 1 :]])
            assert (rest - (1 - q) / 4).abs().max() < 0.05

    def test_one_over_c_is_iid(self) -> None:
        y = labels(20_000, 5)
        for part in parts_of("groups", y, 5, 5, q=0.2):
            counts = torch.bincount(y[part], minlength=5)
            # 4,000 draws of 1/5: standard deviation 25; the size of a group 57
            assert (counts - 800).abs().max() < 130

    def test_one_is_pure(self) -> None:
        y = labels(1000, 5)
        parts = parts_of("groups", y, 10, 5, q=1.0)
        assert all(len(torch.unique(y[part])) == 1 for part in parts)
        assert [len(part) for part in parts] == [100] * 10

    def test_zero_has_none_of_its_own(self) -> None:
        y = labels(1000, 5)
        parts = parts_of("groups", y, 5, 5, q=0.0)
        assert all(len(torch.unique(y[part])) == 4 for part in parts)

    @pytest.mark.parametrize("n_clients", [10, 13, 100])
    def test_clients_spread_evenly_over_groups(self, n_clients: int) -> None:
        y = labels(5000, 5)
        parts = parts_of("groups", y, n_clients, 5, q=1.0)
        sizes = torch.bincount(torch.tensor([int(y[part][0]) for part in parts]), minlength=5)
        assert sizes.max() - sizes.min() <= 1

    def test_which_client_is_in_which_group_is_random(self) -> None:
        y = labels(1000, 5)
        firsts = {int(y[parts_of("groups", y, 10, 5, seed=seed, q=1.0)[0]][0]) for seed in range(40)}
        assert firsts == set(range(5))

    def test_clients_of_a_group_share_evenly(self) -> None:
        y = labels(1003, 5)
        parts = parts_of("groups", y, 20, 5, q=1.0)
        for k in range(5):
            sizes = [len(part) for part in parts if int(y[part][0]) == k]
            assert len(sizes) == 4
            assert max(sizes) - min(sizes) <= 1

    def test_fewer_clients_than_groups(self) -> None:
        # clients have several groups: the first ones have those that are left
        y = labels(1000, 5)
        parts = parts_of("groups", y, 3, 5, q=1.0)
        assert sorted(tuple(torch.unique(y[part]).tolist()) for part in parts) == [(0, 3), (1, 4), (2,)]
        assert sorted(len(part) for part in parts) == [200, 400, 400]
        assert sorted(torch.cat(parts).tolist()) == list(range(1000))

    def test_too_many_clients(self) -> None:
        with pytest.raises(ParameterError, match=r"groups: 10 samples leave \d+ of 30 clients with none"):
            parts_of("groups", labels(10, 2), 30, 2)

    @pytest.mark.parametrize("q", [-0.1, 1.1, math.nan])
    def test_out_of_range(self, q: float) -> None:
        with pytest.raises(ParameterError) as error:
            Groups(q=q)
        assert str(error.value) == f"groups: q must be in [0, 1], got {q}"


class TestDirichlet:
    @pytest.mark.parametrize("min_samples", [1, 10, 25])
    def test_min_samples(self, min_samples: int) -> None:
        for seed in range(5):
            parts = parts_of("dirichlet", labels(600, 5), 10, 5, seed, alpha=0.5, min_samples=min_samples)
            assert min(len(part) for part in parts) >= min_samples

    def test_alpha_is_the_concentration(self) -> None:
        y = labels(5000, 5)

        def skew(alpha: float) -> float:
            parts = parts_of("dirichlet", y, 5, 5, alpha=alpha, min_samples=1)
            shares = torch.stack([torch.bincount(y[part], minlength=5) / len(part) for part in parts])
            return float((shares - 0.2).abs().mean())

        found = [skew(alpha) for alpha in (0.05, 0.5, 5.0, 1e4)]
        assert found == sorted(found, reverse=True)
        assert found[0] > 0.2
        assert found[-1] < 0.02

    def test_parts_are_random_rows(self) -> None:
        y = torch.zeros(1000, dtype=torch.long)
        parts = parts_of("dirichlet", y, 2, 1, alpha=100.0)
        assert all(part.tolist() != sorted(part.tolist()) for part in parts)

    def test_too_few_samples(self) -> None:
        with pytest.raises(ParameterError) as error:
            parts_of("dirichlet", labels(99, 5), 10, 5)
        assert str(error.value) == (
            "dirichlet: 99 samples can't give 10 clients 10 each; fewer clients or a smaller min_samples"
        )

    def test_no_draw_is_good_enough(self) -> None:
        with pytest.raises(ParameterError) as error:
            parts_of("dirichlet", labels(100, 2), 10, 2, alpha=0.01, min_samples=10)
        assert str(error.value) == (
            "dirichlet: no draw of 1,000 gave each of 10 clients 10 samples at alpha=0.01; "
            "fewer clients, a larger alpha or a smaller min_samples"
        )

    @pytest.mark.parametrize(("alpha", "min_samples"), [(0.0, 10), (-1.0, 10), (0.5, 0)])
    def test_out_of_range(self, alpha: float, min_samples: int) -> None:
        with pytest.raises(ParameterError) as error:
            Dirichlet(alpha=alpha, min_samples=min_samples)
        assert str(error.value) == (
            f"dirichlet: alpha must be positive and min_samples at least 1, got {alpha} and {min_samples}"
        )


class TestNatural:
    owners = torch.tensor([4, 7, 4, 9, 7, 4])
    y = torch.zeros(6, dtype=torch.long)

    def test_one_client_per_owner(self) -> None:
        parts = Natural()(self.y, self.owners, 3, 1, generator())
        assert [part.tolist() for part in parts] == [[0, 2, 5], [1, 4], [3]]

    def test_fewer_clients_are_drawn(self) -> None:
        whole = {(0, 2, 5), (1, 4), (3,)}
        drawn = set()
        for seed in range(40):
            parts = [tuple(part.tolist()) for part in Natural()(self.y, self.owners, 2, 1, generator(seed))]
            assert len(set(parts)) == 2
            assert set(parts) <= whole
            drawn.add(frozenset(parts))
        assert len(drawn) == 3  # every pair comes up

    def test_more_clients_than_owners(self) -> None:
        with pytest.raises(ParameterError) as error:
            Natural()(self.y, self.owners, 4, 1, generator())
        assert str(error.value) == (
            "natural: the data has 3 natural clients, 4 asked for; "
            "try --clients 3, or another partition (groups, iid, dirichlet, bootstrap)"
        )

    def test_no_owners(self) -> None:
        with pytest.raises(ParameterError) as error:
            Natural()(self.y, None, 3, 1, generator())
        assert str(error.value) == "natural: this dataset has no natural clients; try groups, iid or dirichlet"

    def test_many_owners(self) -> None:
        """As a plain loop over them finds it."""
        owners = torch.randint(300, (2000,), generator=generator(2))
        names = torch.unique(owners)
        y = torch.zeros(2000, dtype=torch.long)
        drawn = names[torch.randperm(len(names), generator=generator(3))[:200]]
        for found, expected in (
            (Natural()(y, owners, len(names), 1, generator(3)), names),
            (Natural()(y, owners, 200, 1, generator(3)), drawn),
        ):
            assert len(found) == len(expected)
            for part, name in zip(found, expected, strict=True):
                assert torch.equal(part, torch.nonzero(owners == name).squeeze(1))


class TestBootstrap:
    @pytest.mark.parametrize("alpha", [None, 0.5, 0.01])
    def test_a_million_clients_take_no_memory(self, alpha: float | None) -> None:
        y = labels(1000, 10)
        tracemalloc.start()
        parts = Bootstrap(samples=40, alpha=alpha)(y, None, 1_000_000, 10, generator())
        drawn = [parts[k] for k in (0, 999_999, 5, 999_999)]
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 200_000
        assert parts.sizes.untyped_storage().nbytes() == 8
        assert len(parts) == len(parts.sizes) == 1_000_000
        assert torch.equal(drawn[1], drawn[3])
        assert [len(rows) for rows in drawn] == [40] * 4 == parts.sizes[[0, 999_999, 5, 1]].tolist()
        assert not torch.equal(drawn[0], drawn[1])
        with pytest.raises(IndexError, match="client 1000000 is none of 0 to 999999"):
            parts[1_000_000]

    def test_does_not_depend_on_the_number_of_clients(self) -> None:
        y = labels(1000, 10)
        few, many = (Bootstrap()(y, None, n, 10, generator()) for n in (5, 500_000))
        assert all(torch.equal(few[k], many[k]) for k in range(5))

    def test_every_sample_is_as_likely(self) -> None:
        y = labels(50, 5)
        counts = torch.cat(parts_of("bootstrap", y, 4000, 5, samples=10)).bincount(minlength=50)
        # 40,000 draws of 1/50: standard deviation 28
        assert (counts - 800).abs().max() < 130

    def test_alpha_is_the_concentration(self) -> None:
        """Class shares have the mean of the data's and a Dirichlet distribution's variance, p (1 - p) / (a + 1)."""
        y = torch.tensor([0] * 300 + [1] * 100)[torch.randperm(400, generator=generator(4))]
        for alpha in (0.1, 1.0, 20.0):
            parts = parts_of("bootstrap", y, 2000, 2, samples=400, alpha=alpha)
            shares = torch.stack([(y[part] == 1).double().mean() for part in parts])
            spread = 0.25 * 0.75 / (alpha + 1)
            assert abs(float(shares.mean()) - 0.25) < 5 * math.sqrt(spread / 2000)
            # the draws of 400 samples add a little
            assert float(shares.var()) == pytest.approx(spread + (0.25 * 0.75 - spread) / 400, rel=0.15)

    def test_all_samples_of_a_class_are_drawn(self) -> None:
        y = labels(60, 3)
        parts = parts_of("bootstrap", y, 500, 4, samples=20, alpha=1.0)  # no sample of the fourth class
        assert set(torch.cat(parts).tolist()) == set(range(60))

    def test_of_rows_of_a_larger_set(self) -> None:
        y, rows = labels(100, 5), torch.arange(100) * 7 + 3
        parts = Bootstrap(samples=9, alpha=0.3)(y, None, 20, 5, generator())
        assert all(torch.equal(a, rows[b]) for a, b in zip(parts.within(rows), parts, strict=True))

    def test_more_samples_than_there_are(self) -> None:
        with pytest.raises(ParameterError) as error:
            parts_of("bootstrap", labels(99, 5), 10, 5)
        assert str(error.value) == "bootstrap: samples is 100, more than the 99 there are to draw from"

    @pytest.mark.parametrize(("samples", "alpha"), [(0, None), (5, 0.0), (5, -1.0), (5, math.nan), (5, math.inf)])
    def test_out_of_range(self, samples: int, alpha: float | None) -> None:
        with pytest.raises(ParameterError) as error:
            Bootstrap(samples=samples, alpha=alpha)
        assert str(error.value) == (
            f"bootstrap: samples must be at least 1 and alpha positive and finite, got {samples} and {alpha}"
        )
