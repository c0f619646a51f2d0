"""Attackers over time: who attacks when, under which client id, and with what knowledge of the defense."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsieve.config import registry
from fedsieve.reproduce.plan import Plan, Row, Scale, Suite, defenses

COLUMNS: Mapping[str, Mapping[str, Any]] = {
    **defenses("sieve", "skymask", "fltrust", "trimmed-mean", "multi-krum", "flame"),
    # what the masks accept, scaled down to its median length, and its mean
    "skymask,norm-clipping": {"defense": ["skymask", "norm-clipping"]},
    **defenses("root-only", "mean"),
}
GOALS = {"late_loss": 0.03, "worst_loss": 0.10}
BACKDOOR_GOALS = {**GOALS, "late_success": 0.10, "worst_success": 0.30}
HONEST_GOALS = {"late_loss": 0.01, "benign_lost": 0.01}
_ADAPTIVE_GOALS = {"late_loss": 0.10, "worst_success": 0.30}
MEASURES = ("late_loss", "worst_loss", "area", "late_success", "worst_success", "benign_lost")
ROOT_ONLY = "`root-only`, what root data alone reach, has no rows with an attack, since no client changes its model."
# Rows without malicious clients and with the undefended mean alone: whatever misclassifies the attackers' samples there
# is no success of theirs.
TRIGGER, CLASSES = "none, trigger shown", "none, classes of targeted-flip"


def attacked(columns: Iterable[str]) -> tuple[str, ...]:
    """Columns of a row with an attack: without ``root-only``, whose model no client changes."""
    return tuple(column for column in columns if column != "root-only")


When = Callable[[Any, int], Any]  # an attack at certain times, from the attack and the number of rounds


def sleeper(attack: Any, start: int, off: str = "honest") -> dict[str, Any]:
    """An attack from round ``start`` on; before, the malicious clients send ``off``."""
    return {"name": "sleeper", "attack": attack, "start": start, "off": off}


def on_off(attack: Any, period: int, duty: int = 1, off: str = "honest") -> dict[str, Any]:
    """An attack in the last ``duty`` of every ``period`` rounds; in the others, the malicious clients send ``off``."""
    return {"name": "on-off", "attack": attack, "period": period, "duty": duty, "off": off}


WHEN: Mapping[str, When] = {
    "always": lambda attack, rounds: attack,
    "after 25 % of the run": lambda attack, rounds: sleeper(attack, rounds // 4),
    "after 50 % of the run": lambda attack, rounds: sleeper(attack, rounds // 2),
    "zeros once, then always": lambda attack, rounds: sleeper(attack, 1, "zeros"),
    "honest 4 rounds of 5": lambda attack, rounds: on_off(attack, 5),
    "zeros 19 rounds of 20": lambda attack, rounds: on_off(attack, 20, off="zeros"),
    "every 2nd round": lambda attack, rounds: on_off(attack, 2),
    "every 3rd round": lambda attack, rounds: on_off(attack, 3),
    "fresh identities": lambda attack, rounds: {"name": "fresh-identity", "attack": attack},
}
# At the small scale: of all times and attacks, those that say most.
_DIGITS: Mapping[str, Sequence[str]] = {
    "scaling": [when for when in WHEN if when not in ("every 2nd round", "every 3rd round")],
    "label-flip": ("always", "after 25 % of the run", "every 3rd round", "fresh identities"),
    "min-max": ("after 50 % of the run", "honest 4 rounds of 5"),
    "sign-flip": ("every 2nd round", "fresh identities"),
}
_HAR: Mapping[str, Sequence[str]] = {
    "scaling": ("after 50 % of the run", "zeros 19 rounds of 20", "honest 4 rounds of 5"),
    "label-flip": ("fresh identities",),
    "min-max": ("honest 4 rounds of 5",),
    "sign-flip": ("every 2nd round",),
}
_DIRECT_ON_HAR = (
    "-1,000 times its update, once, one client",
    "min-max, 5 % noise",
    "min-sum, 5 % noise",
    "targeted-flip, 40 % malicious",
    "norm-bounded-backdoor",
)
_ALL: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(("scaling", "label-flip", "min-max"), tuple(WHEN)),
    "sign-flip": _DIGITS["sign-flip"],
}


@dataclass(frozen=True)
class Place:
    """Data, as one group of the suite.

    Attributes:
        heading: Heading of the group.
        settings: Settings of its experiments.
        when: Times of the attacks, by attack.
        direct: Labels of the rows of :func:`_direct`; None for all.
        square: Side of the square triggers; None: that of the attack. Digits have 8 x 8 pixels.
    """

    heading: str
    settings: Mapping[str, Any]
    when: Mapping[str, Sequence[str]]
    direct: Sequence[str] | None = None
    square: int | None = None

    @property
    def rounds(self) -> int:
        """Length of the runs."""
        return int(self.settings["rounds"])


def is_backdoor(attack: Any) -> bool:
    """Whether an attack has a success of its own, beside the accuracy lost."""
    if isinstance(attack, str):
        return attack in ("scaling", "norm-bounded-backdoor", "dba", "targeted-flip", "adaptive-sieve")
    return is_backdoor(attack["name"]) or is_backdoor(attack.get("attack", "none"))


def row(place: Place, label: str, attack: Any, **more: Any) -> Row:
    """A row of an attack, with its goals."""
    settings = {**place.settings, **more, "attack": attack}
    if not is_backdoor(attack):
        return Row(place.heading, label, settings, goals=GOALS, columns=attacked(COLUMNS))
    reference = CLASSES if attack == "targeted-flip" else TRIGGER
    return Row(place.heading, label, settings, goals=BACKDOOR_GOALS, columns=attacked(COLUMNS), reference=reference)


def _direct(place: Place) -> list[Row]:
    """Attackers who took less than a product of times and attacks to find."""
    n = place.rounds
    square = {} if place.square is None else {"size": place.square}
    many, most = {"malicious": 0.4}, {"malicious": 0.8}
    most["assumed_malicious"] = int(place.settings["clients"]) // 3  # no aggregator can assume as many as there are
    found = [
        row(
            place,
            "-1,000 times its update, once, one client",
            on_off({"name": "sign-flip", "factor": 1000.0}, n // 2 + 1),
            malicious=1,
        ),
        row(
            place,
            "scaling by 30, honest 4 rounds of 5, one client",
            on_off({"name": "scaling", "factor": 30.0}, 5),
            malicious=1,
        ),
        row(place, "scaling, honest 4 rounds of 5, 40 % malicious", on_off("scaling", 5), **many),
        row(place, "label-flip, every 3rd round, 40 % malicious", on_off("label-flip", 3), **many),
        row(place, "min-max, 5 % noise", {"name": "jitter", "attack": "min-max"}),
        row(place, "min-sum, 5 % noise", {"name": "jitter", "attack": "min-sum"}),
        row(place, "targeted-flip, 40 % malicious", "targeted-flip", **many),
        row(place, "norm-bounded-backdoor", {"name": "norm-bounded-backdoor", **square}),
        row(place, "dba", {"name": "dba", **square}),
        row(place, "mimic", "mimic"),
        row(place, "free-rider, noise", {"name": "free-rider", "what": "noise"}),
        row(place, "free-rider, zeros, 80 % malicious", "free-rider", **most),
    ]
    return [each for each in found if place.direct is None or each.label in place.direct]


def _adaptive(place: Place, scale: Scale) -> list[Row]:
    """Attackers who know the defense, where they are registered; in the columns of those whom they know."""
    few = {} if scale == "paper" else {"shares": (0.01, 1.0), "strengths": (0.5, 1.0, 4.0)}
    planned: Sequence[tuple[str, Mapping[str, Any], float, tuple[str, ...]]] = (
        ("adaptive-skymask", {"name": "adaptive-skymask", **few}, 0.2, ("sieve", "skymask")),
        ("adaptive-sieve", {"name": "adaptive-sieve"}, 0.2, ("sieve", "mean")),
        ("adaptive-sieve, 40 % malicious", {"name": "adaptive-sieve"}, 0.4, ("sieve", "mean")),
    )
    return [
        Row(
            place.heading,
            label,
            {**place.settings, "malicious": share, "knows_defense": True, "attack": attack},
            goals=_ADAPTIVE_GOALS,
            columns=columns,
            reference=TRIGGER,
        )
        for label, attack, share, columns in planned
        if attack["name"] in registry.names("attacks")
    ]


def _quiet(place: Place) -> list[Row]:
    """No attack; and what backdoors are compared with."""
    shown = {**place.settings, "malicious": 0}
    return [
        Row(place.heading, "none", {**place.settings, "attack": "none"}, goals=HONEST_GOALS),
        Row(place.heading, TRIGGER, {**shown, "attack": "scaling"}, columns=("mean",)),
        Row(place.heading, CLASSES, {**shown, "attack": "targeted-flip"}, columns=("mean",)),
    ]


def _rows(place: Place, scale: Scale) -> list[Row]:
    product = [
        row(place, f"{attack}, {when}", WHEN[when](attack, place.rounds))
        for attack, times in place.when.items()
        for when in times
    ]
    return [*_quiet(place), *product, *_direct(place), *_adaptive(place, scale)]


def _places(scale: Scale) -> list[Place]:
    digits = {"dataset": "digits", "clients": 30}
    har = {"dataset": "har", "clients": 30}
    if scale == "smoke":
        times = {"scaling": ("after 50 % of the run", "honest 4 rounds of 5"), "label-flip": ("every 3rd round",)}
        return [Place("digits", {**digits, "rounds": 20}, times, ("targeted-flip, 40 % malicious",), square=2)]
    if scale == "small":
        return [
            Place("digits", {**digits, "rounds": 60}, _DIGITS, square=2),
            Place("har", {**har, "rounds": 60}, _HAR, _DIRECT_ON_HAR),
        ]
    return [
        Place("digits", {**digits, "rounds": 200}, _ALL, square=2),
        Place("har", {**har, "rounds": 300}, _ALL),
        Place("fashion-mnist", {"dataset": "fashion-mnist", "clients": 100, "rounds": 300}, _ALL),
    ]


def _sampled(scale: Scale) -> list[Row]:
    """Few of the clients in each round."""
    digits = {"dataset": "digits", "clients": 100, "rounds": 60 if scale == "small" else 200, "clients_per_round": 10}
    places = [Place("digits, 10 of 100 clients a round", digits, {})]
    if scale == "paper":
        images = {"dataset": "fashion-mnist", "clients": 1000, "rounds": 300, "clients_per_round": 10}
        places.append(Place("fashion-mnist, 10 of 1,000 clients a round", images, {}))
    attacks = {
        "scaling by 3": {"name": "scaling", "factor": 3.0},
        **{name: name for name in ("label-flip", "min-max", "sign-flip")},
        "scaling by 3, fresh identities": {"name": "fresh-identity", "attack": {"name": "scaling", "factor": 3.0}},
    }
    return [
        found
        for place in places
        for found in (*_quiet(place)[:2], *(row(place, label, attack) for label, attack in attacks.items()))
    ]


def _note(scale: Scale) -> str:
    if scale == "smoke":
        return "Smoke scale: one seed and 20 rounds on the digits. It shows that everything works, not how well."
    goals = (
        "Goals are those of `sieve`: against the undefended mean of the same seed without attack, accuracy in the last "
        "tenth and in the worst round; success of a backdoor in the last tenth, counted from the mean's without attack "
        "on the same samples, and at its worst (the mean's own worst where that is higher). "
        f"20 % of the clients are malicious where no other share is said. {ROOT_ONLY}"
    )
    if scale == "paper":
        return f"Paper scale: three attacks at all times, 200 to 300 rounds, three seeds. {goals}"
    return (
        f"Small scale: 60 rounds, three seeds. {goals} Left out: label-flip, min-max and sign-flip at the times that "
        "scaling shows, most rows on HAR, and 10 of 1,000 clients a round (`--scale paper` has them); copycats and "
        "data without attackers (suite `honest`); SkyMask's six attacks, attacking always (suite `detection`)."
    )


def _plan(scale: Scale) -> Plan:
    rows = [found for place in _places(scale) for found in _rows(place, scale)]
    rows += [] if scale == "smoke" else _sampled(scale)
    return Plan(tuple(rows), COLUMNS, (0,) if scale == "smoke" else (0, 1, 2), "sieve", note=_note(scale))


TIME = Suite("time", "Attackers over time: sleepers, on-off, fresh identities, few clients a round", _plan, MEASURES)
