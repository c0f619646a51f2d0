"""Tables I to IV of Yan et al., SkyMask, ECCV 2024, with ``sieve`` beside the paper's defenses."""

from collections.abc import Sequence

from fedsieve.reproduce.plan import Plan, Row, Scale, Suite, defenses
from fedsieve.reproduce.skymask_setup import (
    ATTACKS,
    DETECTORS,
    DETECTORS_NOTE,
    DETECTORS_SMOKE,
    GROUPS,
    SEEDED,
    data,
    note,
    rows,
    typical_attacks,
    with_seeds,
)


def _images_and_har(scale: Scale, images: int, har: int) -> tuple[Row, ...]:
    """Every attack on all data; at the small scale, one attack of each kind on images, and every attack on HAR.

    Args:
        scale: The scale.
        images: Rounds on images at the small scale.
        har: Rounds on HAR at the small scale.
    """
    if scale != "small":
        return with_seeds(scale, rows(scale, GROUPS, {}))
    return (
        *rows(scale, GROUPS[:1], {"fashion-mnist": images}, typical_attacks(scale)),
        *rows(scale, GROUPS[-1:], {"har": har}),
    )


def _table1(scale: Scale) -> Plan:
    papers = ("mean", "fltrust", "trimmed-mean", "krum", "multi-krum", "bulyan", "skymask-nr", "skymask")
    return Plan(_images_and_har(scale, 60, 100), defenses(*papers, "sieve"), note=note(scale, papers=SEEDED))


def _table2(scale: Scale) -> Plan:
    names: Sequence[str] = GROUPS if scale == "paper" else (GROUPS[0], GROUPS[-1])
    more = DETECTORS_SMOKE if scale == "smoke" else {}
    found = with_seeds(scale, rows(scale, names, {"fashion-mnist": 40, "har": 200}, **more))
    columns = {**defenses("skymask", "sieve"), **DETECTORS}
    return Plan(found, columns, note=f"{note(scale, papers=SEEDED)} {DETECTORS_NOTE}")


def _table3(scale: Scale) -> Plan:
    columns = {f"tau = {tau}": {"defense": {"name": "skymask", "tau": tau}} for tau in (0.3, 0.4, 0.5, 0.6, 0.7)}
    said = f"{note(scale, papers=SEEDED)} The defense is `skymask` in every column; `sieve` has no such threshold."
    return Plan(_images_and_har(scale, 24, 100), columns, note=said)


def _table4(scale: Scale) -> Plan:
    sizes = {"fashion-mnist": (500, 1000), "cifar10": (200, 500)} if scale == "paper" else {"fashion-mnist": (200, 400)}
    if scale == "smoke":
        sizes = {"digits": (60, 120)}
    found = []
    sources = data(scale, [f"{name}, q = 0.5" for name in sizes], {"fashion-mnist": 10})
    for source, pair in zip(sources, sizes.values(), strict=True):
        for n in pair:
            name = f"{source.published}, {n} clients" if source.published else ""
            for label, attack in ATTACKS.items():
                settings = {**source.settings, "clients": n, "attack": attack}
                columns = ("mean", "skymask", "sieve") if label == "none" else ("skymask", "sieve")
                heading = f"{source.heading}, {n} clients"
                found.append(Row(heading, label, settings, name, source.paper_rounds, columns=columns))
    said = note(scale, papers="one seed")
    if scale == "small":
        said += " The paper has 500 and 1,000 clients on Fashion-MNIST, so its numbers are left out."
    return Plan(tuple(found), defenses("mean", "skymask", "sieve"), note=said)


_ALL = ("accuracy", "success", "fpr", "fnr")
TABLES = (
    Suite("table1", "SkyMask's table I: accuracy of eight defenses, and of sieve", _table1, _ALL[:2], "table1"),
    Suite("table2", "SkyMask's table II: detectors of malicious clients, and sieve", _table2, _ALL, "table2"),
    Suite("table3", "SkyMask's table III: the binarisation threshold tau", _table3, _ALL, "table3"),
    Suite("table4", "SkyMask's table IV: the number of clients, and sieve", _table4, _ALL, "table4"),
)
