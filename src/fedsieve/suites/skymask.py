"""The tables and figures of Yan et al., SkyMask, ECCV 2024, section IV; and what this library promises beyond."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedsieve.report import figures
from fedsieve.suites.plan import Plan, Row, Runs, Scale, Suite, defenses

ATTACKS = ("none", "label-flip", "min-max", "min-sum", "fang-trim", "fang-krum", "scaling")
GROUPS = ("fashion-mnist, q = 0.5", "fashion-mnist, iid", "cifar10, q = 0.5", "cifar10, iid", "har")
_PAPER_ROUNDS = {"fashion-mnist": 2500, "cifar10": 500, "har": 1000}
_PAPERS = {"name": "skymask", "preset": "paper"}
_SMOKE = "on the digits that ship with scikit-learn, in place of the paper's data"


def data(scale: Scale, names: Sequence[str], rounds: Mapping[str, int]) -> dict[str, tuple[str, dict[str, Any]]]:
    """By the table's heading, the name that published numbers have and the settings."""
    if scale == "smoke":
        settings = {"dataset": "digits", "clients": 30, "rounds": 20}
        return {"digits in place of fashion-mnist, q = 0.5": ("fashion-mnist, q = 0.5", settings)}
    found = {}
    for name in names:
        dataset, _, dealt = name.partition(", ")
        partition = {"q = 0.5": {"name": "groups", "q": 0.5}, "iid": {"name": "iid"}, "": {"name": "natural"}}[dealt]
        n = _PAPER_ROUNDS[dataset] if scale == "paper" else rounds[dataset]
        # ten thousand images take their time, and the last tenth of the rounds is what is reported
        every = max(1, n // 100) if scale == "paper" else 1 if dataset == "har" else 3
        found[name] = (name, {"dataset": dataset, "partition": partition, "rounds": n, "evaluate_every": every})
    return found


def seeds(scale: Scale) -> tuple[int, ...]:
    """Three where there is time."""
    return (0, 1, 2) if scale == "paper" else (0,)


def rows(
    scale: Scale, names: Sequence[str], rounds: Mapping[str, int], attacks: Sequence[str] = ATTACKS, /, **more: Any
) -> tuple[Row, ...]:
    """A line for every attack, in a table for all of this data."""
    return tuple(
        Row(heading, attack, {**settings, "attack": attack, **more}, name)
        for heading, (name, settings) in data(scale, names, rounds).items()
        for attack in attacks
    )


def _some(scale: Scale) -> Sequence[str]:
    """The data of a table, as far as there is time."""
    return GROUPS if scale == "paper" else ("fashion-mnist, q = 0.5", "har")


def _typical(scale: Scale) -> Sequence[str]:
    """One attack of each kind, where there is no time for all."""
    return ATTACKS if scale == "paper" else ("none", "label-flip", "min-max", "scaling")


def _images_and_people(scale: Scale, images: int, people: int) -> tuple[Row, ...]:
    """Every attack on all data; at the small scale, on images one of each kind, for so many rounds of each."""
    if scale != "small":
        return rows(scale, GROUPS, {})
    return (
        *rows(scale, GROUPS[:1], {"fashion-mnist": images}, _typical(scale)),
        *rows(scale, GROUPS[-1:], {"har": people}),
    )


# --- Tables -------------------------------------------------------------------------------------------------


def _table1(scale: Scale) -> Plan:
    columns = defenses("mean", "fltrust", "trimmed-mean", "krum", "multi-krum", "bulyan", "skymask-nr", "skymask")
    return Plan(_images_and_people(scale, 60, 100), columns, seeds(scale), note=_note(scale))


def _table2(scale: Scale) -> Plan:
    found = rows(scale, _some(scale), {"fashion-mnist": 40, "har": 200})
    return Plan(found, defenses("skymask", "tolpegin", "fldetector"), seeds(scale), note=_note(scale))


def _table3(scale: Scale) -> Plan:
    columns = {f"tau = {tau}": {"defense": {**_PAPERS, "tau": tau}} for tau in (0.3, 0.4, 0.5, 0.6, 0.7)}
    found = _images_and_people(scale, 24, 100)
    return Plan(found, columns, seeds(scale), note=_note(scale) + " The threshold is that of the paper's masks.")


def _table4(scale: Scale) -> Plan:
    sizes = {"fashion-mnist": (500, 1000), "cifar10": (200, 500)} if scale == "paper" else {"fashion-mnist": (200, 400)}
    if scale == "smoke":
        sizes = {"digits": (60, 120)}
    found, columns = [], {f"{n} clients": {"clients": n} for pair in sizes.values() for n in pair}
    groups = data(scale, [f"{name}, q = 0.5" for name in sizes], {"fashion-mnist": 10})
    for (heading, (name, settings)), pair in zip(groups.items(), sizes.values(), strict=True):
        shown = [f"{n} clients" for n in pair]
        found.append(Row(heading, "none, mean", {**settings, "attack": "none", "defense": "mean"}, name, columns=shown))
        found += [Row(heading, attack, {**settings, "attack": attack}, name, columns=shown) for attack in ATTACKS]
    note = _note(scale) + (
        "" if scale == "paper" else " The paper has 500 and 1,000 clients, so no numbers stand beside."
    )
    return Plan(tuple(found), columns, seeds(scale), note=note)


# --- Figures ------------------------------------------------------------------------------------------------


def _figure1(scale: Scale) -> Plan:
    """Min-Sum after some rounds: where updates lie, and where masks do."""
    columns: dict[str, dict[str, Any]] = {
        "paper's masks": {"defense": _PAPERS},
        "anchored masks": {"defense": "skymask"},
    }
    found = rows(scale, GROUPS[:1], {"fashion-mnist": 20}, ("none", "min-sum"), rounds=20)
    return Plan(found, columns, note=_note(scale))


def _figure3(scale: Scale) -> Plan:
    """The share of each layer that masks keep, of malicious and of benign clients."""
    found = rows(scale, GROUPS[:1], {"fashion-mnist": 20}, ("label-flip", "scaling"), rounds=20)
    return Plan(found, defenses("skymask"), note=_note(scale))


def _figure4(scale: Scale) -> Plan:
    attacks = ATTACKS[1:] if scale != "small" else ("label-flip", "min-sum", "scaling")
    found = []
    for fraction in (0.4, 0.6, 0.8):
        # other rules' bounds on malicious clients do not hold beyond
        shown = None if fraction < 0.5 else ("skymask", "fltrust", "mean")
        found += [
            replace(row, group=f"{fraction:.0%} malicious", columns=shown)
            for row in rows(scale, GROUPS[:1], {"fashion-mnist": 30}, attacks, malicious=fraction)
        ]
    columns = defenses("skymask", "fltrust", "mean", "trimmed-mean", "krum")
    return Plan(tuple(found), columns, note=_note(scale))


def _figure5(scale: Scale) -> Plan:
    attacks = ("fang-krum", "min-sum", "label-flip")
    found = rows(scale, GROUPS[:1], {"fashion-mnist": 40}, attacks, evaluate_every=1)
    return Plan(found, defenses("skymask", "tolpegin", "fldetector"), note=_note(scale))


def _figure6(scale: Scale) -> Plan:
    names = GROUPS[:4] if scale == "paper" else GROUPS[:1]
    columns = {f"p = {p}": {"root": {"bias": p}} for p in (0.1, 0.2, 0.4, 0.6, 0.8, 0.95)}
    return Plan(rows(scale, names, {"fashion-mnist": 24}, _typical(scale)), columns, note=_note(scale))


def _figure7(scale: Scale) -> Plan:
    plan = _figure6(scale)
    found = tuple(row for row in plan.rows if row.group == plan.rows[0].group)
    return Plan(found, {k: v for k, v in plan.columns.items() if k != "p = 0.95"}, note=plan.note)


def _figure8(scale: Scale) -> Plan:
    columns = {f"d = {d}": {"defense": {**_PAPERS, "n_components": d}} for d in (2, 3, 5, 10, 15)}
    found = rows(scale, GROUPS[:1], {"fashion-mnist": 24}, _typical(scale))
    return Plan(found, columns, note=_note(scale) + " The components are those of the paper's masks.")


# --- What is promised ---------------------------------------------------------------------------------------

_STRICT = {"fpr": 0.01, "fnr": 0.01, "accuracy": 0.01}
_NATURAL = {"fpr": 0.03, "fnr": 0.03, "accuracy": 0.01}
_CROWD = {"fpr": 0.05, "fnr": 0.02, "accuracy": 0.02}
_HARD = {"fpr": 0.05, "fnr": 0.05}
_TWO = {"name": "mixture", "attacks": ["min-max", "label-flip"]}
_THREE = {"name": "mixture", "attacks": ["min-max", "label-flip", "scaling"]}


def _detection(scale: Scale) -> Plan:
    columns: dict[str, dict[str, Any]] = {
        **defenses("skymask"),
        "paper": {"defense": _PAPERS},
        "official": {"defense": {**_PAPERS, "preset": "official"}},
        **defenses("fltrust", "tolpegin", "fldetector", "mean"),
    }
    judged = tuple(name for name in columns if name != "mean")
    ours = ("skymask",)
    names = (
        "fashion-mnist, q = 0.5",
        "fashion-mnist, iid",
        "har",
        *(("cifar10, q = 0.5",) if scale == "paper" else ()),
    )
    found: list[Row] = []
    for heading, (name, settings) in data(scale, names, {"fashion-mnist": 16, "har": 80}).items():
        start = len(found)
        if scale == "small" and name != "har":  # half of the time would go into looking at images
            settings = {**settings, "evaluate_every": 8}
        goals = _NATURAL if name == "har" else _STRICT if name != "cifar10, q = 0.5" else {"fpr": 0.05, "fnr": 0.03}
        shown = ours if scale == "small" and name == "fashion-mnist, iid" else judged
        for attack in ATTACKS:
            more = {**settings, "attack": attack}
            found.append(
                Row(heading, attack, more, name, goals, columns=(*shown, "mean") if attack == "none" else shown)
            )
        if name in ("fashion-mnist, q = 0.5", "har"):
            for label, mixed in (("two attacks mixed", _TWO), ("three attacks mixed", _THREE)):
                found.append(Row(heading, label, {**settings, "attack": mixed}, "", _HARD, ours))
            found.append(Row(heading, "split-layers", {**settings, "attack": "split-layers"}, "", _HARD, ours))
            adaptive: dict[str, Any] = {**settings, "attack": "adaptive-skymask", "knows_defense": True}
            if scale == "small" and name != "har":
                adaptive["attack"] = {"name": "adaptive-skymask", "shares": [0.01, 1.0], "strengths": [0.5, 1.0, 4.0]}
            # a rehearsal of the paper's masks on the small scale's images would take a third of its time
            known = ours if scale == "small" and name != "har" else ("skymask", "paper")
            found.append(Row(heading, "adaptive-skymask", adaptive, "", columns=known))
        if name == "har" and scale != "smoke":  # small, so that there is time for three
            found[start:] = [replace(row, seeds=(0, 1, 2)) for row in found[start:]]
    if scale != "smoke":
        name, settings = data(scale, GROUPS[:1], {"fashion-mnist": 16})[GROUPS[0]]
        settings = {**settings, "evaluate_every": 8 if scale == "small" else settings["evaluate_every"]}
        attacks = ATTACKS[1:] if scale == "paper" else ("label-flip", "min-sum", "scaling")
        for fraction in (0.4, 0.6, 0.8):
            heading = f"fashion-mnist, q = 0.5, {fraction:.0%} malicious"
            found.append(Row(heading, "none", {**settings, "attack": "none"}, "", columns=("mean",)))
            for attack in attacks:
                more = {**settings, "attack": attack, "malicious": fraction}
                found.append(Row(heading, attack, more, "", _CROWD, ours))
    return Plan(tuple(found), columns, seeds(scale), ("none", "mean"), _note(scale, "one seed (three on HAR)"))


def _note(scale: Scale, seeded: str = "one seed") -> str:
    if scale == "smoke":
        return f"Smoke scale: one seed, 20 rounds, {_SMOKE}; it shows that everything works, not how well."
    if scale == "small":
        return (
            f"Small scale: {seeded} and few rounds, in which a model has learned little and evaluations still jump by "
            "several points; rates settle much earlier than accuracy."
        )
    return "Paper scale: the paper's rounds, three seeds."


# --- Pictures -----------------------------------------------------------------------------------------------


def _labelled(plan: Plan, runs: Runs) -> dict[str, dict[str, Any]]:
    """Records of the first seed by row (with its table, if there are several) and column."""
    several = len({row.group for row in plan.rows}) > 1
    found: dict[str, dict[str, Any]] = {}
    for (group, row, column, seed), experiment in plan.cells().items():
        if seed == plan.seeds[0] and experiment.key in runs:
            found.setdefault(f"{row}, {group}" if several else row, {})[column] = runs[experiment.key]
    return found


def _over_rounds(plan: Plan, runs: Runs, path: Path) -> None:
    figures.accuracy_over_rounds(_labelled(plan, runs), path)


def _with_failures(plan: Plan, runs: Runs, path: Path) -> None:
    figures.accuracy_over_rounds(_labelled(plan, runs), path, failures=True)


def _against(plan: Plan, runs: Runs, path: Path) -> None:
    figures.rates_against(_labelled(plan, runs), path)


def _scatter(plan: Plan, runs: Runs, path: Path) -> None:
    figures.mask_scatter(_labelled(plan, runs), path)


def _layers(plan: Plan, runs: Runs, path: Path) -> None:
    figures.layers_kept({row: next(iter(lines.values())) for row, lines in _labelled(plan, runs).items()}, path)


_ALL = ("accuracy", "success", "fpr", "fnr")
SKYMASK = (
    Suite(
        "detection",
        "What SkyMask promises here: attacks x data x fractions, with goals, beside the paper's table II",
        _detection,
        _ALL,
        "table2",
    ),
    Suite("table1", "SkyMask's table I: accuracy of eight defenses", _table1, ("accuracy", "success"), "table1"),
    Suite("table2", "SkyMask's table II: who finds malicious clients", _table2, _ALL, "table2"),
    Suite("table3", "SkyMask's table III: the threshold of binarisation", _table3, _ALL, "table3"),
    Suite("table4", "SkyMask's table IV: the number of clients", _table4, _ALL, "table4"),
    Suite("figure1", "SkyMask's figure 1: where updates and masks lie", _figure1, ("fpr", "fnr"), draw=_scatter),
    Suite("figure3", "SkyMask's figure 3: what masks keep of each layer", _figure3, ("fpr", "fnr"), draw=_layers),
    Suite("figure4", "SkyMask's figure 4: 40, 60 and 80 % malicious clients", _figure4, _ALL, draw=_over_rounds),
    Suite("figure5", "SkyMask's figure 5: accuracy and failed detection", _figure5, _ALL, draw=_with_failures),
    Suite("figure6", "SkyMask's figure 6: a biased root dataset", _figure6, _ALL, draw=_against),
    Suite("figure7", "SkyMask's figure 7: convergence with a biased root dataset", _figure7, _ALL, draw=_over_rounds),
    Suite("figure8", "SkyMask's figure 8: the principal components", _figure8, _ALL, draw=_against),
)
