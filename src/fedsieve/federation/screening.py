"""Which updates reach the defense: one per client, finite, and not out of all proportion to the others."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from fedsieve.aggregators.chain import tolerable
from fedsieve.core.defense import ServerView, Stage, Updates
from fedsieve.core.direct import INTEGERS, described
from fedsieve.core.errors import ParameterError
from fedsieve.core.layout import Layout
from fedsieve.core.linalg import row_norms

# An update may be so many times as long as the median update, or as the model if that is longer. Far above what an
# attack gains from (scaling attacks use 10 to 1000), far below where sums and models overflow in float32.
LONGEST = 1e6

# Sums of half precision are computed in float32.
_LARGEST = (torch.finfo(torch.float32).max, torch.finfo(torch.float64).max)

TWICE, NOT_FINITE, TOO_LONG = "second reply", "not finite", "out of proportion"


@dataclass(frozen=True)
class Screened:
    """The updates of a round after screening.

    Attributes:
        updates: Those that reach the defense.
        view: The server's view, with f lowered where the defense's bound does not hold for so few updates.
        kept: Which of the n updates these are, [n].
        reasons: Why each of the n updates was dropped; "" for those that were not.
    """

    updates: Updates
    view: ServerView
    kept: Bool[Tensor, " n"]
    reasons: tuple[str, ...]


def screen(stage: Stage, updates: Updates, view: ServerView) -> Screened:
    """Drop second replies of a client, updates that are not finite, and updates out of proportion.

    The latter are longer than :data:`LONGEST` times the median length, and than as many times the length of the global
    model, or so long that sums of them may overflow; parameters and running statistics each by themselves. A single one
    would otherwise overflow a mean in every round, and the model would never move again.

    f is lowered where the stage's bound does not hold for so few updates: updates of NaN must not end a run.
    """
    params, p = view.global_params, updates.layout.n_parameters
    twice = _second_replies(updates.client_ids.cpu())
    finite, long = torch.ones_like(twice), torch.zeros_like(twice)
    for x, model in ((updates.parameters, params[:p]), (updates.statistics, params[p:])):
        if x.shape[1]:
            # in float64, where no finite float32 row overflows; looked at on the CPU, brought over at once
            lengths = torch.cat([row_norms(x), row_norms(model[None])]).cpu()
            norms, length = lengths[:-1], float(lengths[-1])
            countable = torch.isfinite(norms)
            if not countable.all():
                finite[~countable] &= torch.isfinite(x[(~countable).to(x.device)]).all(dim=1).cpu()
            bound = min(
                LONGEST * _usual(norms[countable & ~twice], length), _LARGEST[x.dtype == torch.float64] / LONGEST
            )
            long |= norms > bound
    reasons = [
        TWICE if again else NOT_FINITE if not good else TOO_LONG if too_long else ""
        for again, good, too_long in zip(twice.tolist(), finite.tolist(), long.tolist(), strict=True)
    ]
    kept = finite & ~long & ~twice
    view = replace(view, n_malicious=tolerable(stage, int(kept.sum()), view.n_malicious))
    rows = kept.to(updates.matrix.device)
    return Screened(updates if kept.all() else updates.select(rows), view, rows, tuple(reasons))


def _usual(norms: Float64[Tensor, " k"], model: float) -> float:
    """The median of the lengths above 0 (of two in the middle, the lower), or the model's length if that is longer.

    The model's length, so that tiny updates of a few clients, where others send nothing, leave the rest as it is.
    """
    positive = norms[norms > 0].sort().values
    median = float(positive[(len(positive) - 1) // 2]) if len(positive) else torch.inf
    return max(median, model)


def _second_replies(ids: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """Which rows have the id of an earlier row, [n]."""
    ranked, order = ids.sort(stable=True)
    again = torch.zeros_like(ids, dtype=torch.bool)
    again[order[1:]] = ranked[1:] == ranked[:-1]
    return again


def check_updates(updates: Updates, layout: Layout, params: Float[Tensor, " d"]) -> Updates:
    """The updates without a history of gradients, in the type and on the device of the model.

    Raises:
        ParameterError: If their shape, type, number of ids or layout is not that of the model.
    """
    x, ids = updates.matrix, updates.client_ids
    if not isinstance(x, Tensor) or x.dim() != 2 or x.shape[1] != len(params) or not x.is_floating_point():
        raise ParameterError(
            f"updates must be floats of shape [n, {len(params)}], as long as the model, got {described(x)}"
        )
    if not isinstance(ids, Tensor) or ids.shape != (len(x),) or ids.dtype not in INTEGERS:
        raise ParameterError(f"client_ids must be {len(x)} integers, one per update, got {described(ids)}")
    if updates.layout != layout:
        raise ParameterError(
            f"the updates have the layout of another model: {len(updates.layout.segments)} tensors, "
            f"{updates.layout.n_parameters} parameters; the server's has {len(layout.segments)} and "
            f"{layout.n_parameters}"
        )
    x, ids = x.detach().to(params), ids.to(params.device, torch.long)
    return updates if x is updates.matrix and ids is updates.client_ids else Updates(x, ids, layout)
