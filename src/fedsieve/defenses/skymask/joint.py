"""The paper's masks, trained all together on the root data's loss, and clustered: equations 2 to 5.

One real-valued mask per candidate model, all ones at first. The masked models are averaged per coordinate,
W~ = sum_i s(m_i) W_i / sum_i s(m_i) with s the sigmoid, and only the masks learn, by gradient descent on the loss of
W~. Binarised at tau, reduced to principal components and clustered by a Gaussian mixture, they show who disagrees.
"""

import warnings
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from numpy import ndarray
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from fedsieve.clustering import best_cut, gram_components, one_blas_thread
from fedsieve.ops import column_blocks
from fedsieve.types import Diagnosis, Objective, ParameterError, Root, ServerView, Updates, Verdict

Together = Literal["paper", "official"]
# Loss, least gain by step 11, and the BIC that two clusters must gain (None: always two).
PRESETS: dict[Together, tuple[Objective, float | None, float | None]] = {
    "paper": ("cross-entropy", None, 0.0),
    "official": ("batch", 1e-2, None),
}
# The published code looks at the loss once, after this step.
_LOOK = 11


@runtime_checkable
class Recipe(Protocol):
    """The parameters of training and clustering masks together, as :class:`fedsieve.defenses.skymask.SkyMask` has."""

    @property
    def mask_learning_rate(self) -> float:
        """γ."""
        ...

    @property
    def mask_clip(self) -> float:
        """Bound on each coordinate of the mask gradient."""
        ...

    @property
    def mask_steps(self) -> int:
        """Most steps."""
        ...

    @property
    def tau(self) -> float:
        """Binarisation threshold on the gate."""
        ...

    @property
    def n_components(self) -> int:
        """Principal components that are clustered."""
        ...


# --- Training the masks -------------------------------------------------------------------------------------


