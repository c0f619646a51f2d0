"""The tables and figures of Yan et al., SkyMask, ECCV 2024, section IV; and what this library promises beyond."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedsieve.report import figures
from fedsieve.suites.plan import Plan, Row, Runs, Scale, Suite

ATTACKS = ("none", "label-flip", "min-max", "min-sum", "fang-trim", "fang-krum", "scaling")
GROUPS = ("fashion-mnist, q = 0.5", "fashion-mnist, iid", "cifar10, q = 0.5", "cifar10, iid", "har")
_PAPER_ROUNDS = {"fashion-mnist": 2500, "cifar10": 500, "har": 1000}
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


# --- Tables -------------------------------------------------------------------------------------------------


def _table1(scale: Scale) -> Plan:
    names = GROUPS if scale == "paper" else ("fashion-mnist, q = 0.5", "har")
    defenses = ("mean", "fltrust", "trimmed-mean", "krum", "multi-krum", "bulyan", "skymask-nr", "skymask")
    columns = {name: {"defense": name} for name in defenses}
    rows = tuple(
        Row(heading, attack, {**settings, "attack": attack}, name)
        for heading, (name, settings) in data(scale, names, {"fashion-mnist": 20, "har": 100}).items()
        for attack in ATTACKS
    )
    return Plan(rows, columns, seeds(scale), note=_note(scale))


def _table2(scale: Scale) -> Plan:
    names = GROUPS if scale == "paper" else ("fashion-mnist, q = 0.5", "har")
    columns = {name: {"defense": name} for name in ("skymask", "tolpegin", "fldetector")}
    rows = tuple(
        Row(heading, attack, {**settings, "attack": attack}, name)
        for heading, (name, settings) in data(scale, names, {"fashion-mnist": 40, "har": 200}).items()
        for attack in ATTACKS
    )
    return Plan(rows, columns, seeds(scale), note=_note(scale))


def _table3(scale: Scale) -> Plan:
    names = [name for name in GROUPS if scale == "paper" or name in ("fashion-mnist, q = 0.5", "har")]
    columns = {
        f"tau = {tau}": {"defense": {"name": "skymask", "preset": "paper", "tau": tau}}
        for tau in (0.3, 0.4, 0.5, 0.6, 0.7)
    }
    rows = tuple(
        Row(heading, attack, {**settings, "attack": attack}, name)
        for heading, (name, settings) in data(scale, names, {"fashion-mnist": 24, "har": 100}).items()
        for attack in ATTACKS
    )
    return Plan(rows, columns, seeds(scale), note=_note(scale) + " The threshold is that of the paper's masks.")


def _table4(scale: Scale) -> Plan:
    sizes = {"fashion-mnist": (500, 1000), "cifar10": (200, 500)} if scale == "paper" else {"fashion-mnist": (200, 400)}
    if scale == "smoke":
        sizes = {"digits": (60, 120)}
    rows, columns = [], {f"{n} clients": {"clients": n} for pair in sizes.values() for n in pair}
    found = data(scale, [f"{name}, q = 0.5" for name in sizes], {"fashion-mnist": 10})
    for (heading, (name, settings)), pair in zip(found.items(), sizes.values(), strict=True):
        shown = [f"{n} clients" for n in pair]
        rows.append(Row(heading, "none, mean", {**settings, "attack": "none", "defense": "mean"}, name, columns=shown))
        rows += [Row(heading, attack, {**settings, "attack": attack}, name, columns=shown) for attack in ATTACKS]
    return Plan(tuple(rows), columns, seeds(scale), note=_note(scale))


# --- Figures ------------------------------------------------------------------------------------------------


def _figure1(scale: Scale) -> Plan:
    """Min-Sum after some rounds: where updates lie, and where masks do."""
    (heading, (name, settings)) = next(iter(data(scale, GROUPS[:1], {"fashion-mnist": 20}).items()))
    columns: dict[str, dict[str, Any]] = {
        "paper's masks": {"defense": {"name": "skymask", "preset": "paper"}},
        "anchored masks": {"defense": "skymask"},
    }
    rows = tuple(
        Row(heading, attack, {**settings, "attack": attack, "rounds": 20}, name) for attack in ("none", "min-sum")
    )
    return Plan(rows, columns, note=_note(scale))


def _figure3(scale: Scale) -> Plan:
    """The share of each layer that masks keep, of malicious and of benign clients."""
    (heading, (name, settings)) = next(iter(data(scale, GROUPS[:1], {"fashion-mnist": 20}).items()))
    rows = tuple(
        Row(heading, attack, {**settings, "attack": attack, "rounds": 20}, name) for attack in ("label-flip", "scaling")
    )
    return Plan(rows, {"skymask": {"defense": "skymask"}}, note=_note(scale))


def _figure4(scale: Scale) -> Plan:
    fractions = (0.4, 0.6, 0.8)
    attacks = ATTACKS[1:] if scale != "small" else ("label-flip", "min-sum", "scaling")
    rows = []
    for name, settings in data(scale, GROUPS[:1], {"fashion-mnist": 30}).values():
        for fraction in fractions:
            for attack in attacks:
                more = {**settings, "attack": attack, "malicious": fraction}
                # other rules' bounds on malicious clients do not hold beyond
                shown = None if fraction < 0.5 else ("skymask", "fltrust", "mean")
                rows.append(Row(f"{fraction:.0%} malicious", attack, more, name, columns=shown))
    columns = {name: {"defense": name} for name in ("skymask", "fltrust", "mean", "trimmed-mean", "krum")}
    return Plan(tuple(rows), columns, seeds(scale)[:1], note=_note(scale))


def _figure5(scale: Scale) -> Plan:
    heading, (name, settings) = next(iter(data(scale, GROUPS[:1], {"fashion-mnist": 40}).items()))
    attacks = ("fang-krum", "min-sum", "label-flip")
    rows = [Row(heading, attack, {**settings, "attack": attack, "evaluate_every": 1}, name) for attack in attacks]
    columns = {name: {"defense": name} for name in ("skymask", "tolpegin", "fldetector")}
    return Plan(tuple(rows), columns, seeds(scale)[:1], note=_note(scale))


_BIASES = (0.1, 0.2, 0.4, 0.6, 0.8, 0.95)


def _figure6(scale: Scale) -> Plan:
    names = GROUPS[:4] if scale == "paper" else GROUPS[:1]
    attacks = ATTACKS if scale == "paper" else ("none", "label-flip", "min-max", "scaling")
    rows = [
        Row(heading, attack, {**settings, "attack": attack}, name)
        for heading, (name, settings) in data(scale, names, {"fashion-mnist": 24}).items()
        for attack in attacks
    ]
    columns = {f"p = {p}": {"root": {"bias": p}} for p in _BIASES}
    return Plan(tuple(rows), columns, seeds(scale)[:1], note=_note(scale))


def _figure7(scale: Scale) -> Plan:
    plan = _figure6(scale)
    rows = tuple(row for row in plan.rows if row.group == plan.rows[0].group)
    return Plan(rows, {k: v for k, v in plan.columns.items() if k != "p = 0.95"}, plan.seeds, note=plan.note)


def _figure8(scale: Scale) -> Plan:
    rows = [
        Row(heading, attack, {**settings, "attack": attack}, name)
        for heading, (name, settings) in data(scale, GROUPS[:1], {"fashion-mnist": 24}).items()
        for attack in (ATTACKS if scale == "paper" else ("none", "label-flip", "min-max", "scaling"))
    ]
    columns = {
        f"d = {d}": {"defense": {"name": "skymask", "preset": "paper", "n_components": d}} for d in (2, 3, 5, 10, 15)
    }
    return Plan(
        tuple(rows), columns, seeds(scale)[:1], note=_note(scale) + " The components are those of the paper's masks."
    )


# --- What is promised ---------------------------------------------------------------------------------------

_STRICT = {"fpr": 0.01, "fnr": 0.01, "accuracy": 0.01}
_NATURAL = {"fpr": 0.03, "fnr": 0.03, "accuracy": 0.01}
_CROWD = {"fpr": 0.05, "fnr": 0.02, "accuracy": 0.02}
_HARD = {"fpr": 0.05, "fnr": 0.05}
_TWO = {"name": "mixture", "attacks": ["min-max", "label-flip"]}
_THREE = {"name": "mixture", "attacks": ["min-max", "label-flip", "scaling"]}


def _detection(scale: Scale) -> Plan:
    columns: dict[str, dict[str, Any]] = {
        "skymask": {"defense": "skymask"},
        "paper": {"defense": {"name": "skymask", "preset": "paper"}},
        "official": {"defense": {"name": "skymask", "preset": "official"}},
        **{name: {"defense": name} for name in ("fltrust", "tolpegin", "fldetector")},
        "mean": {"defense": "mean"},
    }
    judged = tuple(name for name in columns if name != "mean")
    ours = ("skymask",)
    names = (
        "fashion-mnist, q = 0.5",
        "fashion-mnist, iid",
        "har",
        *(("cifar10, q = 0.5",) if scale == "paper" else ()),
    )
    rows: list[Row] = []
    for heading, (name, settings) in data(scale, names, {"fashion-mnist": 16, "har": 80}).items():
        start = len(rows)
        if scale == "small" and name != "har":  # half of the time would go into looking at images
            settings = {**settings, "evaluate_every": 8}
        goals = _NATURAL if name == "har" else _STRICT if name != "cifar10, q = 0.5" else {"fpr": 0.05, "fnr": 0.03}
        shown = ours if scale == "small" and name == "fashion-mnist, iid" else judged
        for attack in ATTACKS:
            more = {**settings, "attack": attack}
            rows.append(
                Row(heading, attack, more, name, goals, columns=(*shown, "mean") if attack == "none" else shown)
            )
        if name in ("fashion-mnist, q = 0.5", "har"):
            for label, mixed in (("two attacks mixed", _TWO), ("three attacks mixed", _THREE)):
                rows.append(Row(heading, label, {**settings, "attack": mixed}, "", _HARD, ours))
            rows.append(Row(heading, "split-layers", {**settings, "attack": "split-layers"}, "", _HARD, ours))
            adaptive: dict[str, Any] = {**settings, "attack": "adaptive-skymask", "knows_defense": True}
            if scale == "small" and name != "har":
                adaptive["attack"] = {"name": "adaptive-skymask", "shares": [0.01, 1.0], "strengths": [0.5, 1.0, 4.0]}
            # a rehearsal of the paper's masks on the small scale's images would take a third of its time
            known = ours if scale == "small" and name != "har" else ("skymask", "paper")
            rows.append(Row(heading, "adaptive-skymask", adaptive, "", columns=known))
        if name == "har" and scale != "smoke":  # small, so that there is time for three
            rows[start:] = [replace(row, seeds=(0, 1, 2)) for row in rows[start:]]
    if scale != "smoke":
        name, settings = data(scale, GROUPS[:1], {"fashion-mnist": 16})[GROUPS[0]]
        settings = {**settings, "evaluate_every": 8 if scale == "small" else settings["evaluate_every"]}
        attacks = ATTACKS[1:] if scale == "paper" else ("label-flip", "min-sum", "scaling")
        for fraction in (0.4, 0.6, 0.8):
            heading = f"fashion-mnist, q = 0.5, {fraction:.0%} malicious"
            rows.append(Row(heading, "none", {**settings, "attack": "none"}, "", columns=("mean",)))
            for attack in attacks:
                more = {**settings, "attack": attack, "malicious": fraction}
                rows.append(Row(heading, attack, more, "", _CROWD, ours))
    found = seeds(scale)
    return Plan(tuple(rows), columns, found, ("none", "mean"), _note(scale))


def _note(scale: Scale) -> str:
    if scale == "smoke":
        return f"Smoke scale: one seed, 20 rounds, {_SMOKE}; it shows that everything works, not how well."
    if scale == "small":
        return (
            "Small scale: one seed (three on HAR) and few rounds, in which a model has learned little and evaluations "
            "still jump by several points; rates settle much earlier than accuracy."
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
    Suite("figure1", "SkyMask's figure 1: where masks lie", _figure1, ("fpr", "fnr"), draw=_scatter),
    Suite("figure3", "SkyMask's figure 3: what masks keep of each layer", _figure3, ("fpr", "fnr"), draw=_layers),
    Suite("figure4", "SkyMask's figure 4: 40, 60 and 80 % malicious clients", _figure4, _ALL, draw=_over_rounds),
    Suite("figure5", "SkyMask's figure 5: accuracy and failed detection", _figure5, _ALL, draw=_with_failures),
    Suite("figure6", "SkyMask's figure 6: a biased root dataset", _figure6, _ALL, draw=_against),
    Suite("figure7", "SkyMask's figure 7: convergence with a biased root dataset", _figure7, _ALL, draw=_over_rounds),
    Suite("figure8", "SkyMask's figure 8: the principal components", _figure8, _ALL, draw=_against),
)
