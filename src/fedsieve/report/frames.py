"""Runs, their rounds and their clients as data frames of pandas.

Rates are in [0, 1]; rounds count from 1, as in every table and figure; what is undefined or not known is missing.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from fedsieve.core.escaping import printable
from fedsieve.core.records import RoundRecord
from fedsieve.report.damage import Against, compare
from fedsieve.report.load import Run, reasons

if TYPE_CHECKING:  # takes half a second: only what makes frames imports it
    from pandas import DataFrame

_WHOLE, _TRUTH, _TEXT, _NUMBER = "Int64", "boolean", "str", "float64"  # the first two may be missing
_IDENTITY = {"run": _TEXT, "dataset": _TEXT, "attack": _TEXT, "defense": _TEXT, "seed": _WHOLE}
_RATES = (
    *("test_accuracy", "test_loss", "attack_success_rate", "attack_success_rate_all"),
    *("false_positive_rate", "false_negative_rate"),
)
PHASES = ("train", "attack", "defend", "evaluate", "record")
ROUNDS = {
    "round": _WHOLE,
    **dict.fromkeys(("clients", "malicious", "rejected", "screened"), _WHOLE),
    **{"update_norm": _NUMBER, "applied": _TRUTH, "note": _TEXT},
    **dict.fromkeys((*_RATES, *(f"seconds_{phase}" for phase in PHASES)), _NUMBER),
}
CLIENTS = {
    **{"round": _WHOLE, "client": _WHOLE, "name": _TEXT},
    **dict.fromkeys(("malicious", "rejected", "screened"), _TRUTH),
    **{"weight": _NUMBER, "score": _NUMBER, "reason": _TEXT},
}
_REASONS = ("not_applied_reasons", "screened_reasons", "notes")
_ALWAYS = ("model", "partition", "knowledge")
_TYPED = ("dataset", "clients", "malicious", "clients per round", "rounds", *_ALWAYS)


def runs_frame(runs: Sequence[Run]) -> "DataFrame":
    """One row for each run.

    Columns: ``run`` (its directory), ``dataset``, ``attack`` and ``defense`` with the parameters that are not the
    default, ``seed``, the other settings, ``malicious`` being a number of clients, ``finished``, ``rounds_played`` and
    ``problems``; the numbers of :func:`fedsieve.core.metrics.summarize`; and what the run lost against its reference,
    if there is one among ``runs`` (:func:`fedsieve.report.damage.compare`). A setting that only some runs have is
    ``default`` in the others.
    """
    from pandas import DataFrame

    compared = compare(runs)
    further = list(dict.fromkeys(key for run in runs for key in run.setting if key not in _TYPED))
    rows: list[dict[str, Any]] = []
    kinds = dict(_IDENTITY)
    for run in runs:
        row = _identity(run)
        parts: list[tuple[dict[str, Any], str]] = [
            (_counts(run), _WHOLE),
            ({key: run.setting.get(key, "") for key in _ALWAYS}, _TEXT),
            ({key: run.setting.get(key, "default" if run.experiment else "") for key in further}, _TEXT),
            ({"finished": run.finished}, _TRUTH),
            ({"problems": "; ".join(run.problems)}, _TEXT),
            ({key: value for key, value in run.summary.items() if _is_count(key, value)}, _WHOLE),
            ({key: value for key, value in run.summary.items() if _is_number(key, value)}, _NUMBER),
            ({key: reasons(run.summary[key]) for key in _REASONS}, _TEXT),
            *_lost(compared.get(run.path)),
        ]
        for values, kind in parts:
            named = {printable(key).replace(" ", "_"): value for key, value in values.items()}
            row |= {key: _shown(key, value) for key, value in named.items()}
            kinds |= dict.fromkeys(named, kind)
        rows.append(row)
    return DataFrame.from_records(rows, columns=list(kinds)).astype(kinds)


def _counts(run: Run) -> dict[str, int | None]:
    e = run.experiment
    return {
        "clients": e.clients if e else None,
        "malicious": e.n_malicious if e and run.truth else None,
        "clients_per_round": e.clients_per_round if e else None,
        "rounds": e.rounds if e else None,
        "rounds_played": run.digest.rounds,
    }


def _is_count(key: str, value: Any) -> bool:
    """Whether a result of a run is a whole number, or None in place of one."""
    return not isinstance(value, list | dict) and ("rounds" in key or key.endswith("_round") or "updates" in key)


def _is_number(key: str, value: Any) -> bool:
    """The same of a rate."""
    return (value is None or isinstance(value, int | float)) and not _is_count(key, value)


def _lost(against: Against | None) -> list[tuple[dict[str, Any], str]]:
    """What a run lost against its reference, with the kind of each column."""
    lost = against.damage if against else None
    return [
        ({"reference": against.against if against else ""}, _TEXT),
        (
            {
                "lost_per_round": lost.mean if lost else None,
                "worst_loss": lost.worst if lost else None,
                "late_loss": lost.late if lost else None,
            },
            _NUMBER,
        ),
        ({"worst_loss_round": lost.worst_round if lost else None}, _WHOLE),
    ]


def _shown(key: str, value: Any) -> Any:
    """A value as the frame has it: rounds count from 1."""
    if isinstance(value, str):
        return printable(value)
    return value + 1 if key.endswith("_round") and isinstance(value, int) and key != "clients_per_round" else value


def rounds_frame(runs: Sequence[Run]) -> "DataFrame":
    """One row for each round of each run.

    Columns: ``run``, ``dataset``, ``attack``, ``defense``, ``seed``, ``round``; how many ``clients`` took part, and how
    many of them were ``malicious``, ``rejected`` and ``screened``; the fields of
    :class:`fedsieve.core.records.RoundRecord` that are numbers or texts; and the wall time of each phase in seconds.
    """
    return _stacked(runs, ROUNDS, lambda run: map(_round, run.records))


def _round(r: RoundRecord) -> tuple[Any, ...]:
    """Values of :data:`ROUNDS`."""
    return (
        *(r.round + 1, len(r.clients), None if r.malicious is None else len(r.malicious)),
        *(None if r.rejected is None else len(r.rejected), len(r.screened)),
        *(r.update_norm, r.applied, printable(r.note), *(getattr(r, name) for name in _RATES)),
        *(r.seconds.get(phase) for phase in PHASES),
    )


def clients_frame(runs: Sequence[Run]) -> "DataFrame":
    """One row for each client in each round of each run: for long runs, millions.

    Columns: ``run``, ``dataset``, ``attack``, ``defense``, ``seed``, ``round``; ``client``, the id under which the
    server saw it, and its ``name``; whether it is ``malicious``, was ``rejected`` and was ``screened``; its ``weight``
    in the aggregate, its anomaly ``score``, and the ``reason`` why it was screened or rejected.
    """

    def rows(run: Run) -> Iterable[tuple[Any, ...]]:
        for r in run.records:
            why = dict(zip(r.screened, r.screened_reasons, strict=False))
            said = r.diagnosis.reasons if r.diagnosis else ()
            weights, scores = r.weights or (None,) * len(r.clients), r.scores or (None,) * len(r.clients)
            for k, client in enumerate(r.clients):
                yield (
                    *(r.round + 1, client, printable(run.name(client))),
                    *(None if some is None else client in some for some in (r.malicious, r.rejected, r.screened)),
                    *(weights[k], scores[k], printable(why.get(client) or (said[k] if said else ""))),
                )

    return _stacked(runs, CLIENTS, rows)


def _identity(run: Run) -> dict[str, Any]:
    """What tells a run from others; nothing but the path without settings."""
    e = run.experiment
    texts = (str(run.path), run.setting.get("dataset", ""), run.attack, run.defense)
    return dict(zip(_IDENTITY, (*map(printable, texts), e.seed if e else None), strict=True))


def _stacked(
    runs: Sequence[Run], columns: dict[str, str], rows: Callable[[Run], Iterable[tuple[Any, ...]]]
) -> "DataFrame":
    """The rows of all runs, each with what tells the run from the others."""
    from pandas import DataFrame, concat

    frames = [DataFrame(columns=[*_IDENTITY, *columns]).astype(_IDENTITY | columns)]
    for run in runs:
        frame = DataFrame.from_records(list(rows(run)), columns=list(columns)).astype(columns)
        for k, (name, value) in enumerate(_identity(run).items()):
            frame.insert(k, name, value)
        frames.append(frame.astype(_IDENTITY))
    return concat(frames, ignore_index=True)
