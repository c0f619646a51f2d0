"""An experiment: everything that decides a run's numbers, and nothing else.

Frozen; unknown keys are refused; what is not set comes from the dataset's defaults, then from the ones here, and is
written down, so that an experiment's file and key do not change meaning when a default does. The key is a hash of it
all: where and how fast it runs is not part of it.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from fedsieve import registry
from fedsieve.optim import optimizers
from fedsieve.types import Bounded, ParameterError

Rate = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Component(BaseModel):
    """A registered name and its parameters: ``{name: min-max, deviation: sign}``, or just the name."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str

    @property
    def parameters(self) -> dict[str, Any]:
        """All keys but the name."""
        return dict(self.model_extra or {})


def _component(value: Any) -> Any:
    """A name, or a list of components, as one component: ``[a, {name: b, x: 1}]`` is ``{name: "a,b", b: {x: 1}}``."""
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, list | tuple) and value:
        stages = [_component(stage) for stage in value]
        if all(isinstance(stage, Mapping) and isinstance(stage.get("name"), str) for stage in stages):
            rest = {s["name"]: {k: v for k, v in s.items() if k != "name"} for s in stages if len(s) > 1}
            return {"name": ",".join(s["name"] for s in stages), **rest}
    return value


Named = Annotated[Component, BeforeValidator(_component)]


class Local(_Frozen):
    """How every client trains; see :class:`fedsieve.clients.LocalTraining`.

    ``batch_norm: local`` is FedBN (Li et al., ICLR 2021): every client keeps its own BatchNorm parameters and
    statistics, sends no update of them, and the model is evaluated with the benign clients' mean of them.
    """

    learning_rate: Rate = 0.5
    batch_size: Count = 32
    steps: Count = 1
    epochs: Count | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_norm: Rate | None = None
    proximal: Annotated[float, Field(ge=0)] = 0.0
    batch_norm: Literal["shared", "local"] = "shared"


class ServerSide(_Frozen):
    """How the server moves the global model; see :class:`fedsieve.server.Server`.

    ``optimizer`` is any class of ``torch.optim`` that needs no closure, or Yogi, by name, on the pseudo-gradient; None
    adds ``learning_rate`` times the aggregate. Server momentum is SGD with its ``momentum``.
    """

    learning_rate: Rate = 0.5
    optimizer: Named | None = None

    @model_validator(mode="after")
    def _known_optimizer(self) -> "ServerSide":
        if self.optimizer is not None:
            name, options, known = self.optimizer.name, self.optimizer.parameters, optimizers()
            if name not in known:
                near = get_close_matches(name, known, n=3, cutoff=0.4) or sorted(known)
                raise ValueError(f"unknown optimizer {name!r}; try {', '.join(near)}")
            try:
                known[name]([torch.zeros(1)], lr=self.learning_rate, **options)  # type: ignore[call-arg]
            except (TypeError, ValueError) as error:
                raise ValueError(f"{name}: {error}") from error
        return self


class RootData(_Frozen):
    """The server's clean dataset: ``size`` samples, of which class ``label`` has the share ``bias`` (the papers' p)."""

    size: Count = 100
    bias: Annotated[float, Field(ge=0, le=1)] = 0.1
    label: Annotated[int, Field(ge=0)] = 0


# Where neither the user nor the dataset says anything; what follows from other settings is filled in below.
_DEFAULTS: dict[str, Any] = {
    "dataset": "digits",
    "model": "mlp",
    "partition": "groups",
    "attack": "none",
    "defense": "skymask",
    "clients": 30,
    "rounds": 50,
}


