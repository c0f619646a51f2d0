"""What a registered class states about itself. Imports nothing heavy: ``fedsieve list`` reads it."""

from dataclasses import dataclass
from typing import Literal

Need = Literal["root data", "network", "f", "state", "defense", "benign updates", "images", "text"]


@dataclass(frozen=True)
class Traits:
    """Facts about a registered attack, defense, dataset, partition or model, printed by ``fedsieve list``.

    Attributes:
        summary: One line.
        paper: Authors, title, venue and year; "" without a publication.
        needs: What it uses beside the updates. A defense may need ``root data``, the ``network`` (the server runs the
            model), ``f`` (an assumed number of malicious clients) or ``state`` (memory between rounds). An attack may
            need ``defense``, permission to simulate the server's defense, or ``benign updates``, to see those of the
            round. A model may need ``images`` or ``text``.
        bound: Condition on n and f that is checked, such as ``n > 2f``; "" without one.
        breaks_at: Where it is known to fail, in words.
        cost: Time per round in n, d and f, and extra memory if any.
    """

    summary: str
    paper: str = ""
    needs: tuple[Need, ...] = ()
    bound: str = ""
    breaks_at: str = ""
    cost: str = ""
