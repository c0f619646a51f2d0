"""Text, tables and JSON for a terminal: rates, headings, the summary of a run, the command that repeats it."""

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import yaml
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fedsieve.config.experiment import Experiment
from fedsieve.config.merging import named
from fedsieve.core.escaping import printable
from fedsieve.core.records import RoundRecord, client_name
from fedsieve.core.scores import FinalScores
from fedsieve.report.escaping import terminal
from fedsieve.report.settings import default_settings


def as_json(
    experiment: Experiment,
    records: Iterable[RoundRecord],
    summary: Mapping[str, Any],
    reading: str,
    seconds: float,
    run_dir: str,
    names: Sequence[str] = (),
    scores: FinalScores | None = None,
) -> dict[str, Any]:
    """What ``fedsieve run --json`` prints.

    Args:
        experiment: Settings of the run.
        records: All rounds.
        summary: :func:`fedsieve.core.metrics.summarize` of them.
        reading: How the data were read.
        seconds: Wall time of the command.
        run_dir: The run directory.
        names: Of the clients.
        scores: Of the final model.
    """
    rounds, played = 0, 0.0
    for record in records:
        rounds, played = rounds + 1, played + sum(record.seconds.values())
    return {
        "dataset": experiment.dataset.name,
        "model": experiment.model.name,
        "attack": experiment.attack.name,
        "defense": experiment.defense.name,
        "n_clients": experiment.clients,
        "n_malicious": experiment.n_malicious if experiment.truth else None,
        "rounds": rounds,
        "seed": experiment.seed,
        **summary,
        "most_rejected": [{"name": client_name(names, one["client"]), **one} for one in summary["most_rejected"]],
        "scores": asdict(scores) if scores else None,
        "data": reading,
        "seconds": round(seconds, 3),
        "rounds_per_second": round(rounds / played, 3) if played else None,
        "run_dir": run_dir,
    }


DASH = "–"  # noqa: RUF001 (a dash is meant)


def number(rate: float | None) -> str:
    """A rate in per cent without the sign; a dash for None."""
    return DASH if rate is None else f"{100 * rate:.1f}"


def percent(rate: float | None) -> str:
    """A rate as ``87.3 %``; a dash for None."""
    return DASH if rate is None else f"{number(rate)} %"


def duration(seconds: float) -> str:
    """Seconds in a unit in which they are easy to read.

    >>> duration(0.25), duration(90.0), duration(5400.0), duration(9000.0), duration(3e5)
    ('0 s', '90 s', '90 min', '2.5 h', '3.5 days')
    """
    for unit, size in (("s", 1), ("min", 60)):
        if seconds < 100 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def some(texts: Sequence[str], mark: str = ", ", most: int = 3) -> str:
    """The first few texts, and the number of the others.

    >>> some(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = len(texts) - most
    return mark.join(texts[:most]) + (f" and {more} more" if more > 0 else "")


def heading(experiment: Experiment) -> str:
    """Attack, defense, dataset and model in one line of rich's markup; no attack where nobody knows of one."""
    e = experiment
    attack, defense, dataset, model = (escape(printable(c.name)) for c in (e.attack, e.defense, e.dataset, e.model))
    who = f"[bold]{attack}[/] ({e.n_malicious} of {counted(e.clients, 'client')} malicious) against " if e.truth else ""
    who = who or f"{counted(e.clients, 'client')}, "
    return f"{who}[bold]{defense}[/], {dataset}, {model}"


def counted(n: int, what: str) -> str:
    """A number of things.

    >>> counted(1, "client"), counted(3, "client")
    ('1 client', '3 clients')
    """
    return f"{n} {what}{'s' * (n != 1)}"


