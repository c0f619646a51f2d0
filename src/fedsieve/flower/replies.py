"""Each reply of a round is checked alone: what can't be used is dropped, with its reason, and the others go on.

Nothing that a reply claims is believed before it is compared with what was sent: no pickle is read, and no memory is
taken for a shape that only a header names.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from math import prod
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from jaxtyping import Float
from torch import Tensor

from fedsieve.core.escaping import printable
from fedsieve.flower.arrays import NUMPY, Arrays, Expected

_HEADER = 4096  # bytes that a header may have; numpy writes 128
_MOST = 2**53  # samples; beyond, numbers of samples are not exact, and nobody has so many
_LONGEST = 120  # characters of a reason


class UnusableReplyError(Exception):
    """A reply that can't be used, and why."""


@dataclass(frozen=True)
class Dropped:
    """A reply that was dropped.

    Attributes:
        node: The node's id; None where the reply has none.
        reason: Why.
    """

    node: int | None
    reason: str


@dataclass(frozen=True)
class Usable:
    """What is kept of a usable reply beside its arrays.

    Attributes:
        node: The node's id.
        message: The reply; its arrays have been released.
        content: What it held beside its arrays: one metric record, and records of settings.
        samples: The number of samples that it reports.
    """

    node: int
    message: Message
    content: RecordDict
    samples: float


def sorted_out(
    replies: Iterable[Any], asked: Mapping[int, int], drop: "list[Dropped]"
) -> Iterator[tuple[int, Message]]:
    """Replies without errors of nodes that were asked, with the node's id, in the order of ``asked``.

    Args:
        replies: As they came.
        asked: The nodes that were asked, with the place of each.
        drop: Gets the others.
    """
    found = []
    for reply in replies:
        node: int | None = None
        try:
            node = reply.metadata.src_node_id
            if type(node) is not int or node not in asked:
                node = node if type(node) is int else None
                raise UnusableReplyError("a node that was not asked")
            if reply.has_error():
                raise UnusableReplyError(f"error {reply.error.code}: {reply.error.reason}")
            found.append((node, reply))
        except Exception as error:
            drop.append(Dropped(node, reason_of(error)))
    yield from sorted(found, key=lambda pair: asked[pair[0]])


def stacked(
    replies: Iterable[Any], asked: Mapping[int, int], arrays: Arrays, sent: Float[Tensor, " d"], key: str
) -> tuple[Float[Tensor, "n d"], list[Usable], list[Dropped]]:
    """The updates of all usable replies, one by node, in the order of ``asked``; replies are released one by one.

    Args:
        replies: As they came.
        asked: The nodes that were asked, with the place of each.
        arrays: What was sent.
        sent: The model that was sent, [d], on the host.
        key: Under which a reply reports its number of samples.

    Returns:
        Differences to the model that was sent, [n, d]; the replies they came from; and those that were dropped.
    """
    drop: list[Dropped] = []
    usable: list[Usable] = []
    found = list(sorted_out(replies, asked, drop))
    # memory that is not touched costs nothing
    matrix, base = torch.empty(len(found), len(sent), dtype=sent.dtype), sent.numpy()
    seen: set[int] = set()
    for node, reply in found:
        try:
            if node in seen:
                raise UnusableReplyError("second reply")
            kept = _read(node, reply, arrays, base, matrix[len(usable)].numpy(), key)
            usable.append(kept)
            seen.add(node)
        except Exception as error:
            drop.append(Dropped(node, reason_of(error)))
        finally:
            _release(reply)
    return matrix[: len(usable)], usable, drop


