"""Data as they are in life: a root dataset with defects, and honest clients whose data are unlike the others'.

Both are settings of an experiment (:class:`fedsieve.config.settings.RootData`, :class:`fedsieve.config.settings.Odd`).
What is odd is the same whatever the attack and the defense, so that runs can be compared with a reference.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import ParameterError
from fedsieve.core.seeding import stream
from fedsieve.data.dataset import Dataset
from fedsieve.data.parts import Parts

_LISTED = 20  # most odd clients that are listed one by one


def with_defects(
    e: Experiment, data: Dataset, rows: Int[Tensor, " k"]
) -> tuple[Shaped[Tensor, "k *shape"], Int[Tensor, " k"]]:
    """The samples and classes of the root dataset, with the defects that the experiment gives them.

    The wrong labels of a larger share include those of a smaller one, and no defect changes another one's random
    numbers.

    Args:
        e: The experiment.
        data: The dataset.
        rows: Training samples that are the root dataset's.

    Raises:
        ParameterError: If a defect has no effect on these data.
    """
    x, y = data.x_train[rows], data.y_train[rows]
    if e.root.defects and not len(rows):
        name, value = next(iter(e.root.defects.items()))
        raise ParameterError(
            f"root.{name}={value:g} has no effect: these data give no root data by default; set root.size"
        )
    generator = stream(e.seed, "root defects")
    order = torch.randperm(len(y), generator=generator)
    step = torch.randint(1, max(data.n_classes, 2), (len(y),), generator=generator)
    if e.root.wrong_labels:
        if data.n_classes < 2:
            raise ParameterError("root.wrong_labels has no effect on data of one class")
        wrong = order[: _wrong(e, len(y))]
        y[wrong] = (y[wrong] + step[wrong]) % data.n_classes
    if e.root.shift:
        x = _moved(x, e.root.shift, e.dataset.name)
    if e.root.noise:
        x = _noisy(x, e.root.noise, data, generator, "root.noise")
    return x, y


def odd_rows(e: Experiment, data: Dataset, parts: Parts, odd: Sequence[int]) -> dict[int, Int[Tensor, " _"]]:
    """Training samples of each odd client, after kinds ``one-class`` and ``more-data``; nobody loses a sample.

    An odd client's new samples are copies of what clients have, malicious ones' clean samples included. With
    ``one-class``, the classes are dealt out in random order, again from the first where there are more clients than
    classes; a class with fewer samples than the client had is repeated.

    Args:
        e: The experiment.
        data: The dataset.
        parts: Training samples of each client.
        odd: Ids of the odd clients.

    Raises:
        ParameterError: If an odd client would have more samples than there are.
    """
    found, pool = {client: parts[client] for client in odd}, parts.pool
    classes = torch.unique(data.y_train[pool])
    classes = classes[torch.randperm(len(classes), generator=stream(e.seed, "odd classes"))]
    for k, client in enumerate(odd):
        own, generator = found[client], stream(e.seed, "odd data", client=client)
        if e.odd.kind == "one-class":
            members = pool[data.y_train[pool] == classes[k % len(classes)]]
            passes = -(-len(own) // len(members))
            drawn = [members[torch.randperm(len(members), generator=generator)] for _ in range(passes)]
            found[client] = torch.cat(drawn)[: len(own)]
        elif e.odd.kind == "more-data" and e.odd.amount is not None:
            wanted = max(round(e.odd.amount * len(own)), len(own) + 1)
            if wanted > len(pool):
                most = min(math.floor(100 * len(pool) / len(parts[i])) / 100 for i in odd)
                raise ParameterError(
                    f"odd.amount={e.odd.amount:g} gives client {client} {wanted} samples instead of {len(own)}, but "
                    f"all clients together have {len(pool)}; at most {most:g} is possible, or more with more clients"
                )
            others = pool[~torch.isin(pool, own)]
            drawn_rows = others[torch.randperm(len(others), generator=generator)[: wanted - len(own)]]
            found[client] = torch.cat([own, drawn_rows])
    return found


def odd_samples(e: Experiment, data: Dataset, rows: Int[Tensor, " k"], client: int) -> Shaped[Tensor, "k *shape"]:
    """The samples of an odd client, after kinds ``noise`` and ``brightness``.

    Args:
        e: The experiment.
        data: The dataset.
        rows: Training samples of the client, from :func:`odd_rows`.
        client: Its id.

    Raises:
        ParameterError: If the data are texts, or the result is not finite.
    """
    x, kind, amount = data.x_train[rows], f"odd.kind={e.odd.kind}", e.odd.amount
    if e.odd.kind == "noise" and amount is not None:
        return _noisy(x, amount, data, stream(e.seed, "odd data", client=client), kind)
    if e.odd.kind == "brightness" and amount is not None:
        return _finite(x + amount * _largest(data, kind), kind)
    return x


def defects_in_words(e: Experiment, n_root: int) -> list[str]:
    """The defects of the root data, a few words each."""
    root, said = e.root, []
    if root.shift:
        said.append(f"root images moved by {root.shift} pixel{'s' * (abs(root.shift) > 1)}")
    if root.wrong_labels:
        said.append(f"{_wrong(e, n_root)} of {n_root} root labels wrong")
    if root.noise:
        said.append(f"root noise {root.noise:g}")
    return said


def odd_in_words(e: Experiment, odd: Sequence[int]) -> list[str]:
    """The odd clients in a few words; nothing where there are none."""
    if not odd:
        return []
    kind = e.odd.kind if e.odd.amount is None else f"{e.odd.kind} {e.odd.amount:g}"
    more = f" and {len(odd) - _LISTED} more" if len(odd) > _LISTED else ""
    return [f"{len(odd)} odd client{'s' * (len(odd) > 1)} ({kind}): {', '.join(map(str, odd[:_LISTED]))}{more}"]


def _wrong(e: Experiment, n_root: int) -> int:
    """Number of root samples with a wrong label."""
    return max(round(e.root.wrong_labels * n_root), 1)


def _moved(x: Tensor, shift: int, dataset: str) -> Tensor:
    """Images [k, channels, height, width] moved along their width; what comes in from outside is 0."""
    if x.dim() != 4:
        raise ParameterError(
            f"root.shift moves images, but the samples of {dataset} are none; root.noise works on all numbers"
        )
    width = x.shape[-1]
    if abs(shift) >= width:
        raise ParameterError(f"root.shift={shift} leaves nothing of images that are {width} pixels wide")
    result = torch.zeros_like(x)
    if shift > 0:
        result[..., shift:] = x[..., :-shift]
    else:
        result[..., :shift] = x[..., -shift:]
    return result


def _noisy(x: Tensor, share: float, data: Dataset, generator: torch.Generator, what: str) -> Tensor:
    """With Gaussian noise, of standard deviation ``share`` times the largest absolute value."""
    largest = _largest(data, what)
    return _finite(x + share * largest * torch.randn(x.shape, generator=generator, dtype=x.dtype), what)


def _largest(data: Dataset, what: str) -> float:
    """The largest absolute value of the training data."""
    if not data.x_train.is_floating_point():
        raise ParameterError(f"{what} has no meaning for texts: their tokens are no quantities")
    return float(data.x_train.abs().max())


def _finite(x: Tensor, what: str) -> Tensor:
    if not bool(torch.isfinite(x).all()):
        raise ParameterError(f"{what} makes values that are not finite; a smaller amount is needed")
    return x
