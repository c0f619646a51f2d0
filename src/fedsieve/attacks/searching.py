"""The search of ``adaptive-sieve``: what the attacker knows in a round, harmful directions, and the best of them."""

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from torch.nn.functional import one_hot, softmax, softplus

from fedsieve.attacks.hiding import leading, lowered_margin, pieces, with_cosines
from fedsieve.core.attack import AttackView
from fedsieve.core.defense import Aggregate, Root

Size = tuple[float, float, float]  # explained part and rest in median lengths, and share of the honest explained part
_LEADING = 0.9  # share of the squared lengths of single-sample updates in the directions that are called explained
_PART = 0.15  # share of the coordinates of the rest that each malicious client gets
_LONGEST = 6.0  # explained part, in median lengths


def wrong(logits: Float[Tensor, "k c"], y: Int[Tensor, " k"]) -> Float[Tensor, ""]:
    """Minus ten times the mean probability of classes other than ``y``: low is damage.

    >>> wrong(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
    tensor(-5.)
    """
    return -10 * (1 - softmax(logits, dim=1).gather(1, y[:, None]).mean())


def missed(logits: Float[Tensor, "k c"], y: Int[Tensor, " k"]) -> Float[Tensor, ""]:
    """How far wanted classes ``y`` are from being the largest logit, smoothly, on average: 0 where a backdoor works.

    >>> missed(torch.tensor([[50.0, 0.0]]), torch.tensor([1]))
    tensor(50.)
    """
    own = logits.gather(1, y[:, None])[:, 0]
    others = logits.masked_fill(one_hot(y, logits.shape[1]).bool(), -torch.inf).logsumexp(dim=1)
    return softplus(others - own).mean()


@dataclass(frozen=True)
class Knowledge:
    """What the attacker knows in one round. Parameters only, in float64, but for the updates.

    Attributes:
        view: The view.
        honest: What the malicious clients would send if they were honest, [m, d].
        benign: The benign updates, or stand-ins, [b, d].
        marked: Samples on which a backdoor has to work, with the classes wanted; None where accuracy is the goal.
        accuracy: Whether accuracy is to be lost.
    """

    view: AttackView
    honest: Float[Tensor, "m d"]
    benign: Float[Tensor, "b d"]
    marked: Root | None
    accuracy: bool

    @cached_property
    def known(self) -> Float64[Tensor, "n p"]:
        """All updates of the round, the malicious clients' first."""
        return torch.cat([self.honest, self.benign])[:, : self.view.layout.n_parameters].double()

    @cached_property
    def unit(self) -> float:
        """Median length of the known updates."""
        return float(self.known.norm(dim=1).median())

    @cached_property
    def slopes(self) -> Float64[Tensor, "c p"]:
        """Gradients of the margin losses of all classes present, and of the cross-entropy."""
        root, at, p = self.view.root, self.view.global_params, self.view.layout.n_parameters
        losses = [lowered_margin(c) for c in torch.unique(root.data[1]).tolist()]
        rows = [root.gradient(at, loss)[1] for loss in losses] + [root.gradient(at)[1]]
        return torch.stack(rows)[:, :p].double()

    @cached_property
    def watched(self) -> Float64[Tensor, "2 p"]:
        """Gradients with which Sieve compares: of the mean margin loss and of the cross-entropy."""
        return torch.stack([self.slopes[:-1].mean(dim=0), self.slopes[-1]])

    @cached_property
    def unseen(self) -> Float64[Tensor, "k p"]:
        """Orthonormal directions of all slopes and of the mean update, which a harmful direction must avoid."""
        return leading(torch.cat([self.slopes, self.known.mean(dim=0, keepdim=True)]), 1 - 1e-9)

    @cached_property
    def trained(self) -> tuple[Float64[Tensor, "k p"], Float64[Tensor, "c p"]]:
        """The explained directions; for each class, an update from its samples alone, then one with its label wrong."""
        x, y = self.view.root.data
        classes = torch.unique(y)
        sets = [(x[i : i + 1], y[i : i + 1]) for i in range(len(y))] + [(x[y == c], y[y == c]) for c in classes]
        sets += [(x, torch.where(y == c, other, y)) for c, other in zip(classes, classes.roll(-1), strict=True)]
        rows = self.view.root.train(sets)[:, : self.view.layout.n_parameters].double()
        return leading(rows[: len(y)], _LEADING), rows[len(y) :]

    def damage(self, update: Float[Tensor, " d"]) -> float:
        """Of the model after ``update``; larger is worse, minus infinity where the server would keep its model."""
        after = self.view.global_params + update
        found = -float(self.marked.gradient(after, missed)[0]) if self.marked else 0.0
        found -= float(self.view.root.gradient(after, wrong)[0]) if self.accuracy else 0.0
        return found if math.isfinite(found) else -math.inf

    def directions(self) -> dict[str, Float64[Tensor, " p"]]:
        """Harmful directions by name."""
        at, p = self.view.global_params + torch.cat([self.honest, self.benign]).mean(dim=0), self.known.shape[1]
        found = {}
        if self.marked:
            slope = -self.marked.gradient(at, missed)[1][:p].double()
            found = {"backdoor": slope - slope @ self.unseen.T @ self.unseen, "backdoor, as it is": slope}
        if self.accuracy:
            slope = -self.view.root.gradient(at, wrong)[1][:p].double()
            found |= {"error": slope - slope @ self.unseen.T @ self.unseen}
            found |= {f"client {k}": row for k, row in enumerate(self.known)}
            found |= {f"training {k}": row for k, row in enumerate(self.trained[1])}
        return found

    def promising(self, last: str, count: int) -> list[tuple[str, Float64[Tensor, " p"]]]:
        """The direction named ``last``, if it is one, and ``count`` others that do most damage without a defense."""
        inside, m, n = self.trained[0], len(self.honest), len(self.known)
        benign = self.benign.sum(dim=0) / n if len(self.benign) else torch.zeros_like(self.honest[0])
        found = self.directions()

        def guess(name: str) -> float:
            explained = found[name] @ inside.T @ inside
            step = benign.clone()
            step[: len(explained)] += (1.5 * self.unit * m / n * explained / explained.norm().clamp(min=1e-300)).to(
                step
            )
            return self.damage(step)

        others = sorted((name for name in found if name != last), key=guess, reverse=True)[:count]
        return [(name, found[name]) for name in ([last] if last in found else []) + others]

    def crafted(self, direction: Float64[Tensor, " p"], size: Size, generator: torch.Generator) -> Float[Tensor, "m d"]:
        """What to send: ``direction`` in a ``size``, hidden as the module's docstring says."""
        inside, m = self.trained[0], len(self.honest)
        own = self.known[:m]
        explained = direction @ inside.T @ inside
        rest = pieces(direction - explained, m, _PART, generator)
        rows = own - (1 - size[2]) * own @ inside.T @ inside
        rows = rows + self.unit * (size[0] * explained / explained.norm().clamp(min=1e-300) + size[1] * rest)
        lengths = own.norm(dim=1, keepdim=True) * self.watched.norm(dim=1)
        sent = self.honest.clone()
        sent[:, : own.shape[1]] = with_cosines(rows, self.watched, own @ self.watched.T / lengths.clamp(min=1e-300)).to(
            sent
        )
        return sent


