"""SkyMask: one parameter-level mask per client model, trained together on root data and clustered.

Yan, Wang, Song, Hua, Ma, Hu, Haghighat, Guan. SkyMask: Attack-agnostic Robust Federated Learning with Fine-grained
Learnable Masks. ECCV 2024; arXiv 2312.12484. Section III-C, equations 2 to 6.

The server lays a learnable mask over each client model and over a root model that it trained itself. The masks are
trained together on the root data, binarised, reduced to principal components and clustered; the clients in the root
model's cluster stay. The root model takes no part in the aggregate.

Variant: ``preset="paper"`` (the default) is section III: masks start at 1, gradient descent on the root data's cross-
entropy until the masks converge, threshold tau = 0.5, two principal components, a Gaussian mixture. ``preset="code"``
is the mask stage of the published code as it runs: the loss normalised over the batch, one look at the loss after step
11 (stop if it fell by less than 0.01), always two clusters, updates multiplied by the local learning rate (0.5) once
more before they are masked. ``slices`` adds the code's slicing error: every tensor of a masked model is filled with the
first coordinates of the update. The clients' half of the code is ``local.loss=batch`` with ``local.clip_value=0.01``,
which the experiment sets.
Departs: Where the paper leaves a choice open, it is a parameter. (1) ``clusters``: the paper does not say how one
cluster is told from two. The default compares the BIC of one Gaussian and of two; the published code once had the gap
statistic, followed by k-means, and now always has two clusters. Here the labels are those of the mixture in each case.
(2) ``tolerance`` and ``mask_steps``: what "until convergence" means. (3) ``reduction``: the loss is a sum over the root
samples in equation 3; the paper's rate fits the mean, which the code has. (4) ``mask_clip``: the published code clips
each coordinate of the mask gradient; with the paper's rate and no clip, one large coordinate saturates its masks in the
first step. (5) Expectation maximisation starts deterministically. (6) A root model alone in its cluster means that no
client is accepted, where the code divides by zero. (7) Equation 7 weighs clients by their number of samples, which only
the client knows; the aggregator behind the detector decides. (8) ``preset="code"`` keeps BatchNorm, of which the code
keeps only the affine part. (9) Equal masks of all candidates are one cluster, as are candidates too few for two
components. (10) An update with which the mean of all models overflows is rejected before masks are trained.
"""

from dataclasses import asdict, dataclass
from typing import ClassVar

from fedsieve.core.defense import Detection, ServerView, Updates
from fedsieve.core.errors import MissingDataError
from fedsieve.core.loss import LossName
from fedsieve.core.traits import Traits
from fedsieve.detectors.skymask.clusters import Clusters
from fedsieve.detectors.skymask.recipe import Preset, Recipe, Reduction


@dataclass(frozen=True)
class SkyMask:
    """Keeps the clients whose masks are in the root model's cluster.

    For ``clusters``, ``loss``, ``tolerance``, ``early_stop`` and ``update_scale``, None means the preset's value.

    Attributes:
        preset: ``paper`` or ``code``.
        clusters: How one cluster is told from two: ``bic`` (paper), ``gap``, or ``two`` (code), which never asks.
        loss: Loss of the root data: ``cross-entropy`` (paper) or ``batch`` (code).
        reduction: ``mean`` or ``sum`` of the loss over the root samples.
        mask_learning_rate: γ in equation 4; the paper has 1e7 for Fashion-MNIST and HAR, 1e8 for CIFAR-10.
        mask_clip: Bound on the absolute value of each coordinate of the mask gradient; None for no bound.
        mask_steps: Most steps of mask training.
        tolerance: Training ends when no gate (the sigmoid of a mask entry) moves by more than this in a step, in
            [0, 1); 0.001 (paper), 0 (code).
        early_stop: Whether to stop after step 11 if the loss fell by less than 0.01; False (paper), True (code).
        tau: Binarisation threshold on the gate, in (0, 1).
        n_components: Number of principal components that are clustered, d in the paper. With fewer than
            2 (n_components + 1) candidates, root model included, all clients are accepted.
        gap_references: Number of reference draws of the gap statistic, 10 by default; only with ``clusters="gap"``.
        update_scale: Factor on the updates before they are masked; 1 (paper), 0.5 (code).
        slices: Whether every tensor of a masked model is filled with the first coordinates of the update, as in the
            published code.
    """

    preset: Preset = "paper"
    clusters: Clusters | None = None
    loss: LossName | None = None
    reduction: Reduction = "mean"
    mask_learning_rate: float = 1e7
    mask_clip: float | None = 1e-7
    mask_steps: int = 20
    tolerance: float | None = None
    early_stop: bool | None = None
    tau: float = 0.5
    n_components: int = 2
    gap_references: int | None = None
    update_scale: float | None = None
    slices: bool = False
    traits: ClassVar[Traits] = Traits(
        summary="Trains one mask per client model on root data, keeps the root model's cluster of masks",
        paper="Yan et al., SkyMask, ECCV 2024",
        needs=("root data",),
        breaks_at="nothing stated; the paper shows 80 % malicious clients. Without attack it rejects benign clients",
        cost="O(nd) per mask step + O(n^2 d)",
    )

    def __post_init__(self) -> None:
        Recipe.of("skymask", **asdict(self))

    def detect(self, updates: Updates, view: ServerView, /) -> Detection:
        """See :class:`fedsieve.core.defense.Detector`."""
        if view.root is None:
            raise MissingDataError("skymask needs root data, and the server has none")
        found = Recipe.of("skymask", **asdict(self)).cluster(updates, view, view.root, view.root.update()[None])
        labels = found.labels
        benign = None if labels is None else labels[:-1] == labels[-1]
        return found.detection(benign, updates, "not in the root model's cluster")
