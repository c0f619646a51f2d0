"""SkyMask: learnable parameter-level masks that tell malicious models from benign ones.

Yan, Wang, Song, Hua, Ma, Hu, Haghighat, Guan. SkyMask: Attack-agnostic Robust Federated Learning with Fine-grained
Learnable Masks. ECCV 2024; arXiv 2312.12484. Section III-C, equations 2 to 6.

One real-valued mask per candidate model, all ones at first. The masked models are averaged per coordinate,
W~ = sum_i s(m_i) W_i / sum_i s(m_i) with s the sigmoid, and only the masks learn, by gradient descent on the root
data's loss of W~. Binarised at tau, reduced to two principal components and clustered by a Gaussian mixture, they
show who disagrees with the root model: the clients outside its cluster are rejected.

Variant: candidates are the clients' models and, in ``skymask``, the root model, which takes no part in the
aggregate; ``skymask-nr`` has no root model and keeps the larger cluster. Clustering fits one and two components and
keeps one unless the BIC of two is lower by more than ``evidence`` per candidate (docs/design.md has the measurements).
Departs: (1) The mask gradient is clipped, as in the published code: with the paper's mask learning rate and no clip,
one large coordinate saturates its masks in the first step. (2) The paper says that without an attack the masks form
one cluster, but a mixture of two always finds two; ``evidence`` is the test it leaves out, and 0 turns it into plain
BIC. (3) Equation 7 weighs by samples, a number only the client knows; the rule after the filter decides.
Needs: root data. Breaks at: nothing stated; the paper shows 80 % malicious clients. Cost: O(n d) per mask step, plus
O(n^2 d) for the principal components.

The edge cases: an update so large that the model overflows on the mean of all is rejected beforehand. Masks that are
all equal are one cluster, so everybody is accepted; candidates too few for two components (fewer than
2 (``n_components`` + 1)) are one cluster too. A root model alone in its cluster, and for ``skymask-nr`` two clusters of
equal size, mean that nobody is accepted.
"""

import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from numpy import ndarray
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from fedsieve.clustering import best_cut, gram_components, one_blas_thread
from fedsieve.ops import column_blocks
from fedsieve.types import MissingDataError, ParameterError, Root, ServerView, Traits, Updates, Verdict

