"""From updates to clusters of masks: what ``skymask`` and ``skymask-nr`` share."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from numpy import ndarray
from torch import Tensor

from fedsieve.core.clustering import one_blas_thread
from fedsieve.core.defense import Detection, Diagnosis, Root, ServerView, Updates
from fedsieve.core.errors import ParameterError
from fedsieve.core.loss import LossName
from fedsieve.detectors.skymask.clusters import Clusters, kept_shares, principal_components, two_clusters
from fedsieve.detectors.skymask.masks import (
    CODE_STOPS_AFTER,
    first_coordinates,
    rows_without_overflow,
    train_blocks,
)

Preset = Literal["paper", "code"]
Reduction = Literal["mean", "sum"]
_PRESETS: dict[Preset, dict[str, Any]] = {
    "paper": {
        "clusters": "bic",
        "loss": "cross-entropy",
        "tolerance": 1e-3,
        "early_stop": False,
        "update_scale": 1.0,
    },
    "code": {
        "clusters": "two",
        "loss": "batch",
        "tolerance": 0.0,
        "early_stop": True,
        "update_scale": 0.5,
    },
}
_GAP_REFERENCES = 10


@dataclass(frozen=True)
class Clustered:
    """The masks of one round after training and clustering: k masks, of clients and then of the root model, if any.

    Attributes:
        rows: Which clients have a mask, [n]; False for those rejected because the model overflows with their update.
        points: Principal components of the binary masks, [k, c].
        kept: Share of each layer's parameters that each mask keeps, [k, layers].
        labels: Cluster of each mask, 0 or 1, [k]; None for one cluster.
    """

    rows: Bool[Tensor, " n"]
    points: Float64[ndarray, "k c"]
    kept: Float[Tensor, "k l"]
    labels: ndarray | None

    def detection(self, benign: ndarray | None, updates: Updates, reason: str) -> Detection:
        """The result over all n clients; those without a mask are rejected.

        Args:
            benign: Which of the clients with a mask stay; None for all.
            updates: The updates of all n clients.
            reason: Why the other clients with a mask are rejected.
        """
        n = int(self.rows.sum())
        stay = torch.ones(n, dtype=torch.bool) if benign is None else torch.from_numpy(benign)
        flat = np.zeros((len(self.points), 2))
        flat[:, : self.points.shape[1]] = self.points[:, :2]
        points = torch.from_numpy(flat).to(updates.matrix)
        names = tuple(s.name for s in updates.layout.layers)
        reasons = tuple("" if stays else reason for stays in stay.tolist())
        seen = Diagnosis(points[:n], points[n] if len(points) > n else None, names, self.kept[:n], reasons)
        stay = stay.to(updates.matrix.device)
        found = Detection(stay, (~stay).to(updates.matrix.dtype), diagnosis=seen)
        return found.scattered(self.rows, score=1.0, reason="overflow")


@dataclass(frozen=True)
class Recipe:
    """How masks are trained and clustered.

    Attributes as in :class:`fedsieve.detectors.skymask.SkyMask`, with the preset's values filled in.
    """

    clusters: Clusters
    loss: LossName
    reduction: Reduction
    tolerance: float
    early_stop: bool
    update_scale: float
    mask_learning_rate: float
    mask_clip: float | None
    mask_steps: int
    tau: float
    n_components: int
    gap_references: int
    slices: bool

    @classmethod
    def of(cls, name: str, preset: Preset, **parameters: Any) -> "Recipe":
        """The parameters of a detector, with the preset's values for those that are None.

        Args:
            name: Name of the detector, for error messages.
            preset: ``paper`` or ``code``.
            **parameters: The other attributes of :class:`fedsieve.detectors.skymask.SkyMask`.

        Raises:
            ParameterError: If a parameter is out of range or has no effect.
        """
        usual = {key: value for key, value in _PRESETS[preset].items() if parameters[key] is None}
        values = parameters | usual
        if values["gap_references"] is None:
            values["gap_references"] = _GAP_REFERENCES
        elif values["clusters"] != "gap":
            raise ParameterError(
                f"{name}: gap_references={values['gap_references']} has no effect with clusters={values['clusters']}; "
                "it needs clusters=gap"
            )
        if parameters["early_stop"] and values["mask_steps"] <= CODE_STOPS_AFTER:
            raise ParameterError(
                f"{name}: early_stop has no effect with mask_steps={values['mask_steps']}; "
                f"it stops after step {CODE_STOPS_AFTER}"
            )
        recipe = cls(**values)
        recipe._check(name)
        return recipe

    def _check(self, name: str) -> None:
        if not 0 < self.tau < 1:
            raise ParameterError(f"{name}: tau must be in (0, 1), got {self.tau}")
        for key in ("mask_steps", "n_components", "gap_references"):
            if getattr(self, key) < 1:
                raise ParameterError(f"{name}: {key} must be at least 1, got {getattr(self, key)}")
        for key in ("mask_learning_rate", "mask_clip", "update_scale"):
            value = getattr(self, key)
            if value is not None and not (value > 0 and np.isfinite(value)):
                raise ParameterError(f"{name}: {key} must be positive and finite, got {value}")
        if not 0 <= self.tolerance < 1:
            raise ParameterError(f"{name}: tolerance must be in [0, 1), got {self.tolerance}")

    def cluster(self, updates: Updates, view: ServerView, root: Root, extra: Float[Tensor, "e d"]) -> Clustered:
        """Train and cluster one mask per update.

        Args:
            updates: The clients' updates; those with which the model overflows get no mask.
            view: Has the global model, and the generator for the gap statistic's reference draws.
            root: The root data.
            extra: The root model's update as one row, or no row.
        """
        layers, x = updates.layout.layers, self._as_masked(updates.matrix, updates)
        extra = self._as_masked(extra, updates)
        rows = torch.ones(len(x), dtype=torch.bool)
        masks, steps = self._trained(x, extra, view, root)
        if not steps:  # the model overflows with the mean of all
            rows = rows_without_overflow(x, view.global_params, root).cpu()
            if not rows.any() and not len(extra):
                return Clustered(rows, np.zeros((0, 2)), x.new_zeros(0, len(layers)), None)
            masks, _ = self._trained(x[rows], extra, view, root)
        threshold = float(np.log(self.tau / (1 - self.tau)))  # sigmoid(m) > tau
        binary = torch.cat([block > threshold for block in masks], dim=1)
        kept = kept_shares(binary, layers)
        with one_blas_thread():
            points = principal_components(binary, self.n_components)
            labels = two_clusters(points, self.clusters, view.generator, self.gap_references)
            return Clustered(rows, points, kept.to(x.dtype), labels)

    def _trained(
        self, x: Float[Tensor, "n d"], extra: Float[Tensor, "e d"], view: ServerView, root: Root
    ) -> tuple[list[Float[Tensor, "k _"]], int]:
        """Masks of the clients and of the root model, if any, in blocks of columns, and the number of steps."""
        return train_blocks(
            [x, extra],
            view.global_params,
            root,
            learning_rate=self.mask_learning_rate,
            clip=self.mask_clip,
            max_steps=self.mask_steps,
            tolerance=self.tolerance,
            loss=self.loss,
            summed=self.reduction == "sum",
            early_stop=self.early_stop,
        )

    def _as_masked(self, x: Float[Tensor, "n d"], updates: Updates) -> Float[Tensor, "n d"]:
        """The updates as the masked models contain them: sliced and scaled."""
        x = first_coordinates(x, updates.layout) if self.slices else x
        return x if self.update_scale == 1 else x * self.update_scale
