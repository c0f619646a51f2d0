"""The attacker's part of a round: what the threat model lets it see and do, and what the malicious clients send.

The attacker never gets the server's random stream, root data, batches or folds: it simulates the defense on its own
data and with random streams of its own.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fedsieve.core.attack import Attack, AttackView, DataAttack, Fitted, UpdateAttack, craft, identity, parts
from fedsieve.core.defense import Aggregate, Aggregator, Network, ServerView, Updates
from fedsieve.core.layout import Layout
from fedsieve.core.records import seen_id
from fedsieve.core.seeding import stream
from fedsieve.federation.clients import ClientData, Trainer
from fedsieve.federation.population import Members
from fedsieve.federation.root import RootClient
from fedsieve.federation.server import defend


def check_layout(attack: Attack, layout: Layout) -> None:
    """Ask an attack, and all that it is made of, whether its parameters fit the model.

    An attack that waits would otherwise end a run in the first round in which it attacks.

    Raises:
        ParameterError: If they don't.
    """
    if isinstance(attack, Fitted):
        attack.check_layout(layout)
    for part in parts(attack):
        check_layout(part, layout)


@dataclass(frozen=True)
class LocalPractice:
    """Training at the malicious clients of one round. Implements :class:`fedsieve.core.attack.Training`.

    Attributes:
        trainer: Trains them as every client is trained.
        poisoned: Their data after the attack's ``poison``, by client id.
        clean: Their original data, by client id.
        round: Counts from 0.
        own: By client id, its own values of the BatchNorm coordinates, from which it starts; None where these are
            shared.
        clean_own: Those that it would have without the attack, from which it starts on its original data.
    """

    trainer: Trainer
    poisoned: Mapping[int, ClientData]
    clean: Mapping[int, ClientData]
    round: int
    own: Mapping[int, Tensor] | None = None
    clean_own: Mapping[int, Tensor] | None = None

    def __call__(
        self, start: Float[Tensor, " d"], /, *, poisoned: bool = True, proximal: float = 0.0
    ) -> Float[Tensor, "m d"]:
        """See :class:`fedsieve.core.attack.Training`."""
        trainer = self.trainer
        if proximal:
            trainer = replace(trainer, settings=replace(trainer.settings, proximal=proximal))
        data, own = (self.poisoned, self.own) if poisoned else (self.clean, self.clean_own)
        return trainer.updates(start, data, self.round, own)

    def clean_own_after(self, params: Float[Tensor, " d"]) -> dict[int, Tensor]:
        """``clean_own`` after a round in which the clients train the global model ``params`` on their original data."""
        where = self.trainer.model.normalisation
        trained = self(params, poisoned=False)[:, where]
        after = {i: params[where] + row for i, row in zip(self.clean, trained, strict=True)}
        return {**(self.clean_own or {}), **after}


@dataclass
class SimulatedDefense:
    """The server's screening and defense, run by the attacker. Mutable: records whether it was used.

    Every call of a round draws the same random numbers, so that two calls can be compared. The defense's state is by
    client id, so a matrix of another number of rows than the round has clients is given no state.

    Attributes:
        defense: The server's defense.
        layout: Of the model.
        ids: Client ids of the round as the server sees them, malicious clients first, [n].
        view: The attacker's estimate of the server's view.
        used: Whether it was called.
    """

    defense: Aggregator
    layout: Layout
    ids: Int[Tensor, " n"]
    view: ServerView
    used: bool = False

    def __call__(self, matrix: Float[Tensor, "k d"]) -> Aggregate:
        """The defense's result for the updates ``matrix``, malicious clients first."""
        self.used = True
        view, ids = replace(self.view, generator=self.view.generator.clone_state()), self.ids
        if len(matrix) != len(ids):
            view, ids = replace(view, state=None), torch.arange(len(matrix), device=matrix.device)
        return defend(self.defense, Updates(matrix, ids, self.layout), view).aggregate


