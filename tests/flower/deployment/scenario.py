"""A deployment under attack, from its certificates to a table of its nodes: `make flower-demo`.

Eight SuperNodes with keys of their own train on the digits, connected by TLS. Two of them flip their labels, one sends
garbage, one is at times slower than the server waits, one is killed in mid-run and started again; a ninth has a key
that nobody registered. The ServerApp is killed once, and started again. Before, the same app runs in Flower's
simulation with the stock strategy and eight honest nodes: the accuracy to compare with.
"""

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from nodes import Verdict, verdicts
from processes import until
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from superlink import SuperLink

from fedsieve import RunDirectory

ROOT = Path(__file__).parents[3]
APP, PAGE = ROOT / "examples" / "flower", ROOT / "docs" / "results" / "flower" / "deployment.md"
ROLES = ("label-flip", "label-flip", "garbage", "slow", "killed and restarted", "honest", "honest", "honest")
MALICIOUS = 2
ROUNDS = 10


@dataclass(frozen=True)
class Outcome:
    """What happened.

    Attributes:
        clean: Accuracy of FedAvg with eight honest nodes.
        accuracy: Accuracy of the run under attack.
        rounds: Rounds that its records have.
        roles: What each node did, by its id.
        verdicts: What became of its replies, by its id.
        events: What was done when, and what was seen.
        refused: Whether the node with an unknown key was refused.
        seconds: Wall time of all.
    """

    clean: float
    accuracy: float
    rounds: int
    roles: dict[str, str]
    verdicts: dict[str, Verdict]
    events: tuple[str, ...]
    refused: bool
    seconds: float


def accuracy(messages: str) -> float:
    """The last accuracy that a ServerApp logged."""
    return float(re.findall(r"'accuracy': ([\d.e-]+)", messages)[-1])


def clean(folder: Path) -> float:
    """Accuracy of the stock strategy with honest nodes, in Flower's simulation."""
    with SuperLink(folder, dict(os.environ), simulation=True) as link:
        run = link.run(APP, nodes=len(ROLES), defense="stock", num_server_rounds=ROUNDS, min_nodes=len(ROLES))
        status = link.wait(run, 600)
        messages = link.messages(run)
    if status != "finished:completed":
        raise RuntimeError(f"the clean run is {status}:\n{messages}")
    return accuracy(messages)


def play(folder: Path, say: Callable[[str], None], timeout: float) -> Outcome:
    """Play it all; keys, logs and the run directory stay in ``folder``.

    Args:
        folder: For all files.
        say: Told what happens.
        timeout: Seconds in which a node has to answer.
    """
    began, events = time.monotonic(), []

    def tell(event: str) -> None:
        events.append(f"{time.monotonic() - began:4.0f} s: {event}")
        say(events[-1])

    tell(f"{len(ROLES)} honest nodes in Flower's simulation, stock FedAvg, {ROUNDS} rounds")
    reference = clean(folder / "clean")
    tell(f"its accuracy is {reference:.3f}")
    with SuperLink(folder / "deployment", dict(os.environ)) as link:
        tell("SuperLink with TLS and node authentication is up")
        count = len(ROLES)
        settings = (f"partition-id={k} num-partitions={count}" for k in range(count))
        attacks = (f' attack="{role}"' if role in ("label-flip", "garbage", "slow") else "" for role in ROLES)
        nodes = [link.node(f"node-{k}", s + a) for k, (s, a) in enumerate(zip(settings, attacks, strict=True))]
        stranger = link.node("stranger", f"partition-id=0 num-partitions={count}", register=False)
        assert stranger.process is not None
        until(lambda: all(f"node_id={node.id}" in link.log.read_text() for node in nodes), 120, "all nodes online")
        tell(f"{count} registered SuperNodes are online")
        until(lambda: stranger.process.poll() is not None, 60, "the unknown key is refused")  # type: ignore[union-attr]
        refused = link.online() == {node.id for node in nodes}
        tell(f"the SuperNode with an unknown key ended with exit code {stranger.process.returncode}, and isn't listed")
        played = RunDirectory(folder / "run")
        config = {
            "defense": "sieve",
            "red_team": True,
            "num_server_rounds": ROUNDS,
            "round_timeout": timeout,
            "min_nodes": 4,
            "out": str(played.path),
        }

        def after(rounds: int) -> None:
            until(lambda: played.n_records() >= rounds or link.ended(run), rounds * (timeout + 60), f"round {rounds}")
            if link.ended(run):
                raise RuntimeError(f"the run has ended:\n{link.messages(run)}")

        run = link.run(APP, **config)
        tell("the run is started, defense sieve")
        after(2)
        link.kill(nodes[4])
        tell(f"round {played.n_records()} done: node-4 killed")
        after(3)
        link.start(nodes[4])
        tell(f"round {played.n_records()} done: node-4 started again with its key")
        after(6)
        link.kill_server_app()
        tell(f"round {played.n_records()} done: ServerApp killed")
        first, run = run, link.run(APP, **config)
        tell("the same `flwr run` once more")
        status = link.wait(run, ROUNDS * (timeout + 60))
        for each in (first, run):
            (folder / f"server-app-{each}.log").write_text(link.messages(each))
        tell(f"the run is {status}, with {played.n_records()} rounds on record")
        final = accuracy(link.messages(run))
    tell(f"accuracy under attack is {final:.3f}")
    found = {name.split()[1]: v for name, v in verdicts(played.records(), played.read_names()).items()}
    return Outcome(
        clean=reference,
        accuracy=final,
        rounds=played.n_records(),
        roles={str(node.id): role for node, role in zip(nodes, ROLES, strict=True)},
        verdicts=found,
        events=tuple(events),
        refused=refused,
        seconds=time.monotonic() - began,
    )


