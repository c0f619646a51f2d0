"""Free-rider: malicious clients don't train and send something that costs nothing.

Lin, Du, Liu. Free-riders in Federated Learning: Attacks and Defenses. arXiv 1911.12560, 2019. Fraboni, Vidal, Lorenzi.
Free-rider Attacks on Model Aggregation in Federated Learning. AISTATS 2021.

Variant: ``zeros`` returns the global model as it came, Fraboni et al.'s plain free-rider; ``last-step`` is Lin et al.'s
delta weights: the difference between the global model of this round and that of the last round in which a malicious
client took part, the same for all of them, and zeros in the first such round; ``noise`` is Gaussian, scaled to exactly
the median length of the honest updates that the attacker knows, and ``tiny`` is noise of ``tiny`` times that length.
Noise is in the parameters; running statistics stay as they came. Lin et al.'s advanced delta weights are
``last-step`` inside the attack ``jitter``.
Departs: Lin et al. draw random weights uniformly from a range that is set by hand; Fraboni et al. add to the global
model noise that fades over the rounds, at a scale that is set by hand. A free-rider without data could not know the
median length; with partial knowledge it is that of the updates which the malicious clients would have trained.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsieve.attacks.noise import noise_of_length, parameter_coordinates
from fedsieve.core.attack import AttackView, Crafted
from fedsieve.core.errors import ParameterError
from fedsieve.core.linalg import middle, row_norms
from fedsieve.core.traits import Traits

What = Literal["zeros", "tiny", "last-step", "noise"]
_TINY = 1e-3


@dataclass(frozen=True)
class FreeRider:
    """Sends what costs nothing.

    Attributes:
        what: ``zeros``, ``tiny`` noise, the ``last-step`` of the global model, or ``noise`` of an honest length.
        tiny: Length of tiny noise, as a share of the honest updates' median length, between 0 and 1.
    """

    what: What = "zeros"
    tiny: float = _TINY
    traits: ClassVar[Traits] = Traits(
        summary="Clients that don't train: zeros, tiny noise, the last global step, or noise of an honest length",
        paper="Lin et al., Free-riders in Federated Learning: Attacks and Defenses, 2019",
    )

    def __post_init__(self) -> None:
        if not 0 < self.tiny < 1:
            raise ParameterError(
                f"free-rider: tiny must be between 0 and 1, got {self.tiny}; what has zeros and noise, too"
            )
        if self.what != "tiny" and self.tiny != _TINY:
            raise ParameterError(
                f"free-rider: tiny has no effect with what={self.what}, got {self.tiny}; set what=tiny"
            )

    def craft(self, view: AttackView, /) -> Crafted:
        """See :class:`fedsieve.core.attack.UpdateAttack`; the memory is the last global model, for ``last-step``."""
        nothing = torch.zeros_like(view.malicious_updates)
        match self.what:
            case "zeros":
                return Crafted(nothing)
            case "last-step":
                # another attack in the same round may write to what it is shown
                now: Tensor = view.global_params.clone()
                step = 0 if view.memory is None else now - view.memory.to(now)
                return Crafted(nothing + step, now)
            case "tiny" | "noise":
                length = middle(row_norms(view.known_updates)) * (self.tiny if self.what == "tiny" else 1)
                where = parameter_coordinates(view.layout)
                return Crafted(noise_of_length(nothing, length.expand(len(nothing)), where, view.generator))
