"""Pure tensor functions, against plain loops."""

import pytest
import torch
from torch import Tensor

from fedsieve.core import linalg
from fedsieve.core.errors import ParameterError
from fedsieve.core.layout import Layout


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


class TestSortedColumns:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
    def test_against_python(self, dtype: torch.dtype) -> None:
        x = table(9, 4).round(decimals=1).to(dtype)  # with ties
        before = x.clone()
        found = linalg.sorted_columns(x)
        assert found.T.tolist() == [sorted(column) for column in x.T.tolist()]
        assert found.dtype == dtype
        assert torch.equal(x, before)

    def test_shares_no_memory(self) -> None:
        x = torch.arange(3.0)[:, None]  # in order already
        linalg.sorted_columns(x).zero_()
        assert x.squeeze().tolist() == [0, 1, 2]

    def test_a_negated_view(self) -> None:
        x = table(5, 6)
        negated = torch.complex(x, -x).conj().imag
        assert torch.equal(linalg.sorted_columns(negated), x.sort(dim=0).values)

    def test_a_slice(self) -> None:
        x = table(5, 6)
        assert torch.equal(linalg.sorted_columns(x[:, 2:5]), x[:, 2:5].sort(dim=0).values)


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

    @pytest.mark.parametrize("max_norm", [None, 2.0])
    def test_updates_to_a_bound_or_the_median(self, max_norm: float | None) -> None:
        x = table(5, 7)
        clipped, bound = linalg.clip_updates(x, max_norm)
        assert bound == (sorted(linalg.row_norms(x).tolist())[2] if max_norm is None else 2)
        assert torch.equal(clipped, linalg.clip_rows(x, bound))

    def test_rows_within_the_bound_stay_to_the_bit(self) -> None:
        x = table(6, 40, torch.float32)
        bound = float(linalg.row_norms(x)[2])  # the row at the bound is not beyond it
        clipped, within = linalg.clip_rows(x, bound), linalg.row_norms(x) <= bound
        assert 1 < within.sum() < 6
        assert torch.equal(clipped[within], x[within])
        assert linalg.row_norms(clipped[~within]).tolist() == pytest.approx([bound] * int((~within).sum()))

    @pytest.mark.parametrize("bound", [0.0, -1.0, float("inf"), float("nan")])
    def test_bounds_that_are_none(self, bound: float) -> None:
        with pytest.raises(ParameterError, match=f"^rule: max_norm must be finite and positive, got {bound}$"):
            linalg.check_max_norm("rule", bound)

    def test_bounds_that_are_some(self) -> None:
        linalg.check_max_norm("rule", None)
        linalg.check_max_norm("rule", 1e-300)

    def test_mean_of_the_clipped(self) -> None:
        x = torch.tensor([[3.0, 4.0], [30.0, 40.0], [0.0, 10.0]])
        mean, bound = linalg.median_clipped_mean(x, torch.tensor([True, True, False]))
        assert (mean.tolist(), bound) == ([4.5, 6.0], 10)
        mean, bound = linalg.median_clipped_mean(x, torch.tensor([False] * 3))
        assert (mean.tolist(), bound) == ([0, 0], 10)