@dataclass
class Search:
    """The best of what was tried in one round. Mutable.

    Attributes:
        known: What the attacker knows.
        level: Mean evidence that is dared.
        best: What to send, [m, d].
        name: Of its direction.
        damage: Of the simulated model after it.
        update: The simulated aggregate.
    """

    known: Knowledge
    level: float
    best: Float[Tensor, "m d"] = field(init=False)
    name: str = field(default="honest", init=False)
    damage: float = field(default=-math.inf, init=False)
    update: Float[Tensor, " d"] = field(init=False)

    def __post_init__(self) -> None:
        self.best = self.known.honest
        result = self._simulated(self.best)
        self.update, self._honest = result.update, self._evidence(result)
        self.damage = self.known.damage(result.update)

    def _simulated(self, rows: Float[Tensor, "m d"]) -> Aggregate:
        assert self.known.view.simulate_defense is not None
        return self.known.view.simulate_defense(torch.cat([rows, self.known.benign]))

    def _evidence(self, result: Aggregate) -> Float64[Tensor, " f"]:
        """Mean evidence against the malicious clients, as far as the defense tells."""
        told = [] if result.scores is None else [result.scores[:, None]]
        told += [] if result.diagnosis is None else [result.diagnosis.coordinates]
        return torch.cat([t[: len(self.known.honest)].double().mean(dim=0) for t in (*told, self.known.known[:, :0])])

    def consider(self, name: str, rows: Float[Tensor, "m d"], level: float | None = None) -> float:
        """Simulate sending ``rows``; its damage, minus infinity where it is noticed or evidence is above the level."""
        result = self._simulated(rows)
        dared = self._evidence(result) <= (self._honest + 0.2).clamp(min=self.level if level is None else level)
        if not dared.all() or (result.accepted is not None and not result.accepted[: len(rows)].all()):
            return -math.inf
        damage = self.known.damage(result.update)
        if damage > self.damage:
            self.best, self.name, self.damage, self.update = rows, name, damage, result.update
        return damage

    def sizes(self, name: str, direction: Float64[Tensor, " p"], sizes: list[Size], seed: int) -> Size | None:
        """Simulate a direction in several sizes, all with the same random parts; the best, None if none is accepted."""
        tried = {}
        for explained, rest, kept in sizes:
            size = (min(explained, _LONGEST), max(rest, _PART * explained), kept)
            generator = torch.Generator().manual_seed(seed)
            tried[size] = self.consider(name, self.known.crafted(direction, size, generator))
        best = max(tried, key=lambda size: tried[size])
        return best if tried[best] > -math.inf else None