NOTHING = Verdict(0, 0, 0, 0, None, ())
COLUMNS = ("node", "what it does", "verdict", "answered", "accepted", "rejected", "dropped", "since round", "why")


def rows(outcome: Outcome) -> list[list[str]]:
    """The table of nodes, as text."""
    made = []
    for name, role in outcome.roles.items():
        v = outcome.verdicts.get(name, NOTHING)
        numbers = (v.answered, v.accepted, v.rejected, v.dropped)
        why = "; ".join(v.reasons[:3]) + ("; ..." if len(v.reasons) > 3 else "")
        made.append([name, role, v.text, *map(str, numbers), str(v.since or ""), why])
    return made


def page(outcome: Outcome) -> str:
    """The page of the results, in Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows(outcome)]
    nodes, events = "\n".join(lines), "\n".join(f"- {event.strip()}" for event in outcome.events)
    return f"""# A deployment under attack

Made by `make flower-test`, with Flower {version("flwr")} and {os.cpu_count()} cores: one SuperLink with TLS and
node authentication, {len(ROLES)} SuperNodes as processes on loopback, the digits; the app is
[examples/flower](../../../examples/flower/README.md). All of it took {outcome.seconds:.0f} seconds.

Accuracy after {outcome.rounds} rounds: **{outcome.accuracy:.3f}** under attack with `sieve`,
and {outcome.clean:.3f} with {len(ROLES)} honest nodes and Flower's FedAvg, in its simulation.

{nodes}

"Rejected" is the defense's decision; "dropped" is a reply that can't be used. "Since" is the round since which no reply
of a node was used. A node that does not answer in time is not in a round.

{events}
"""


def show(outcome: Outcome, console: Console) -> None:
    """Print the table of nodes."""
    table = Table(title="\nNodes", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("node", "what it does", "verdict", "in rounds", "since", "why, most often"):
        table.add_column(column, overflow="fold", no_wrap=column in ("node", "verdict"))
    for name, role in outcome.roles.items():
        v = outcome.verdicts.get(name, NOTHING)
        colour = {"accepted": "green", "rejected": "red", "dropped": "yellow"}.get(v.text, "dim")
        count = f"{max(v.accepted, v.rejected, v.dropped)} of {v.answered}"
        why = escape(v.reasons[0]) if v.reasons else ""
        table.add_row(name, role, f"[{colour}]{v.text}[/]", count, str(v.since or ""), why)
    console.print(table)
    console.print(
        f"\nAccuracy after {outcome.rounds} rounds: {outcome.accuracy:.3f} under attack, {outcome.clean:.3f} with "
        f"honest nodes and Flower's FedAvg    ({outcome.seconds:.0f} seconds)"
    )


def main() -> None:
    """Play it, show the table, and keep what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="for keys, logs and the run directory; else a temporary one")
    parser.add_argument("--timeout", type=float, default=45.0, help="seconds in which a node has to answer")
    parser.add_argument("--json", type=Path, help="file for the outcome")
    parser.add_argument("--page", type=Path, nargs="?", const=PAGE, help="write the page of results")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends what was started, as Ctrl-C does
    console = Console()
    if not console.is_terminal:
        console.width = 140
    folder = options.folder or Path(tempfile.mkdtemp(prefix="fedsieve-flower-"))
    console.print(f"keys, logs and the run directory: {folder}")
    try:
        outcome = play(folder, lambda event: console.print(event, highlight=False), options.timeout)
    except KeyboardInterrupt:
        sys.exit(130)
    show(outcome, console)
    if options.json:
        options.json.write_text(json.dumps(asdict(outcome)))
    if options.page:
        options.page.parent.mkdir(parents=True, exist_ok=True)
        options.page.write_text(page(outcome), encoding="utf-8")


if __name__ == "__main__":
    main()
