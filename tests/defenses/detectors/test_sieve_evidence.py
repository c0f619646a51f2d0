"""Evidence against plain loops, its units, what widens them, and when root data are trusted."""

import math
from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean, pvariance

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsieve.detectors.sieve.evidence import GROUPED, JOINT, NAMES, Evidence, gather
from fedsieve.detectors.sieve.measurements import Measurements

F64 = torch.float64
BALANCED = 5
MEMORY = 0.9


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def measured(n: int = 12, seed: int = 0, h: int = 8) -> Measurements:
    """Clients like the references: explained parts of about 3, residuals of about 4; those of single classes longer."""
    explained, residual = 3 + 0.3 * normal(n, seed=seed), 4 + 0.3 * normal(n, seed=seed + 1)
    inside, outside = 3 + 0.3 * normal(h, seed=seed + 2), 4 + 0.5 * normal(h, seed=seed + 3)
    inside[BALANCED:] *= 1.5
    outside[BALANCED:] *= 1.4
    return Measurements(
        length=(explained**2 + residual**2).sqrt(),
        explained=explained,
        residual=residual,
        held_explained=inside,
        held_residual=outside,
        held_length=(inside**2 + outside**2).sqrt(),
        basis=normal(2, 2),
        coordinates=normal(n, 2),
        inner=normal(n, n),
        slopes=normal(n, 2),
        alignment=-0.3 + 0.1 * normal(n, 2, seed=seed + 4),
        class_alignment=-0.3 + 0.1 * normal(4, 2, seed=seed + 5),
        gradient_lengths=normal(2),
        gradient_coordinates=normal(2, 2),
    )


def gathered(m: Measurements, complete: bool = True, old: Mapping[str, Tensor] | None = None) -> Evidence:
    return gather(m, min(BALANCED, len(m.held_length)), complete, old, MEMORY)


def quantile(values: list[float], share: float) -> float:
    """Of sorted values, with linear interpolation."""
    ranked = sorted(values)
    place = share * (len(ranked) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ranked) - 1)
    return ranked[low] + (place - low) * (ranked[high] - ranked[low])