class TestCosineDistances:
    @pytest.mark.parametrize("origin", [None, table(1, 30, seed=2)[0]])
    def test_against_loops(self, origin: Tensor | None, monkeypatch: pytest.MonkeyPatch) -> None:
        x = table(6, 30)
        rows = x if origin is None else x + origin
        expected = [[1 - float(a @ b / (a.norm() * b.norm())) for b in rows] for a in rows]
        found = linalg.cosine_distances(x, origin)
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)
        assert torch.equal(found, found.T)

    def test_blocks_do_not_matter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x, origin = table(5, 3000), table(1, 3000, seed=1)[0]
        expected = linalg.cosine_distances(x, origin)
        monkeypatch.setattr(linalg, "_BLOCK_BYTES", 1)
        torch.testing.assert_close(linalg.cosine_distances(x, origin), expected, rtol=1e-12, atol=1e-14)

    def test_parallel_rows_are_at_distance_0(self) -> None:
        v, w = table(2, 50)
        rows = [v * factor for factor in (1, 1 / 3, 7, 1e-9, 0.1, 1e9)] + [-v / 3, w]
        found = linalg.cosine_distances(torch.stack(rows))
        assert not found[:6, :6].any()
        assert found[6, :6].tolist() == pytest.approx([2] * 6)
        assert (found[7, :7] > 0.1).all()

    def test_nearly_parallel_rows_are_not(self) -> None:
        found = linalg.cosine_distances(torch.tensor([[1.0, 0.0], [1.0, 1e-5], [0.0, 1.0]], dtype=torch.float64))
        assert found[0, 1].item() == pytest.approx(5e-11, rel=1e-4)

    def test_rows_of_zeros(self) -> None:
        x = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [2.0, 2.0]])
        assert linalg.cosine_distances(x).tolist() == [[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]]
        moved = linalg.cosine_distances(x - torch.ones(2), torch.ones(2))
        assert torch.equal(moved, linalg.cosine_distances(x))

    def test_tiny_rows(self) -> None:
        x = torch.tensor([[1e-30, 0.0], [0.0, 1e-38], [1e30, 0.0]])
        assert linalg.cosine_distances(x).tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]


class TestMeanOfRanks:
    X = torch.tensor([[1.0, 5.0], [2.0, 5.0], [4.0, 5.0], [93.0, 0.0]])

    @pytest.mark.parametrize(
        ("start", "stop", "mean", "weights"),
        [
            (1, 3, [3, 5], [1 / 6, 5 / 12, 5 / 12, 0]),
            (0, 4, [25, 3.75], [0.25] * 4),
            (0, 1, [1, 0], [0.5, 0, 0, 0.5]),
            (3, 4, [93, 5], [1 / 6, 1 / 6, 1 / 6, 0.5]),
        ],
    )
    def test_by_hand(self, start: int, stop: int, mean: list[float], weights: list[float]) -> None:
        found = linalg.mean_of_ranks(self.X, start, stop)
        assert [t.tolist() for t in found] == [pytest.approx(mean), pytest.approx(weights)]

    def test_only_some_columns_count(self) -> None:
        mean, weights = linalg.mean_of_ranks(self.X, 1, 3, torch.tensor([True, False]))
        assert (mean.tolist(), weights.tolist()) == ([3, 5], [0, 0.5, 0.5, 0])
        mean, weights = linalg.mean_of_ranks(self.X, 1, 3, torch.tensor([False, False]))
        assert (mean.tolist(), weights.tolist()) == ([3, 5], [0, 0, 0, 0])

    def test_blocks_do_not_matter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x, counted = table(7, 3000), torch.arange(3000) % 3 == 0
        expected = linalg.mean_of_ranks(x, 2, 5, counted)
        monkeypatch.setattr(linalg, "_BLOCK_BYTES", 1)
        for found, other in zip(linalg.mean_of_ranks(x, 2, 5, counted), expected, strict=True):
            torch.testing.assert_close(found, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("shapes", "weight", "bias"),
    [
        ({"a": (4, 3), "b": (4,), "out": (2, 4), "bias": (2,)}, "out", "bias"),
        ({"a": (4, 3), "out": (2, 4)}, "out", None),
        ({"a": (4, 3), "out": (2, 4), "scale": (4,)}, "out", None),
        ({"conv": (2, 1, 3, 3), "bias": (2,), "scale": (7,)}, "conv", "bias"),
        ({"a": (4,), "out": (2,)}, "out", None),  # no parameter of two dimensions
        ({"out": (3,)}, "out", None),
        ({"out": (2, 4), "bias": (2,), "scale": (2,)}, "out", "bias"),
    ],
)
def test_output_layer(shapes: dict[str, tuple[int, ...]], weight: str, bias: str | None) -> None:
    parameters = {name: torch.empty(shape) for name, shape in shapes.items()}
    layout = Layout.of(parameters, {"running_mean": torch.empty(2), "more": torch.empty(2, 2)})
    found = linalg.output_layer(layout)
    assert found[0].name == weight
    assert (None if found[1] is None else found[1].name) == bias
