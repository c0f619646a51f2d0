"""The settings of a defended federation, checked before any round."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from pydantic import ValidationError

from fedsieve.aggregators.chain import Chain
from fedsieve.aggregators.mean import Mean
from fedsieve.config import registry
from fedsieve.config.experiment import Experiment
from fedsieve.config.merging import in_words, refuse_unknown
from fedsieve.config.optimizers import optimizers
from fedsieve.config.settings import RECORDED, Local, ServerSide, as_component
from fedsieve.core.defense import Aggregator, Detector, PreAggregator
from fedsieve.core.errors import ParameterError
from fedsieve.core.escaping import shown
from fedsieve.federation.clients import LocalTraining


@dataclass(frozen=True)
class Chosen:
    """A defense, and how it was asked for.

    Attributes:
        aggregator: The defense.
        name: Its name.
        settings: Name and all parameters, as in an experiment's settings.
        needs: What its stages need beside the updates.
    """

    aggregator: Aggregator
    name: str
    settings: Mapping[str, Any]
    needs: frozenset[str]

    @classmethod
    def of(cls, defense: Any) -> "Chosen":
        """A defense by name, mapping or list as :func:`fedsieve.aggregate` takes it, or an object.

        Raises:
            FedSieveError: If there is none of this name, or a parameter is wrong.
        """
        spec = as_component(defense)
        if isinstance(spec, Mapping) and isinstance(spec.get("name"), str):
            name, given = spec["name"], {k: v for k, v in spec.items() if k != "name"}
            parameters = registry.complete("defenses", name, given)
            stages = [s.strip() for s in name.split(",")]
            of = {s: parameters[s] for s in stages} if len(stages) > 1 else {name: parameters}
            needs = frozenset[str]().union(*(registry.needs("defenses", s, p) for s, p in of.items()))
            built = registry.build_defense(name, parameters)
            return cls(built, name, {"name": name, **parameters}, needs)
        name = f"{type(defense).__module__}:{type(defense).__qualname__}"
        needs = frozenset(getattr(getattr(defense, "traits", None), "needs", ()))
        if not isinstance(defense, type):
            if isinstance(defense, Aggregator):
                return cls(defense, name, {"name": name}, needs)
            if isinstance(defense, Detector | PreAggregator):
                return cls(Chain((defense,), Mean()), name, {"name": name}, needs)
        raise ParameterError(
            "defense must be a name, a mapping with a name, a list of these, or an aggregator, detector or "
            f"pre-aggregator, got {shown(defense)}"
        )

    def check_root(self, has_root: bool, has_module: bool) -> None:
        """See that the defense has what it needs.

        Raises:
            ParameterError: If the server has no root data, or can't run the model.
        """
        if "root data" in self.needs and not has_root:
            raise ParameterError(
                f"defense {self.name} needs root data: give root=(x, y), module= and local=; without them, use "
                f"{', '.join(without_root())}"
            )
        if "network" in self.needs and not has_root:
            raise ParameterError(
                f"defense {self.name} runs the model: give module=, and root=(x, y), whose samples have the model's "
                f"shape of input; without them, use {', '.join(without_root())}"
            )
        if has_root and not has_module:
            raise ParameterError("root= needs module=, the torch.nn.Module that clients train")


def without_root() -> list[str]:
    """Defenses by name that need neither root data nor the network."""
    found = []
    for name in registry.names("defenses"):
        needs = registry.traits("defenses", name).needs
        if "root data" not in needs and "network" not in needs:
            found.append(name)
    return found


@dataclass(frozen=True)
class Settings:
    """All that a defended federation was told.

    Attributes:
        chosen: The defense.
        assumed_malicious: Number of malicious clients to assume, or their share of the nodes that are asked.
        local: How clients train.
        server: How the server moves the model.
        weighting: Whether clients count alike or by their samples.
        weight_cap: Largest number of samples that counts, in medians.
        min_replies: Fewest usable replies; None for one more than the malicious clients that are assumed.
    """

    chosen: Chosen
    assumed_malicious: int | float
    local: Local
    server: ServerSide
    weighting: str
    weight_cap: int | float
    min_replies: int | None

    def __post_init__(self) -> None:
        f, is_count = self.assumed_malicious, isinstance(self.assumed_malicious, int)
        if isinstance(f, bool) or not isinstance(f, int | float) or not (f >= 0 if is_count else 0 <= f < 1):
            raise ParameterError(
                f"assumed_malicious must be a number of clients, at least 0, or a share in [0, 1), got {shown(f)}"
            )
        if self.weighting not in ("equal", "samples"):
            raise ParameterError(f"weighting must be 'equal' or 'samples', got {shown(self.weighting)}")
        cap, least = self.weight_cap, self.min_replies
        if isinstance(cap, bool) or not isinstance(cap, int | float) or not 1 <= cap < float("inf"):
            raise ParameterError(f"weight_cap must be a number of medians, at least 1, got {shown(cap)}")
        if least is not None and (isinstance(least, bool) or not isinstance(least, int) or least < 1):
            raise ParameterError(f"min_replies must be an integer of at least 1, got {shown(least)}")

    def assumed(self, asked: int) -> int:
        """Number of malicious clients to assume among so many nodes."""
        f = self.assumed_malicious
        return min(asked, f if isinstance(f, int) else round(f * asked))

    def fewest(self, asked: int) -> int:
        """Fewest usable replies with which the model is moved."""
        return self.assumed(asked) + 1 if self.min_replies is None else self.min_replies

    @property
    def optimizer(self) -> type[torch.optim.Optimizer] | None:
        """The server's optimizer."""
        return optimizers()[self.server.optimizer.name] if self.server.optimizer else None

    def experiment(self, *, model: str, clients: int, asked: int, rounds: int, seed: int, root: int) -> Experiment:
        """The settings as a run directory keeps them; the nodes' data and what they do are not known."""
        settings = {
            "dataset": {"name": "flower"},
            "model": {"name": model},
            "partition": {"name": "nodes"},
            "attack": {"name": "none"},
            "defense": dict(self.chosen.settings),
            "clients": max(1, clients),
            "malicious": 0,
            "assumed_malicious": self.assumed(max(1, asked)),
            "clients_per_round": max(1, asked),
            "rounds": max(1, rounds),
            "seed": seed,
            "local": self.local,
            "server": self.server,
            "root": {"size": root},
            "evaluate_every": 1,
        }
        return Experiment.model_validate(settings, context=RECORDED)


def local_of(given: Mapping[str, Any] | None) -> Local:
    """How clients train, as in an experiment's ``local``.

    Raises:
        ParameterError: If a setting does not exist, or is wrong.
    """
    given = dict(given or {})
    refuse_unknown(given, {f.name: None for f in fields(LocalTraining)}, "local")
    return _valid(Local, given)


def server_of(learning_rate: int | float, optimizer: Any) -> ServerSide:
    """The server's step, as in an experiment's ``server``.

    Raises:
        ParameterError: If a setting is wrong.
    """
    return _valid(ServerSide, {"learning_rate": learning_rate, "optimizer": optimizer})


def _valid(kind: Any, given: Mapping[str, Any]) -> Any:
    try:
        return kind(**given)
    except ValidationError as error:
        raise ParameterError("; ".join(in_words(e) for e in error.errors())) from error
