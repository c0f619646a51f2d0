"""The parts of an experiment: named components, local training, the server's step, root data, odd clients."""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_serializer, model_validator

from fedsieve.aggregators.weighting import CAP
from fedsieve.config.optimizers import optimizers
from fedsieve.core.errors import ParameterError
from fedsieve.core.escaping import shown
from fedsieve.core.loss import LossName
from fedsieve.core.nearest import nearest
from fedsieve.models.precision import Precision

Rate = Annotated[float, Field(gt=0)]
# Bounds far above any experiment's, so that a slip of the keyboard ends in an error and not in a full memory.
MAX_CLIENTS = 10_000_000
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Clients = Annotated[int, Field(ge=1, le=MAX_CLIENTS)]
Drawn = Annotated[int, Field(ge=1, le=100_000)]  # each of them takes memory, as a client that is not drawn does not
Passes = Annotated[int, Field(ge=1, le=10_000)]


# Context of a validation in which nothing that the settings name is imported, built or inspected.
RECORDED = {"recorded": True}


def is_recorded(info: Any) -> bool:
    """Whether the settings are those of a run directory, complete, and only read."""
    return bool((info.context or {}).get("recorded"))


class Frozen(BaseModel):
    """Base of all settings: frozen, unknown keys refused.

    Attributes:
        off: Settings that files and keys leave out while they have these values. Each value means that there is no such
            thing and is the default for ever, so that experiments of before the setting existed keep their keys.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    off: ClassVar[Mapping[str, Any]] = {}


def without_what_is_off(settings: Frozen, write: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """What ``write`` makes of settings, for files and keys, without those that are off."""
    off = settings.off
    return {
        key: value for key, value in write(settings).items() if key not in off or getattr(settings, key) != off[key]
    }


class Component(BaseModel):
    """A registered name and its parameters: ``{name: min-max, deviation: sign}``, or the name alone."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: Annotated[str, Field(max_length=1000)]

    def __eq__(self, other: object) -> bool:
        """Whether both are written in the same way: a tuple is a list in a file."""
        return isinstance(other, Component) and self.model_dump(mode="json") == other.model_dump(mode="json")

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def parameters(self) -> dict[str, Any]:
        """All keys but the name."""
        return dict(self.model_extra or {})


