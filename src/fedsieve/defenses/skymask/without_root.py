"""SkyMask without a root model: the larger cluster of masks stays.

Yan, Wang, Song, Hua, Ma, Hu, Haghighat, Guan. SkyMask: Attack-agnostic Robust Federated Learning with Fine-grained
Learnable Masks. ECCV 2024; arXiv 2312.12484. Section V, SkyMask-NR.

Masks are trained on the root data as ever, but nobody trains a model on these, so it must be believed that most
clients are benign.

Variant: ``preset="paper"`` and ``preset="official"`` as in ``skymask``.
Departs: as there; two clusters of equal size mean that nobody is accepted.
Needs: root data. Breaks at: n > 2m. Cost: O(nd) per mask step + O(n^2 d)
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsieve.defenses.skymask.joint import Together, check_masks, cluster
from fedsieve.types import MissingDataError, ServerView, Traits, Updates, Verdict


@dataclass(frozen=True)
class SkyMaskNR:
    """SkyMask without a root model: keeps the larger cluster. For fewer than half malicious clients.

    Attributes:
        preset: ``paper`` or ``official``.
        mask_learning_rate: γ.
        mask_clip: Bound on each coordinate of the mask gradient.
        mask_steps: Most steps of mask training.
        tau: Binarisation threshold on the gate, in (0, 1).
        n_components: d, the principal components that are clustered.
    """

    preset: Together = "paper"
    mask_learning_rate: float = 1e7
    mask_clip: float = 1e-7
    mask_steps: int = 20
    tau: float = 0.5
    n_components: int = 2
    traits: ClassVar[Traits] = Traits(
        summary="SkyMask without a root model: keeps the larger cluster of masks",
        paper="Yan et al., SkyMask, ECCV 2024",
        needs=("root data",),
        bound="n > 2m",
        cost="O(nd) per mask step + O(n^2 d)",
    )

    def __post_init__(self) -> None:
        check_masks("skymask-nr", self)

    def judge(self, updates: Updates, view: ServerView, /) -> Verdict:
        """See :class:`fedsieve.types.Filter`."""
        if view.root is None:
            raise MissingDataError("skymask-nr trains its masks on root data, and the server has none")
        found = cluster(self, self.preset, updates, view, updates.matrix[:0])
        larger = None
        if found.labels is not None:
            n, second = len(found.labels), 2 * int(found.labels.sum())
            larger = np.zeros(n, dtype=bool) if second == n else found.labels == (second > n)
        return found.verdict(larger, updates, "the smaller cluster")
