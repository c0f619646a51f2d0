"""What malicious clients send while an attack pauses. Nothing here writes to its arguments."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fedsieve.core.attack import Attack, AttackView, DataAttack
from fedsieve.core.errors import ParameterError

Off = Literal["honest", "zeros", "shrunken"]


def honest_updates(attack: Attack, view: AttackView) -> Float[Tensor, "m d"]:
    """The updates that the malicious clients would send without ``attack``: trained on their clean data.

    Where the attack poisons data, ``view.malicious_updates`` are trained on poisoned data, so that the clients train
    once more, with the same batches and random numbers as in a run without an attack.
    """
    if isinstance(attack, DataAttack):
        return view.train(view.global_params, poisoned=False)
    return view.malicious_updates


def off_updates(attack: Attack, view: AttackView, off: Off, shrink: float) -> Float[Tensor, "m d"]:
    """What the malicious clients send while ``attack`` pauses.

    Args:
        attack: The attack that pauses.
        view: What the attacker knows.
        off: ``honest``: the updates that they would send without the attack; ``zeros``; or ``shrunken``: the honest
            ones times ``shrink``.
        shrink: Factor of ``shrunken``.
    """
    match off:
        case "honest":
            return honest_updates(attack, view)
        case "zeros":
            return torch.zeros_like(view.malicious_updates)
        case "shrunken":
            return shrink * honest_updates(attack, view)


def check_off(attack: str, off: Off, shrink: float, usual: float) -> None:
    """Raise :class:`ParameterError` where ``shrink`` is out of range, or set where it has no effect.

    Args:
        attack: Name for the error message.
        off: What is sent while the attack pauses.
        shrink: Factor of ``shrunken``.
        usual: Default of ``shrink``.
    """
    if not 0 < shrink < 1:
        raise ParameterError(
            f"{attack}: shrink must be above 0 and below 1, got {shrink}; for these two, set off to zeros or honest"
        )
    if off != "shrunken" and shrink != usual:
        raise ParameterError(f"{attack}: shrink has no effect with off={off}, got {shrink}; set off=shrunken")
