"""An experiment: all settings that decide a run's numbers, and no others.

Frozen; unknown settings are refused. A setting that is not given comes from the dataset's defaults, then from those
below. Files and keys contain every setting, so they keep their meaning when a default changes; only those in ``off``
are left out, while they are off. The key is a hash of all settings; the device and the number of processes are not
among them.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field, ValidationError, model_serializer, model_validator

from fedsieve.aggregators.weighting import check_weighable
from fedsieve.config import registry
from fedsieve.config.imports import named_in
from fedsieve.config.merging import in_words, merged, named, refuse_unknown, whole
from fedsieve.config.settings import (
    MAX_CLIENTS,
    RECORDED,
    Clients,
    Count,
    Drawn,
    Frozen,
    Local,
    Named,
    Odd,
    RootData,
    ServerSide,
    is_recorded,
    without_what_is_off,
)
from fedsieve.config.yaml_files import read_yaml, yaml_text
from fedsieve.core.defense import Bounded
from fedsieve.core.errors import ParameterError

# Used where neither the user nor the dataset sets anything. Defaults that follow from other settings: see ``_fill``.
_DEFAULTS: dict[str, Any] = {
    "dataset": "digits",
    "model": "mlp",
    "partition": "groups",
    "attack": "none",
    "defense": "skymask",
    "clients": 30,
    "rounds": 50,
}


def usual_assumed_malicious(clients: int, malicious: int, clients_per_round: int) -> int:
    """Default of ``assumed_malicious``: the expected number of malicious clients in a round."""
    return round(malicious * clients_per_round / max(clients, 1))


def usual_evaluate_every(rounds: int) -> int:
    """Default of ``evaluate_every``, with which a run has at most about 100 evaluations."""
    return max(1, -(-rounds // 100))


class Experiment(Frozen):
    """One experiment.

    Attributes:
        dataset: Registered name, or the path of a table (.csv, .tsv, .txt, .xlsx, .parquet), of arrays (.npz) or of a
            folder of images.
        model: The model that is trained; ``package.module:Class`` works too, here and for every other component.
        partition: How the training data are split among the clients.
        attack: What the malicious clients do.
        defense: The server's defense: an aggregator, a detector or pre-aggregator with the mean, or a chain.
        clients: Number of clients, n.
        malicious: Number of malicious clients, m, or their share, such as 0.4; by default a fifth. With attack
            ``none`` all clients are benign.
        assumed_malicious: Number of malicious clients that the defense assumes, f; by default the expected number in a
            round.
        clients_per_round: Number of clients drawn for each round; by default all.
        knowledge: Threat model: with ``full`` the attack sees the benign updates, with ``partial`` only those of the
            malicious clients.
        knows_defense: Whether the attack may simulate the server's defense, with the malicious clients' clean data as
            root data.
        rounds: Number of rounds.
        seed: Seed of all random numbers.
        local: The clients' training.
        server: The server's step.
        root: The server's clean data.
        odd: Benign clients whose data are unlike the others'; none by default.
        evaluate_every: Rounds from one evaluation on the test data to the next, the last round always included; by
            default so that a run has at most about 100.
    """

    off: ClassVar[Mapping[str, Any]] = {"odd": Odd()}

    dataset: Named
    model: Named
    partition: Named
    attack: Named
    defense: Named
    clients: Clients
    malicious: Annotated[int, Field(ge=0, le=MAX_CLIENTS)]
    assumed_malicious: Annotated[int, Field(ge=0, le=MAX_CLIENTS)]
    clients_per_round: Drawn
    knowledge: Literal["full", "partial"] = "full"
    knows_defense: bool = False
    rounds: Count
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    local: Local = Local()
    server: ServerSide = ServerSide()
    root: RootData = RootData()
    odd: Odd = Odd()
    evaluate_every: Count

    def __init__(self, **settings: Any) -> None:
        """The experiment with these settings, as :meth:`of` makes it."""
        try:
            BaseModel.__init__(self, **settings)
        except ValidationError as error:
            raise ParameterError(_in_words(error, settings)) from error

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # so that other ways in don't pass through it

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any, info: Any) -> Any:
        """Add the dataset's defaults, those of this module, and those that follow from other settings."""
        if not isinstance(given, Mapping):
            raise ValueError(f"an experiment is a mapping of settings, got {type(given).__name__}")
        refuse_unknown(given, cls.model_fields, "")
        if is_recorded(info):
            return given
        dataset = named("dataset", given.get("dataset", {}), _DEFAULTS["dataset"])
        defaults = dict(getattr(registry.load("datasets", dataset["name"]), "defaults", {}))
        defaults |= _implied(dataset, given)
        usual = {kind: defaults.pop(f"{kind}_parameters", {}) for kind in ("attack", "defense")}
        local = given.get("local")
        if isinstance(local, Mapping) and any(local.get(key) is not None for key in ("steps", "epochs")):
            # one of the two decides: the user's choice replaces the dataset's
            usual_local = defaults.get("local", {}).items()
            defaults["local"] = {key: value for key, value in usual_local if key not in ("steps", "epochs")}
        settings = merged({**_DEFAULTS, **defaults}, given)
        n, rounds = whole(settings["clients"]), whole(settings["rounds"])
        if n is not None:
            share = settings.get("malicious")
            if isinstance(share, float) and 0 < share < 1:
                settings["malicious"] = round(share * n)
            m = whole(settings.setdefault("malicious", n // 5))
            k = whole(settings.setdefault("clients_per_round", n))
            if m is not None and k is not None:
                settings.setdefault("assumed_malicious", usual_assumed_malicious(n, m, k))
        if rounds is not None:
            settings.setdefault("evaluate_every", usual_evaluate_every(rounds))
        for key in ("dataset", "model", "partition", "attack", "defense"):
            component = named(key, settings[key], _DEFAULTS[key])
            name = component.pop("name")
            settings[key] = {"name": name, **registry.complete(f"{key}s", name, component, usual.get(key))}
        return settings

    @model_validator(mode="after")
    def _consistent(self, info: Any) -> "Experiment":
        if self.malicious > self.clients:
            raise ValueError(f"{self.malicious} malicious clients are more than the {self.clients} clients there are")
        for name in ("assumed_malicious", "clients_per_round"):
            if getattr(self, name) > self.clients:
                raise ValueError(f"{name} is {getattr(self, name)}, more than the {self.clients} clients there are")
        benign = self.clients - self.n_malicious
        if (self.odd.clients or 0) > benign:
            raise ValueError(f"odd.clients is {self.odd.clients}, more than the {benign} benign clients there are")
        if is_recorded(info):
            return self
        defense = registry.build_defense(self.defense.name, self.defense.parameters)
        if isinstance(defense, Bounded):
            defense.check(self.clients_per_round, self.assumed_malicious)
        if self.server.weighting != "equal":
            check_weighable(defense, self.defense.name)
        needs, attack = registry.needs("attacks", self.attack.name, self.attack.parameters), self.attack.name
        if not self.knows_defense and "defense" in needs:
            raise ValueError(f"attack {attack} must know the defense; grant it with knows_defense=true")
        if self.knowledge != "full" and "benign updates" in needs:
            raise ValueError(f"attack {attack} must see the benign updates; grant them with knowledge=full")
        if self.n_malicious == self.clients and "benign updates" in needs:
            raise ValueError(f"attack {attack} needs benign clients, but all {self.clients} clients are malicious")
        return self

    @model_serializer(mode="wrap")
    def _written(self, write: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return without_what_is_off(self, write)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Experiment":
        """The experiment with these settings, given as in a YAML file.

        Raises:
            FedSieveError: If a setting is wrong.
        """
        try:
            return cls.model_validate(dict(settings))
        except ValidationError as error:
            raise ParameterError(_in_words(error, settings)) from error

    @classmethod
    def read(cls, path: Path, overrides: Mapping[str, Any] | None = None, allow_imports: bool = False) -> "Experiment":
        """The experiment of a YAML file, with ``overrides`` in place of its settings.

        Args:
            path: The file.
            overrides: Settings that replace those of the file.
            allow_imports: Whether a ``module:Class`` that only the file names may be loaded, which runs its code.

        Raises:
            FedSieveError: If a setting is wrong, or names a class that may not be loaded.
        """
        found, typed = read_yaml(path), overrides or {}
        with named_in(path, found, typed, allow_imports):
            return cls.of(merged(found, typed))

    @classmethod
    def recorded(cls, path: Path) -> "Experiment":
        """The experiment that :meth:`to_yaml` wrote to a file, equal to the one that was written, with the same key.

        Types and ranges of plain settings are checked. No component that the file names is imported, built or
        inspected, installed or not, so that the file may be a stranger's; what only running it shows is not checked.

        Raises:
            FedSieveError: If the file can't be read, or a setting is missing, unknown or wrong.
        """
        try:
            if not path.is_file():  # a named pipe would wait for ever
                raise ParameterError(f"{path} is not a file")
            settings = read_yaml(path)
            _refuse_missing(settings)
            return cls.model_validate_json(json.dumps(settings), strict=True, context=RECORDED)
        except ValidationError as error:
            raise ParameterError(f"{path}: {_in_words(error, settings)}") from error
        except ParameterError as error:
            raise ParameterError(str(error) if str(path) in str(error) else f"{path}: {error}") from error

    @property
    def n_malicious(self) -> int:
        """Number of malicious clients; 0 without an attack."""
        return 0 if self.attack.name == "none" else self.malicious

    @property
    def truth(self) -> bool:
        """Whether it is known who is malicious.

        Of the data of a user, who made no attack, nobody knows: which of the clients is off may be what is asked.
        """
        return self.attack.name != "none" or "file" not in self.dataset.parameters

    @property
    def key(self) -> str:
        """Name of the experiment: the first 12 hexadecimal digits of a hash of all settings."""
        settings = json.dumps(self.model_dump(mode="json"), sort_keys=True, allow_nan=False)
        return hashlib.sha256(settings.encode()).hexdigest()[:12]

    def to_yaml(self) -> str:
        """All settings, readable by :meth:`read` and :meth:`recorded`."""
        return yaml_text(self.model_dump(mode="json"))


def _in_words(error: ValidationError, given: Mapping[str, Any]) -> str:
    """One line for all of pydantic's errors."""
    found = error.errors()
    # what is wrong with a setting that follows from others is wrong with these
    first = [e for e in found if e["loc"] and e["loc"][0] in given] or found
    return "; ".join(in_words(e) for e in first)


def _refuse_missing(recorded: Mapping[str, Any]) -> None:
    """Refuse recorded settings that are not complete: a default may have changed since they were written."""
    sections: dict[str, type[Frozen]] = {"": Experiment, "local": Local, "server": ServerSide, "root": RootData}
    sections |= {"odd": Odd} if "odd" in recorded else {}
    for name, section in sections.items():
        given = recorded.get(name, {}) if name else recorded
        needed = section.model_fields.keys() - section.off.keys()
        missing = [key for key in section.model_fields if isinstance(given, Mapping) and key in needed - given.keys()]
        if missing:
            where = f"{name}: " if name in recorded else ""
            raise ParameterError(f"{where}no {', '.join(missing)}; was it written by another version of FedSieve?")


def _implied(dataset: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults that follow from the file of a dataset; none beside another partition that the user chose."""
    parameters = {key: value for key, value in dataset.items() if key != "name"}
    loader = registry.load("datasets", dataset["name"])
    if not hasattr(loader, "implied_defaults") or {"partition", "clients"} <= given.keys():
        return {}
    implied = dict(registry.build("datasets", dataset["name"], parameters).implied_defaults())
    usual = implied.get("partition", _DEFAULTS["partition"])
    chosen = named("partition", given.get("partition", {}), usual)["name"]
    return implied if chosen == usual else {}
