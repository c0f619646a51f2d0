"""Sieve: compares clients with reference updates of the server's own. This project's own detector, unpublished.

No publication. It grew out of SkyMask (Yan et al., ECCV 2024), but it is another method: no mask is trained.
docs/sieve.md describes it, with measurements and limits.

Each round the server trains reference updates on its root data and measures every client: the cosine of its update and
the gradient of the root loss, the norm of the update's residual outside the span of the references, the negative cosine
of the update and the references' mean, and the norm of its running statistics. Measurements are averaged over rounds in
the client history. A client is rejected where a lower confidence bound of its mean measurement is above a limit, which
the server derives from its reference updates. Clients with nearly the same update are rejected at once.

Variant: there is one.
Departs: from nothing, since nothing is published.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, log
from statistics import NormalDist
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fedsieve.core.clustering import gram_components, one_blas_thread
from fedsieve.core.defense import Detection, Diagnosis, ServerView, Updates
from fedsieve.core.errors import MissingDataError, ParameterError
from fedsieve.core.linalg import column_blocks
from fedsieve.core.traits import Traits
from fedsieve.detectors.sieve.history import average, estimates, outlying_group, remember
from fedsieve.detectors.sieve.margin import margin
from fedsieve.detectors.sieve.measurements import measure
from fedsieve.detectors.sieve.near_duplicates import Masks, masks_of, near_duplicates
from fedsieve.detectors.sieve.reference import train_references

_REJECTED_AT_ONCE = 2.0  # a score on a scale where more than 1 is rejected
# Prior standard deviation of a client's measurements between rounds, for cosines and for logarithms of norms: as of
# single steps on batches of 32, the noisiest updates in use.
_COSINE_DEVIATION, _NORM_DEVIATION = 0.2, 0.35


@dataclass(frozen=True)
class Sieve:
    """Rejects clients whose measurements, averaged over rounds, exceed limits derived from reference updates.

    Attributes:
        gradient_alignment: Limit of the loss-gradient alignment, as a share of that of label-shifted references, in
            [0, 1).
        negative_cosine: Limit of the negative cosine above that of the references themselves, in [0, 1); twice that in
            single layers.
        residual_norm: Limit of the residual norm, in units of the held-out references' residual norm.
        near_duplicates: Two masks are near-duplicates if at most this share of their entries differs, in [0, 1).
        memory: Factor on the weight of a client's measurements each time it takes part again, in [0, 1).
        error_rate: Probability that a client exactly at the limits is rejected in a round, in (0, 0.5).
        forget_after: Rounds after which a client that does not come back is forgotten; at least 1.
    """

    gradient_alignment: float = 0.2
    negative_cosine: float = 0.15
    residual_norm: float = 1.75
    near_duplicates: float = 5e-4
    memory: float = 0.95
    error_rate: float = 0.01
    forget_after: int = 1000
    traits: ClassVar[Traits] = Traits(
        summary="Ours, unpublished: compares clients with the server's own reference updates, over rounds",
        needs=("root data", "state"),
        breaks_at="clients that turn malicious after many honest rounds; attackers that copy honest updates",
        cost="O(n^2 d) + 12 local trainings",
    )

    def __post_init__(self) -> None:
        for name in ("gradient_alignment", "negative_cosine", "near_duplicates", "memory"):
            if not 0 <= getattr(self, name) < 1:
                raise ParameterError(f"sieve: {name} must be in [0, 1), got {getattr(self, name)}")
        if not 0 < self.residual_norm < inf:
            raise ParameterError(f"sieve: residual_norm must be positive and finite, got {self.residual_norm}")
        if not 0 < self.error_rate < 0.5:
            raise ParameterError(f"sieve: error_rate must be in (0, 0.5), got {self.error_rate}")
        if self.forget_after < 1:
            raise ParameterError(f"sieve: forget_after must be at least 1, got {self.forget_after}")

    def detect(self, updates: Updates, view: ServerView, /) -> Detection:
        """See :class:`fedsieve.core.defense.Detector`."""
        if view.root is None:
            raise MissingDataError("sieve needs root data, and the server has none")
        x, ids, layout = updates.matrix, updates.client_ids, updates.layout
        gradient = view.root.gradient(view.global_params, margin)[1]
        references = train_references(view.root, layout, view.generator)
        seen = measure(x, gradient, references, layout)
        masks = masks_of(x, gradient, layout)

        shifted = seen.label_shifted.clamp(min=0)
        columns = [seen.gradient_alignment - self.gradient_alignment * shifted, seen.residual_norm]
        columns += [] if seen.statistics is None else [seen.statistics]
        values = torch.cat([torch.stack(columns, dim=1), seen.negative_cosine], dim=1)
        old = view.state or {}
        history = remember(old.get("history"), ids, values, self.memory, self.forget_after)
        now = {"label_shifted": shifted, "negative_cosine": seen.class_negative_cosine}
        sums = average(old.get("references"), now, self.memory)
        prior = torch.full_like(values[0], _COSINE_DEVIATION**2)
        prior[1 : len(columns)] = _NORM_DEVIATION**2
        means, errors = estimates(history, ids, prior)
        deviations = NormalDist().inv_cdf(1 - self.error_rate / values.shape[1])
        tests = self._scores(means - deviations * errors, sums, references.complete)
        same, same_layer = near_duplicates(x, masks, self.near_duplicates)
        tests["near-duplicate"] = same * _REJECTED_AT_ONCE
        tests["near-duplicate in a layer"] = same_layer * _REJECTED_AT_ONCE
        # limits of a group's mean: alignment as of one client, a third of the excess in norm that one client may have
        limits = (0.0, log(1 + (self.residual_norm - 1) / 3))
        others = ~same  # near-duplicates have nearly equal measurements, which say nothing about variance
        for k, name in enumerate(("gradient alignment", "residual norm")):
            apart = torch.zeros_like(same)
            apart[others] = outlying_group(means[others, k], errors[others, k], limits[k], deviations)
            tests[f"{name} of a group"] = apart * _REJECTED_AT_ONCE
        stacked = torch.stack(list(tests.values()))
        reasons = tuple(
            ", ".join(name for name, exceeded in zip(tests, column, strict=True) if exceeded)
            for column in (stacked > 1).T.tolist()
        )
        scores = stacked.amax(dim=0)
        return Detection(
            scores <= 1,
            scores.to(x.dtype),
            state={"history": history, "references": sums},
            diagnosis=_diagnosis(masks, updates, references.root, reasons),
        )

    def _scores(
        self, bounds: Float64[Tensor, "n f"], sums: Mapping[str, Any], complete: bool
    ) -> dict[str, Float64[Tensor, " n"]]:
        """The score of each client, [n], in each test that uses the history, by name; more than 1 is above the limit.

        Args:
            bounds: Lower confidence bounds of the clients' mean measurements: gradient alignment, residual norm,
                running statistics if the model has any, negative cosine of the whole model and of its layers.
            sums: Weighted sums of the references' measurements over rounds, from :func:`average`.
            complete: Whether the root data have every class; if not, the negative cosine is not tested.
        """
        parts = sums["negative_cosine"].shape[1]
        # the reference of one class may point away from the others, and so may a benign client of that class
        tolerated = (sums["negative_cosine"] / sums["rounds"]).amax(dim=0).clamp(min=0) + self.negative_cosine
        tolerated[1:] += self.negative_cosine
        opposing = (bounds[:, -parts:] / tolerated).clamp(min=0) * complete
        shifted = self.gradient_alignment * sums["label_shifted"] / sums["rounds"]
        found = {
            "gradient alignment": (1 + bounds[:, 0] / shifted.clamp(min=0.05)).clamp(0, 100),
            "residual norm": (bounds[:, 1].clamp(max=100).exp() / self.residual_norm).clamp(max=100),
            "negative cosine": opposing[:, 0],
        }
        if parts > 1:
            found["negative cosine in a layer"] = opposing[:, 1:].amax(dim=1)
        if bounds.shape[1] - parts > 2:
            statistics = (bounds[:, 2].clamp(max=100).exp() / self.residual_norm).clamp(max=100)
            found["running statistics"] = statistics
        return found


def _diagnosis(masks: Masks, updates: Updates, root: Float[Tensor, " d"], reasons: tuple[str, ...]) -> Diagnosis:
    """Positions of the masks (entries +1 and -1; root model last) along principal components, and what masks keep."""
    x = updates.matrix
    n, p = len(x), updates.layout.n_parameters
    signs = root[:p].sign()
    to_root = torch.zeros(n, dtype=torch.float64, device=x.device)
    for block in column_blocks(x[:, :p]):
        to_root += (x[:, block].sign() @ signs[block]).double()
    gram = (masks.common - 2 * masks.differing).sum(dim=0)
    full = torch.zeros(n + 1, n + 1, dtype=torch.float64, device=x.device)
    full[:n, :n], full[n, :n], full[:n, n], full[n, n] = gram, to_root, to_root, signs.abs().sum()
    with one_blas_thread():
        points = torch.from_numpy(gram_components(full, 2)).to(x)
    kept = (masks.kept / masks.decided.clamp(min=1)).T.to(x.dtype)
    return Diagnosis(points[:n], points[n], tuple(s.name for s in masks.layers), kept, reasons)
