"""Does SkyMask do what its paper says? Its table II cell by cell, with every reading of its one-cluster test."""

from fedsieve.reproduce.plan import Plan, Scale, Suite, defenses
from fedsieve.reproduce.skymask_setup import GROUPS, PRESET_CODE, PRESET_CODE_NOTE, SEEDED, note, rows, with_seeds

_READINGS = (
    "The paper does not say how one cluster of masks is told from two. `skymask` compares the BIC of one Gaussian and "
    "of two, `skymask, gap` the gap statistic over one to nine clusters, `skymask, two` always finds two."
)


def _claim(scale: Scale) -> Plan:
    found = with_seeds(scale, rows(scale, (GROUPS[0], GROUPS[-1]), {"fashion-mnist": 40, "har": 200}))
    readings = {
        f"skymask, {clusters}": {"defense": {"name": "skymask", "clusters": clusters}} for clusters in ("gap", "two")
    }
    columns = {**defenses("mean", "skymask"), **readings, **PRESET_CODE}
    said = note(scale, papers=SEEDED)
    return Plan(found, columns, note=f"{said} {_READINGS} {PRESET_CODE_NOTE}")


CLAIM = Suite(
    "claim",
    "SkyMask with each reading of its one-cluster test, beside the paper's table II",
    _claim,
    ("accuracy", "success", "fpr", "fnr"),
    "table2",
)