def masked_mean(x: Float[Tensor, "n d"], masks: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    """Equation 2: per coordinate, the mean of the rows weighted by the sigmoid of their masks."""
    gates = masks.sigmoid()
    return (gates * x).sum(dim=0) / gates.sum(dim=0)


def mask_gradient(
    x: Float[Tensor, "n d"], masks: Float[Tensor, "n d"], outer: Float[Tensor, " d"]
) -> Float[Tensor, "n d"]:
    """Gradient of a loss with respect to the masks, given ``outer``, its gradient at :func:`masked_mean`.

    In closed form, dL/dm_i = s(m_i) (1 - s(m_i)) (x_i - masked mean) / sum_j s(m_j) * dL/d(masked mean).
    """
    gates = masks.sigmoid()
    total = gates.sum(dim=0)
    offset = x - (gates * x).sum(dim=0) / total
    return gates * (1 - gates) * offset * (outer / total)


def train_masks(
    candidates: Float[Tensor, "n d"],
    global_params: Float[Tensor, " d"],
    root: Root,
    *,
    learning_rate: float,
    clip: float,
    max_steps: int,
    tolerance: float,
    objective: Objective = "cross-entropy",
    least_gain: float | None = None,
) -> tuple[Float[Tensor, "n d"], int]:
    """The trained masks (before the sigmoid) and the steps taken.

    Works on updates instead of models: the masks' weights sum to 1, so W~ = global_params + masked mean of the
    updates, without the rounding that adding and subtracting the global model would bring. Each step is one backward
    pass through the model and one pass over the two matrices, in blocks of columns that stay in the cache.

    Args:
        candidates: Updates, one row per mask.
        global_params: What they are relative to.
        root: Gives the gradient of the root loss.
        learning_rate: γ in equation 4.
        clip: Bound on the absolute value of each coordinate of the gradient.
        max_steps: Bound on the work.
        tolerance: Converged when no gate moves further than this in one step.
        objective: Which loss of the root data.
        least_gain: Stop after step 11 if the loss has not fallen by this much in the first ten, as the published code
            does; None goes on.
    """
    masks = torch.ones_like(candidates)
    blocks = list(column_blocks(candidates))
    mean = candidates.mean(dim=0)  # equal masks: the plain mean
    total = torch.full_like(mean, len(candidates)) * mean.new_ones(()).sigmoid()
    first = None
    for step in range(1, max_steps + 1):
        loss, outer = root.gradient(global_params + mean, objective)
        first = loss if first is None else first
        if not torch.isfinite(outer).all():  # nothing to learn from; what was learned so far stands
            break
        moved = torch.zeros((), device=masks.device, dtype=masks.dtype)
        for block in blocks:
            # equals mask_gradient and masked_mean, in place: a third of the memory traffic
            x, m = candidates[:, block], masks[:, block]
            gates = m.sigmoid()
            gradient = (x - mean[block]).mul_(outer[block] / total[block])
            gradient = torch.ops.aten.sigmoid_backward(gradient, gates).clamp_(-clip, clip)
            new_gates = m.sub_(gradient, alpha=learning_rate).sigmoid()
            moved = torch.maximum(moved, gates.sub_(new_gates).abs_().max())
            total[block] = new_gates.sum(dim=0)
            mean[block] = new_gates.mul_(x).sum(dim=0) / total[block]
        if moved <= tolerance or (least_gain is not None and step == _LOOK and first - loss < least_gain):
            break
    return masks, step


def bearable(x: Float[Tensor, "n d"], global_params: Float[Tensor, " d"], root: Root) -> Bool[Tensor, " n"]:
    """Rows without which the model would not overflow: the longest go until the root loss's gradient is finite.

    A single update of, say, 1e30 is finite, but makes the masked mean a model without a loss, from which no mask
    learns anything; unless it goes, it would hide everyone.
    """
    rows = torch.ones(len(x), dtype=torch.bool, device=x.device)
    lengths, kept = None, x
    while len(kept) and not torch.isfinite(root.gradient(global_params + kept.mean(dim=0))[1]).all():
        if lengths is None:
            lengths = torch.linalg.vector_norm(x, dim=1, dtype=torch.float64)
        rows[torch.where(rows, lengths, -1).argmax()] = False
        kept = x[rows]
    return rows


# --- Clustering them ----------------------------------------------------------------------------------------


def principal_components(binary: Bool[Tensor, "n d"], n_components: int) -> Float64[ndarray, "n k"]:
    """Coordinates of the rows along their leading principal components; zero columns where there are none.

    From the Gram matrix, which counts common ones and so is exact.
    """
    gram = torch.zeros(len(binary), len(binary), dtype=torch.float64, device=binary.device)
    for block in column_blocks(binary):
        ones = binary[:, block].float()
        gram += ones @ ones.T  # integers below 2^24: exact in float32
    return gram_components(gram, n_components)


def two_clusters(points: Float64[ndarray, "n k"], evidence: float | None) -> ndarray | None:
    """Labels 0 and 1 of a mixture of two Gaussians, or None if one describes the points as well.

    Expectation maximisation starts from the best cut of each coordinate in turn, and the likelier end wins: nothing
    is drawn at random, so neither a seed nor the order of the points can matter.

    Args:
        points: At least one.
        evidence: How much smaller the BIC of two components must be than that of one, per point; None does not ask.
    """
    n, k = points.shape
    centred = points - points.mean(axis=0)
    if n < 2 * (k + 1) or not np.ptp(points, axis=0).any():
        return None
    scaled = centred / centred.std()
    one = _mixture([scaled])
    starts = [best_cut(column) for column in scaled.T if np.ptp(column) > 0]
    two = max((_mixture([scaled[cut], scaled[~cut]], scaled) for cut in starts), key=lambda fit: fit.score(scaled))
    if evidence is not None and one.bic(scaled) - two.bic(scaled) <= evidence * n:
        return None
    labels: ndarray = two.predict(scaled)
    return labels if labels.min() != labels.max() else None


def _mixture(groups: list[ndarray], points: ndarray | None = None) -> GaussianMixture:
    """One Gaussian per group; with ``points``, expectation maximisation on these from there."""
    points = groups[0] if points is None else points
    k = points.shape[1]
    # rows that are all equal have no variance: the floor, small against the points' scale of 1, keeps it regular
    floor = 1e-4
    covariances = [np.cov(g.T, bias=True).reshape(k, k) + floor * np.eye(k) for g in groups]
    mixture = GaussianMixture(
        len(groups),
        reg_covar=floor,
        max_iter=1000,
        tol=1e-4,
        weights_init=[len(g) / len(points) for g in groups],
        means_init=[g.mean(axis=0) for g in groups],
        precisions_init=np.linalg.inv(covariances),
    )
    with warnings.catch_warnings():  # a fit that has not settled after all these steps is still a candidate
        warnings.simplefilter("ignore", ConvergenceWarning)
        return mixture.fit(points)


# --- From updates to clusters --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clustered:
    """Masks trained together: of the clients that the model can bear, then of the root model, if it is among them."""

    rows: Bool[Tensor, " n"]
    points: Float64[ndarray, "k c"]
    kept: Float[Tensor, "k l"]
    labels: ndarray | None  # None: one cluster

    def verdict(self, benign: ndarray | None, updates: Updates, reason: str) -> Verdict:
        """Those that are benign stay, of the rows that were clustered; all of these, where there is one cluster.

        Args:
            benign: Of these rows; None for one cluster.
            updates: What was judged.
            reason: Why the others go.
        """
        accepted = self.rows.clone()
        if benign is not None:
            accepted[self.rows] = torch.from_numpy(benign).to(accepted.device)
        n = int(self.rows.sum())
        flat = np.zeros((len(self.points), 2))
        flat[:, : self.points.shape[1]] = self.points[:, :2]
        points = torch.from_numpy(flat).to(updates.matrix)
        names = tuple(s.name for s in updates.layout.layers)
        reasons = tuple("" if stays else reason for stays in accepted[self.rows].tolist())
        seen = Diagnosis(points[:n], points[n] if len(points) > n else None, names, self.kept[:n], reasons)
        whole = seen.spread(self.rows)
        told = zip(whole.reasons, self.rows.tolist(), strict=True)
        whole = replace(whole, reasons=tuple(why if borne else "overflow" for why, borne in told))
        return Verdict(accepted, (~accepted).to(updates.matrix.dtype), diagnosis=whole)


def cluster(
    rule: Recipe, preset: Together, updates: Updates, view: ServerView, extra: Float[Tensor, "e d"]
) -> Clustered:
    """Trains and clusters the masks of all updates that the model can bear, and of ``extra``."""
    assert view.root is not None
    objective, least_gain, evidence = PRESETS[preset]
    x = updates.matrix
    rows = bearable(x, view.global_params, view.root)
    candidates = torch.cat([x if rows.all() else x[rows], extra])
    layers = updates.layout.layers
    if not len(candidates):
        return Clustered(rows, np.zeros((0, 2)), x.new_zeros(0, len(layers)), None)
    masks, _ = train_masks(
        candidates,
        view.global_params,
        view.root,
        learning_rate=rule.mask_learning_rate,
        clip=rule.mask_clip,
        max_steps=rule.mask_steps,
        tolerance=1e-3,
        objective=objective,
        least_gain=least_gain,
    )
    binary = masks > float(np.log(rule.tau / (1 - rule.tau)))  # sigmoid(m) > tau
    kept = torch.stack([binary[:, s.start : s.stop].sum(dim=1) / (s.stop - s.start) for s in layers], dim=1)
    with one_blas_thread():
        points = principal_components(binary, rule.n_components)
        return Clustered(rows, points, kept.to(x.dtype), two_clusters(points, evidence))


def check_masks(name: str, rule: Recipe) -> None:
    """Refuses parameters out of range, in the name of a defense."""
    if not 0 < rule.tau < 1:
        raise ParameterError(f"{name}: tau must be in (0, 1), got {rule.tau}")
    if min(rule.mask_steps, rule.n_components) < 1:
        raise ParameterError(
            f"{name}: mask_steps and n_components must be at least 1, got {rule.mask_steps} and {rule.n_components}"
        )
    if not (rule.mask_learning_rate > 0 and rule.mask_clip > 0):
        raise ParameterError(
            f"{name}: mask_learning_rate and mask_clip must be positive, got "
            f"{rule.mask_learning_rate} and {rule.mask_clip}"
        )
