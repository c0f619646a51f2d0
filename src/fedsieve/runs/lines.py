"""A round's record as a line of ``records.jsonl``: one JSON object with the fields of a record, in their order.

All is written as it stands in :class:`fedsieve.core.records.RoundRecord`, but for what would repeat itself:

- ``clients`` is a number n where these are the clients 0 to n - 1, else the list of their ids;
- ``diagnosis.reasons`` maps each reason to the ids of the clients that were rejected for it.

Earlier versions wrote both as lists with an entry for each client; such lines are read, too.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, TypeAdapter

from fedsieve.core.records import RoundRecord


def line_of(record: RoundRecord) -> bytes:
    """A record as a line, with its end."""
    content = {**vars(record), "seconds": dict(record.seconds)}
    if record.clients == tuple(range(len(record.weights))):
        content["clients"] = len(record.weights)
    if (seen := record.diagnosis) is not None:
        content["diagnosis"] = {**vars(seen), "reasons": _by_reason(record.clients, seen.reasons)}
    return (json.dumps(content, allow_nan=False, separators=(",", ":")) + "\n").encode()


def record_of(line: bytes) -> RoundRecord:
    """The record in a line.

    Raises:
        ValidationError: If it is none.
    """
    return _RECORD.validate_json(line)


def _by_reason(clients: Sequence[int], reasons: Sequence[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for client, reason in zip(clients, reasons, strict=True):
        if reason:
            found.setdefault(reason, []).append(client)
    return found


def _by_client(clients: Any, reasons: Mapping[str, Any]) -> list[str]:
    """Inverse of :func:`_by_reason`, of whatever a stranger's file holds.

    Raises:
        ValueError: If these are not lists of clients, or of others.
    """
    try:
        left = {client: reason for reason, ids in reasons.items() for client in ids}
        found = [left.pop(client, "") for client in clients]
    except TypeError:  # nothing to loop over, or no ids
        raise ValueError("reasons are not lists of clients") from None
    if left:
        raise ValueError("reasons for clients that did not take part")
    return found


def _expanded(content: Any) -> Any:
    """What a line holds, with an entry for each client; what is of another form is left to the validation."""
    if not isinstance(content, dict):
        return content
    n, weights, seen = content.get("clients"), content.get("weights"), content.get("diagnosis")
    if type(n) is int:
        if not (isinstance(weights, list) and len(weights) == n):  # before a list is made that memory can't hold
            raise ValueError("as many clients as there are weights were expected")
        content["clients"] = list(range(n))
    if isinstance(seen, dict) and isinstance(seen.get("reasons"), dict):
        seen["reasons"] = _by_client(content.get("clients"), seen["reasons"])
    return content


_RECORD: TypeAdapter[RoundRecord] = TypeAdapter(Annotated[RoundRecord, BeforeValidator(_expanded)])
