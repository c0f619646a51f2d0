"""The client history: what has been measured of each client, by client id.

Means of earlier rounds add up weak evidence against a group. The accumulated evidence against a single client is a
cumulative sum (Page, Biometrika 1954): it never falls below 0, so that no number of harmless or empty rounds earns
credit, and what one round adds is bounded, so that no single measurement decides.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

_LARGEST = 6.0  # beyond this a measurement says no more in a mean
_FALL, _RISE = -2.0, 4.0  # the most that a round takes from and adds to accumulated evidence
CONVICTED = 8.0  # accumulated evidence above which a client is rejected: two rounds of the largest
_MOST = 16.0  # so that a client is believed again after some rounds


def remember(
    old: Mapping[str, Tensor] | None,
    ids: Int[Tensor, " n"],
    evidence: Float64[Tensor, "n f"],
    informative: Bool[Tensor, " n"],
    memory: float,
    forget_after: int,
) -> dict[str, Tensor]:
    """Add one round to the client history; ``old`` is not changed.

    Args:
        old: The history so far; None before the first round.
        ids: Client ids of the round, [n].
        evidence: Measurements of each client, [n, f].
        informative: Whose measurements count, [n]: an update too small to matter says nothing.
        memory: Factor on the weight of a client's earlier measurements each time it takes part again, in [0, 1).
        forget_after: Rounds after which a client that does not come back is forgotten.

    Returns:
        Of all clients remembered: ``ids``, ascending, [k]; ``weights``, the sums of weights, and ``sums``, the weighted
        sums of evidence, [k] and [k, f]; ``rounds``, in how many rounds its update said something, [k]; ``accumulated``
        evidence, [k]; ``absent``, the rounds since each was last seen, [k].
    """
    if old is None:
        f = evidence.shape[1]
        none = evidence.new_zeros(0)
        old = {"ids": ids[:0], "weights": none, "sums": none.new_zeros(0, f), "rounds": ids[:0], "absent": ids[:0]}
        old["accumulated"] = none
    recent = old["absent"] < forget_after
    old = {name: of_clients[recent] for name, of_clients in old.items()}
    known = torch.unique(torch.cat([old["ids"], ids]))
    before, now = torch.searchsorted(known, old["ids"]), torch.searchsorted(known, ids[informative])
    found = {"ids": known}
    for name in ("weights", "sums", "rounds", "accumulated"):
        found[name] = old[name].new_zeros(len(known), *old[name].shape[1:])
        found[name][before] = old[name]
    found["weights"][now] = found["weights"][now] * memory + 1
    found["sums"][now] = found["sums"][now] * memory + evidence[informative].clamp(-_LARGEST, _LARGEST)
    found["rounds"][now] += 1
    found["absent"] = torch.zeros_like(known)
    found["absent"][before] = old["absent"] + 1
    found["absent"][torch.searchsorted(known, ids)] = 0
    return found


def means(history: Mapping[str, Tensor]) -> tuple[Int[Tensor, " k"], Float64[Tensor, "k f"]]:
    """Ids of the clients whose updates said something, and their mean evidence."""
    known = history["weights"] > 0
    return history["ids"][known], history["sums"][known] / history["weights"][known][:, None]


def accumulate(
    history: Mapping[str, Tensor],
    ids: Int[Tensor, " n"],
    excess: Float64[Tensor, " n"],
    informative: Bool[Tensor, " n"],
) -> dict[str, Tensor]:
    """Add one round's excess over what is usual to each client's accumulated evidence; nothing is changed in place.

    Args:
        history: From :func:`remember`.
        ids: Client ids of the round, [n].
        excess: Evidence of the round above the usual, [n]; negative where there is less.
        informative: Whose evidence counts, [n].
    """
    rows = torch.searchsorted(history["ids"], ids[informative])
    accumulated = history["accumulated"].clone()
    accumulated[rows] = (accumulated[rows] + excess[informative].clamp(_FALL, _RISE)).clamp(0, _MOST)
    return {**history, "accumulated": accumulated}


def look_up(history: Mapping[str, Tensor], name: str, ids: Int[Tensor, " n"]) -> Tensor:
    """The values of ``name`` of the clients ``ids``, [n, ...]."""
    return history[name][torch.searchsorted(history["ids"], ids)]
