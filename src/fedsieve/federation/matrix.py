"""Any defense on a matrix of updates, without an experiment: ``fedsieve.aggregate`` and ``fedsieve.detect``."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from pydantic import ValidationError
from torch import Tensor, nn

from fedsieve.config import registry
from fedsieve.config.merging import in_words, refuse_unknown
from fedsieve.config.settings import Local, as_component
from fedsieve.core import contract
from fedsieve.core.defense import Aggregate, Bounded, Detection, Detector, ServerView, Stage, Updates
from fedsieve.core.direct import INTEGERS, described, finite, floats, integer, narrowed
from fedsieve.core.errors import MissingDataError, ParameterError, UnusableResultError
from fedsieve.core.layout import Layout
from fedsieve.core.seeding import stream
from fedsieve.federation.clients import ClientData, LocalTraining, Trainer
from fedsieve.federation.root import RootClient, RunnableModel
from fedsieve.federation.screening import screen
from fedsieve.federation.server import defend
from fedsieve.models.flat import FlatModel


def root_data(model: nn.Module, x: Any, y: Any, *, round: int = 0, seed: int = 0, **local: Any) -> RootClient:
    """The server's clean data and its global model, for defenses that need root data or run the model.

    ``root.layout.flatten(module.state_dict())`` makes a vector [d] of a module as the defense sees it: parameters that
    are trained first, then running statistics of normalisation layers. A client's update is the vector of its local
    model minus ``root.params``, the vector of ``model``.

    Args:
        model: The global model from which the clients trained, copied; it has one output per class.
        x: Samples, [k, *input_shape]; a tensor, an array or nested lists.
        y: Their classes, [k], integers from 0.
        round: Round of the federation, from 0.
        seed: Decides the root models' batches; in a real federation, keep it secret.
        **local: The clients' local training, which root models repeat, as in an experiment's ``local``:
            ``learning_rate`` (0.5), ``batch_size`` (32), ``steps`` (1), ``epochs``, ``momentum``, ``weight_decay``,
            ``clip_norm``, ``clip_value``, ``proximal``, ``loss``.

    Raises:
        ParameterError: If the samples, their classes, the model or the settings don't fit each other.

    >>> model = nn.Linear(4, 3)
    >>> root = root_data(model, torch.randn(6, 4), [0, 1, 2, 0, 1, 2], learning_rate=0.1)
    >>> torch.equal(root.layout.flatten(model.state_dict()), root.params)
    True
    """
    refuse_unknown(local, {f.name: None for f in fields(LocalTraining)}, "")
    try:
        settings = LocalTraining(**Local(**local).model_dump(exclude={"batch_norm"}, exclude_none=True))
    except ValidationError as error:
        raise ParameterError("; ".join(in_words(e) for e in error.errors())) from error
    flat, params = FlatModel.of(model)
    samples, classes = _tensor("x", x).to(params.device), _tensor("y", y).to(params.device)
    samples = samples.to(params.dtype) if samples.is_floating_point() else samples
    if classes.dim() != 1 or classes.is_floating_point() or not 0 < len(classes) == len(samples):
        raise ParameterError(
            f"root data are samples x [k, ...] and integer classes y [k], k at least 1; got x of shape "
            f"{list(samples.shape)} and y of shape {list(classes.shape)}, {str(classes.dtype).removeprefix('torch.')}"
        )
    try:
        outputs = list(flat.logits(params, samples[:1]).shape)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise ParameterError(f"the model can't take samples of shape {list(samples.shape[1:])}: {reason}") from error
    if len(outputs) != 2:
        raise ParameterError(f"the model must return logits [k, classes], got shape {outputs} for one sample")
    if not 0 <= int(classes.min()) <= int(classes.max()) < outputs[1]:
        raise ParameterError(
            f"y must be in 0 to {outputs[1] - 1}, the model's outputs, got {int(classes.min())} to {int(classes.max())}"
        )
    return RootClient(Trainer(flat, settings, seed), ClientData(samples, classes.long()), outputs[1], params, round)


def aggregate(
    updates: Any,
    defense: str | Mapping[str, Any] | Sequence[Any],
    *,
    n_malicious: int = 0,
    root: RootClient | None = None,
    global_params: Any = None,
    client_ids: Any = None,
    state: Any = None,
    round: int | None = None,
    seed: int = 0,
    **parameters: Any,
) -> Aggregate:
    """Aggregate client updates with a defense by name.

    A detector or a pre-aggregator is followed by the mean, as in an experiment.

    Args:
        updates: ``local_params - global_params`` of each client, [n, d], floats; a tensor, an array, nested lists, or a
            list of n vectors. Never written to. Rows that are not finite, or out of proportion to the others, are
            screened: weight 0, not accepted. With ``root``, rows are converted to the type and device of its model.
            float16 and bfloat16 are computed in float32; only the aggregate is converted back.
        defense: A name from ``fedsieve list defenses``, ``package.module:Class``, a mapping with a name and
            parameters, or a chain: names joined by commas, ``"norm-clipping,krum"``, or a list,
            ``["norm-clipping", {"name": "trimmed-mean", "trim": 3}]``.
        n_malicious: Number of malicious clients to assume (f).
        root: From :func:`root_data`, for defenses that need root data or run the model.
        global_params: The model before the round, [d], where there is no ``root``; 0 by default.
        client_ids: Integer id of each row, [n]; by default 0 to n - 1. Defenses with a state know clients by id.
        state: ``state`` of the last round's result; None in the first round.
        round: Counts from 0; by default the round of ``root``, or 0.
        seed: Decides the defense's random numbers; in a real federation, keep it secret.
        **parameters: Parameters of the defense; of a chain, a mapping for each stage, by its name.

    Returns:
        The aggregate [d] to add to the global model, and per client weights, acceptance and scores; tensors.

    Raises:
        FedSieveError: If the name, a parameter or a shape is wrong, the bound on ``n_malicious`` does not hold, or
            ``root`` is missing.

    >>> aggregate([[1.0, 0.0], [2.0, 0.0], [99.0, 0.0]], "median").update.tolist()
    [2.0, 0.0]
    >>> aggregate([[1.0], [2.0], [3.0], [4.0], [99.0]], "multi-krum", n_malicious=1).accepted
    tensor([ True,  True,  True,  True, False])
    """
    spec = as_component(defense)
    if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
        raise ParameterError(f"defense must be a name, a mapping with a name, or a list of these, got {defense!r}")
    name, given = spec["name"], {**{k: v for k, v in spec.items() if k != "name"}, **parameters}
    built = registry.build_defense(name, registry.complete("defenses", name, given))
    x = _tensor("updates", updates)
    seen, view = _seen(built, x, n_malicious, root, global_params, client_ids, state, round, seed)
    with _explained(name, root, state):
        decision = defend(built, seen, view)
    result = decision.aggregate
    if not finite(result.update):
        raise UnusableResultError(f"{name}: {decision.note}")
    return result if root else replace(result, update=narrowed(result.update, x.dtype))


def detect(
    updates: Any,
    detector: str,
    *,
    n_malicious: int = 0,
    root: RootClient | None = None,
    global_params: Any = None,
    client_ids: Any = None,
    state: Any = None,
    round: int | None = None,
    seed: int = 0,
    **parameters: Any,
) -> Detection:
    """Find malicious clients with a detector by name. Arguments and errors as in :func:`aggregate`.

    ``state`` is the detector's own: it is not interchangeable with the one that :func:`aggregate` returns.

    Returns:
        Which clients are accepted, scores, state and diagnosis. ``accepted`` is None where the detector cannot decide
        yet and every update is finite. Clients whose update is not finite are not accepted; their score is NaN.

    >>> x = torch.randn(8, 40, generator=torch.Generator().manual_seed(0))
    >>> x[:2] = -20.0
    >>> detect(x, "tolpegin").accepted
    tensor([False, False,  True,  True,  True,  True,  True,  True])
    """
    if not isinstance(detector, str):
        raise ParameterError(f"detector must be a name, got {detector!r}")
    if "," in detector:
        raise ParameterError(f"detect takes one detector, got the chain {detector!r}; fedsieve.aggregate takes chains")
    built = registry.build("defenses", detector, parameters)
    if not isinstance(built, Detector):
        known = [name for name in registry.names("defenses") if registry.stage(name) == "detector"]
        raise ParameterError(
            f"{detector} is not a detector but of kind {registry.stage(detector)}, which fedsieve.aggregate takes; "
            f"detectors are {', '.join(known)}"
        )
    seen, view = _seen(built, updates, n_malicious, root, global_params, client_ids, state, round, seed)
    passed = screen(built, seen, view)
    kept = passed.kept
    if not kept.any():
        return Detection(kept, seen.matrix.new_full((len(kept),), torch.nan), state)
    with _explained(detector, root, state):
        found = contract.detect(built, passed.updates, passed.view)
    if found.accepted is None and not kept.all():
        found = replace(found, accepted=kept[kept])
    whole = found.scattered(kept, score=torch.nan)
    if whole.diagnosis is None:
        return whole
    reasons = tuple(map(str.__add__, passed.reasons, whole.diagnosis.reasons))  # one of the two is ""
    return replace(whole, diagnosis=replace(whole.diagnosis, reasons=reasons))


def _seen(
    defense: Stage,
    updates: Any,
    n_malicious: int,
    root: RootClient | None,
    global_params: Any,
    client_ids: Any,
    state: Any,
    round: int | None,
    seed: int,
) -> tuple[Updates, ServerView]:
    """The matrix and the rest as a defense sees them, checked."""
    if root is not None and not isinstance(root, RootClient):
        raise ParameterError(f"root must be made by fedsieve.root_data, got {described(root)}")
    sizes: dict[str, int] = {}
    x = floats("updates", _tensor("updates", updates), "n d", sizes)
    if root is not None:
        x = x.to(root.params)
    elif x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    n, d = x.shape
    ids = torch.arange(n) if client_ids is None else _ids(_tensor("client_ids", client_ids), n)
    n_malicious, seed = integer("n_malicious", n_malicious), integer("seed", seed)
    if not 0 <= n_malicious <= n:
        raise ParameterError(f"n_malicious must be an integer in 0 to {n}, the number of updates, got {n_malicious}")
    number = integer("round", round if round is not None else root.round if root else 0)
    if number < 0:
        raise ParameterError(f"round must be at least 0, got {number}")
    if root is not None and root.layout.size != d:
        raise ParameterError(f"updates have {d} coordinates, the model of the root data has {root.layout.size}")
    if root is not None and global_params is not None:
        raise ParameterError("root has the global model already: global_params are for calls without root")
    params = x.new_zeros(d)
    if global_params is not None:
        params = floats("global_params", _tensor("global_params", global_params), "d", sizes).to(x)
    if not finite(params):
        raise ParameterError(f"global_params are not all finite in {str(x.dtype).removeprefix('torch.')}")
    if isinstance(defense, Bounded):
        defense.check(n, n_malicious)
    view = ServerView(
        round=number,
        n_malicious=n_malicious,
        generator=stream(seed, "defense", number),
        global_params=root.params if root else params,
        state=state,
        root=root,
        network=RunnableModel(root.trainer.model, tuple(root.samples.x.shape[1:])) if root else None,
    )
    return Updates(x, ids.to(x.device, torch.long), root.layout if root else Layout.of({"updates": x[0]})), view


def _tensor(what: str, value: Any) -> Tensor:
    """``value`` without its history of gradients; arrays and lists are copied."""
    if isinstance(value, Tensor):
        return value.detach()
    try:
        if isinstance(value, list | tuple) and value and all(isinstance(row, Tensor) for row in value):
            return torch.stack([row.detach() for row in value])
        if np.ma.is_masked(value):
            raise ParameterError(f"{what} has masked values; fill them, or leave out their rows")
        array = np.asarray(value)
        # a copy in C order and native byte order, the only layout that torch takes from every array
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ParameterError(f"{what} are no numbers in rows of equal length: {str(error).splitlines()[0]}") from error


def _ids(ids: Tensor, n: int) -> Int[Tensor, " n"]:
    """Client ids, if they are ``n`` different integers."""
    fits = ids.dtype in INTEGERS and ids.shape == (n,) and not ids.is_meta
    different = len(torch.unique(ids)) if fits else 0
    if different < n:
        found = described(ids) + (f", {different} different" if fits else "")
        raise ParameterError(f"client_ids must be {n} different integers, one per row of updates, got {found}")
    return ids


@contextmanager
def _explained(name: str, root: RootClient | None, state: Any) -> Iterator[None]:
    """Errors of a defense, with what a caller of these functions can do about them."""
    try:
        yield
    except MissingDataError as error:
        hint = "" if root else "; pass root=fedsieve.root_data(model, x, y)"
        raise MissingDataError(f"{error}{hint}") from error
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if state is None:
            raise
        raise ParameterError(
            f"state does not fit: it must be the state of the last result of {name} with the same parameters and "
            f"coordinates ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        ) from error