class Experiment(_Frozen):
    """One experiment.

    Attributes:
        dataset: What is learned: a name, or the path of a .csv, .tsv or .npz file.
        model: By whom; ``package.module:Class`` works too.
        partition: How the training data is dealt to the clients.
        attack: What the malicious clients do.
        defense: How the server aggregates.
        clients: n, in all.
        malicious: m among them, or their share, such as 0.4; by default a fifth. With attack ``none`` nobody is.
        assumed_malicious: f, what a rule that asks is told; by default as many as a round has on average.
        clients_per_round: Drawn anew each round; by default everybody takes part.
        knowledge: The threat model: ``full`` lets the attack see the benign updates, ``partial`` only what the
            malicious clients would have sent themselves.
        knows_defense: Whether the attack may rehearse the server's defense, with its own clients' clean data as
            root data, round after round.
        rounds: Rounds.
        seed: Decides every random number.
        local: Training at the clients.
        server: The server's step.
        root: The server's clean data.
        evaluate_every: Rounds between evaluations on the test data (the last round is always evaluated); by
            default such that there are at most about 100.
    """

    dataset: Named
    model: Named
    partition: Named
    attack: Named
    defense: Named
    clients: Count
    malicious: Annotated[int, Field(ge=0)]
    assumed_malicious: Annotated[int, Field(ge=0)]
    clients_per_round: Count
    knowledge: Literal["full", "partial"] = "full"
    knows_defense: bool = False
    rounds: Count
    seed: Annotated[int, Field(ge=0)] = 0
    local: Local = Local()
    server: ServerSide = ServerSide()
    root: RootData = RootData()
    evaluate_every: Count

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        """The dataset's defaults below what is given, then the defaults that follow from other settings."""
        if not isinstance(given, Mapping):
            raise ValueError(f"an experiment is a mapping of settings, got {type(given).__name__}")
        _refuse_unknown(given, cls.model_fields, "")
        dataset = _named("dataset", given.get("dataset", {}), _DEFAULTS["dataset"])
        defaults = dict(getattr(registry.load("datasets", dataset["name"]), "defaults", {}))
        usual = {kind: defaults.pop(f"{kind}_parameters", {}) for kind in ("attack", "defense")}
        settings = _merged({**_DEFAULTS, **defaults}, given)
        n, rounds = _whole(settings["clients"]), _whole(settings["rounds"])
        if n is not None:
            share = settings.get("malicious")
            if isinstance(share, float) and 0 < share < 1:
                settings["malicious"] = round(share * n)
            m = _whole(settings.setdefault("malicious", n // 5))
            k = _whole(settings.setdefault("clients_per_round", n))
            if m is not None and k is not None:
                settings.setdefault("assumed_malicious", round(m * k / max(n, 1)))
        if rounds is not None:
            settings.setdefault("evaluate_every", max(1, -(-rounds // 100)))
        for key in ("dataset", "model", "partition", "attack", "defense"):
            component = _named(key, settings[key], _DEFAULTS[key])
            name = component.pop("name")
            settings[key] = {"name": name, **registry.complete(f"{key}s", name, component, usual.get(key))}
        return settings

    @model_validator(mode="after")
    def _consistent(self) -> "Experiment":
        if self.malicious > self.clients:
            raise ValueError(f"{self.malicious} malicious clients are more than the {self.clients} clients there are")
        for name in ("assumed_malicious", "clients_per_round"):
            if getattr(self, name) > self.clients:
                raise ValueError(f"{name} is {getattr(self, name)}, more than the {self.clients} clients there are")
        defense = registry.build_defense(self.defense.name, self.defense.parameters)
        if isinstance(defense, Bounded):
            defense.check(self.clients_per_round, self.assumed_malicious)
        if not self.knows_defense and "defense" in registry.needs("attacks", self.attack.name, self.attack.parameters):
            raise ValueError(f"attack {self.attack.name} must know the defense; grant it with knows_defense=true")
        return self

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Experiment":
        """From plain settings, as in a YAML file.

        Raises:
            FedSieveError: In one line, for whatever is wrong with them.
        """
        try:
            return cls.model_validate(dict(settings))
        except ValidationError as error:
            found = error.errors()
            # a setting derived from a wrong one is missing only because of that
            first = [e for e in found if e["type"] != "missing"] or found
            raise ParameterError("; ".join(_said(e) for e in first)) from error

    @classmethod
    def read(cls, path: Path, overrides: Mapping[str, Any] | None = None) -> "Experiment":
        """From a YAML file, with ``overrides`` on top."""
        return cls.of(_merged(read_yaml(path), overrides or {}))

    @property
    def n_malicious(self) -> int:
        """Clients that are in truth malicious: none without an attack."""
        return 0 if self.attack.name == "none" else self.malicious

    @property
    def key(self) -> str:
        """Names the experiment: 12 hexadecimal digits from a hash of all settings."""
        settings = json.dumps(self.model_dump(mode="json"), sort_keys=True, allow_nan=False)
        return hashlib.sha256(settings.encode()).hexdigest()[:12]

    def to_yaml(self) -> str:
        """All settings, readable by :meth:`read`."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping.

    Raises:
        ParameterError: If there is none.
    """
    try:
        found = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ParameterError(f"can't read {path}: {reason}") from error
    if not isinstance(found, dict):
        raise ParameterError(f"{path} holds no settings: a mapping such as 'dataset: digits' was expected")
    return found


def parse_yaml(text: str) -> Any:
    """YAML in which ``1e-3`` is a number, as everywhere but in YAML 1.1 (which wants ``1.0e-3``)."""
    return _with_numbers(yaml.safe_load(text))


def _with_numbers(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _with_numbers(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_with_numbers(value) for value in tree]
    if isinstance(tree, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", tree):
        return float(tree)
    return tree


def _named(setting: str, value: Any, default: str) -> dict[str, Any]:
    """A component as a mapping with a name, for parameters alone the default one; a file of data by its kind."""
    if isinstance(value, Component):
        value = value.model_dump()
    if setting == "defense" or not isinstance(value, list):  # only defenses form chains
        value = _component(value)
    if not isinstance(value, Mapping) or not isinstance(value.get("name", default), str):
        raise ParameterError(f"{setting}: a name, or a mapping with a name and parameters, was expected, got {value!r}")
    named = {"name": default, **value}
    if setting == "dataset" and (file := re.search(r"\.(csv|tsv|npz)(\.gz)?$", named["name"])):
        named = {**named, "name": "npz" if file[1] == "npz" else "csv", "file": named["name"]}
    return named


_INTEGER = TypeAdapter(int)


def _whole(value: Any) -> int | None:
    """The integer that pydantic will read from ``value``, or None if it will refuse it."""
    try:
        return _INTEGER.validate_python(value)
    except ValidationError:
        return None


def override(settings: dict[str, Any], key: str, value: Any) -> None:
    """Set ``a.b`` in nested settings, in place; ``attack.factor`` keeps the attack that ``attack`` names."""
    *parents, last = key.split(".")
    for parent in parents:
        below = settings.get(parent, {})
        if isinstance(below, str):
            below = {"name": below}
        if not isinstance(below, dict):
            raise ParameterError(f"can't set {key}: {parent} is {below!r}")
        settings[parent] = settings = dict(below)
    settings[last] = value


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` over ``below``, key by key; a component of another name brings its own parameters only."""
    result = dict(below)
    for key, new in above.items():
        old = result.get(key)
        if isinstance(old, Mapping) or isinstance(new, Mapping):
            lower, upper = _component(old), _component(new)
            if (
                isinstance(lower, Mapping)
                and isinstance(upper, Mapping)
                and upper.get("name", lower.get("name")) == lower.get("name")
            ):
                result[key] = _merged(lower, upper)
                continue
        result[key] = new
    return result


def _refuse_unknown(given: Mapping[str, Any], known: Mapping[str, Any], prefix: str) -> None:
    for key in given:
        if key not in known:
            near = get_close_matches(str(key), known, n=3, cutoff=0.5)
            have = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
            raise ParameterError(f"unknown setting {prefix}{key}; {have}")


def _said(error: Any) -> str:
    """One of pydantic's errors in our words."""
    where = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        known = {"local": Local.model_fields, "server": ServerSide.model_fields, "root": RootData.model_fields}
        near = get_close_matches(str(error["loc"][-1]), known.get(str(error["loc"][0]), {}), n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        return f"unknown setting {where}{hint}"
    if not where:
        return str(message)
    return f"{where}: {message}" + ("" if error["type"] in ("missing", "value_error") else f", got {error['input']!r}")
