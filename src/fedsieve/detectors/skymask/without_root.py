"""SkyMask-NR: SkyMask without a root model; the larger cluster of masks stays.

Yan, Wang, Song, Hua, Ma, Hu, Haghighat, Guan. SkyMask: Attack-agnostic Robust Federated Learning with Fine-grained
Learnable Masks. ECCV 2024; arXiv 2312.12484. Section IV-A6.

Masks are trained on the root data, but the server trains no model on them. The larger of two clusters is benign, which
needs fewer than 50 % malicious clients.

Variant: as in ``skymask``.
Departs: as in ``skymask``; and of two clusters of equal size, neither is accepted.
"""

from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np

from fedsieve.core.defense import Detection, ServerView, Updates
from fedsieve.core.errors import MissingDataError
from fedsieve.core.loss import LossName
from fedsieve.core.traits import Traits
from fedsieve.detectors.skymask.clusters import Clusters
from fedsieve.detectors.skymask.recipe import Preset, Recipe, Reduction


@dataclass(frozen=True)
class SkyMaskNR:
    """Keeps the larger cluster of masks. Attributes as in :class:`fedsieve.detectors.skymask.SkyMask`."""

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
        summary="SkyMask without a root model: keeps the larger cluster of masks",
        paper="Yan et al., SkyMask, ECCV 2024",
        needs=("root data",),
        breaks_at="n <= 2m",
        cost="O(nd) per mask step + O(n^2 d)",
    )

    def __post_init__(self) -> None:
        Recipe.of("skymask-nr", **asdict(self))

    def detect(self, updates: Updates, view: ServerView, /) -> Detection:
        """See :class:`fedsieve.core.defense.Detector`."""
        if view.root is None:
            raise MissingDataError("skymask-nr trains its masks on root data, and the server has none")
        found = Recipe.of("skymask-nr", **asdict(self)).cluster(updates, view, view.root, updates.matrix[:0])
        larger = None
        if found.labels is not None:
            n, second = len(found.labels), 2 * int(found.labels.sum())
            larger = np.zeros(n, dtype=bool) if second == n else found.labels == (second > n)
        return found.detection(larger, updates, "in the smaller cluster")
