"""Sieve: compares clients with reference updates of the server's own. This project's own defense, unpublished.

No publication. It grew out of SkyMask (Yan et al., ECCV 2024), but it is another method: no mask is trained.
docs/sieve.md describes it, with measurements, limits, and where its constants come from.

Each round the server trains reference updates on its root data. An update's part in the span of the references is what
root data explain; the rest is its residual. Residual norms and the alignments with gradients of root losses, each in
standard deviations of the references' own, are the evidence against a client. Three tests reject: of this round alone,
for updates far outside and for groups of clients that stand apart; of the means over rounds, for such groups; and of
the evidence accumulated against each client. What is not rejected has bounded influence (``influence.py``).

Variant: there is one.
Departs: from nothing, since nothing is published.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from fedsieve.core import several
from fedsieve.core.defense import Aggregate, Detection, Diagnosis, Root, ServerView, Updates
from fedsieve.core.errors import MissingDataError, ParameterError
from fedsieve.core.traits import Traits
from fedsieve.detectors.sieve import history, influence
from fedsieve.detectors.sieve.evidence import GROUPED, JOINT, LENGTH, Evidence, gather
from fedsieve.detectors.sieve.groups import credible, separate_groups
from fedsieve.detectors.sieve.guidance import Lately, guide, steady
from fedsieve.detectors.sieve.margin import margin
from fedsieve.detectors.sieve.measurements import Measurements, measure
from fedsieve.detectors.sieve.reference import ReferenceUpdates, train_references
from fedsieve.detectors.sieve.usual import center, far, lower_spread

_FAR_OUTSIDE = "far outside the references"
MISFIT = "root data don't fit the clients"
_USUAL_DEVIATIONS = 4.0  # of the clients' joint evidence above their median, beyond which evidence accumulates
_LEAST_USUAL = 3.5  # and never below this many of the references' deviations
_HUGE = 1e100
_FEW, _WINDOW = 20, 100  # clients of a round; below the first, updates of the last rounds are grouped with them


@dataclass(frozen=True)
class Judgement:
    """What one round's updates are, before they are averaged; on the CPU but for references and gradient.

    Attributes:
        measurements: Of the updates.
        evidence: Against each client.
        references: Of the round.
        gradient: Of the margin loss at the global model, [p].
        rejected: Who is rejected, [n].
        unusual: Who stands apart but is not rejected, [n].
        doubt: How many deviations of the clients each one's joint evidence is above their median, [n].
        reasons: Why each client was rejected; "" for the others.
        rounds: In how many rounds each client's update said something, [n].
        state: For the next round.
    """

    measurements: Measurements
    evidence: Evidence
    references: ReferenceUpdates
    gradient: Float[Tensor, " p"]
    rejected: Bool[Tensor, " n"]
    unusual: Bool[Tensor, " n"]
    doubt: Float64[Tensor, " n"]
    reasons: tuple[str, ...]
    rounds: Tensor
    state: Any

    def diagnosis(self, device: torch.device) -> Diagnosis:
        """Position of each client by residual norm and the larger alignment, in deviations of the references."""
        columns = self.evidence.columns
        points = torch.stack([columns[:, 0], columns[:, 1:JOINT].amax(dim=1)], dim=1).to(device)
        return Diagnosis(points, points.new_zeros(2), (), points.new_zeros(len(points), 0), self.reasons)


@dataclass(frozen=True)
class Sieve:
    """Rejects clients by evidence from reference updates, and bounds the influence of all others.

    Attributes:
        least_evidence: The mean of a group that is rejected is above this, in standard deviations of the references'
            own evidence; positive.
        minority: A group of at most this share of the clients is not rejected for standing apart: it may be honest and
            different. It keeps the part of its updates that root data explain. In [0, 0.5].
        memory: Factor on the weight of a client's earlier evidence each time it takes part again, in [0, 1).
        forget_after: Rounds after which a client that does not come back is forgotten; at least 1.
    """

    least_evidence: float = 2.0
    minority: float = 0.15
    memory: float = 0.9
    forget_after: int = 1000
    traits: ClassVar[Traits] = Traits(
        summary="Ours, unpublished: evidence from the server's own reference updates, and bounded influence",
        needs=("root data", "state"),
        breaks_at="root data unlike the clients'; labels of one class flipped by many; see docs/sieve.md",
        cost="O((n + r)^2 d) + 15 local trainings, for r references",
    )

    def __post_init__(self) -> None:
        if not 0 < self.least_evidence < float("inf"):
            raise ParameterError(f"sieve: least_evidence must be positive and finite, got {self.least_evidence}")
        if not 0 <= self.minority <= 0.5:
            raise ParameterError(f"sieve: minority must be in [0, 0.5], got {self.minority}")
        if not 0 <= self.memory < 1:
            raise ParameterError(f"sieve: memory must be in [0, 1), got {self.memory}")
        if self.forget_after < 1:
            raise ParameterError(f"sieve: forget_after must be at least 1, got {self.forget_after}")

    def detect(self, updates: Updates, view: ServerView, /) -> Detection:
        """See :class:`fedsieve.core.defense.Detector`: verdicts alone, for chains; nobody's influence is bounded."""
        found = self._judge(updates, view)
        x, scores = updates.matrix, found.evidence.columns[:, JOINT]
        return Detection(~found.rejected.to(x.device), scores.to(x), found.state, found.diagnosis(x.device))

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
        """See :class:`fedsieve.core.defense.Aggregator`."""
        found = self._judge(updates, view)
        m, e, references, x = found.measurements, found.evidence, found.references, _parameters(updates)
        root, params = _root(view), view.global_params
        limited = influence.limit(m, e, found.unusual)
        weights, missing = influence.weigh(m, e, ~found.rejected, limited, found.rounds, found.doubt)
        update = influence.combine(x, limited, weights, missing, m, found.gradient, references)
        notes, lately = [], Lately.of(view.state or {})
        if bool(weights.any()):
            if e.trusted:  # a wrong root must not stop the training
                update, factor, lately = guide(
                    update, references, root, params, view.generator, e.fit, lately, view.learning_rate
                )
            else:
                update, factor, lately = steady(update, root, params, lately, view.learning_rate)
            notes += [f"sieve cut a step that raised the root loss (to {factor:g} of it)"] * (factor < 1)
        if not e.trusted and references.complete:
            notes.append(f"{MISFIT} (limits are {e.widened:.1f} times as wide)")
        return Aggregate(
            update=update.to(x.dtype),
            weights=(weights / weights.sum().clamp(min=1e-300)).to(x),
            accepted=~found.rejected.to(x.device),
            scores=e.columns[:, JOINT].to(x),
            state={**found.state, **lately.state},
            diagnosis=found.diagnosis(x.device),
            note="; ".join(notes),
        )

    def _judge(self, updates: Updates, view: ServerView) -> Judgement:
        x, ids, root = _parameters(updates), updates.client_ids.cpu(), _root(view)
        old = _on_cpu(view.state or {})
        references = train_references(root, updates.layout, view.generator)
        gradients = several.gradients(root, view.global_params, (margin, "cross-entropy"))[1][:, : x.shape[1]]
        m = measure(x, gradients, references)
        e = gather(m, references.n_balanced, references.complete, old.get("calibration"), self.memory)
        heard = e.informative
        known = history.remember(old.get("history"), ids, e.columns, heard, self.memory, self.forget_after)
        outside = far(e)
        left = heard & ~outside
        recent = torch.cat([e.columns[left], old.get("recent", e.columns[:0])])[: max(_WINDOW, int(left.sum()))]
        groups, unusual = self._groups(e, references.complete, ids, left, recent, history.means(known))
        tests = {_FAR_OUTSIDE: outside, **groups}
        rejected = torch.stack(list(tests.values())).any(dim=0)
        rest = heard & ~rejected
        if 2 * int(rest.sum()) < int(heard.sum()) and not credible(m, e, rest, rejected):
            tests, rejected, unusual = {_FAR_OUTSIDE: outside}, outside, torch.zeros_like(heard)
        middle, spread = center(e, rejected)
        usual = max(_LEAST_USUAL, middle + _USUAL_DEVIATIONS * spread)
        known = history.accumulate(known, ids, e.columns[:, JOINT] - usual, heard)
        if e.trusted:
            accumulated = history.look_up(known, "accumulated", ids) > history.CONVICTED
            tests["evidence over rounds"] = accumulated & heard
            rejected = rejected | tests["evidence over rounds"]
        state = {"history": known, "calibration": dict(e.calibration), "recent": recent[:_WINDOW]}
        lower = lower_spread(e.columns[heard, JOINT]) if heard.any() else 0.0
        return Judgement(
            m,
            e,
            references,
            gradients[0],
            rejected,
            unusual & ~rejected,
            (e.columns[:, JOINT] - middle) / max(1.0, lower),
            _reasons(tests),
            history.look_up(known, "rounds", ids),
            state,
        )

    def _groups(
        self,
        e: Evidence,
        complete: bool,
        ids: Int[Tensor, " n"],
        left: Bool[Tensor, " n"],
        recent: Float64[Tensor, "r f"],
        means: tuple[Int[Tensor, " k"], Float64[Tensor, "k f"]],
    ) -> tuple[dict[str, Bool[Tensor, " n"]], Bool[Tensor, " n"]]:
        """Clients in large groups that stand apart, by test, and clients in small ones.

        Args:
            e: Evidence of the round.
            complete: Whether the root data have all classes.
            ids: The clients, [n].
            left: Those among whom groups are looked for, [n].
            recent: Their evidence, then that of clients of rounds before, [r, f].
            means: Clients that are remembered, [k], and their mean evidence, [k, f].
        """
        tests, unusual, count = {}, torch.zeros_like(left), int(left.sum())
        names, average = means
        shown = torch.isin(names, ids[e.informative])
        order = ids.argsort()[torch.searchsorted(ids.sort().values, names[shown])]
        for k, name in GROUPED.items():
            if not e.trusted and (k not in (JOINT, LENGTH) or (k == JOINT and not complete)):
                continue
            # no reference of any class is longer than 0 in length, and none of the others is so far from what is usual
            least = self.least_evidence * (0.5 if k == LENGTH else 1 if e.trusted else 2)
            here = torch.zeros_like(left)
            for values in (e.columns[left, k], *([recent[:, k]] if len(ids) < _FEW else [])):
                large, small = separate_groups(values, least, self.minority)
                here[left] |= large[:count]
                unusual[left] |= small[:count]
            tests[f"{name} of a group"] = here
            if not e.trusted and k == JOINT:
                continue
            large, small = separate_groups(average[:, k], least, self.minority)
            over = torch.zeros_like(left)
            over[order] = large[shown]
            unusual[order] |= small[shown]
            tests[f"{name} of a group over rounds"] = over
        return tests, unusual


def _parameters(updates: Updates) -> Float[Tensor, "n p"]:
    """The trained coordinates; those of float64 cut to a size whose squares are finite."""
    x = updates.parameters
    return x.clamp(-_HUGE, _HUGE) if x.dtype == torch.float64 else x


def _on_cpu(state: Any) -> Any:
    """The state with all tensors on the CPU; one from a checkpoint is where the model is."""
    if isinstance(state, Mapping):
        return {name: _on_cpu(part) for name, part in state.items()}
    return state.cpu() if isinstance(state, Tensor) else state


def _root(view: ServerView) -> Root:
    if view.root is None:
        raise MissingDataError("sieve needs root data, and the server has none")
    return view.root


def _reasons(tests: Mapping[str, Bool[Tensor, " n"]]) -> tuple[str, ...]:
    failed = torch.stack(list(tests.values())).T.tolist()
    return tuple(", ".join(name for name, hit in zip(tests, row, strict=True) if hit) for row in failed)
