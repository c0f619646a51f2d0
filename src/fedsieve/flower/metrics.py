"""What clients report of their training and evaluation, of usable replies alone, and no client for too many samples."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import isfinite
from typing import Any

import torch
from flwr.app import MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy

from fedsieve.aggregators.weighting import capped_weights
from fedsieve.flower.replies import Usable

_LARGEST = 2.0**63
_FUNCTION = "train_metrics_aggr_fn"


def capped(samples: Sequence[float], cap: float | int) -> list[float]:
    """Numbers of samples, none of them more than ``cap`` times their median, as in the mean of the models.

    >>> capped([10.0, 20.0, 1e9], cap=3)
    [10.0, 20.0, 60.0]
    """
    return capped_weights(torch.tensor(samples, dtype=torch.float64), float(cap)).tolist()


def comparable(replies: Sequence[Usable], key: str, cap: float | int) -> list[Usable]:
    """Those replies that report finite numbers under the names that most of them report.

    Numbers of samples are capped as by :func:`capped`. The others are left out of the metrics alone: an average over
    different names, or over NaN, is none.
    """
    fit = [r for r in replies if _finite(_metrics(r.content))]
    forms = [_form(_metrics(r.content)) for r in fit]
    usual = Counter(forms).most_common(1)[0][0] if forms else ()
    fit = [r for r, form in zip(fit, forms, strict=True) if form == usual]
    counts = capped([r.samples for r in fit], cap)
    return [replace(r, content=_counting(r.content, key, n)) for r, n in zip(fit, counts, strict=True)]


def averaged(contents: Sequence[RecordDict], key: str) -> dict[str, Any]:
    """The weighted average of metrics, without the number of samples; lists entry by entry."""
    records = [_metrics(content) for content in contents]
    total = float(sum(r[key] for r in records))
    found: dict[str, Any] = {}
    for name in records[0] if records else ():
        if name == key:
            continue
        if isinstance(records[0][name], list):
            columns = zip(*(r[name] for r in records), strict=True)
            found[name] = [_mean(column, records, key, total) for column in columns]
        else:
            found[name] = _mean([r[name] for r in records], records, key, total)
    return found


@contextmanager
def told_of(strategy: Strategy, contents: Sequence[RecordDict]) -> Iterator[None]:
    """Let a strategy's own function of the training metrics see ``contents`` in place of the one reply it is given.

    The strategy's line about one result received is kept out of the log, where others say how many there were.
    """
    own: Callable[..., MetricRecord] | None = getattr(strategy, _FUNCTION, None)
    if own is not None:
        setattr(strategy, _FUNCTION, lambda _, key: own(list(contents), key) if contents else MetricRecord())
    log, quiet = logging.getLogger("flwr"), _without_counts
    log.addFilter(quiet)
    try:
        yield
    finally:
        log.removeFilter(quiet)
        if own is not None:
            setattr(strategy, _FUNCTION, own)


def _without_counts(line: logging.LogRecord) -> bool:
    return "Received %s results" not in str(line.msg)


def named(content: RecordDict, key: str) -> str:
    """The name that a node reports of itself under ``key``, with the key; "" where it reports none."""
    found = [record[key] for record in content.values() if key in record]
    return f"{key} {found[0]}" if found and isinstance(found[0], int | float | str) else ""


def number(metrics: Mapping[str, Any] | None, name: str) -> float | None:
    """A finite number among metrics, or None."""
    found = None if metrics is None else metrics.get(name)
    return float(found) if isinstance(found, int | float) and isfinite(found) else None


def _mean(values: Sequence[Any], records: Sequence[Mapping[str, Any]], key: str, total: float) -> float:
    return float(sum(v * r[key] for v, r in zip(values, records, strict=True)) / total)


def _metrics(content: RecordDict) -> MetricRecord:
    return next(iter(content.metric_records.values()))


def _counting(content: RecordDict, key: str, samples: float) -> RecordDict:
    """The same content with another number of samples."""
    name, metrics = next(iter(content.metric_records.items()))
    count = int(samples) if isinstance(metrics[key], int) and samples >= 1 else samples
    return RecordDict({**content, name: MetricRecord({**metrics, key: count})})


def _form(metrics: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted((name, len(v) if isinstance(v, list) else -1) for name, v in metrics.items()))


def _finite(metrics: Mapping[str, Any]) -> bool:
    values = (v for value in metrics.values() for v in (value if isinstance(value, list) else [value]))
    return all(isinstance(v, int | float) and abs(v) <= _LARGEST and isfinite(v) for v in values)