def most_rejected(summary: Mapping[str, Any], names: Sequence[str] = (), most: int = 5) -> str:
    """Which clients were rejected how often, the most often first; "" if none was, or too many took part.

    >>> one = {"client": 1, "rounds_rejected": 18, "rounds": 20}
    >>> most_rejected({"most_rejected": [one, {**one, "client": 3, "rounds_rejected": 1}]}, ["Mitte", "St. Anna"])
    'St. Anna in 18 of 20 rounds, client 3 in 1 of 20'
    """
    found = summary["most_rejected"]
    texts = [f"{client_name(names, c['client'])} in {c['rounds_rejected']} of {c['rounds']}" for c in found]
    return some([f"{texts[0]} round{'s' * (found[0]['rounds'] != 1)}", *texts[1:]], most=most) if texts else ""


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table from lines of fields, the head first; see :func:`fedsieve.report.escaping.markdown`."""
    head, *body = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([head, "|---" * len(lines[0]) + "|", *body])


def terminal_table(title: str, lines: Sequence[Sequence[str | Text]]) -> Table:
    """A table from lines of fields, the head first; texts are shown literally. The title may have several lines."""
    head = Text("\n").join([terminal(line, "table.title") for line in title.split("\n")])
    table = Table(title=head, title_justify="left", box=None, padding=(0, 2, 0, 0))
    first, *body = [[field if isinstance(field, Text) else terminal(field) for field in line] for line in lines]
    for k, name in enumerate(first):
        table.add_column(name, justify="right" if k else "left", overflow="fold")  # nothing is cut off
    for line in body:
        table.add_row(*line)
    return table


def terminal_parts(title: str, lines: Sequence[Sequence[str | Text]], first: int, width: int) -> Group:
    """:func:`terminal_table` for narrow terminals: in parts, one below the other, of as many columns as fit.

    Args:
        title: Above the first part; may have several lines.
        lines: Lines of fields, the head first.
        first: Number of columns that every part begins with.
        width: Characters in a line of the terminal.
    """
    texts = [[field.plain if isinstance(field, Text) else printable(field) for field in line] for line in lines]
    widths = [max(map(cell_len, column)) + 2 for column in zip(*texts, strict=True)]
    room, shown = width - min(sum(widths[:first]), width // 2), list[list[int]]()
    for k in range(first, len(widths)):
        if shown and sum(widths[j] for j in shown[-1]) + widths[k] <= room:
            shown[-1].append(k)
        else:
            shown.append([k])
    parts: list[RenderableType] = [terminal(line, "table.title") for line in title.split("\n")]
    for k, columns in enumerate(shown):
        parts += [""] if k else []
        parts.append(terminal_table("", [[*line[:first], *(line[j] for j in columns)] for line in lines]))
    return Group(*parts)


def closing(result: Mapping[str, Any], names: Sequence[str] = ()) -> Table:
    """The closing summary of one run, from :func:`as_json`; ``names`` are the clients'."""
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    rows = {"Test accuracy": f"{percent(result['late_test_accuracy'])} (mean of the last tenth of the rounds)"}
    if result["largest_accuracy_fall"] is not None:
        at = result["largest_accuracy_fall_round"]
        fell = "none" if at is None else f"{percent(result['largest_accuracy_fall'])} (round {at + 1})"
        rows["Largest fall below the best"] = fell
    if result["attack_success_rate"] is not None:
        end, worst = percent(result["attack_success_rate"]), percent(result["worst_attack_success_rate"])
        at = result["worst_attack_success_round"] + 1
        rows["Attack success rate (other classes)"] = f"{end} at the end, {worst} at worst (round {at})"
        rows["Attack success rate (all samples)"] = f"{percent(result['attack_success_rate_all'])} at the end"
    truth = result["malicious_client_rounds"] is not None
    if (result["false_positive_rate"] if truth else result["client_rounds_rejected"]) is None:
        rows["Detection"] = f"{result['defense']} rejects no client"
    elif not truth or names:
        often = most_rejected(result, names)
        share = f"{percent(result['share_rejected'])} of all updates" if result["client_rounds_rejected"] else "none"
        rows["Rejected"] = f"{share}: {often}" if often else share
    for name, rate in (
        ("Benign clients rejected", "false_positive_rate"),
        ("Malicious clients missed", "false_negative_rate"),
    ):
        late, whole = result[f"late_{rate}"], result[rate]
        if whole is not None:
            rows[name] = f"{percent(late)} in the second half, {percent(whole)} over all rounds"
    if result["benign_client_rounds_lost"] is not None:
        share = percent(result["benign_share_lost"])
        rows["Benign client-rounds lost"] = f"{result['benign_client_rounds_lost']} ({share})"
    if until := until_detection(result):
        rows["First malicious client rejected"] = until
    if result["rounds_not_applied"]:
        count = f"in {result['rounds_not_applied']} of {result['rounds']} rounds"
        rows["Model unchanged"] = f"{count}: {_counted(result['not_applied_reasons'])}"
    if result["updates_screened"]:
        rows["Updates screened"] = f"{result['updates_screened']}: {_counted(result['screened_reasons'])}"
    if result["notes"]:
        rows["Noted"] = "; ".join(f"{note}, in {count} rounds" for note, count in result["notes"].items())
    rows["Time"] = f"{result['seconds']:.1f} s"
    rows["Run directory"] = result["run_dir"]
    for name, value in rows.items():
        table.add_row(name, terminal(value))
    return table


