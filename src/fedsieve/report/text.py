"""Text, tables and JSON for a terminal: rates, headings, the summary of a run, the command that repeats it."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from rich.table import Table

from fedsieve.config.experiment import Experiment
from fedsieve.core.records import RoundRecord


def as_json(
    experiment: Experiment, records: Sequence[RoundRecord], summary: Mapping[str, Any], seconds: float, run_dir: str
) -> dict[str, Any]:
    """What ``fedsieve run --json`` prints.

    Args:
        experiment: Settings of the run.
        records: All rounds.
        summary: :func:`fedsieve.core.metrics.summarize` of them.
        seconds: Wall time of the command.
        run_dir: The run directory.
    """
    played = sum(sum(record.seconds.values()) for record in records)
    return {
        "dataset": experiment.dataset.name,
        "model": experiment.model.name,
        "attack": experiment.attack.name,
        "defense": experiment.defense.name,
        "n_clients": experiment.clients,
        "n_malicious": experiment.n_malicious,
        "rounds": len(records),
        "seed": experiment.seed,
        **summary,
        "seconds": round(seconds, 3),
        "rounds_per_second": round(len(records) / played, 3) if played else None,
        "run_dir": run_dir,
    }


DASH = "–"  # noqa: RUF001 (a dash is meant)


def number(rate: float | None) -> str:
    """A rate in per cent without the sign; a dash for None."""
    return DASH if rate is None else f"{100 * rate:.1f}"


def percent(rate: float | None) -> str:
    """A rate as ``87.3 %``; a dash for None."""
    return DASH if rate is None else f"{number(rate)} %"


def heading(experiment: Experiment) -> str:
    """Attack, defense, dataset and model in one line of rich's markup."""
    e = experiment
    return (
        f"[bold]{e.attack.name}[/] ({e.n_malicious} of {e.clients} clients malicious) "
        f"against [bold]{e.defense.name}[/], {e.dataset.name}, {e.model.name}"
    )


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table from lines of fields, the head first."""
    head, *body = ["| " + " | ".join(field.replace("|", "/") for field in line) + " |" for line in lines]
    return "\n".join([head, "|---" * len(lines[0]) + "|", *body])


def terminal_table(title: str, lines: Sequence[Sequence[str]]) -> Table:
    """A table from lines of fields, the head first; fields may contain rich's markup."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for k, name in enumerate(lines[0]):
        table.add_column(name, justify="right" if k else "left", overflow="fold")  # nothing is cut off
    for line in lines[1:]:
        table.add_row(*line)
    return table


def closing(result: Mapping[str, Any], records: Sequence[RoundRecord]) -> Table:
    """The closing summary of one run, from :func:`as_json`."""
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_row("Test accuracy", f"{percent(result['late_test_accuracy'])} (mean of the last tenth of the rounds)")
    if result["attack_success_rate"] is not None:
        table.add_row("Attack success rate", percent(result["attack_success_rate"]))
    if result["false_positive_rate"] is None:
        table.add_row("Detection", f"{result['defense']} rejects no client")
    else:
        late, whole = result["late_false_positive_rate"], result["false_positive_rate"]
        table.add_row(
            "Benign clients rejected", f"{percent(late)} in the second half, {percent(whole)} over all rounds"
        )
    if result["false_negative_rate"] is not None:
        late, whole = result["late_false_negative_rate"], result["false_negative_rate"]
        table.add_row(
            "Malicious clients missed", f"{percent(late)} in the second half, {percent(whole)} over all rounds"
        )
    unmoved = [record for record in records if not record.applied]
    if unmoved:
        reasons = ", ".join(sorted({record.note for record in unmoved}))
        table.add_row("Model unchanged", f"in {len(unmoved)} of {len(records)} rounds: {reasons}")
    screened = sum(len(record.screened) for record in records)
    if screened:
        table.add_row("Updates screened", f"{screened} with values that are not finite")
    table.add_row("Time", f"{result['seconds']:.1f} s")
    table.add_row("Run directory", result["run_dir"])
    return table


def as_command(experiment: Experiment) -> str:
    """The ``fedsieve run`` command that repeats an experiment, with every setting that is not the default."""
    e = experiment
    options = {"dataset": e.dataset.name, "attack": e.attack.name, "defense": e.defense.name}
    default = Experiment.of({**options, "knows_defense": True}).model_dump(mode="json")
    parts = [f"--{name} {shlex.quote(value)}" for name, value in options.items()]
    if e.dataset.name in ("csv", "npz"):
        parts[0] = f"--dataset {shlex.quote(str(e.dataset.parameters['file']))}"
    default["knows_defense"] = False
    for path, value in _differing(e.model_dump(mode="json"), default):
        short = {("clients",), ("malicious",), ("rounds",), ("seed",)}
        if path in short:
            parts.append(f"--{path[0]} {value}")
        elif path[0] != "dataset" or path[-1] not in ("name", "file"):
            text = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")
            parts.append(f"--set {shlex.quote('.'.join(path) + '=' + text)}")
    return " ".join(["fedsieve run", *parts])


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
