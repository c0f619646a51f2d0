"""Names as papers print them: every component has one, and no two have the same."""

from fedsieve.config.installed import registered
from fedsieve.report.names import ATTACKS, DATASETS, DEFENSES, distinct, ordered


def test_every_component_of_this_package_has_a_name_of_its_own() -> None:
    for kind, names in (("defenses", DEFENSES), ("attacks", ATTACKS), ("datasets", DATASETS)):
        ours = {name for name, point in registered(kind).items() if point.module.startswith("fedsieve.")}
        assert set(names) == ours
        printed = list(names.values())
        assert len(set(printed)) == len(printed) - (kind == "defenses")  # mean and fedavg are one


def test_names_that_are_alike_are_told_apart() -> None:
    assert distinct(["mean", "fedavg"], DEFENSES) == {"mean": "FedAvg (mean)", "fedavg": "FedAvg (fedavg)"}


def test_a_chain_comes_after_its_parts() -> None:
    names = ["fldetector,median", "krum", "mine", "median", "fldetector"]
    assert ordered(names, DEFENSES) == ["median", "krum", "fldetector", "fldetector,median", "mine"]