def by_hand(m: Measurements, complete: bool, old: Mapping[str, Tensor] | None) -> dict[str, list[float]]:
    """Evidence in plain loops, by name."""
    inside, outside = m.held_explained.tolist(), m.held_residual.tolist()
    b = min(BALANCED, len(inside))
    floor, growth = fmean(v * v for v in outside[:b]), 0.0
    if 0 < b < len(inside):
        longer = fmean(v * v for v in inside[b:]) - fmean(v * v for v in inside[:b])
        if longer > 0:
            growth = max((fmean(v * v for v in outside[b:]) - floor) / longer, 0)
        floor = max(floor - growth * fmean(v * v for v in inside[:b]), 0.1 * floor)
    longest = max(inside)

    def unit(explained: float) -> float:
        return math.sqrt(floor + growth * min(explained, longest) ** 2)

    def averaged(name: str, k: int | None, now: float) -> float:
        if old is None:
            return now
        return MEMORY * float(old[name] if k is None else old[name][k]) + (1 - MEMORY) * now

    logs = [min(abs(math.log(o / unit(i))), 1.5) for o, i in zip(outside, inside, strict=True)]
    spread = max(averaged("spread", None, 1.25 * fmean(logs)), 0.1)
    lengths, usual = m.length.tolist(), fmean(m.held_length[:b].tolist())
    heard = [v > 0.01 * usual for v in lengths]
    cuts = [min(longest / e, 1) if e else 1 for e in m.explained.tolist()]
    rest = [r / unit(e) for r, e in zip(m.residual.tolist(), m.explained.tolist(), strict=True)]
    cut_rest = [c * r for c, r in zip(cuts, rest, strict=True)]
    # those shorter than the median count as if they had its length
    median = sorted(v for v, said in zip(lengths, heard, strict=True) if said)[(sum(heard) - 1) // 2]
    fitting = []
    for r, e, length, said in zip(m.residual.tolist(), m.explained.tolist(), lengths, heard, strict=True):
        if said:
            longer = max(median / length, 1)
            fitting.append(longer * r * min(1, longest / (longer * e)) / unit(longer * e))
    widened = max(1, quantile(fitting, 0.1) / 0.9)
    norm = [math.log(max(v / widened, 1e-3)) / spread for v in cut_rest]
    alignments: list[list[float]] = []
    for k in range(2):
        column = m.class_alignment[:, k].tolist()
        mean = averaged("mean", k, fmean(column))
        deviation = max(math.sqrt(averaged("variance", k, pvariance(column))), 0.05)
        of_clients = [(v - mean) / deviation for v in m.alignment[:, k].tolist()]
        # without all classes, what the cross-entropy says of a class that is missing is wrong
        alignments.append([min(max(v, -12), 12) * (complete or k == 0) for v in of_clients])
    joint = [max(v, -1) + a for v, a in zip(norm, alignments[0], strict=True)]
    usual_joint = max(quantile([v for v, said in zip(joint, heard, strict=True) if said], 0.1), 0)
    found = {
        "residual norm": norm,
        "margin alignment": alignments[0],
        "loss alignment": alignments[1],
        "residual norm and margin alignment": [v - usual_joint for v in joint],
        "length": [math.log(max(e / longest, 1e-3)) / spread for e in m.explained.tolist()],
    }
    return {name: [min(max(v, -12), 12) for v in values] for name, values in found.items()} | {
        "widened": [widened],
        "limit": [math.exp(1.64 * spread)],
        "longest_unit": [unit(longest) * widened],
        "cut": cuts,
        "residual": [v / widened for v in rest],
        "informative": [float(said) for said in heard],
    }


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 30),
    h=st.sampled_from([1, 5, 8]),
    complete=st.booleans(),
    later=st.booleans(),
    factor=st.sampled_from([0.0, 1e-3, 0.02, 1.0, 3.0, 1e6]),
)
def test_against_loops(seed: int, n: int, h: int, complete: bool, later: bool, factor: float) -> None:
    m, some = measured(n, seed, h), torch.arange(n) % 3 == 0
    parts = ("length", "explained", "residual")
    m = replace(m, **{name: torch.where(some, factor * getattr(m, name), getattr(m, name)) for name in parts})
    if not (m.length > 0.01 * m.held_length[:BALANCED].mean()).any():  # nobody says anything
        return
    old = gathered(measured(seed=seed + 9)).calibration if later else None
    found, expected = gathered(m, complete, old), by_hand(m, complete, old)
    assert set(NAMES) <= set(expected)
    for name, column in zip(NAMES, found.columns.T, strict=True):
        assert column.tolist() == pytest.approx(expected[name], abs=1e-9), name
    assert NAMES[JOINT] == "residual norm and margin alignment"
    assert all(NAMES[k] == name for k, name in GROUPED.items() if not isinstance(name, tuple))
    for name in ("cut", "residual", "informative"):
        assert getattr(found, name).tolist() == pytest.approx(expected[name]), name
    for name in ("limit", "longest_unit", "widened"):
        assert getattr(found, name) == pytest.approx(expected[name][0]), name
    assert found.longest == float(m.held_explained.max())
    assert found.trusted == (complete and expected["widened"][0] < 1.4)


def test_clients_like_the_references() -> None:
    found = gathered(measured(200))
    assert found.widened == 1
    assert found.trusted
    assert found.informative.all()
    assert float(found.columns[:, :3].mean(dim=0).abs().max()) < 1.5
    assert float((found.residual > found.limit).double().mean()) < 0.05


@pytest.mark.parametrize(
    ("strange", "factor", "widened"), [(1.0, 3.0, True), (0.92, 3.0, True), (0.7, 3.0, False), (0.0, 1.0, False)]
)
def test_limits_widen_where_references_fit_no_client(strange: float, factor: float, widened: bool) -> None:
    """By the tenth of the clients that the references fit best, so that it takes nine tenths to widen them."""
    m = measured(100)
    residual = m.residual * torch.where(torch.arange(100) < 100 * strange, factor, 1.0)
    m = replace(m, residual=residual, length=(m.explained**2 + residual**2).sqrt())
    found, plain = gathered(m), gathered(measured(100))
    assert (found.widened > 1.4) == widened
    assert found.trusted == (not widened)
    if widened:
        assert found.widened == pytest.approx(factor, rel=0.2)
        assert found.longest_unit == pytest.approx(found.widened * plain.longest_unit)
        assert found.columns[:, 0].abs().median() < 2  # nobody is strange among the strange
    else:
        assert (found.columns[: int(100 * strange), 0] > 6).all()


