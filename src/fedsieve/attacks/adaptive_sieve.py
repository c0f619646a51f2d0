"""An adaptive attack on Sieve: the damage that its evidence does not show, found by simulating it.

No publication. It is this project's own attack on its own defense, by someone who has read both.

What it uses. Sieve explains updates by what root data train, measures what is left over, and compares slopes of root
losses. Hence a harmful direction is cut in three: what lies in the leading directions of the attacker's own
single-sample updates goes to all malicious clients alike, since similar explained parts share no weight; of the rest
each client gets another random part of the coordinates, so that residuals are not similar; and steps along the
gradients of the root losses restore the cosines that honest updates of the same clients have. The honest explained part
may be left out, which slows the training.

Variant: directions are the gradient of the wanted damage (a backdoor, or the mean probability of the right class), and
for lost accuracy also the updates of single clients, single classes and classes with a wrong label that promise the
most. Each is tried in a few sizes in the simulated defense, beside copies of benign clients, zeros and the plain
poisoned updates. What is sent is what does the most damage there while all malicious clients are accepted and their
mean evidence stays below a level. The attack remembers its best sizes, and lowers the level when the global model moved
less than the simulation said. With partial knowledge, random combinations of the malicious clients' honest updates take
the place of the benign ones.
Departs: nothing, since nothing is published.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fedsieve.attacks.pauses import honest_updates
from fedsieve.attacks.searching import Knowledge, Search, Size
from fedsieve.attacks.stand_ins import stand_ins
from fedsieve.attacks.triggers import (
    check_effect,
    check_pattern,
    check_target,
    check_visible,
    mark,
    with_poisoned_copies,
)
from fedsieve.core.attack import AttackView, Crafted, PoisonView, Task, Triggered
from fedsieve.core.errors import ParameterError
from fedsieve.core.traits import Traits

Goal = Literal["accuracy", "backdoor", "both"]
_FIRST: Size = (1.0, 0.2, 0.0)
_LEVEL, _HIGHEST, _LOWEST = 0.8, 1.8, -1.0  # mean evidence that is dared; Sieve looks for groups above 2
_BELIEVED = 0.1  # share of the simulated effect that must be seen in the global model


@dataclass(frozen=True)
class AdaptiveSieve:
    """Does the most damage that a simulation of the server's defense accepts.

    Attributes:
        goal: ``accuracy``: the global model is to misclassify; ``backdoor``: inputs with the trigger are to be
            classified as ``target``; ``both``.
        target: The class that the backdoor wants.
        source: Class whose clean samples are to be classified as ``target``, without a trigger; None: with a trigger.
        share: Poisoned copies per clean sample in the local data, in (0, 1], where there is a trigger.
        size: Images only: side of the square trigger in the top left corner, in pixels.
        value: Images only: pixel value of the trigger, on the dataset's own scale; None: the largest in the training
            data.
        stride: Other data only: every ``stride``-th feature becomes 0.
    """

    goal: Goal = "both"
    target: int = 0
    source: int | None = None
    share: float = 0.5
    size: int = 5
    value: float | None = None
    stride: int = 20
    traits: ClassVar[Traits] = Traits(
        summary="Adaptive, on sieve: hides damage where references explain it and in dissimilar rests",
        needs=("defense",),
        breaks_at="partial knowledge: the simulated defense has no memory and no real benign updates",
        cost="about 14 simulated defenses",
    )

    def __post_init__(self) -> None:
        check_pattern("adaptive-sieve", self.share, self.size, self.stride, self.target, self.value)
        if self.source is not None and (self.source < 0 or self.source == self.target):
            raise ParameterError(
                f"adaptive-sieve: source must be at least 0 and another class than target, got {self.source} for both"
                if self.source == self.target
                else f"adaptive-sieve: source must be at least 0, got {self.source}"
            )

    def _marked(self, x: Tensor, y: Int[Tensor, " k"], largest: float) -> Tensor:
        """The samples on which the backdoor has to work, [j, ...]; some may be of the target class."""
        if self.source is not None:
            return x[y == self.source]
        return mark(x, self.size, largest if self.value is None else self.value, self.stride)

    def triggered(self, x: Tensor, y: Int[Tensor, " k"], task: Task, /) -> Triggered | None:
        """See :class:`fedsieve.core.attack.Backdoor`."""
        if self.goal == "accuracy":
            return None
        marked = self._marked(x, y, task.largest)
        if self.source is None:
            check_visible("adaptive-sieve", x, marked)
            return Triggered(marked, torch.full_like(y, self.target), y == self.target)
        if not len(marked):
            raise ParameterError(f"adaptive-sieve: none of the {len(y)} test samples is of class {self.source}")
        wanted = torch.full_like(y[: len(marked)], self.target)
        return Triggered(marked, wanted, torch.zeros_like(wanted, dtype=torch.bool))

    def poison(self, x: Tensor, y: Tensor, view: PoisonView, /) -> tuple[Tensor, Tensor]:
        """See :class:`fedsieve.core.attack.DataAttack`; data stay as they are where accuracy is the goal."""
        check_target("adaptive-sieve", max(self.target, self.source or 0), view.task.n_classes)
        if self.goal == "accuracy":
            return x, y
        if self.source is not None:
            return x, torch.where(y == self.source, self.target, y)
        check_effect("adaptive-sieve", self, x)
        return with_poisoned_copies(
            x, y, self.share, self.target, partial(self._marked, y=y, largest=view.task.largest), view.generator
        )

    def craft(self, view: AttackView, /) -> Crafted:
        """See :class:`fedsieve.core.attack.UpdateAttack`."""
        if view.simulate_defense is None or view.on_samples is None:
            raise ParameterError("adaptive-sieve must know the defense; grant it with knows_defense=true")
        x, y = view.root.data
        honest = honest_updates(self, view) if self.goal != "accuracy" else view.malicious_updates
        m, seen = len(honest), view.benign_updates
        benign = stand_ins(honest, view.n_clients - m, view.generator) if seen is None else seen
        kept = y != self.target
        marked = self._marked(x[kept], y[kept], float(x.max())) if self.goal != "accuracy" else x[:0]
        aim = view.on_samples(marked, torch.full_like(y[: len(marked)], self.target)) if len(marked) else None
        known, memory = Knowledge(view, honest, benign, aim, self.goal != "backdoor"), view.memory or {}
        search = Search(known, _level(memory, view.global_params))
        plain = search.update
        if self.goal != "backdoor":
            search.consider("zeros", torch.zeros_like(honest))
            if seen is not None and len(seen):
                search.consider("copies", seen[torch.arange(m, device=seen.device) % len(seen)])
        if self.goal != "accuracy":
            search.consider("poisoned", view.malicious_updates, level=math.inf)
        best = dict(memory.get("sizes", {}))
        if search.level < memory.get("level", search.level) and memory["name"] in best:
            a, b, c = best[memory["name"]]
            best[memory["name"]] = (a / 2, b / 2, c)  # that was noticed
        seed = int(torch.randint(2**31, (), generator=view.generator))
        for name, direction in known.promising(memory.get("name", ""), 2):
            again, first = name == memory.get("name"), best.get(name, _FIRST)
            a, b, c = first
            sizes = [first, (a / 1.5, b / 1.5, c)]
            if again:
                sizes += [(1.3 * a, 1.3 * b, c), (a / 1.3, 1.3 * b, c), (1.3 * a, b / 1.3, c), (a, b, 1 - c)]
            best[name] = search.sizes(name, direction, sizes, seed) or (a / 2, b / 2, c)
        meant = (search.best - honest).mean(dim=0)
        return Crafted(
            search.best,
            {
                "name": search.name,
                "sizes": best,
                "level": search.level,
                "params": view.global_params,
                "plain": plain,
                "meant": meant,
                "expected": float((search.update - plain).double() @ meant.double()),
            },
        )


def _level(memory: dict[str, Any], params: Float[Tensor, " d"]) -> float:
    """Mean evidence to dare: less if the global model hardly moved as the simulation had said."""
    if not memory:
        return _LEVEL
    level, expected = float(memory["level"]), float(memory["expected"])
    moved = float((params - memory["params"] - memory["plain"]).double() @ memory["meant"].double())
    if expected > 0 and moved < _BELIEVED * expected:
        return max(_LOWEST, level - 0.25)
    return min(_HIGHEST, level + 0.05)
