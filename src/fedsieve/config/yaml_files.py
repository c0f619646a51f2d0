"""Settings in YAML: mappings, lists and scalars as the core schema of YAML 1.2 reads them, within limits.

YAML 1.1 reads ``1:30`` as 90, ``010`` as 8, ``no`` as false and ``1e-3`` as text; here the first and the third are
text, the last is a number and the second is refused. What a file of settings does not need is refused too: anchors and
aliases (a short text can stand for a tree without end), tags, merge keys, a second document, a key given twice.
"""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml import events
from yaml.resolver import BaseResolver, Resolver

from fedsieve.core.errors import ParameterError
from fedsieve.core.escaping import printable

MAX_BYTES = 200_000
MAX_DEPTH = 50
MAX_DIGITS = 100  # of a number, its point and exponent included

_Parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where PyYAML was built with it
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ParameterError: If the file cannot be read, is over a limit or holds no mapping.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise ParameterError(f"can't read {path}: it has more than {MAX_BYTES:,} bytes")
        found = parse_yaml(raw.decode("utf-8-sig"))
    except OSError as error:
        raise ParameterError(f"can't read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ParameterError(f"can't read {path}: {error}") from error
    if not isinstance(found, dict):
        raise ParameterError(f"{path} holds no settings: a mapping such as 'dataset: digits' was expected")
    return found


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    >>> parse_yaml("{rate: 1e-3, name: krum, label: no, time: 1:30}")
    {'rate': 0.001, 'name': 'krum', 'label': 'no', 'time': '1:30'}

    Raises:
        ValueError: In one line, if it is no such text or over a limit.
    """
    try:
        if len(text) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES:,} characters")
        return _Tree(yaml.parse(text, Loader=_Parser)).value()
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{line}{printable(error.problem or 'no YAML')}") from error
    except (yaml.YAMLError, UnicodeEncodeError) as error:
        raise ValueError(printable(" ".join(str(error).split()))) from error


def yaml_text(value: Any, flow: bool = False) -> str:
    """``value``, of mappings, lists and scalars, as a text from which :func:`parse_yaml` reads the same.

    Args:
        value: Keys of mappings are text.
        flow: One line in braces, such as ``{name: krum}``.
    """
    content = _written(value, flow)
    start, end = events.DocumentStartEvent(explicit=False), events.DocumentEndEvent(explicit=False)
    document = (events.StreamStartEvent(), start, *content, end, events.StreamEndEvent())
    return yaml.emit(document, width=10**6 if flow else 80)  # type: ignore[no-any-return]


class _Tree:
    """Builds the value from the parser's events, which come one by one: a limit is met before anything is built."""

    def __init__(self, found: Iterator[Any]) -> None:
        self._events = found

    def value(self) -> Any:
        """The value of the only document; None without one."""
        next(self._events)  # the start of the stream
        if isinstance(next(self._events), events.StreamEndEvent):
            return None
        value = self._node(next(self._events), 0)
        next(self._events)  # the end of the document
        if not isinstance(event := next(self._events), events.StreamEndEvent):
            raise _refused(event, "a second document")
        return value

    def _node(self, event: Any, depth: int) -> Any:
        if isinstance(event, events.AliasEvent) or event.anchor is not None:
            raise _refused(event, f"an anchor or alias, {event.anchor!r}")
        if event.tag is not None:
            raise _refused(event, f"the tag {event.tag!r}")
        if isinstance(event, events.ScalarEvent):
            return _plain(event) if event.implicit[0] else event.value
        if depth >= MAX_DEPTH:
            raise _refused(event, f"more than {MAX_DEPTH} levels")
        if isinstance(event, events.SequenceStartEvent):
            return [self._node(item, depth + 1) for item in self._until(events.SequenceEndEvent)]
        found: dict[str, Any] = {}
        for start in self._until(events.MappingEndEvent):
            key = self._node(start, depth + 1)
            if not isinstance(key, str):
                raise _refused(start, f"the key {_shown(key)}, which is no text; in quotes it would be")
            if key == "<<" and start.implicit[0]:
                raise _refused(start, "a merge key")
            if key in found:
                raise _refused(start, f"the key {key!r} a second time")
            found[key] = self._node(next(self._events), depth + 1)
        return found

    def _until(self, end: type[events.Event]) -> Iterator[Any]:
        while not isinstance(event := next(self._events), end):
            yield event


def _plain(event: Any) -> Any:
    """The value of a scalar without quotes."""
    text = event.value
    if text in _WORDS:
        return _WORDS[text]
    if _NOT_FINITE.fullmatch(text):
        raise _refused(event, f"{text}, not a finite number")
    if not _FLOAT.fullmatch(text) and not _INTEGER.fullmatch(text):
        return text
    if len(text) > MAX_DIGITS:
        raise _refused(event, f"a number of {len(text)} characters, more than {MAX_DIGITS}")
    if re.fullmatch(r"[-+]?0[0-9]+", text):
        raise _refused(event, f"{text}: write {text.lstrip('-+0') or '0'} for a decimal number, '{text}' for a text")
    if _INTEGER.fullmatch(text):
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if not math.isfinite(number := float(text)):
        raise _refused(event, f"{_shown(text)}, not a finite number")
    return number


def _refused(event: Any, what: str) -> ValueError:
    return ValueError(f"line {event.start_mark.line + 1} has {what}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _written(value: Any, flow: bool) -> Iterator[events.Event]:
    """The events of a value."""
    if isinstance(value, dict):
        yield events.MappingStartEvent(None, None, True, flow_style=flow)
        for key, inner in value.items():
            yield from _written(key, flow)
            yield from _written(inner, flow)
        yield events.MappingEndEvent()
    elif isinstance(value, list | tuple):
        yield events.SequenceStartEvent(None, None, True, flow_style=flow)
        for item in value:
            yield from _written(item, flow)
        yield events.SequenceEndEvent()
    elif isinstance(value, str):
        yield events.ScalarEvent(None, None, (_is_text(value), True), value)
    else:
        text = json.dumps(value, allow_nan=False)
        # YAML 1.1 takes 1e-05 for a text
        text = text if "." in text else text.replace("e-", ".0e-").replace("e+", ".0e+")
        yield events.ScalarEvent(None, None, (True, False), text)


def _is_text(text: str) -> bool:
    """Whether both the reader above and one of YAML 1.1 take this for a text, without quotes."""
    tag = Resolver().resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    return tag == BaseResolver.DEFAULT_SCALAR_TAG and not _FLOAT.fullmatch(text) and not _INTEGER.fullmatch(text)
