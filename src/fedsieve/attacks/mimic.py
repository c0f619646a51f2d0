"""Mimic: all malicious clients send the same benign client's update, which then counts far more than the others'.

Karimireddy, He, Jaggi. Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing. ICLR 2022.

Variant: in a warm-up, the attacker learns the direction z of the largest variance of the benign updates x_i, over
clients and rounds, without keeping them: in round t (from 0), with mu the mean of the rounds' means so far, z becomes
t z + C z / |C z|, scaled to length 1, where C = sum_i (x_i - mu)(x_i - mu)^T; the first z is random. The client that is
copied has the largest |sum of z x_i| over the warm-up. With partial knowledge, the malicious clients' own honest
updates take the place of the benign ones: all of them copy one of their own.
Departs: z is the direction of each round when it is multiplied with that round's updates, since these are not kept, and
the sum is divided by the number of rounds in which the client took part. Rounds are those in which the attacker takes
part. In the warm-up the attacker copies the best client so far; the published code takes the one with the largest z x_i
of the round, without the absolute value, in the warm-up and that of its last round afterwards. Where the client that it
has chosen does not take part, it copies the one with the largest |z x_i| of the round; in a round without benign
clients it sends its honest updates. z and mu are those of the parameters; running statistics are copied with the rest.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fedsieve.core.attack import AttackView, Crafted
from fedsieve.core.errors import ParameterError
from fedsieve.core.traits import Traits


def power_step(x: Float[Tensor, "n d"], mean: Float[Tensor, " d"], z: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    """C z / |C z| with C = sum_i (x_i - mean)(x_i - mean)^T; z if C z is 0.

    >>> power_step(torch.tensor([[3.0, 0.0], [-3.0, 0.0]]), torch.zeros(2), torch.tensor([0.6, 0.8]))
    tensor([1., 0.])
    """
    offsets = x - mean
    moved = (offsets @ z) @ offsets
    length = moved.norm()
    return moved / length if length > 0 else z


@dataclass(frozen=True)
class Mimic:
    """All malicious clients copy one benign client.

    Attributes:
        warmup: Number of rounds in which the direction is learnt, from the first in which the attacker takes part.
    """

    warmup: int = 10
    traits: ClassVar[Traits] = Traits(
        summary="All malicious clients copy the benign client that deviates most in one direction",
        paper="Karimireddy et al., Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing, ICLR 2022",
        breaks_at="clients with like data, none of which biases the mean; one known update, which is sent unchanged",
    )

    def __post_init__(self) -> None:
        if self.warmup < 1:
            raise ParameterError(f"mimic: warmup must be at least 1, got {self.warmup}")

    def craft(self, view: AttackView, /) -> Crafted:
        """See :class:`fedsieve.core.attack.UpdateAttack`; the memory is z, mu and what is known of each client."""
        candidates = view.malicious_updates if view.benign_updates is None else view.benign_updates
        if not len(candidates):
            return Crafted(view.malicious_updates, view.memory)
        clients = view.members if view.benign_updates is None else view.benign_ids
        ids: list[int] = list(range(len(candidates))) if clients is None else clients.tolist()
        x = candidates[:, : view.layout.n_parameters]
        memory = view.memory or self._at_first(x, view.generator)
        if memory["round"] < self.warmup:
            memory = self._learnt(memory, x, ids)
        row = self._chosen(memory, x, ids)
        return Crafted(candidates[row].expand(len(view.malicious_updates), -1).clone(), memory)

    def _at_first(self, x: Float[Tensor, "n p"], generator: torch.Generator) -> dict[str, Any]:
        z = torch.randn(x.shape[1], generator=generator).to(x)
        # by client id: the sum of z x_i, and the number of its rounds
        return {"round": 0, "mean": torch.zeros_like(z), "z": z / z.norm(), "clients": {}}

    def _learnt(self, memory: dict[str, Any], x: Float[Tensor, "n p"], ids: list[int]) -> dict[str, Any]:
        """The memory after a round of the warm-up."""
        t, clients = memory["round"], dict(memory["clients"])
        mean = (t * memory["mean"] + x.mean(dim=0)) / (t + 1)
        z = t * memory["z"] + power_step(x, mean, memory["z"])  # not 0: C is positive semidefinite
        z = z / z.norm()
        for client, along in zip(ids, (x @ z).tolist(), strict=True):
            total, rounds = clients.get(client, (0.0, 0))
            clients[client] = (total + along, rounds + 1)
        return {"round": t + 1, "mean": mean, "z": z, "clients": clients}

    def _chosen(self, memory: dict[str, Any], x: Float[Tensor, "n p"], ids: list[int]) -> int:
        """The row to copy."""
        scores = {client: abs(total / rounds) for client, (total, rounds) in memory["clients"].items()}
        if memory["round"] < self.warmup:
            return max(range(len(ids)), key=lambda row: scores[ids[row]])
        best = max(scores, key=lambda client: scores[client])
        return ids.index(best) if best in ids else int((x @ memory["z"]).abs().argmax())