def until_detection(summary: Mapping[str, Any]) -> str:
    """When a malicious client was first rejected, in words; "" where no decision was taken or none took part."""
    rounds = summary["rounds_until_detection"]
    if rounds is None:
        return "" if summary["false_negative_rate"] is None else "never"
    return f"after {rounds} round{'s' * (rounds > 1)}" if rounds else "in the first round with one"


def warning(result: Mapping[str, Any]) -> str:
    """What makes the numbers of a run, from :func:`as_json`, those of no training; "" if nothing does."""
    unmoved, rounds = result["rounds_not_applied"], result["rounds"]
    if 2 * unmoved < rounds or not rounds:
        return ""
    what = (
        "no round changed the model" if unmoved == rounds else f"{unmoved} of {rounds} rounds left the model unchanged"
    )
    screened = f"; updates dropped: {_counted(result['screened_reasons'])}" if result["updates_screened"] else ""
    return f"{what}: {_counted(result['not_applied_reasons'])}{screened}"


def _counted(reasons: Mapping[str, int]) -> str:
    """Reasons with their numbers, the most frequent first."""
    return ", ".join(f"{reason} ({n})" for reason, n in sorted(reasons.items(), key=lambda item: (-item[1], item[0])))


def as_command(experiment: Experiment) -> str:
    """The ``fedsieve run`` command that repeats an experiment, with every setting that is not the default.

    With a dataset of another package, whose defaults are unknown, that is every setting.
    """
    found = experiment.model_dump(mode="json")
    parts, said = [], set[tuple[str, ...]]()
    for option in ("dataset", "attack", "defense"):
        words = {"name": found[option]["name"]}
        file = str(found[option].get("file")) if option == "dataset" else ""
        if named("dataset", file, "")["name"] == words["name"]:  # a path that says by which dataset it is read
            words["file"] = file
        said |= {(option, key) for key in words}
        word = words.get("file", words["name"])
        if printable(word) == word:
            parts.append(f"--{option} {shlex.quote(word)}")
        else:  # YAML has escapes for what can't be seen
            parts += [_set(f"{option}.{key}", value) for key, value in words.items()]
    default = default_settings(found["dataset"]["name"], found["attack"]["name"], found["defense"]["name"])
    for path, value in _differing(found, default):
        if path in (("clients",), ("malicious",), ("rounds",), ("seed",)):
            parts.append(f"--{path[0]} {value}")
        elif path not in said:
            parts.append(_set(".".join(path), value))
    return " ".join(["fedsieve run", *parts])


def _set(key: str, value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")
    return f"--set {shlex.quote(f'{printable(key)}={text}')}"


def _differing(
    found: Mapping[str, Any], default: Mapping[str, Any], above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Settings that differ, with their path; a component of another name counts as one setting."""
    for key, value in found.items():
        other = default.get(key)
        if value == other:
            continue
        if isinstance(value, Mapping) and isinstance(other, Mapping) and value.get("name") == other.get("name"):
            yield from _differing(value, other, (*above, key))
        else:
            yield (*above, key), value
