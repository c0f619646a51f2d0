"""The attacker behind malicious Flower clients: what it knows, and what they send."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from jaxtyping import Float
from torch import Tensor

from fedsieve.attacks.none import NoAttack
from fedsieve.core.attack import Attack, AttackView, Crafted, DataAttack, Fitted, Identities, craft, parts
from fedsieve.core.errors import FedSieveError, ParameterError
from fedsieve.core.layout import Layout
from fedsieve.core.seeding import stream
from fedsieve.federation.adversary import check_layout

Knowledge = Literal["own", "partial", "full"]
"""What a malicious client knows of a round: its own honest update, those of all malicious clients, or all of them."""

_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class SentModel:
    """The floats among the arrays that the server sent.

    Attributes:
        layout: Where each of them lies in the vector; running statistics of BatchNorm, known by their names, last.
        params: The vector, [d].
    """

    layout: Layout
    params: Float[Tensor, " d"]

    @classmethod
    def of(cls, arrays: ArrayRecord) -> "SentModel":
        """The arrays as a vector: float64 if one of them is, else float32."""
        found = {name: array.numpy() for name, array in arrays.items()}
        tensors = {name: torch.from_numpy(value) for name, value in found.items() if value.dtype.kind == "f"}
        statistics = {name: t for name, t in tensors.items() if name.rpartition(".")[2] in _STATISTICS}
        layout = Layout.of({name: t for name, t in tensors.items() if name not in statistics}, statistics)
        widest = torch.float64 if any(t.dtype == torch.float64 for t in tensors.values()) else torch.float32
        return cls(layout, layout.flatten({name: t.to(widest) for name, t in tensors.items()}))

    def update(self, arrays: ArrayRecord) -> Float[Tensor, " d"]:
        """What a client changed, [d]."""
        local = SentModel.of(arrays)
        if local.layout.segments != self.layout.segments:
            raise ParameterError(
                f"the reply holds other arrays than the message: {len(local.layout.segments)} with "
                f"{local.layout.size} floats, the message {len(self.layout.segments)} with {self.layout.size}"
            )
        return local.params - self.params

    def changed(self, trained: ArrayRecord, update: Float[Tensor, " d"]) -> ArrayRecord:
        """The arrays of a reply with another update, each of its own type."""
        found = self.layout.unflatten(self.params + update)
        with np.errstate(over="ignore"):  # an attack may send what float16 can't hold
            return ArrayRecord(
                {
                    name: Array(found[name].numpy().astype(array.dtype)) if name in found else array
                    for name, array in trained.items()
                }
            )


class _Withheld:
    """In place of what an attack can't have at a client, a function or a pair of tensors: every use is an error."""

    def __init__(self, attack: str) -> None:
        self._attack = attack

    def __call__(self, *given: Any, **named: Any) -> NoReturn:
        raise ParameterError(
            f"a mod can't do attack {self._attack}: it trains or evaluates models by itself, and a mod has neither the "
            "client's data nor its model, only what goes in and comes out"
        )

    __iter__ = __getitem__ = __len__ = __bool__ = __call__


class _NoRoot:
    """In place of a :class:`fedsieve.core.defense.Root`: has its attributes, since protocols are checked by them."""

    def __init__(self, attack: str) -> None:
        self.data = self.n_classes = self.loss = self.gradient = self.update = self.train = _Withheld(attack)


@dataclass(frozen=True)
class Attacker:
    """One attacker that controls malicious clients; the fields are those of :func:`fedsieve.flower.attack_mod`."""

    attack: Attack
    name: str
    malicious: tuple[int, ...] | None
    knowledge: Knowledge
    seed: int

    @property
    def poisons(self) -> bool:
        """Whether the attack changes training data, itself or by what it is made of."""
        return any(isinstance(part, DataAttack) and not parts(part) for part in _all(self.attack))

    def member(self, client: int, n: int) -> int | None:
        """Index of a client among the malicious ones; None if it is none of them."""
        if self.malicious is None:
            return client
        if max(self.malicious) >= n:
            raise ParameterError(f"malicious client {max(self.malicious)} does not exist: num-partitions is {n}")
        return self.malicious.index(client) if client in self.malicious else None

    def crafted(
        self, model: SentModel, rows: Float[Tensor, "k d"], ids: Sequence[int], n: int, at: int, memory: Any
    ) -> Crafted:
        """What the malicious clients send.

        Args:
            model: What all clients received.
            rows: Honest updates, those of malicious clients first; may be written to.
            ids: Whose they are.
            n: Clients of the federation.
            at: The round, from 0.
            memory: The attack's, of the last round.
        """
        check_layout(self.attack, model.layout)
        return self._crafted(model, rows, ids, n, at, memory)

    def _crafted(
        self, model: SentModel, rows: Float[Tensor, "k d"], ids: Sequence[int], n: int, at: int, memory: Any
    ) -> Crafted:
        members = [member for i in ids if (member := self.member(i, n)) is not None]
        m, full = len(members), self.knowledge == "full"
        view = AttackView(
            round=at,
            malicious_updates=rows[:m],
            benign_updates=rows[m:] if full else None,
            n_clients=n,
            global_params=model.params.clone(),
            # clients that don't know of each other draw different numbers
            generator=stream(self.seed, "attack", at, ids[0] if self.knowledge == "own" else 0),
            layout=model.layout,
            members=torch.tensor(members),
            train=_Withheld(self.name),
            root=_NoRoot(self.name),  # type: ignore[arg-type]
            memory=memory,
            benign_ids=torch.tensor(ids[m:], dtype=torch.long) if full else None,
            on_samples=_Withheld(self.name),
        )
        return craft(self.attack, view, self.name)

    def check(self) -> None:
        """Try the attack on a few numbers.

        Raises:
            ParameterError: If it needs what a mod can't give, or has no effect with what it knows.
        """
        if isinstance(self.attack, Identities) and self.attack.identity(0, 10**9):
            raise ParameterError(f"a mod can't do attack {self.name}: who a node is, its key says, not the ClientApp")
        bad = [*(self.malicious or (0,))][: 1 if self.knowledge == "own" else None]
        ids = [*bad, *range(max(bad) + 1, max(bad) + 5)] if self.knowledge == "full" else bad
        n = max([*ids, *(self.malicious or ())]) + 1
        layout = Layout.of({"0.weight": torch.zeros(2, 2), "0.bias": torch.zeros(2), "1.weight": torch.zeros(3, 2)})
        model = SentModel(layout, torch.zeros(layout.size))
        rows = torch.randn(len(ids), layout.size, generator=torch.Generator().manual_seed(0))
        harmless = not isinstance(self.attack, NoAttack) and not self.poisons
        try:
            for at in (*range(20), 10**6):  # an attack may sleep, or pause
                sent = self._crafted(model, rows.clone(), ids, n, at, None).updates
                harmless = harmless and torch.equal(sent, rows[: len(bad)])
        except FedSieveError:
            if any(isinstance(part, Fitted) for part in _all(self.attack)):
                return  # it may be about layers, which the first message shows
            raise
        if harmless:
            known = "its own honest update alone" if len(ids) == 1 else f"{len(ids)} honest updates"
            raise ParameterError(
                f"attack {self.name} has no effect: a client that knows {known} sends it unchanged; "
                "set knowledge=partial or full, or its parameters"
            )


def _all(attack: Attack) -> Iterator[Attack]:
    """An attack and all that it is made of."""
    yield attack
    for part in parts(attack):
        yield from _all(part)
