"""Pure tensor functions, against plain loops."""

import pytest
import torch
from torch import Tensor

from fedsieve.core import linalg


def table(n: int, d: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class TestColumnBlocks:
    @pytest.mark.parametrize(("n", "d"), [(1, 1), (3, 5000), (1000, 5000), (7, 1024), (7, 1025), (2, 0)])
    def test_every_column_once_in_order(self, n: int, d: int) -> None:
        x = torch.zeros(n, d)
        columns = [j for block in linalg.column_blocks(x) for j in range(*block.indices(d))]
        assert columns == list(range(d))
        assert all(block.stop <= d for block in linalg.column_blocks(x))

    def test_width_follows_the_budget(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(linalg, "_BLOCK_BYTES", 8 * 10 * 2000)
        widths = [b.stop - b.start for b in linalg.column_blocks(torch.zeros(10, 5000, dtype=torch.float64))]
        assert widths == [2000, 2000, 1000]

    def test_width_is_never_tiny(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(linalg, "_BLOCK_BYTES", 1)
        widths = [b.stop - b.start for b in linalg.column_blocks(torch.zeros(10, 2500))]
        assert widths == [1024, 1024, 452]


class TestUniformWeights:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_share(self, dtype: torch.dtype) -> None:
        found = linalg.uniform_weights(torch.tensor([True, False, True, True, True]), dtype)
        assert found.tolist() == [0.25, 0, 0.25, 0.25, 0.25]
        assert found.dtype == dtype

    def test_no_row(self) -> None:
        assert linalg.uniform_weights(torch.zeros(3, dtype=torch.bool), torch.float32).tolist() == [0, 0, 0]


class TestShorterMajority:
    @pytest.mark.parametrize(
        ("lengths", "shorter"),
        [
            ([5.0], [True]),
            ([5.0, 9.0], [True, True]),
            ([5.0, 9.0, -1.0], [True, False, True]),
            ([4.0, 3.0, 2.0, 1.0], [False, True, True, True]),
            ([1.0, 7.0, 2.0, 7.0, 7.0], [True] * 5),  # tied with the last of them
            ([0.0, 1e30, 0.0, -1e30, 1.0], [True, False, True, False, True]),
        ],
    )
    def test_by_hand(self, lengths: list[float], shorter: list[bool]) -> None:
        assert linalg.shorter_majority(torch.tensor(lengths)[:, None] * torch.tensor([0.6, -0.8])).tolist() == shorter


class TestCentredGram:
    def test_against_loops(self) -> None:
        x, rows = table(5, 1500), torch.tensor([True, False, True, True, False])
        centred = x - x[rows].mean(dim=0)
        expected = [[sum(a * b for a, b in zip(r, s, strict=True)) for s in centred.tolist()] for r in centred.tolist()]
        found = linalg.centred_gram(x, rows)
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=1e-11)

    def test_rows_outside_the_centre_do_not_blur_the_others(self) -> None:
        x = table(4, 50, torch.float32)
        expected = linalg.centred_gram(x[:3], torch.ones(3, dtype=torch.bool))
        x[3] = 1e30
        found = linalg.centred_gram(x, torch.tensor([True, True, True, False]))
        torch.testing.assert_close(found[:3, :3], expected, rtol=1e-12, atol=1e-12)


class TestPairwiseSqDistances:
    def test_against_loops(self) -> None:
        x = table(6, 1500)
        found = linalg.pairwise_sq_distances(x)
        rows = x.tolist()
        expected = [[sum((a - b) ** 2 for a, b in zip(r, s, strict=True)) for s in rows] for r in rows]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-9)

    def test_blocks_do_not_matter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x = table(6, 3000)
        monkeypatch.setattr(linalg, "_BLOCK_BYTES", 1 << 30)
        whole = linalg.pairwise_sq_distances(x)
        monkeypatch.setattr(linalg, "_BLOCK_BYTES", 1)
        torch.testing.assert_close(linalg.pairwise_sq_distances(x), whole, rtol=1e-12, atol=0)

    def test_neighbours_far_from_the_origin(self) -> None:
        # |(1e6, 0) - (1e6, 1)|^2 = 1; a Gram matrix of rows that are not centred would lose it in float32
        found = linalg.pairwise_sq_distances(torch.tensor([[1e6, 0.0], [1e6, 1.0]]))
        assert found.tolist() == [[0, 1], [1, 0]]
        assert found.dtype == torch.float64

    def test_neighbours_far_from_the_origin_in_float64(self) -> None:
        near = table(4, 30)
        expected = linalg.pairwise_sq_distances(near)
        torch.testing.assert_close(linalg.pairwise_sq_distances(near + 1e7), expected, rtol=1e-6, atol=0)

    def test_equal_rows_and_one_row(self) -> None:
        found = linalg.pairwise_sq_distances(table(1, 50).expand(4, -1))
        assert found.tolist() == [[0.0] * 4] * 4
        assert linalg.pairwise_sq_distances(table(1, 5)).tolist() == [[0]]

    @pytest.mark.parametrize(("huge", "dtype"), [(1e9, torch.float32), (1e30, torch.float32), (1e100, torch.float64)])
    def test_huge_rows_do_not_blur_the_others(self, huge: float, dtype: torch.dtype) -> None:
        x = table(9, 400, dtype)
        expected = linalg.pairwise_sq_distances(x)[4:, 4:]
        x[:4] = huge
        found = linalg.pairwise_sq_distances(x)
        torch.testing.assert_close(found[4:, 4:], expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(
            found[:4, 4:], torch.full((4, 5), 400 * huge**2, dtype=torch.float64), rtol=1e-6, atol=0
        )

    def test_what_float64_can_not_square_is_infinitely_far(self) -> None:
        found = linalg.pairwise_sq_distances(torch.tensor([[1e200], [0], [2], [1], [1e200]], dtype=torch.float64))
        inf = torch.inf
        assert found[0].tolist() == [0, inf, inf, inf, inf]
        assert found[1].tolist() == [inf, 0, 4, 1, inf]

    def test_input_is_unchanged(self) -> None:
        x = table(4, 20)
        before = x.clone()
        linalg.pairwise_sq_distances(x)
        assert torch.equal(x, before)


class TestKrumScores:
    # squared distances of 0, 1, 3, 7, 8 on a line
    DISTANCES = torch.tensor([0.0, 1.0, 3.0, 7.0, 8.0])[:, None].sub(torch.tensor([0.0, 1.0, 3.0, 7.0, 8.0])).square()

    @pytest.mark.parametrize(
        ("f", "scores"),
        [
            (0, [59, 41, 29, 53, 75]),  # three neighbours
            (1, [10, 5, 13, 17, 26]),  # two
            (2, [1, 1, 4, 1, 1]),  # one
            (3, [1, 1, 4, 1, 1]),  # n - f - 2 = 0: still one
            (9, [1, 1, 4, 1, 1]),
        ],
    )
    def test_by_hand(self, f: int, scores: list[float]) -> None:
        before = self.DISTANCES.clone()
        assert linalg.krum_scores(self.DISTANCES, f).tolist() == scores
        assert torch.equal(self.DISTANCES, before)

    def test_few_rows(self) -> None:
        assert linalg.krum_scores(torch.zeros(1, 1), 0).tolist() == [0]
        assert linalg.krum_scores(torch.tensor([[0.0, 4], [4, 0]]), 0).tolist() == [4, 4]

    def test_a_row_is_not_its_own_neighbour_but_an_equal_row_is(self) -> None:
        distances = torch.tensor([[0.0, 0, 4, 9], [0, 0, 4, 9], [4, 4, 0, 1], [9, 9, 1, 0]])
        assert linalg.krum_scores(distances, 1).tolist() == [0, 0, 1, 1]

    def test_infinite_distances_come_last(self) -> None:
        inf = torch.inf
        distances = torch.tensor([[0, 1, 2, inf], [1, 0, 3, inf], [2, 3, 0, inf], [inf, inf, inf, 0]])
        assert linalg.krum_scores(distances, 0).tolist() == [3, 4, 5, inf]


class TestLowest:
    @pytest.mark.parametrize(
        ("k", "chosen"),
        [(1, [3]), (2, [0, 2, 3]), (3, [0, 2, 3]), (4, [0, 2, 3, 4]), (5, [0, 1, 2, 3, 4]), (9, [0, 1, 2, 3, 4])],
    )
    def test_by_hand(self, k: int, chosen: list[int]) -> None:
        scores = torch.tensor([2.0, torch.inf, 2.0, 1.0, 5.0])
        assert linalg.lowest(scores, k).nonzero().flatten().tolist() == chosen

    def test_rounding_is_no_difference(self) -> None:
        scores = torch.tensor([1 + 1e-13, 1, 1 + 1e-6], dtype=torch.float64)
        assert linalg.lowest(scores, 1).tolist() == [True, True, False]
        assert linalg.lowest(torch.zeros(3), 1).tolist() == [True] * 3


class TestClipping:
    def test_norms_are_in_float64(self) -> None:
        assert linalg.row_norms(torch.tensor([[3e38, 4e38 / 2], [3.0, 4.0]])).tolist() == pytest.approx([3.60555e38, 5])
        assert linalg.row_norms(torch.zeros(2, 0)).tolist() == [0, 0]

    @pytest.mark.parametrize(("values", "expected"), [([5.0], 5), ([9.0, 1.0], 5), ([3.0, 100.0, 1.0], 3)])
    def test_middle(self, values: list[float], expected: float) -> None:
        assert linalg.middle(torch.tensor(values)).item() == expected

    def test_rows_within_the_bound_stay_to_the_bit(self) -> None:
        x = table(6, 40, torch.float32)
        bound = float(linalg.row_norms(x)[2])  # the row at the bound is not beyond it
        clipped, within = linalg.clip_rows(x, bound), linalg.row_norms(x) <= bound
        assert 1 < within.sum() < 6
        assert torch.equal(clipped[within], x[within])
        assert linalg.row_norms(clipped[~within]).tolist() == pytest.approx([bound] * int((~within).sum()))


class TestManyColumns:
    """From so many float32 columns on, sums within a block of columns are in float32."""

    D = 3 * linalg._MANY + 5

    @pytest.fixture
    def x(self) -> Tensor:
        return table(7, self.D, torch.float32)

    def test_norms(self, x: Tensor) -> None:
        found = linalg.row_norms(x)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, x.double().norm(dim=1), rtol=1e-7, atol=0)

    @pytest.mark.parametrize("size", [0.0, 1e-45, 1e-38, 1e-25, 1e-17, 1e17, 1e30, 1e38])
    def test_norms_of_rows_of_any_length(self, x: Tensor, size: float) -> None:
        x[2] = x[2].clamp(-3, 3) * size
        torch.testing.assert_close(linalg.row_norms(x), x.double().norm(dim=1), rtol=1e-7, atol=0)

    def test_norms_of_rows_that_are_not_finite(self, x: Tensor) -> None:
        x[1, 5], x[4, 7] = torch.nan, -torch.inf
        found = linalg.row_norms(x)
        assert found.isnan().tolist() == [False, True, *[False] * 5]
        assert found.isinf().tolist() == [*[False] * 4, True, False, False]

    def test_gram(self, x: Tensor) -> None:
        rows = torch.arange(7) < 4
        centred = x.double() - x[:4].double().mean(dim=0)
        found = linalg.centred_gram(x, rows)
        torch.testing.assert_close(found, centred @ centred.T, rtol=0, atol=1e-6 * self.D)

    @pytest.mark.parametrize("size", [1e-38, 1e-17, 1.0, 1e12, 1e30])
    def test_distances(self, x: Tensor, size: float) -> None:
        x *= size
        torch.testing.assert_close(linalg.pairwise_sq_distances(x), squares(x), rtol=1e-6, atol=0)

    @pytest.mark.parametrize("size", [0.0, 1e-30, 1e-9, 1e9, 1e30])
    def test_one_row_of_any_length_does_not_blur_the_others(self, x: Tensor, size: float) -> None:
        x[2] *= size
        torch.testing.assert_close(linalg.pairwise_sq_distances(x), squares(x), rtol=1e-6, atol=0)

    @pytest.mark.parametrize("shift", [0.0, 1.0, 1e3])
    @pytest.mark.parametrize("step", [1e-1, 1e-3, 1e-6])
    def test_rows_close_to_each_other(self, x: Tensor, step: float, shift: float) -> None:
        x[3:6] = x[2] + step * x[3:6]
        x += shift
        found, expected = linalg.pairwise_sq_distances(x), squares(x)
        # what float64 leaves of the rows' own squares, as of rows with few columns
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=3e-14 * self.D)
        assert (found[2:6, 2:6] < 0.1 * found[2:6, :2].min()).all()

    def test_equal_rows_are_equally_far_from_every_other(self, x: Tensor) -> None:
        x[[0, 3, 6]] = x[1].clone()
        found = linalg.pairwise_sq_distances(x)
        assert torch.equal(found, found.T)
        group = [0, 1, 3, 6]
        assert (found[group][:, group] <= 1e-13 * found.max()).all()
        assert all(torch.equal(found[i, [2, 4, 5]], found[1, [2, 4, 5]]) for i in group)
        scores = linalg.krum_scores(found[:, [0, 1, 2, 3, 4, 5, 6]], 1)
        assert linalg.lowest(scores, 1).nonzero().flatten().tolist() == group

    def test_inner_products(self, x: Tensor) -> None:
        v = table(1, self.D, torch.float32, seed=5)[0]
        dtype = linalg.type_of_products(x, linalg.row_norms(x))
        assert dtype == torch.float32
        found = linalg.inner_products(x, v, dtype)
        torch.testing.assert_close(found, x.double() @ v.double(), rtol=0, atol=1e-7 * self.D)

    @pytest.mark.parametrize(("size", "dtype"), [(0.0, torch.float32), (1e-18, torch.float64), (1e14, torch.float64)])
    def test_type_of_products(self, x: Tensor, size: float, dtype: torch.dtype) -> None:
        x[5] *= size
        norms = linalg.row_norms(x)
        assert linalg.type_of_products(x, norms) == dtype
        assert linalg.type_of_products(x.double(), norms) == torch.float64
        assert linalg.type_of_products(x[:, : linalg._MANY - 1], norms) == torch.float64

    def test_clipped_rows(self, x: Tensor) -> None:
        x[2] *= 1e30
        bound = float(linalg.row_norms(x).sort().values[3])
        expected = x.double() * (bound / x.double().norm(dim=1)).clamp(max=1)[:, None]
        for some in (x, x[3:]):  # with the huge row and without
            found = linalg.clip_rows(some, bound)
            torch.testing.assert_close(found.double(), expected[-len(some) :], rtol=1e-6, atol=0)
            within = linalg.row_norms(some) <= bound
            assert within.any()
            assert torch.equal(found[within], some[within])


