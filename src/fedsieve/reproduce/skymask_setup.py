"""The experiments of Yan et al., SkyMask, ECCV 2024, section IV-A: data, attacks, defenses and numbers of rounds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedsieve.reproduce.plan import Row, Scale, defenses

# By the names that rows and ``published.csv`` have. SkyMask's Min-Sum is bounded by the minimum of the benign updates'
# sums of squared distances (section IV-A3), not by the maximum as in the attack's own paper.
ATTACKS: Mapping[str, Any] = {
    "none": "none",
    "label-flip": "label-flip",
    "min-max": "min-max",
    "min-sum": {"name": "min-sum", "bound": "min"},
    "fang-trim": "fang-trim",
    "fang-krum": "fang-krum",
    "scaling": "scaling",
}
GROUPS = ("fashion-mnist, q = 0.5", "fashion-mnist, iid", "cifar10, q = 0.5", "cifar10, iid", "har")
PAPER_ROUNDS: Mapping[str, int] = {"fashion-mnist": 2500, "cifar10": 500, "har": 1000}

# The published code normalises the loss over the batch in the clients' training, too, and clips their gradients.
PRESET_CODE: Mapping[str, Mapping[str, Any]] = {
    "skymask, preset code": {
        "defense": {"name": "skymask", "preset": "code"},
        "local": {"loss": "batch", "clip_value": 0.01},
    }
}
PRESET_CODE_NOTE = (
    "Where a column is named `skymask, preset code`, clients train as in the published code as well: "
    "`local.loss=batch`, `local.clip_value=0.01`."
)
# Section IV-C: "FLDetector (combined with Median)".
DETECTORS: Mapping[str, Mapping[str, Any]] = {
    **defenses("tolpegin"),
    "fldetector": {"defense": ["fldetector", "median"]},
}
DETECTORS_SMOKE = {"rounds": 40}  # fldetector decides from round 31 on
DETECTORS_NOTE = "Behind `fldetector` the median aggregates, as in the paper; behind the other detectors the mean."


@dataclass(frozen=True)
class Data:
    """A dataset and its partition, as one group of a suite.

    Attributes:
        heading: Heading of the group.
        name: Of :data:`GROUPS`.
        settings: Settings of its experiments.
        published: Name of the data in ``published.csv``; "" for other data than the paper's.
        paper_rounds: The paper's number of rounds; None for other data.
    """

    heading: str
    name: str
    settings: Mapping[str, Any]
    published: str
    paper_rounds: int | None


def data(scale: Scale, names: Sequence[str], rounds: Mapping[str, int]) -> list[Data]:
    """The data of a suite.

    Args:
        scale: At ``smoke``, digits stand for all of the data.
        names: Of :data:`GROUPS`.
        rounds: Rounds by dataset at the small scale; the paper scale has the paper's.
    """
    if scale == "smoke":
        settings = {"dataset": "digits", "clients": 30, "rounds": 20}
        return [Data("digits in place of fashion-mnist, q = 0.5", GROUPS[0], settings, "", None)]
    found = []
    for name in names:
        dataset, _, kind = name.partition(", ")
        partition = {"q = 0.5": {"name": "groups", "q": 0.5}, "iid": {"name": "iid"}, "": {"name": "natural"}}[kind]
        n = PAPER_ROUNDS[dataset] if scale == "paper" else rounds[dataset]
        # evaluating ten thousand images takes long, and the mean over the last tenth of the rounds is reported
        every = max(1, n // 100) if scale == "paper" else 1 if dataset == "har" else 3
        settings = {"dataset": dataset, "partition": partition, "rounds": n, "evaluate_every": every}
        found.append(Data(name, name, settings, name, PAPER_ROUNDS[dataset]))
    return found


def rows(
    scale: Scale,
    names: Sequence[str],
    rounds: Mapping[str, int],
    attacks: Sequence[str] = tuple(ATTACKS),
    /,
    **more: Any,
) -> tuple[Row, ...]:
    """One row per attack in one group per dataset; ``more`` are settings of all of them."""
    return tuple(
        Row(d.heading, attack, {**d.settings, "attack": ATTACKS[attack], **more}, d.published, d.paper_rounds)
        for d in data(scale, names, rounds)
        for attack in attacks
    )


SEEDED = "three seeds on HAR and one on images"  # what with_seeds gives at the paper scale, in words


def with_seeds(scale: Scale, found: Iterable[Row]) -> tuple[Row, ...]:
    """The rows of a table: at the paper scale three seeds on HAR, which a CPU carries, and one on images."""
    several = seeds(scale)
    return tuple(replace(row, seeds=several if row.settings["dataset"] == "har" else None) for row in found)


def seeds(scale: Scale) -> tuple[int, ...]:
    """Three at the paper scale, else one."""
    return (0, 1, 2) if scale == "paper" else (0,)


def typical_attacks(scale: Scale) -> tuple[str, ...]:
    """One attack of each kind; all at the paper scale."""
    return tuple(ATTACKS) if scale == "paper" else ("none", "label-flip", "min-max", "scaling")


def note(scale: Scale, seeded: str = "one seed", papers: str = "three seeds") -> str:
    """What to know about a scale.

    Args:
        scale: The scale.
        seeded: The number of seeds at the small scale, in words.
        papers: The same at the paper scale.
    """
    if scale == "smoke":
        return (
            "Smoke scale: one seed, few rounds, on the digits that ship with scikit-learn. It shows that everything "
            "works, not how well; the paper has other data, so its numbers are left out."
        )
    if scale == "small":
        return (
            f"Small scale: {seeded} and few rounds. Models are far from converged, and accuracy still jumps by several "
            "points from one evaluation to the next."
        )
    return f"Paper scale: the paper's rounds, {papers}."