@pytest.mark.parametrize(("short", "grows"), [(5, True), (20, False)])
def test_bounds_grow_where_nine_in_ten_are_longer_than_the_references(short: int, grows: bool) -> None:
    """Round by round, as where a model knows the root data by heart; the round itself has no say in its own bounds."""
    m = measured(100)
    longest = float(m.held_explained.max())
    explained = torch.where(torch.arange(100) < short, 0.5, 10.0).double() * longest
    m = replace(m, explained=explained, length=(explained**2 + m.residual**2).sqrt())
    first = gathered(m)
    assert first.stretch == 1
    found = first
    for _ in range(100):
        found = gathered(m, old=found.calibration)
    assert found.stretch == pytest.approx(10 if grows else 1, rel=0.01)
    one = measured(1)
    one = replace(one, explained=100 * one.explained, length=100 * one.length)
    assert gathered(one, old=gathered(one).calibration).stretch == 1  # of one client nobody knows


def test_empty_updates_do_not_widen_or_narrow_anything() -> None:
    m, names = measured(300), ("length", "explained", "residual", "alignment")
    m = replace(m, **{name: torch.cat([getattr(m, name)[:30], 0 * getattr(m, name)[30:]]) for name in names})
    alone = replace(measured(30), **{name: getattr(m, name)[:30] for name in names})
    found, plain = gathered(m), gathered(alone)
    assert found.informative.tolist() == [True] * 30 + [False] * 270
    torch.testing.assert_close(found.columns[:30], plain.columns)
    assert (found.widened, found.limit, found.trusted) == (plain.widened, plain.limit, plain.trusted)


@pytest.mark.parametrize("share", [0.02, 0.2])
def test_who_sends_next_to_nothing_does_not_say_that_references_fit(share: float) -> None:
    m, few = measured(30), torch.arange(30) < 6
    strange = replace(m, residual=3 * m.residual, length=(m.explained**2 + 9 * m.residual**2).sqrt())
    names = ("length", "explained", "residual")
    shrunken = {k: torch.where(few, share, 1.0) * getattr(strange, k) for k in names}
    found = gathered(replace(strange, **shrunken))
    assert not found.trusted
    assert found.widened == pytest.approx(gathered(strange).widened, rel=0.1)


def test_an_update_says_something_from_a_hundredth_of_the_references_length_on() -> None:
    m = measured(3)
    usual = float(m.held_length[:BALANCED].mean())
    m = replace(m, length=torch.tensor([0.0, 0.0099, 0.0101], dtype=F64) * usual)
    assert gathered(m).informative.tolist() == [False, False, True]


def test_without_all_classes_the_loss_says_nothing() -> None:
    found = gathered(measured(), complete=False)
    assert not found.columns[:, NAMES.index("loss alignment")].any()
    for name in ("residual norm", "margin alignment"):
        assert found.columns[:, NAMES.index(name)].any()
    assert not found.trusted


def test_calibration_is_a_running_mean() -> None:
    one, two = gathered(measured(seed=1)).calibration, gathered(measured(seed=2)).calibration
    both = gathered(measured(seed=2), old=one).calibration
    for name in one:
        torch.testing.assert_close(both[name], 0.9 * one[name] + 0.1 * two[name])


@pytest.mark.parametrize("h", [0, 8])
@pytest.mark.parametrize("n", [1, 6])
def test_nothing_to_compare_with(n: int, h: int) -> None:
    """Root data of one sample, or references of length 0."""
    m = measured(n, h=h)
    m = replace(m, **{name: 0 * getattr(m, name) for name in ("held_explained", "held_length")})
    found = gathered(m)
    assert found.longest is None
    assert found.widened == 1
    assert found.columns.isfinite().all()
    assert not found.columns[:, 0].any()
    assert found.cut.tolist() == [1] * n
    assert found.informative.all()


@pytest.mark.parametrize("scale", [1e-30, 1e-100, 1e30])
def test_units_have_no_unit(scale: float) -> None:
    m = measured()
    names = ("length", "explained", "residual", "held_explained", "held_residual", "held_length")
    one, other = gathered(m), gathered(replace(m, **{name: scale * getattr(m, name) for name in names}))
    torch.testing.assert_close(other.columns, one.columns)
    assert other.limit == pytest.approx(one.limit)
    assert other.longest_unit == pytest.approx(scale * one.longest_unit)