class TestWeightedSum:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
    def test_against_loops(self, dtype: torch.dtype) -> None:
        x, weights = table(5, 40, dtype), torch.tensor([0.5, 0.0, -2.0, 1.0, 3.0], dtype=torch.float64)
        found = linalg.weighted_sum(x, weights)
        assert found.dtype == dtype
        expected = sum((w * row.double() for w, row in zip(weights, x, strict=True)), torch.zeros(40).double())
        torch.testing.assert_close(found, expected.to(dtype), rtol=1e-3 if dtype == torch.float16 else 1e-5, atol=1e-6)

    def test_no_weight(self) -> None:
        assert linalg.weighted_sum(torch.full((2, 3), 3e38), torch.zeros(2, dtype=torch.float64)).tolist() == [0] * 3

    @pytest.mark.parametrize(("value", "weight"), [(3e38, 1e-38), (1e-38, 1e38), (1e-45, 1e45)])
    def test_weights_beyond_float32(self, value: float, weight: float) -> None:
        x = torch.tensor([[value], [2.0]])
        found = linalg.weighted_sum(x, torch.tensor([weight, 1.0], dtype=torch.float64))
        assert found.item() == pytest.approx(float(x[0]) * weight + 2)


def squares(x: Tensor) -> Tensor:
    rows = x.double()
    return torch.stack([(rows - row).square().sum(dim=1) for row in rows])


@pytest.mark.parametrize("bad", [2, 5])
def test_distances_of_rows_that_are_no_numbers(bad: int) -> None:
    x = torch.randn(5, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:bad] = torch.nan
    found = linalg.pairwise_sq_distances(x)
    assert found[:bad].fill_diagonal_(0).isinf().sum() == bad * 4
    torch.testing.assert_close(found[bad:, bad:], torch.cdist(x[bad:], x[bad:]).square())