@dataclass(frozen=True)
class Adversary:
    """All malicious clients, controlled by one attacker.

    Attributes:
        attack: The attack.
        name: Name of the attack, for error messages.
        malicious: The malicious clients by their first ids, in the attacker's own order.
        n_clients: Number of clients of the federation.
        poisoned: Their training data, by id; of other clients, too, which are not looked at.
        clean: Their data before it was poisoned, by id.
        trainer: Trains them as every client is trained.
        root: The attacker's estimate of the root data: a trainer with a seed of the attacker's own, a sample of the
            clean data, and the number of classes.
        network: The architecture.
        seed: Of the experiment; the attacker's random streams have names that no stream of the server has.
        sees_benign_updates: Whether the threat model grants the benign updates.
        defense: The server's defense, if the threat model grants it.
        assumed_malicious: f, as the attacker assumes the server has it.
        server_learning_rate: Share of the aggregate that the server adds, as the attacker knows it with the defense.
    """

    attack: Attack
    name: str
    malicious: Members
    n_clients: int
    poisoned: Mapping[int, ClientData]
    clean: Mapping[int, ClientData]
    trainer: Trainer
    root: tuple[Trainer, ClientData, int]
    network: Network
    seed: int
    sees_benign_updates: bool
    defense: Aggregator | None
    assumed_malicious: int
    server_learning_rate: float

    def ids(self, cohort: Sequence[int], round: int) -> list[int]:
        """The ids under which the server sees the clients of a round: new ones where the attack changes them.

        Raises:
            StageError: If the attack's :meth:`fedsieve.core.attack.Identities.identity` returns no number of ids.
        """
        bad = self.malicious
        used = [identity(self.attack, bad.index(i), round, self.name) if i in bad else 0 for i in cohort]
        return [seen_id(i, k, self.n_clients) for i, k in zip(cohort, used, strict=True)]

    @cached_property
    def leads_two_lives(self) -> bool:
        """Whether the attack, which may ask for updates trained on the original data, has changed these."""
        if not (isinstance(self.attack, UpdateAttack) and isinstance(self.attack, DataAttack)):
            return False
        pairs = ((self.poisoned[i], self.clean[i]) for i in self.malicious)
        return any(not (torch.equal(a.x, b.x) and torch.equal(a.y, b.y)) for a, b in pairs)

    def send(
        self,
        honest: Float[Tensor, "n d"],
        cohort: Sequence[int],
        bad: Bool[Tensor, " n"],
        params: Float[Tensor, " d"],
        round: int,
        memory: Any,
        personal: Float[Tensor, "clients k"] | None = None,
    ) -> tuple[Float[Tensor, "n d"], Any]:
        """Attack one round.

        Args:
            honest: Every client's honestly trained update; the malicious clients' rows are overwritten.
            cohort: The clients of the round, by their first ids.
            bad: Which of them are malicious, [n].
            params: The global model, [d].
            round: Counts from 0.
            memory: From the last round; None before the first.
            personal: Each client's own values of the BatchNorm coordinates before the round, [clients, k]; None where
                these are shared.

        Returns:
            All updates as sent, ``honest`` with the attack's rows, [n, d]; and ``memory`` after the round: what the
            attack returned, and the state of the simulated defense, which changes only if the attacker used it and sees
            the benign updates. With ``personal`` also the values that the malicious clients would have without the
            attack, by id; None where these are the same.
        """
        memory = memory or {"attack": None, "defense": None}
        after: dict[str, Any] = {}
        here = [i for i in cohort if i in self.malicious]
        ordered = here + [i for i in cohort if i not in self.malicious]
        ids = torch.tensor(self.ids(ordered, round), device=honest.device)
        practice = LocalPractice(
            self.trainer, {i: self.poisoned[i] for i in here}, {i: self.clean[i] for i in here}, round
        )
        if personal is not None:
            own = {i: personal[i] for i in self.malicious}
            practice = replace(practice, own=own, clean_own=memory.get("personal") or own)
            after["personal"] = practice.clean_own_after(params) if self.leads_two_lives else None
        if not isinstance(self.attack, UpdateAttack):
            return honest, {"attack": None, "defense": memory["defense"], **after}
        params = params.clone()  # an attack may write to what it is shown
        root = RootClient(*self.root, params, round)
        m, rows = len(here), (~bad).int().argsort(stable=True)  # the malicious clients' first
        shown = honest[rows if self.sees_benign_updates else rows[:m]]
        simulated = None
        if self.defense is not None:
            generator = stream(self.seed, "simulated defense", round)
            estimate = ServerView(
                round=round,
                n_malicious=self.assumed_malicious,
                generator=generator,
                global_params=params,
                state=memory["defense"],
                root=root,
                network=self.network,
                learning_rate=self.server_learning_rate,
            )
            simulated = SimulatedDefense(self.defense, self.trainer.model.layout, ids, estimate)
        view = AttackView(
            round=round,
            malicious_updates=shown[:m],
            benign_updates=shown[m:] if self.sees_benign_updates else None,
            n_clients=len(honest),
            global_params=params,
            generator=stream(self.seed, "attack", round),
            layout=self.trainer.model.layout,
            members=torch.tensor([self.malicious.index(i) for i in here]),
            train=practice,
            root=root,
            simulate_defense=simulated,
            memory=copy.deepcopy(memory["attack"]),
            benign_ids=ids[m:] if self.sees_benign_updates else None,
            on_samples=lambda x, y: RootClient(self.root[0], ClientData(x, y), self.root[2], params, round),
        )
        crafted = craft(self.attack, view, self.name)
        honest[rows[:m]], defense = crafted.updates, memory["defense"]
        if simulated is not None and simulated.used and self.sees_benign_updates:
            defense = simulated(honest[rows]).state
        return honest, {"attack": crafted.memory, "defense": defense, **after}