def refuse_unwritable(what: str, value: Any) -> None:
    """Refuse numbers that a file of settings can't hold: not finite, or integers of more than 64 bits."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ParameterError(f"{what} must be finite, got {value}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ParameterError(f"{what} must be a number of at most 64 bits, got {shown(value)}")
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            refuse_unwritable(what, item)


def as_component(value: Any) -> Any:
    """A name, or a list of components, as the mapping of one component; anything else unchanged.

    >>> as_component("krum")
    {'name': 'krum'}
    >>> as_component(["norm-clipping", {"name": "trimmed-mean", "trim": 3}])
    {'name': 'norm-clipping,trimmed-mean', 'trimmed-mean': {'trim': 3}}
    """
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, list | tuple) and value:
        stages = [as_component(stage) for stage in value]
        if all(isinstance(stage, Mapping) and isinstance(stage.get("name"), str) for stage in stages):
            rest = {s["name"]: {k: v for k, v in s.items() if k != "name"} for s in stages if len(s) > 1}
            return {"name": ",".join(s["name"] for s in stages), **rest}
    return value


Named = Annotated[Component, BeforeValidator(as_component)]


class Local(Frozen):
    """How every client trains; see :class:`fedsieve.federation.clients.LocalTraining`.

    Either ``steps`` or ``epochs`` is None; without both, a round is one step.

    ``batch_norm: local`` is FedBN (Li et al., ICLR 2021): every client keeps its own BatchNorm parameters and
    statistics, sends no update of them, and the model is evaluated with the benign clients' mean of them.

    ``precision`` is that of the clients' and the server's local training alone; ``tf32`` needs a GPU,
    ``bfloat16`` a CPU.
    """

    off: ClassVar[Mapping[str, Any]] = {"precision": "float32"}

    learning_rate: Rate = 0.5
    batch_size: Count = 32
    steps: Passes | None = None
    epochs: Passes | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_norm: Rate | None = None
    clip_value: Rate | None = None
    proximal: Annotated[float, Field(ge=0)] = 0.0
    loss: LossName = "cross-entropy"
    batch_norm: Literal["shared", "local"] = "shared"
    precision: Precision = "float32"

    @model_validator(mode="before")
    @classmethod
    def _steps_or_epochs(cls, given: Any, info: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        steps, epochs = given.get("steps"), given.get("epochs")
        if steps is not None and epochs is not None:
            raise ValueError(f"steps={steps} has no effect with epochs={epochs}; set one of them")
        return {**given, "steps": 1} if steps is None and epochs is None and not is_recorded(info) else given

    @model_serializer(mode="wrap")
    def _written(self, write: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return without_what_is_off(self, write)


class ServerSide(Frozen):
    """How the server updates the global model; see :class:`fedsieve.federation.server.Server`.

    Without ``optimizer``, ``learning_rate`` times the aggregate is added. ``optimizer`` is Yogi or the name of a class
    of ``torch.optim`` that needs no closure; its gradient is minus the aggregate. Server momentum is SGD with
    ``momentum``.

    With ``weighting: samples`` the mean weighs every client by its number of samples, but none by more than
    ``weight_cap`` times the median number: :mod:`fedsieve.aggregators.weighting`.
    """

    off: ClassVar[Mapping[str, Any]] = {"weighting": "equal", "weight_cap": None}

    learning_rate: Rate = 0.5
    optimizer: Named | None = None
    weighting: Literal["equal", "samples"] = "equal"
    weight_cap: Annotated[float, Field(ge=1, le=1e6)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _capped(cls, given: Any, info: Any) -> Any:
        if is_recorded(info) or not isinstance(given, Mapping) or given.get("weighting") != "samples":
            return given
        return {**given, "weight_cap": CAP if given.get("weight_cap") is None else given["weight_cap"]}

    @model_validator(mode="after")
    def _cap_has_an_effect(self) -> "ServerSide":
        if self.weighting == "equal" and self.weight_cap is not None:
            raise ValueError(
                f"weight_cap={self.weight_cap:g} has no effect with weighting=equal; set weighting=samples"
            )
        return self

    @model_serializer(mode="wrap")
    def _written(self, write: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return without_what_is_off(self, write)

    @model_validator(mode="after")
    def _known_optimizer(self, info: Any) -> "ServerSide":
        if self.optimizer is not None and not is_recorded(info):
            name, options, known = self.optimizer.name, self.optimizer.parameters, optimizers()
            if name not in known:
                raise ValueError(
                    f"unknown optimizer {name!r}; try {', '.join(nearest(name, known, 0.4) or sorted(known))}"
                )
            for option, value in options.items():
                refuse_unwritable(f"server.optimizer: {name}: {option}", value)
            try:
                known[name]([torch.zeros(1)], lr=self.learning_rate, **options)  # type: ignore[call-arg]
            except Exception as error:  # torch raises several types for wrong options
                raise ValueError(f"{name}: {' '.join(str(error).split())}") from error
        return self


class RootData(Frozen):
    """The server's clean dataset: ``size`` samples, the share ``bias`` (p in the papers) of them of class ``label``.

    Without ``size``, 100 samples, or fewer if that is more than a tenth of the training data or half of a class; 0 is
    no root data. Without ``bias``, all classes have equal shares. See :func:`fedsieve.data.root_rows.root_indices`.

    The other settings are defects of the server's samples, all off by default; neither the clients nor the attacker's
    estimate of the root data have them. See :func:`fedsieve.federation.oddities.with_defects`.

    Attributes:
        shift: Pixels by which images are moved along their width, to the right where positive; 0 where they came from.
        wrong_labels: Share of the samples, one at least, that have another class instead of their own.
        noise: Standard deviation of Gaussian noise, as a share of the training data's largest absolute value.
    """

    off: ClassVar[Mapping[str, Any]] = {"shift": 0, "wrong_labels": 0.0, "noise": 0.0}

    size: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    bias: Annotated[float, Field(ge=0, le=1)] | None = None
    label: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    shift: Annotated[int, Field(ge=-10_000, le=10_000)] = 0
    wrong_labels: Annotated[float, Field(ge=0, lt=1)] = 0.0
    noise: Annotated[float, Field(ge=0, le=1000)] = 0.0

    @property
    def defects(self) -> dict[str, Any]:
        """The defects that are not off, by name."""
        return {name: getattr(self, name) for name, value in self.off.items() if getattr(self, name) != value}

    @model_validator(mode="after")
    def _every_setting_has_an_effect(self) -> "RootData":
        useless = {} if self.bias is None else {"bias": self.bias}
        if self.size == 0 and (useless := useless | self.defects):
            name, value = next(iter(useless.items()))
            raise ValueError(f"{name}={value:g} has no effect with size=0, which is no root data")
        if self.label and self.bias is None:
            raise ValueError(f"label={self.label} has no effect without bias, the share of that class")
        return self

    @model_serializer(mode="wrap")
    def _written(self, write: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return without_what_is_off(self, write)


# The usual amount of every kind of odd client; None where there is nothing to choose.
_AMOUNTS: dict[str, float | None] = {"noise": 0.3, "brightness": 0.3, "one-class": None, "more-data": 5.0}


class Odd(Frozen):
    """Benign clients whose data are unlike the others'; see :mod:`fedsieve.federation.oddities`.

    Attributes:
        kind: ``noise``: Gaussian noise, of standard deviation ``amount`` times the training data's largest absolute
            value. ``brightness``: all values larger by ``amount`` times that value, not clipped. ``one-class``: as many
            samples as before, all of one class, another one for each client. ``more-data``: ``amount`` times as many
            samples.
        clients: How many there are; None with kind ``none``.
        amount: See ``kind``; None where it has no meaning.
    """

    kind: Literal["none", "noise", "brightness", "one-class", "more-data"] = "none"
    clients: Drawn | None = None
    amount: Annotated[float, Field(gt=0, le=1000)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _usual(cls, given: Any, info: Any) -> Any:
        if is_recorded(info) or isinstance(given, Odd):
            return given
        if not isinstance(given, Mapping):
            raise ValueError(f"a mapping such as {{kind: noise, clients: 3}} was expected, got {shown(given)}")
        if (kind := given.get("kind")) not in list(_AMOUNTS):
            return given
        usual = {"clients": 3, "amount": _AMOUNTS[kind]}
        return {**usual, **{key: value for key, value in given.items() if value is not None}}

    @model_validator(mode="after")
    def _every_setting_has_an_effect(self) -> "Odd":
        meaningless = ("clients", "amount") if self.kind == "none" else ("amount",) * (self.kind == "one-class")
        for name in ("clients", "amount"):
            value = getattr(self, name)
            if name in meaningless and value is not None:
                raise ValueError(f"{name}={value:g} has no effect with kind={self.kind}")
            if name not in meaningless and value is None:
                raise ValueError(f"kind={self.kind} needs {name}")
        if self.kind == "more-data" and self.amount is not None and self.amount <= 1:
            raise ValueError(f"amount={self.amount:g} is not more data: with kind=more-data it must be above 1")
        return self