_PAPER = "Yan et al., SkyMask, ECCV 2024"


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
    """
    masks = torch.ones_like(candidates)
    blocks = list(column_blocks(candidates))
    mean = candidates.mean(dim=0)  # equal masks: the plain mean
    total = torch.full_like(mean, len(candidates)) * mean.new_ones(()).sigmoid()
    for step in range(1, max_steps + 1):  # noqa: B007 (returned)
        outer = root.gradient(global_params + mean)[1]
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
        if moved <= tolerance:
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


def two_clusters(points: Float64[ndarray, "n k"], evidence: float) -> ndarray | None:
    """Labels 0 and 1 of a mixture of two Gaussians, or None if one describes the points as well.

    Expectation maximisation starts from the best cut of each coordinate in turn, and the likelier end wins: nothing
    is drawn at random, so neither a seed nor the order of the points can matter.

    Args:
        points: At least one.
        evidence: How much smaller the BIC of two components must be than that of one, per point.
    """
    n, k = points.shape
    centred = points - points.mean(axis=0)
    if n < 2 * (k + 1) or not np.ptp(points, axis=0).any():
        return None
    scaled = centred / centred.std()
    one = _mixture([scaled])
    starts = [best_cut(column) for column in scaled.T if np.ptp(column) > 0]
    two = max((_mixture([scaled[cut], scaled[~cut]], scaled) for cut in starts), key=lambda fit: fit.score(scaled))
    if one.bic(scaled) - two.bic(scaled) <= evidence * n:
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


# --- The filters --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SkyMask:
    """Keeps the clients whose masks cluster with the root model's.

    Attributes:
        mask_learning_rate: γ; the paper has 1e7 for Fashion-MNIST and HAR, 1e8 for CIFAR-10.
        mask_clip: Bound on each coordinate of the mask gradient.
        mask_steps: Most steps of mask training.
        mask_tolerance: Masks have converged when no gate moves further than this in a step.
        tau: Binarisation threshold on the gate, in (0, 1).
        n_components: d, the principal components that are clustered.
        evidence: BIC per candidate that two clusters must gain over one.
    """

    mask_learning_rate: float = 1e7
    mask_clip: float = 1e-7
    mask_steps: int = 20
    mask_tolerance: float = 1e-3
    tau: float = 0.5
    n_components: int = 2
    evidence: float = 0.5
    traits: ClassVar[Traits] = Traits(
        summary="Keeps the clients whose learned masks cluster with the server's root model",
        paper=_PAPER,
        needs=("root data",),
        cost="O(nd) per mask step + O(n^2 d)",
    )

    def __post_init__(self) -> None:
        _check("skymask", self)

    def judge(self, updates: Updates, view: ServerView, /) -> Verdict:
        """See :class:`fedsieve.types.Filter`."""
        if view.root is None:
            raise MissingDataError("skymask needs root data, and the server has none")
        labels, rows = _cluster(self, updates.matrix, view, view.root.update()[None])
        return _verdict(updates, rows, None if labels is None else labels[:-1] == labels[-1])


@dataclass(frozen=True)
class SkyMaskNR:
    """SkyMask without a root model: keeps the larger cluster. For fewer than half malicious clients.

    Attributes are those of :class:`SkyMask`.
    """

    mask_learning_rate: float = 1e7
    mask_clip: float = 1e-7
    mask_steps: int = 20
    mask_tolerance: float = 1e-3
    tau: float = 0.5
    n_components: int = 2
    evidence: float = 0.5
    traits: ClassVar[Traits] = Traits(
        summary="SkyMask without a root model: keeps the larger cluster of masks",
        paper=_PAPER,
        needs=("root data",),
        bound="n > 2m",
        cost="O(nd) per mask step + O(n^2 d)",
    )

    def __post_init__(self) -> None:
        _check("skymask-nr", self)

    def judge(self, updates: Updates, view: ServerView, /) -> Verdict:
        """See :class:`fedsieve.types.Filter`."""
        if view.root is None:
            raise MissingDataError("skymask-nr trains its masks on root data, and the server has none")
        labels, rows = _cluster(self, updates.matrix, view, updates.matrix[:0])
        if labels is None:
            return _verdict(updates, rows, None)
        in_second = 2 * int(labels.sum())
        larger = np.zeros(len(labels), dtype=bool) if in_second == len(labels) else labels == (in_second > len(labels))
        return _verdict(updates, rows, larger)


def _cluster(
    rule: SkyMask | SkyMaskNR, x: Float[Tensor, "n d"], view: ServerView, extra: Float[Tensor, "e d"]
) -> tuple[ndarray | None, Bool[Tensor, " n"]]:
    """Labels of the rows of ``x`` that the model can bear, then of ``extra``; and which rows these are."""
    assert view.root is not None
    rows = bearable(x, view.global_params, view.root)
    candidates = torch.cat([x if rows.all() else x[rows], extra])
    if not len(candidates):
        return None, rows
    masks, _ = train_masks(
        candidates,
        view.global_params,
        view.root,
        learning_rate=rule.mask_learning_rate,
        clip=rule.mask_clip,
        max_steps=rule.mask_steps,
        tolerance=rule.mask_tolerance,
    )
    binary = masks > float(np.log(rule.tau / (1 - rule.tau)))  # sigmoid(m) > tau
    with one_blas_thread():
        return two_clusters(principal_components(binary, rule.n_components), rule.evidence), rows


def _verdict(updates: Updates, rows: Bool[Tensor, " n"], benign: ndarray | None) -> Verdict:
    """Of the rows that were clustered, those that are benign stay; all, where there is one cluster."""
    accepted = rows.clone()
    if benign is not None:
        accepted[rows] = torch.from_numpy(benign).to(rows.device)
    return Verdict(accepted, suspicion=(~accepted).to(updates.matrix.dtype))


def _check(name: str, rule: SkyMask | SkyMaskNR) -> None:
    if not 0 < rule.tau < 1:
        raise ParameterError(f"{name}: tau must be in (0, 1), got {rule.tau}")
    if min(rule.mask_steps, rule.n_components) < 1:
        raise ParameterError(
            f"{name}: mask_steps and n_components must be at least 1, got {rule.mask_steps} and {rule.n_components}"
        )
    if not (rule.mask_learning_rate > 0 and rule.mask_clip > 0 and rule.mask_tolerance >= 0 and rule.evidence >= 0):
        raise ParameterError(
            f"{name}: mask_learning_rate and mask_clip must be positive, mask_tolerance and evidence not negative, got "
            f"{rule.mask_learning_rate}, {rule.mask_clip}, {rule.mask_tolerance} and {rule.evidence}"
        )
