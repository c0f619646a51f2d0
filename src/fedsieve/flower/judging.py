"""The server of a defended federation: who the nodes are, what the defense decides about them, and what is kept."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy
from jaxtyping import Float
from torch import Tensor, nn

from fedsieve.aggregators.weighting import weighted
from fedsieve.config.experiment import Experiment
from fedsieve.core.defense import Bounded, Updates
from fedsieve.core.errors import BoundError, FedSieveError
from fedsieve.core.escaping import printable
from fedsieve.core.records import RoundRecord
from fedsieve.federation.server import Decision, Server, ServerState
from fedsieve.flower.arrays import Arrays
from fedsieve.flower.choosing import Settings
from fedsieve.flower.keeping import Journal, memory, packed, remember, unpacked
from fedsieve.flower.recording import nothing
from fedsieve.flower.replies import Usable
from fedsieve.flower.root import Rooted
from fedsieve.runs.checkpoint import this_version

LOG = logging.getLogger("flwr")
_LONGEST = 40  # characters of a name that a node reports


class Judge:
    """Decides about the updates of a round. Mutable: it holds the server's state from round to round.

    Attributes:
        settings: What the federation was told.
        nodes: Node id of each client id.
        names: Name of each client.
        done: Rounds that are done, those of before a restart included.
        arrays: The layout of the model; None before the first round.
    """

    def __init__(
        self, settings: Settings, module: nn.Module | None, root: Rooted | None, seed: int | None, out: Path | None
    ) -> None:
        self.settings = settings
        self.nodes: list[int] = []
        self.names: list[str] = []
        self.arrays: Arrays | None = None
        self._module, self._root = module, root
        self._seed = int.from_bytes(os.urandom(8)) >> 2 if seed is None else seed
        self._shown_seed = seed or 0  # one that was drawn is nobody's business
        self._journal = None if out is None else Journal(out)
        self._state = ServerState(torch.zeros(0))
        self._rounds, self._most_asked = 1, 1

    @property
    def done(self) -> int:
        """Number of rounds that are done, those of before a restart included."""
        return self._state.round

    def open(self, sent: ArrayRecord, rounds: int, strategy: Strategy, resume: bool) -> tuple[ArrayRecord, int]:
        """Learn the layout of the model, and go on with the run in the run directory, if there is one.

        Args:
            sent: The model to start from.
            rounds: How many there shall be.
            strategy: Gets back what it remembered.
            resume: Whether a run may go on.

        Returns:
            The model to send, and the rounds of before a restart: ``sent`` and 0 where a run starts.

        Raises:
            FedSieveError: If the model can't be used, or the run directory.
        """
        before, self.arrays, self._rounds = self.arrays, Arrays.of(sent, self._module), rounds
        if before is None or before.layout != self.arrays.layout:  # what is remembered is of no other model
            self._state = ServerState(self.arrays.vector(sent))
        found = self._journal.open(self._experiment(), resume) if self._journal else None
        if found is None:
            return sent, 0
        with this_version():
            model: ArrayRecord = unpacked(found["model"])
            optimizer, device = dict(found["optimizer"]), self.arrays.device
            self._state = ServerState(
                self.arrays.vector(model), int(found["round"]), _on(found["defense"], device), _on(optimizer, device)
            )
            self.nodes, self.names, self._seed = list(found["nodes"]), list(found["names"]), int(found["seed"])
            self._most_asked = int(found["asked"])
            remember(strategy, found["strategy"])
        return model, self.done

    def ask(self, nodes: Iterable[int]) -> dict[int, int]:
        """The client ids of nodes that are asked, ascending; those that are new get the next ones."""
        nodes = set(nodes)
        known = {node: k for k, node in enumerate(self.nodes)}
        for node in sorted(nodes - known.keys()):
            known[node] = len(self.nodes)
            self.nodes.append(node)
            self.names.append(f"node {node}")
        self._most_asked = max(self._most_asked, len(nodes))
        return {node: k for node, k in sorted(known.items(), key=lambda pair: pair[1]) if node in nodes}

    def check(self, asked: int) -> None:
        """See in the first round that the defense's bound holds for so many nodes.

        Raises:
            BoundError: If not; where a share is assumed, if it holds for no number of malicious nodes.
        """
        defense, f = self.settings.chosen.aggregator, self.settings.assumed(asked)
        if not self.done and asked and isinstance(defense, Bounded):
            try:
                defense.check(asked, f)
            except BoundError as error:
                if isinstance(self.settings.assumed_malicious, int):
                    raise
                defense.check(asked, 0)
                LOG.warning("fedsieve: %s; fewer malicious nodes are assumed", error)

    def judge(
        self,
        base: Float[Tensor, " d"],
        matrix: Float[Tensor, "n d"],
        usable: Sequence[Usable],
        asked: Mapping[int, int],
    ) -> tuple[ServerState, Updates, Decision]:
        """Let the defense decide; whatever it raises, the model stays.

        Args:
            base: The model that was sent.
            matrix: The updates.
            usable: The replies they came from.
            asked: Client ids of the nodes that were asked.

        Returns:
            The state after the round, the updates, and the decision.
        """
        assert self.arrays is not None
        n, least, ids = len(usable), self.settings.fewest(len(asked)), [asked[reply.node] for reply in usable]
        state = replace(self._state, params=base)
        updates = Updates(matrix, torch.tensor(ids, dtype=torch.long), self.arrays.layout)
        why = "no usable reply" if not n else f"{n} usable replies of {len(asked)} nodes, fewer than {least}"
        if n >= max(1, least):
            samples = {k: reply.samples for k, reply in zip(ids, usable, strict=True)}
            try:
                following, decision = self._server(len(asked), samples).step(state, updates)
                return following, updates, decision
            except Exception as error:  # an attacker may have caused it
                why = f"the defense failed: {type(error).__name__}: {printable(str(error).partition(chr(10))[0])}"
                LOG.error("fedsieve: %s", why, exc_info=not isinstance(error, FedSieveError))
        decision = nothing(n, len(base), state.defense, why)
        return replace(state, round=state.round + 1), updates, decision

    def _server(self, asked: int, samples: Mapping[int, float]) -> Server:
        s, root, counts = self.settings, self._root, list(samples.values())
        defense = s.chosen.aggregator

        def samples_of(ids: Tensor) -> Tensor:
            return torch.tensor([samples[i] for i in ids.tolist()], dtype=torch.float64)

        return Server(
            defense=weighted(defense, samples_of, float(s.weight_cap)) if s.weighting == "samples" else defense,
            layout=self.arrays.layout,  # type: ignore[union-attr]
            seed=self._seed,
            assumed_malicious=s.assumed(asked),
            learning_rate=s.server.learning_rate,
            optimizer=s.optimizer,
            optimizer_options=s.server.optimizer.parameters if s.server.optimizer else {},
            root=None if root is None else lambda params, k: root.at(self.arrays, params, k, self._seed, counts),
            network=None if root is None else root.network(self.arrays),
        )

    def keep(self, state: ServerState, model: ArrayRecord, record: RoundRecord, strategy: Strategy) -> None:
        """Take over the state after a round, and write it down."""
        self._state = state
        if self._journal is None:
            return
        kept = {
            "round": state.round,
            "model": packed(model),
            "defense": state.defense,
            "optimizer": dict(state.optimizer),
            "nodes": self.nodes,
            "names": self.names,
            "seed": self._seed,
            "asked": self._most_asked,
            "strategy": memory(strategy),
        }
        try:
            self._journal.write(record, kept, self._experiment(), tuple(self.names))
        except FedSieveError as error:
            LOG.error("fedsieve: %s; a restart would lose this round", error)

    def call(self, node: int, name: str) -> None:
        """Note the name that a node reports of itself beside its id; the first one counts."""
        k = self.nodes.index(node)
        if name and self.names[k] == f"node {node}":
            self.names[k] += f" ({printable(name)[:_LONGEST]})"

    def score(self, accuracy: float | None, loss: float | None) -> None:
        """Write the record of the last round with the scores of an evaluation."""
        if self._journal is not None:
            try:
                self._journal.score(test_accuracy=accuracy, test_loss=loss)
            except FedSieveError as error:
                LOG.error("fedsieve: %s", error)

    def close(self) -> None:
        """Release the run directory."""
        if self._journal is not None:
            self._journal.close()

    def _experiment(self) -> Experiment:
        return self.settings.experiment(
            model="arrays" if self._module is None else type(self._module).__name__,
            clients=max(len(self.nodes), self._most_asked),
            asked=self._most_asked,
            rounds=max(self._rounds, self.done),
            seed=self._shown_seed,
            root=0 if self._root is None else len(self._root.y),
        )


def _on(value: Any, device: torch.device) -> Any:
    """A state with its tensors on a device."""
    match value:
        case Tensor():
            return value.to(device)
        case dict():
            return {k: _on(v, device) for k, v in value.items()}
        case list():
            return [_on(v, device) for v in value]
        case tuple():
            return tuple(_on(v, device) for v in value)
    return value
