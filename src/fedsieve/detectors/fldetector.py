"""FLDetector: rejects clients whose updates cannot be predicted from their earlier ones.

Zhang, Cao, Jia, Gong. FLDetector: Defending Federated Learning Against Model Poisoning Attacks via Detecting Malicious
Clients. KDD 2022. Algorithms 1 to 3.

With g a client's gradient, w the global model and H the Hessian by L-BFGS from the last ``window`` rounds, the mean
value theorem predicts g_t = g_(t-1) + H (w_t - w_(t-1)). A client's score is the mean over its last ``window`` rounds
of the distance between gradient and prediction, relative to the other clients' distances. If the gap statistic finds
more than one cluster of scores, there is an attack, and of two clusters the one with the higher scores is rejected.

Variant: as in the published code, the first prediction needs a round after ``start`` and a full window, and the first
decision needs ``window`` rounds of predictions. With full participation it decides from round
max(start, window) + window on, counting from 0: from round 30 on by default. Before that, ``Detection.accepted`` is
None. An update is taken as minus a gradient. Whether one cluster is enough is all that is asked of the gap statistic;
that compares one cluster and two, so no more are fitted.
Departs: (1) The paper removes the clients it finds and restarts training; here training goes on, and each round is
decided anew. (2) H is made from the changes of the median of all updates, the published code's default aggregate: a
detector cannot see the result of the aggregator behind it. (3) Rounds without positive curvature, which make H
indefinite or the published code's matrix singular, are left out; H is 0 where none is left. (4) Distances are divided
by their mean over the round's clients instead of their sum, so that rounds with different numbers of clients are
comparable. A client that did not take part in the last round has no distance; a client without any is accepted. (5) The
gap statistic has the mean of logarithms, as Tibshirani, Walther and Hastie define it; the code has the logarithm of the
mean. In one dimension both clusterings are solved exactly. (6) Running statistics have no gradient and are ignored.
"""

from dataclasses import dataclass
from statistics import fmean
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy import ndarray
from torch import Tensor

from fedsieve.core.clustering import best_cut
from fedsieve.core.defense import Detection, ServerView, Updates
from fedsieve.core.errors import ParameterError
from fedsieve.core.linalg import column_blocks
from fedsieve.core.ranks import sorted_columns
from fedsieve.core.traits import Traits


def hessian_product(
    steps: Float[Tensor, "k d"], changes: Float[Tensor, "k d"], v: Float[Tensor, " d"]
) -> Float64[Tensor, " d"]:
    """Product H v with the BFGS approximation H of the Hessian.

    Byrd, Nocedal, Schnabel. Representations of quasi-Newton matrices and their use in limited memory methods.
    Mathematical Programming 1994. Theorem 2.3. Pairs without positive curvature are left out; 0 if none is left.

    Args:
        steps: Differences of the model from round to round, oldest first.
        changes: Differences of the gradient between the same rounds.
        v: The vector that is multiplied.

    >>> steps = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> hessian_product(steps, changes=2 * steps, v=torch.tensor([1.0, 3.0]))
    tensor([2., 6.], dtype=torch.float64)
    """
    k = len(steps)
    gram = torch.zeros(2 * k + 1, 2 * k + 1, dtype=torch.float64, device=v.device)
    for block in column_blocks(steps):
        rows = torch.cat([steps[:, block], changes[:, block], v[None, block]]).double()
        gram += rows @ rows.T
    gram = gram.cpu()
    squares, curvatures = gram.diagonal(), gram[:k, k : 2 * k].diagonal()
    good = (curvatures > 1e-8 * squares[:k].sqrt() * squares[k : 2 * k].sqrt()).nonzero().squeeze(1)
    if not len(good):
        return torch.zeros_like(v, dtype=torch.float64)
    # H does not change when a pair is scaled: to steps of length 1, or long early ones would drown short late ones
    scale = squares[good].rsqrt()
    sigma = float(curvatures[good[-1]] / squares[good[-1]])
    of_steps = gram[good] * scale[:, None]
    ss, sy = of_steps[:, good] * scale, of_steps[:, k + good] * scale
    lower = sy.tril(-1)
    middle = torch.cat([torch.cat([sigma * ss, lower], 1), torch.cat([lower.T, -sy.diagonal().diag()], 1)])
    right = torch.cat([sigma * of_steps[:, -1], gram[k + good, -1] * scale])
    weights, failed = torch.linalg.solve_ex(middle, right)
    if failed or not weights.isfinite().all():
        return torch.zeros_like(v, dtype=torch.float64)
    weights = (weights.view(2, -1) * scale).to(v.device)
    good = good.to(v.device)
    product = sigma * v.double()
    for block in column_blocks(steps):
        product[block] -= sigma * weights[0] @ steps[good, block].double() + weights[1] @ changes[good, block].double()
    return product