def _read(node: int, reply: Message, arrays: Arrays, base: Any, row: Any, key: str) -> Usable:
    """Check a reply, and write its update to ``row``."""
    if not reply.has_content():
        raise UnusableReplyError("no content")
    content = reply.content
    record = _only("array record", content, ArrayRecord)
    samples = samples_in(_only("metric record", content, MetricRecord), key)
    if record.keys() != arrays.expected.keys():
        missing = [name for name in arrays.expected if name not in record]
        extra = [name for name in record if name not in arrays.expected]
        what = f"no array {missing[0]}" if missing else f"an array {extra[0]} that was not sent"
        raise UnusableReplyError(f"{what}; {len(record)} arrays, {len(arrays.expected)} expected")
    n = len(arrays.expected)
    places = {arrays.names[s.name]: s for s in arrays.layout.segments}
    for name, expected in arrays.expected.items():
        values = decoded(name, record[name], expected)
        segment = places.get(name)
        if segment is None:
            continue
        out = row[segment.start : segment.stop].reshape(segment.shape)
        with np.errstate(all="ignore"):
            np.subtract(values, base[segment.start : segment.stop].reshape(segment.shape), out=out)
        if not np.isfinite(out).all():
            count = out.size - int(np.isfinite(out).sum())
            raise UnusableReplyError(f"not finite: {count} of {out.size} numbers of array {name}, of {n} arrays")
    return Usable(node, reply, RecordDict({k: r for k, r in content.items() if r is not record}), samples)


def decoded(name: str, array: Array, expected: Expected) -> Any:
    """The numbers of an array, a view of its bytes, if they have the type and shape that are expected."""
    if array.stype != NUMPY:
        raise UnusableReplyError(f"array {name} is serialised as {array.stype!r}")
    data = array.data
    if type(data) is not bytes or len(data) > expected.size + _HEADER:
        raise UnusableReplyError(
            f"array {name} is of {len(data)} bytes, {expected.size} and a header of at most {_HEADER} expected"
        )
    fortran, dtype, start = expected.fortran, expected.dtype, len(expected.header)
    if not data.startswith(expected.header):
        shape, fortran, dtype, start = _header(name, data)
        if shape != expected.shape or dtype.newbyteorder("=") != expected.dtype.newbyteorder("="):
            raise UnusableReplyError(
                f"array {name} is {dtype} {list(shape)}, expected {expected.dtype} {list(expected.shape)}"
            )
    if len(data) - start != expected.size:
        raise UnusableReplyError(f"array {name} has {len(data) - start} bytes of numbers, expected {expected.size}")
    flat = np.frombuffer(data, dtype, prod(expected.shape), start)
    return flat.reshape(expected.shape[::-1]).T if fortran else flat.reshape(expected.shape)


def _header(name: str, data: bytes) -> tuple[tuple[int, ...], bool, Any, int]:
    """Shape, order, type and place of the numbers of a .npy file, from its header alone."""
    file = BytesIO(data[:_HEADER])
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(file, max_header_size=_HEADER)
    except Exception as error:
        raise UnusableReplyError(f"array {name} is no .npy file that can be read: {error}") from error
    if dtype.hasobject:
        raise UnusableReplyError(f"array {name} holds Python objects")
    return shape, fortran, dtype, file.tell()


def samples_in(metrics: Mapping[str, Any], key: str) -> float:
    """The number of samples that a reply reports, positive and finite."""
    if key not in metrics:
        raise UnusableReplyError(f"no {key} in its metrics")
    found = metrics[key]
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise UnusableReplyError(f"{key} is a {type(found).__name__}, expected a number")
    if not 0 < found <= _MOST:
        raise UnusableReplyError(f"{key} is {found:g}, expected more than 0 and at most {_MOST:g}")
    return float(found)


def evaluated(node: int, reply: Message, key: str) -> Usable:
    """What an evaluation's reply holds: metrics with a number of samples."""
    if not reply.has_content():
        raise UnusableReplyError("no content")
    content = reply.content
    samples = samples_in(_only("metric record", content, MetricRecord), key)
    return Usable(
        node, reply, RecordDict({k: r for k, r in content.items() if not isinstance(r, ArrayRecord)}), samples
    )


def _only(what: str, content: RecordDict, kind: type) -> Any:
    """The one record of this kind; ``content.array_records`` would keep all arrays until garbage is collected."""
    found = [record for record in content.values() if isinstance(record, kind)]
    if len(found) != 1:
        raise UnusableReplyError(f"{len(found)} {what}s, 1 expected")
    return found[0]


def _release(reply: Any) -> None:
    """Free the arrays of a reply, which have been stacked, or can't be used."""
    try:
        if reply.has_content():
            reply.content = RecordDict()
    except Exception:  # not even a message
        return


def reason_of(error: Exception) -> str:
    """Why a reply was dropped, in one short printable line."""
    text = str(error) if isinstance(error, UnusableReplyError) else f"can't be read: {type(error).__name__}: {error}"
    text = printable(" ".join(text.split()))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
