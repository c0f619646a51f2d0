"""Evidence against each client: measurements in standard deviations of the server's own reference updates.

What the root data cannot tell is left out: without all classes, an update that raises the root loss may serve a class
that the server has never seen; and where reference updates fit no client, limits widen until they fit some.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from fedsieve.detectors.sieve.measurements import Measurements

NAMES = ("residual norm", "margin alignment", "loss alignment", "residual norm and margin alignment", "length")
JOINT, LENGTH = 3, 4  # columns: of the two together, and the last
# Columns in which groups of clients are looked for, and what they are called. Honest clients fall into groups by their
# margin alignment alone where the model fits the data of some of them already.
GROUPED = {0: "residual norm", 2: "loss alignment", 3: "residual norm and margin alignment", LENGTH: "length"}
_LARGEST = 12.0  # beyond this, evidence says no more
_EMPTY = 0.01  # share of the references' length below which an update says nothing
_LEAST_SPREAD, _LEAST_DEVIATION = 0.1, 0.05  # of logarithms of norms and of cosines: rounding and chance
_FITTING = 0.1  # share of the clients that root data have to fit, whatever the others do
_FAR = 0.9  # residual norm of these clients, in the references' units, above which references don't fit them
_RANGE = 1.64  # standard deviations: 5 % of the references' own residuals are longer
_LONGEST_LOG = 1.5  # of a reference's residual norm; a part that saturates has none
_MISFIT = 1.4  # widening from which on root data are said not to fit
# The mean absolute value of a normal variable, times this, is its standard deviation.
_FROM_MEAN = 1.25


@dataclass(frozen=True)
class Evidence:
    """Evidence against the n clients of one round; 0 is as the references on average, positive is worse.

    Attributes:
        columns: One per name of :data:`NAMES`, [n, 5].
        informative: Whose update is long enough to say something, [n].
        residual: Residual norm in units of what held-out references have for an update of this length, [n].
        cut: Factor that makes the explained part no longer than the longest reference's, [n].
        limit: Residual norm, in the same units, beyond which 5 % of the references are.
        usual: Mean length of the balanced held-out references; 0 without any.
        longest: The longest explained part of a held-out reference, a length; None without any.
        longest_unit: The unit for that length, as a length.
        stretch: What bounds on lengths are multiplied with: how much longer than ``longest`` the explained parts of
            nine in ten clients were in the rounds before; 1 if they were not. A model that knows the root data by heart
            has short references.
        widened: What units were multiplied with since root data did not fit the clients; 1 where they do.
        trusted: Whether the root data have all classes and fit.
        fit: How well root data have fitted the clients lately: 1 if nothing was widened, 0 if as much as at a misfit.
        calibration: Running means of the references' own spreads, of ``widened`` and of the logarithm of ``stretch``,
            for the next round.
    """

    columns: Float64[Tensor, "n 5"]
    informative: Bool[Tensor, " n"]
    residual: Float64[Tensor, " n"]
    cut: Float64[Tensor, " n"]
    limit: float
    usual: float
    longest: float | None
    longest_unit: float
    stretch: float
    widened: float
    trusted: bool
    fit: float
    calibration: Mapping[str, Tensor]


def gather(
    m: Measurements, n_balanced: int, complete: bool, old: Mapping[str, Tensor] | None, memory: float
) -> Evidence:
    """Express measurements in the references' own deviations.

    The residual of an honest update grows with its explained part: its expected square is A² + B² times the square of
    the explained part, with A and B from the balanced and the single-class held-out references.

    Args:
        m: Of the round.
        n_balanced: How many of the held-out references are balanced.
        complete: Whether the root data have all classes.
        old: The calibration of earlier rounds; None before the first.
        memory: Factor on the weight of earlier rounds in the calibration.
    """
    calibrated = bool(
        (m.held_explained > 0).any()
    )  # not with root data of a sample or two, or where they teach nothing
    unit_of = _unit(m, n_balanced) if calibrated else torch.ones_like
    longest = float(m.held_explained.max()) if calibrated else None
    # what is longer than every reference is cut to the longest before it counts, and its residual with it
    cut = (longest / m.explained.clamp(min=1e-300)).clamp(max=1) if longest else torch.ones_like(m.explained)
    residual = m.residual / unit_of(m.explained) if calibrated else torch.zeros_like(m.residual)
    usual = float(m.held_length[:n_balanced].mean()) if n_balanced else 0.0
    informative = m.length > _EMPTY * usual
    now = {"mean": m.class_alignment.mean(dim=0), "variance": m.class_alignment.var(dim=0, correction=0)}
    apart = (m.held_residual / unit_of(m.held_explained)).clamp(min=1e-300).log().abs().clamp(max=_LONGEST_LOG)
    now["spread"] = apart.mean() * _FROM_MEAN if calibrated else m.length.new_ones(())
    heard, widened = informative.any(), 1.0
    if heard:
        widened = max(1.0, float(torch.quantile(_fitting(m, informative, unit_of, longest), _FITTING)) / _FAR)
    now["widened"] = m.length.new_tensor(widened)
    calibration = now if old is None else {k: memory * old[k] + (1 - memory) * v for k, v in now.items()}
    # of the rounds before this one: a cohort of attackers alone must not decide how long its updates may be
    lately = (old or {}).get("stretch", m.length.new_zeros(()))
    stretch = float(lately.exp())
    calibration["stretch"] = memory * lately + (1 - memory) * _stretch(m.explained[informative], longest or 0.0)
    spread = calibration["spread"].clamp(min=_LEAST_SPREAD)
    deviation = calibration["variance"].sqrt().clamp(min=_LEAST_DEVIATION)
    alignment = ((m.alignment - calibration["mean"]) / deviation).clamp(-_LARGEST, _LARGEST)
    alignment[:, 1] *= complete
    norm = (cut * residual / widened).clamp(min=1e-3).log() / spread if calibrated else residual
    joint = norm.clamp(min=-1) + alignment[:, 0]
    if heard:
        joint = joint - max(0.0, float(torch.quantile(joint[informative], _FITTING)))
    length = (m.explained / (stretch * longest)).clamp(min=1e-3).log() / spread if longest else residual
    columns = torch.cat([norm[:, None], alignment, joint[:, None], length[:, None]], dim=1).clamp(-_LARGEST, _LARGEST)
    return Evidence(
        columns=columns,
        informative=informative,
        residual=residual / widened,
        cut=cut,
        limit=float((_RANGE * spread).exp()),
        usual=usual,
        longest=longest,
        longest_unit=float(unit_of(m.held_explained).max()) * widened if calibrated else 0.0,
        stretch=stretch,
        widened=widened,
        trusted=complete and widened < _MISFIT,
        fit=float(((_MISFIT - calibration["widened"]) / (_MISFIT - 1)).clamp(0, 1).square()),
        calibration=calibration,
    )


def _stretch(explained: Float64[Tensor, " k"], longest: float) -> Float64[Tensor, ""]:
    """Logarithm of how much longer than every reference nine in ten clients are, at least 0; of one, nobody knows."""
    if len(explained) < 2 or not longest:
        return explained.new_zeros(())
    least = torch.quantile(explained, _FITTING, interpolation="lower")
    return (least / longest).clamp(min=1).log()


def _fitting(
    m: Measurements, chosen: Bool[Tensor, " n"], unit_of: Callable[[Tensor], Tensor], longest: float | None
) -> Float64[Tensor, " k"]:
    """Residual norms as if updates shorter than the median one had its length, cut to the longest reference.

    Who sends next to nothing must not say that the references fit.
    """
    length, explained, residual = (values[chosen] for values in (m.length, m.explained, m.residual))
    if not longest:
        return torch.zeros_like(length)
    scale = (length.median() / length).clamp(min=1)
    cut = (longest / (scale * explained).clamp(min=1e-300)).clamp(max=1)
    return cut * scale * residual / unit_of(scale * explained)


def _unit(m: Measurements, n_balanced: int) -> Callable[[Tensor], Tensor]:
    """Expected residual of an update as a function of its explained part."""
    outside, inside = m.held_residual.square(), m.held_explained.square()
    floor, growth = outside.mean(), outside.new_zeros(())
    if 0 < n_balanced < len(outside):
        floor = outside[:n_balanced].mean()
        longer = inside[n_balanced:].mean() - inside[:n_balanced].mean()
        if longer > 0:
            growth = ((outside[n_balanced:].mean() - floor) / longer).clamp(min=0)
        floor = (floor - growth * inside[:n_balanced].mean()).clamp(min=0.1 * floor)
    longest = m.held_explained.max()
    return lambda explained: (floor + growth * explained.clamp(max=longest).square()).sqrt().clamp(min=1e-300)