def distances(
    sent: Float[Tensor, "n d"], before: Float[Tensor, "n d"], product: Float64[Tensor, " d"]
) -> Float64[Tensor, " n"]:
    """Distance of each client's update from the prediction ``before - product``.

    Args:
        sent: Updates of the round.
        before: The same clients' updates of the round before.
        product: H v, from :func:`hessian_product`.
    """
    squares = torch.zeros(len(sent), dtype=torch.float64, device=sent.device)
    for block in column_blocks(sent):
        squares += (before[:, block].double() - product[block] - sent[:, block].double()).square().sum(dim=1)
    return squares.clamp(max=1e300).sqrt()  # finite for every finite update


def median(x: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    """Median of each column."""
    n, result = len(x), torch.empty_like(x[0])
    for block in column_blocks(x):
        ranked = sorted_columns(x[:, block])
        result[block] = ranked[(n - 1) // 2] / 2 + ranked[n // 2] / 2  # halves first: the sum could overflow
    return result


def more_than_one(scores: Float64[ndarray, " n"], references: Float64[ndarray, "b n"]) -> bool:
    """Whether the gap statistic finds more than one cluster in ``scores``.

    One cluster is enough if Gap(1) >= Gap(2) - s(2). W(k) is the sum of squares within k clusters, Gap(k) the mean of
    log W(k) over the references less log W(k) of the scores, and s(2) the references' standard deviation of log W(2)
    times sqrt(1 + 1 / b). Fewer than three scores, or equal ones, are one cluster.

    Args:
        scores: Scaled to [0, 1].
        references: Drawn from the uniform distribution on [0, 1], b times as many as there are scores.

    >>> references = np.random.default_rng(0).uniform(size=(10, 6))
    >>> more_than_one(np.array([0.0, 0.01, 0.02, 0.98, 0.99, 1.0]), references)
    True
    """
    if len(scores) < 3 or np.ptp(scores) == 0:
        return False
    one, two = _within(scores)
    if two == 0:
        return True
    logs = np.log([_within(row) for row in references])
    gaps = logs.mean(axis=0) - np.log([one, two])
    return bool(gaps[0] < gaps[1] - logs[:, 1].std() * np.sqrt(1 + 1 / len(references)))


def _within(values: ndarray) -> tuple[float, float]:
    """Least sum of squares within one cluster, and within two."""
    values = np.sort(values)  # so that rounding does not depend on the order of clients either
    above = best_cut(values)
    squares = [float(((part - part.mean()) ** 2).sum()) for part in (values, values[above], values[~above])]
    return squares[0], squares[1] + squares[2]


@dataclass(frozen=True)
class FLDetector:
    """Rejects the cluster of clients whose updates are farthest from their predictions.

    Attributes:
        window: Number of rounds in the Hessian and in a score, N in the paper.
        start: Predictions begin after this round, but not before the window is full.
        references: Number of uniform samples that the gap statistic compares the scores with, B in the paper.
        forget_after: Rounds after which a client that does not come back is forgotten; at least 1.
    """

    window: int = 10
    start: int = 20
    references: int = 10
    forget_after: int = 1000
    traits: ClassVar[Traits] = Traits(
        summary="Predicts each client's update from its last one and rejects clients far from their predictions",
        paper="Zhang et al., FLDetector, KDD 2022",
        needs=("state",),
        breaks_at="gradients of small batches, whose noise cannot be predicted (the published code takes all of a "
        "client's data); attackers that always send the same update: then benign clients are rejected",
        cost="O(nd log n + N^2 d), N the window; keeps n + 2N + 2 vectors of size d",
    )

    def __post_init__(self) -> None:
        for name, least in (("window", 1), ("start", 0), ("references", 1), ("forget_after", 1)):
            if getattr(self, name) < least:
                raise ParameterError(f"fldetector: {name} must be at least {least}, got {getattr(self, name)}")

    def detect(self, updates: Updates, view: ServerView, /) -> Detection:
        """See :class:`fedsieve.core.defense.Detector`."""
        p = updates.layout.n_parameters
        x, params, old = updates.matrix[:, :p], view.global_params[:p], view.state
        ids = updates.client_ids.tolist()
        absent = {} if old is None else {c: away + 1 for c, away in old["absent"].items() if away < self.forget_after}
        history = {} if old is None else {c: old["distances"][c] for c in absent}
        predicted = {} if old is None else self._predict(x, ids, view)
        history = history | {c: [*history.get(c, []), d][-self.window :] for c, d in predicted.items()}
        rounds = (0 if old is None else old["rounds"]) + bool(predicted)

        scores = _scaled([history.get(c) for c in ids])
        accepted = self._accept(scores, view) if rounds >= self.window else None
        unknown = np.isnan(scores)
        scores[unknown] = 0 if unknown.all() else np.median(scores[~unknown])

        now = median(x)
        steps, changes = x.new_zeros(0, p), x.new_zeros(0, p)
        if old is not None:
            steps = torch.cat([old["steps"], (params - old["params"])[None]])[-self.window :]
            changes = torch.cat([old["changes"], (old["median"] - now)[None]])[-self.window :]
        state: dict[str, Any] = {
            "params": params.clone(),
            "median": now,
            "ids": updates.client_ids,
            "updates": x,
            "steps": steps,
            "changes": changes,
            "distances": history,
            "absent": absent | {c: 0 for c in ids if c in history},
            "rounds": rounds,
        }
        stay = None if accepted is None else torch.from_numpy(accepted).to(x.device)
        return Detection(stay, scores=torch.from_numpy(scores).to(x), state=state)

    def _predict(self, x: Float[Tensor, "n p"], ids: list[int], view: ServerView) -> dict[int, float]:
        """Distance from prediction, by id, of clients that took part in the last round too; the mean is 1."""
        old, p = view.state, x.shape[1]
        places = {client: row for row, client in enumerate(old["ids"].tolist())}
        rows = [row for row, client in enumerate(ids) if client in places]
        if view.round <= self.start or len(old["steps"]) < self.window or not rows:
            return {}
        clients = [ids[row] for row in rows]
        product = hessian_product(old["steps"], old["changes"], view.global_params[:p] - old["params"])
        before = _rows(old["updates"], [places[c] for c in clients])
        found = distances(_rows(x, rows), before, product)
        mean = float(found.mean())
        return dict(zip(clients, (found / mean if mean > 0 else found).tolist(), strict=True))

    def _accept(self, scores: ndarray, view: ServerView) -> ndarray:
        """Which clients stay, [n]; those without a score do."""
        known = ~np.isnan(scores)
        draws = torch.rand(self.references, int(known.sum()), generator=view.generator, dtype=torch.float64)
        accepted = np.ones(len(scores), dtype=bool)
        if more_than_one(scores[known], draws.numpy()):
            accepted[known] = ~best_cut(scores[known])
        return accepted


def _rows(x: Float[Tensor, "n d"], rows: list[int]) -> Float[Tensor, "k d"]:
    """The chosen rows; not copied where all are chosen in order."""
    return x if rows == list(range(len(x))) else x[rows]


def _scaled(histories: list[list[float] | None]) -> Float64[ndarray, " n"]:
    """Mean of each client's distances, scaled so that the clients' range is [0, 1]; NaN where there are none."""
    means = np.array([np.nan if h is None else fmean(h) for h in histories])
    known = means[~np.isnan(means)]
    spread = np.ptp(known) if len(known) else 0
    return (means - known.min()) / spread if spread > 0 else means * 0
