"""SkyMask: learnable parameter-level masks that tell malicious models from benign ones.

Yan, Wang, Song, Hua, Ma, Hu, Haghighat, Guan. SkyMask: Attack-agnostic Robust Federated Learning with Fine-grained
Learnable Masks. ECCV 2024; arXiv 2312.12484. Section III-C, equations 2 to 6.

A learnable mask lies over each client's model; trained on the server's clean root data it keeps the parameters that
help and drops those that harm. The masks show who is malicious, however the attack hides, and whatever share of the
clients is. The root model takes no part in the aggregate.

Variant: ``preset="anchored"`` is ours, the default: each mask is trained against the model as it was instead of
against all other clients (``anchored.py``), on a loss that mixes of labels can't turn around, and what the masks say
adds up over rounds until it is sure (``evidence.py``). ``preset="paper"`` is the paper to the letter: all masks trained
together on the cross-entropy, binarised, two principal components, a mixture of one or two Gaussians by BIC, the root
model's cluster stays. ``preset="official"`` has the published code's mask loss (softmax over the batch), its stop after
step 11, and always two clusters.
Departs: ``anchored`` in all of that; docs/skymask.md has the reasons and an ablation. A client is rejected for any of
five: the harm its masks show, strangeness, opposition to the server's honest witnesses, running statistics beyond
theirs, or a mask that equals another's.
``paper`` and ``official``: the mask gradient is clipped, as in the published code: with the paper's rate and no clip,
one large coordinate saturates its masks in the first step; the mixture starts deterministically; a root model alone in
its cluster means that nobody is accepted, where the code divides by zero. ``official`` leaves out that the code scales
updates by the local learning rate once more, and its fixed BatchNorm. (Equation 7 weighs by samples, a number only the
client knows; the rule after the filter decides.)
Needs: root data, state. Breaks at: nothing stated; the paper shows 80 % malicious clients. Cost: O(n^2 d) once and
about 12 local trainings of the server's own; ``paper``: O(n d) per mask step, O(n^2 d) for the components.

The edge cases. ``anchored``: evidence needs rounds, so that a client which merely lies about its labels is rejected
after some; copies and lengths are seen at once. If the root data lack a class, opposition is not judged; with one class
alone, neither is harm. ``paper`` and ``official``: an update so large that the model overflows on the mean of all is
rejected beforehand; masks that are all equal are one cluster, and so are candidates too few for two components.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from statistics import NormalDist
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fedsieve.clustering import gram_components, one_blas_thread
from fedsieve.defenses.skymask.anchored import Masks, copies, masks_of, measure
from fedsieve.defenses.skymask.evidence import average, estimates, remember, set_apart
from fedsieve.defenses.skymask.joint import check_masks, cluster
from fedsieve.ops import column_blocks
from fedsieve.types import (
    Diagnosis,
    MissingDataError,
    ParameterError,
    Root,
    ServerView,
    Traits,
    Updates,
    Verdict,
)

_SURELY = 2.0  # the suspicion of a copy, on a scale where more than 1 is rejected
# How much a client's measurements vary from round to round, before it has shown how much its own do: from single
# steps on batches of 32, the noisiest updates of any use.
_COSINE_DEVIATION, _LENGTH_DEVIATION = 0.2, 0.35


@dataclass(frozen=True)
class SkyMask:
    """Rejects the clients whose masks show harm; see the module for the presets.

    The first six parameters are those of ``anchored``, the last five of the other two.

    Attributes:
        preset: ``anchored``, ``paper`` or ``official``.
        harm: What harm is tolerated, as a share of that of a client all of whose labels are wrong.
        opposition: What opposition is tolerated beyond the witnesses' own, as a cosine; twice that in single layers.
        strangeness: How many times as much as of held-out root samples' updates may be left unexplained of a client's.
        copies: Two masks are the same if no larger share of their entries differs.
        memory: What a measurement still counts one round later, in [0, 1).
        error_rate: The probability that a client exactly at the limit of what is tolerated is rejected in a round.
        mask_learning_rate: γ; the paper has 1e7 for Fashion-MNIST and HAR, 1e8 for CIFAR-10.
        mask_clip: Bound on each coordinate of the mask gradient.
        mask_steps: Most steps of mask training.
        tau: Binarisation threshold on the gate, in (0, 1).
        n_components: d, the principal components that are clustered.
    """

    preset: Literal["anchored", "paper", "official"] = "anchored"
    harm: float = 0.2
    opposition: float = 0.15
    strangeness: float = 1.75
    copies: float = 5e-4
    memory: float = 0.95
    error_rate: float = 0.01
    mask_learning_rate: float = 1e7
    mask_clip: float = 1e-7
    mask_steps: int = 20
    tau: float = 0.5
    n_components: int = 2
    traits: ClassVar[Traits] = Traits(
        summary="Rejects the clients whose learned masks show harm, on the server's root data",
        paper="Yan et al., SkyMask, ECCV 2024",
        needs=("root data", "state"),
        cost="O(n^2 d) + 12 local trainings",
    )

    def __post_init__(self) -> None:
        for name in ("harm", "opposition", "copies"):
            if not 0 <= getattr(self, name) < 1:
                raise ParameterError(f"skymask: {name} must be in [0, 1), got {getattr(self, name)}")
        if not (self.strangeness > 0 and 0 <= self.memory < 1 and 0 < self.error_rate < 0.5):
            raise ParameterError(
                "skymask: strangeness must be positive, memory in [0, 1) and error_rate in (0, 0.5), got "
                f"{self.strangeness}, {self.memory} and {self.error_rate}"
            )
        check_masks("skymask", self)

    def judge(self, updates: Updates, view: ServerView, /) -> Verdict:
        """See :class:`fedsieve.types.Filter`."""
        if view.root is None:
            raise MissingDataError("skymask needs root data, and the server has none")
        if self.preset == "anchored":
            return _judge_anchored(self, updates, view, view.root)
        found = cluster(self, self.preset, updates, view, view.root.update()[None])
        labels = found.labels
        benign = None if labels is None else labels[:-1] == labels[-1]
        return found.verdict(benign, updates, "not the root model's cluster")


# --- Anchored masks, evidence over rounds -------------------------------------------------------------------


def _judge_anchored(rule: SkyMask, updates: Updates, view: ServerView, root: Root) -> Verdict:
    x, ids, layout = updates.matrix, updates.client_ids, updates.layout
    gradient = root.gradient(view.global_params, "margin")[1]
    witnesses = root.witnesses()
    seen = measure(x, gradient, witnesses, layout)
    masks = masks_of(x, gradient, layout)

    columns = [seen.harm - rule.harm * seen.lying.clamp(min=0), seen.strangeness]
    columns += [] if seen.statistics is None else [seen.statistics]
    values = torch.cat([torch.stack(columns, dim=1), seen.opposition], dim=1)
    old = view.state or {}
    ledger = remember(old.get("ledger"), ids, values, rule.memory)
    own = {"lying": seen.lying.clamp(min=0), "opposition": seen.honest_opposition}
    own = average(old.get("own"), own, rule.memory)
    prior = torch.full_like(values[0], _COSINE_DEVIATION**2)
    prior[1 : len(columns)] = _LENGTH_DEVIATION**2
    means, errors = estimates(ledger, ids, prior)
    deviations = NormalDist().inv_cdf(1 - rule.error_rate / values.shape[1])
    suspicions = _suspicions(rule, means - deviations * errors, own, witnesses.complete)
    same, same_layer = copies(x, masks, rule.copies)
    suspicions["copy"] = same * _SURELY
    suspicions["copy in a layer"] = same_layer * _SURELY
    # of a group's mean harm and strangeness: many who stand apart alike need a third of what one alone does
    limits = (0.0, log(1 + (rule.strangeness - 1) / 3))
    others = ~same  # copies are alike in everything, and would only hide how much the others differ
    for k, name in enumerate(("harm", "strangeness")):
        apart = torch.zeros_like(same)
        apart[others] = set_apart(means[others, k], errors[others, k], limits[k], deviations)
        suspicions[f"{name} of a group"] = apart * _SURELY
    stacked = torch.stack(list(suspicions.values()))
    reasons = tuple(
        ", ".join(name for name, guilty in zip(suspicions, column, strict=True) if guilty)
        for column in (stacked > 1).T.tolist()
    )
    suspicion = stacked.amax(dim=0)
    return Verdict(
        suspicion <= 1,
        suspicion.to(x.dtype),
        state={"ledger": ledger, "own": own},
        diagnosis=_diagnosis(masks, updates, witnesses.model, reasons),
    )


def _suspicions(
    rule: SkyMask, bounds: Float64[Tensor, "n f"], own: Mapping[str, Any], complete: bool
) -> dict[str, Float64[Tensor, " n"]]:
    """Of each kind, how suspicious each client is; more than 1 is beyond what is tolerated."""
    parts = own["opposition"].shape[1]
    # the witness of one class may oppose the others, and an honest client of that class may as well
    tolerated = (own["opposition"] / own["rounds"]).amax(dim=0).clamp(min=0) + rule.opposition
    tolerated[1:] += rule.opposition
    opposing = (bounds[:, -parts:] / tolerated).clamp(min=0) * complete
    harm = rule.harm * own["lying"] / own["rounds"]
    found = {
        "harm": (1 + bounds[:, 0] / harm.clamp(min=0.05)).clamp(0, 100),
        "strangeness": (bounds[:, 1].clamp(max=100).exp() / rule.strangeness).clamp(max=100),
        "opposition": opposing[:, 0],
    }
    if parts > 1:
        found["opposition in a layer"] = opposing[:, 1:].amax(dim=1)
    if bounds.shape[1] - parts > 2:
        found["running statistics"] = (bounds[:, 2].clamp(max=100).exp() / rule.strangeness).clamp(max=100)
    return found


def _diagnosis(masks: Masks, updates: Updates, model: Float[Tensor, " d"], reasons: tuple[str, ...]) -> Diagnosis:
    x = updates.matrix
    n, p = len(x), updates.layout.n_parameters
    # principal components of the masks as +1 and -1, the root model's among them
    signs = model[:p].sign()
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
