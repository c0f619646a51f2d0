"""Names to classes and instances; error messages list the nearest names."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, EntryPoints
from types import ModuleType
from typing import Any

import pytest

from fedsieve.aggregators.chain import Chain
from fedsieve.aggregators.mean import Mean
from fedsieve.aggregators.median import Median
from fedsieve.aggregators.trimmed_mean import TrimmedMean
from fedsieve.attacks.label_flip import LabelFlip
from fedsieve.attacks.min_max import MinMax
from fedsieve.attacks.none import NoAttack
from fedsieve.attacks.scaling import Scaling
from fedsieve.config import installed, registry
from fedsieve.core.defense import Aggregator
from fedsieve.core.errors import FedSieveError, ParameterError, UnknownNameError
from fedsieve.core.traits import Traits
from fedsieve.detectors.sieve import Sieve
from fedsieve.detectors.skymask import SkyMask
from fedsieve.models.mlp import MLP
from fedsieve.preaggregators.norm_clipping import NormClipping


@dataclass(frozen=True)
class Limited:
    """A third party's class that raises one of Python's own errors."""

    level: int = 1

    def __post_init__(self) -> None:
        if self.level > 3:
            raise ValueError("level must be at most 3")

    def detect(self, updates: Any, view: Any, /) -> Any:
        raise AssertionError("is not run")


@pytest.fixture
def limited(doubles: ModuleType, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(doubles, "Limited", Limited, raising=False)
    return "doubles:Limited"


class TestNames:
    def test_are_sorted_and_complete(self) -> None:
        assert registry.KINDS == ("attacks", "defenses", "datasets", "models", "partitions")
        for kind in registry.KINDS:
            assert list(registry.names(kind)) == sorted(registry.names(kind))
        assert {"none", "label-flip", "min-max", "scaling"} <= set(registry.names("attacks"))
        assert {"mean", "fedavg", "fltrust", "root-only", "trimmed-mean", "skymask", "skymask-nr"} <= set(
            registry.names("defenses")
        )
        assert {"digits", "fashion-mnist", "cifar10", "har"} <= set(registry.names("datasets"))
        assert {"groups", "iid", "dirichlet", "natural", "bootstrap"} <= set(registry.names("partitions"))
        assert {"cnn", "resnet20", "logistic-regression", "mlp"} <= set(registry.names("models"))

    def test_alias(self) -> None:
        assert registry.load("defenses", "fedavg") is registry.load("defenses", "mean") is Mean

    @pytest.mark.parametrize(
        ("kind", "name", "message"),
        [
            ("attacks", "minmax", "unknown attack 'minmax'; did you mean min-max"),
            ("defenses", "trimmed_mean", "unknown defense 'trimmed_mean'; did you mean trimmed-mean"),
            ("datasets", "cifar", "unknown dataset 'cifar'; did you mean cifar10"),
            ("models", "resnet", "unknown model 'resnet'; did you mean resnet20?"),
            ("partitions", "idd", "unknown partition 'idd'; did you mean iid?"),
            ("datasets", "zzz", "unknown dataset 'zzz'; there are cifar10, cifar100, csv, digits"),
            ("datasets", "", "unknown dataset ''; there are cifar10, cifar100, csv, digits"),
        ],
    )
    def test_unknown(self, kind: str, name: str, message: str) -> None:
        with pytest.raises(UnknownNameError) as error:
            registry.load(kind, name)
        assert str(error.value).startswith(message)
        assert "\n" not in str(error.value)

    def test_several_near_ones(self) -> None:
        with pytest.raises(UnknownNameError, match=r"did you mean skymask or skymask-nr\?"):
            registry.load("defenses", "skymasc")


class TestPaths:
    def test_a_class_anywhere(self) -> None:
        assert registry.load("attacks", "fedsieve.attacks.min_max:MinMax") is MinMax

    def test_a_users_own(self, doubles: ModuleType) -> None:
        assert registry.load("attacks", "doubles:Spy") is doubles.Spy
        spy = registry.build("attacks", "doubles:Spy", {"factor": 2})
        assert spy == doubles.Spy(2.0)
        assert registry.traits("attacks", "doubles:Spy") == Traits(summary="")

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("no_such_module:A", "can't load attack 'no_such_module:A': No module named 'no_such_module'"),
            ("fedsieve.attacks.min_max:MaxMin", "has no attribute 'MaxMin'"),
            ("fedsieve.attacks.min_max:deviation", "it is not a class"),
            (":A", "can't load attack ':A'"),
            ("fedsieve.attacks.min_max:", "can't load attack"),
            ("fedsieve.attacks.min_max:MinMax:MinMax", "can't load attack"),
            (".min_max:MinMax", "can't load attack '.min_max:MinMax'"),
        ],
    )
    def test_nothing_there(self, path: str, message: str) -> None:
        with pytest.raises(UnknownNameError) as error:
            registry.load("attacks", path)
        assert message in str(error.value)
        assert "\n" not in str(error.value)


class TestParameters:
    def test_defaults_are_filled_in(self) -> None:
        assert registry.complete("attacks", "min-max", {}) == {"deviation": "unit-vector"}
        assert registry.complete("attacks", "none", {}) == {}
        found = registry.complete("defenses", "skymask", {"tau": 0.4})
        assert found["tau"] == 0.4
        assert found["mask_steps"] == 20
        assert set(found) == set(SkyMask.__dataclass_fields__) - {"traits"}

    def test_are_converted(self) -> None:
        found = registry.complete("attacks", "scaling", {"factor": "5", "share": 1})
        assert (found["factor"], type(found["factor"])) == (5.0, float)
        assert (found["share"], type(found["share"])) == (1.0, float)
        assert registry.complete("defenses", "skymask", {"mask_learning_rate": "1e6"})["mask_learning_rate"] == 1e6
        assert registry.complete("datasets", "csv", {"label": 0})["label"] == "0"

    @pytest.mark.parametrize("name", ["csv", "sentiment140"])
    def test_the_size_of_a_datasets_vocabulary_is_a_parameter(self, name: str) -> None:
        assert registry.complete("datasets", name, {})["vocabulary"] == 5000
        texts = {"csv": {"text": "words"}}.get(name, {})
        assert registry.complete("datasets", name, {"vocabulary": 9, **texts})["vocabulary"] == 9

    @pytest.mark.parametrize(
        ("kind", "name", "parameters", "message"),
        [
            ("attacks", "scaling", {"facto": 3}, "attack scaling has no parameter 'facto'; did you mean factor?"),
            ("attacks", "none", {"x": 3}, "attack none has no parameter 'x'; it has none"),
            ("defenses", "trimmed-mean", {"zzz": 3}, "defense trimmed-mean has no parameter 'zzz'; it has trim"),
            ("defenses", "skymask", {"traits": 3}, "defense skymask has no parameter 'traits'; it has"),
            ("models", "mlp", {"hiden": [3]}, "model mlp has no parameter 'hiden'; did you mean hidden?"),
            ("models", "mlp", {"n_classes": 3}, "model mlp has no parameter 'n_classes'; it has hidden"),
            ("attacks", "scaling", {"factor": "much"}, "attack scaling: factor: Input should be a valid number"),
            ("attacks", "scaling", {"size": 2.5}, "attack scaling: size: Input should be a valid integer"),
            (
                "attacks",
                "min-max",
                {"deviation": "sgn"},
                "attack min-max: deviation: Input should be 'unit-vector', 'sign' or 'std', got 'sgn'",
            ),
            ("models", "mlp", {"hidden": "wide"}, "model mlp: hidden: Input should be a valid tuple, got 'wide'"),
            ("attacks", "scaling", {"share": 0}, "scaling: share must be in (0, 1], got 0.0"),
            ("attacks", "scaling", {"share": 1.5}, "scaling: share must be in (0, 1], got 1.5"),
            ("defenses", "skymask", {"tau": 1}, "skymask: tau must be in (0, 1), got 1.0"),
            ("defenses", "skymask-nr", {"tau": 0}, "skymask-nr: tau must be in (0, 1), got 0.0"),
            ("defenses", "trimmed-mean", {"trim": -1}, "trimmed-mean: trim must be at least 0, got -1"),
            ("partitions", "groups", {"q": 2}, "groups: q must be in [0, 1], got 2.0"),
            ("partitions", "dirichlet", {"alpha": 0}, "dirichlet: alpha must be positive"),
        ],
    )
    def test_wrong_ones(self, kind: str, name: str, parameters: dict[str, Any], message: str) -> None:
        with pytest.raises(ParameterError) as error:
            registry.complete(kind, name, parameters)
        assert str(error.value).startswith(message)
        assert "\n" not in str(error.value)

    def test_errors_of_a_third_partys_class(self, limited: str) -> None:
        assert registry.complete("defenses", limited, {"level": 2}) == {"level": 2}
        with pytest.raises(ParameterError, match=r"^defense doubles:Limited: level must be at most 3$"):
            registry.complete("defenses", limited, {"level": 4})

    def test_models_of_others(self, doubles: ModuleType) -> None:
        assert registry.complete("models", "doubles:Normed", {}) == {"width": 5}
        assert registry.complete("models", "doubles:Normed", {"width": 9}) == {"width": 9}
        assert registry.complete("models", "mlp", {"hidden": [3, 4]}) == {"hidden": (3, 4)}
        with pytest.raises(ParameterError, match=r"torch\.nn:Linear: parameter in_features has no default; set it"):
            registry.complete("models", "torch.nn:Linear", {})


class TestBuild:
    def test_instances(self) -> None:
        assert registry.build("attacks", "scaling", {"factor": 2}) == Scaling(factor=2.0)
        assert registry.load("models", "mlp") is MLP

    def test_a_detector_is_followed_by_the_mean(self) -> None:
        found = registry.build_defense("skymask", {"tau": 0.4})
        assert found == Chain((SkyMask(tau=0.4),), Mean())
        assert isinstance(found, Aggregator)

    def test_sieve_is_the_aggregator_where_it_stands_last(self) -> None:
        assert registry.build_defense("sieve", {"minority": 0.2}) == Sieve(minority=0.2)
        clipped = registry.build_defense("norm-clipping,sieve", {})
        assert clipped == Chain((NormClipping(),), Sieve())
        assert registry.build_defense("sieve,median", {}) == Chain((Sieve(),), Median())

    def test_an_aggregator_stands_alone(self) -> None:
        assert registry.build_defense("trimmed-mean", {"trim": 2}) == TrimmedMean(2)

    @pytest.mark.parametrize(
        ("kind", "path", "missing"),
        [
            ("defenses", "fedsieve.attacks.none:NoAttack", "detect or preaggregate or __call__"),
            ("partitions", "fedsieve.attacks.none:NoAttack", "__call__"),
            ("attacks", "fedsieve.aggregators.mean:Mean", "poison or craft"),
            ("datasets", "fedsieve.aggregators.mean:Mean", "load"),
            ("models", "fedsieve.aggregators.mean:Mean", "forward"),
        ],
    )
    def test_a_class_of_another_kind(self, kind: str, path: str, missing: str) -> None:
        with pytest.raises(UnknownNameError) as error:
            registry.load(kind, path)
        assert str(error.value) == f"can't load {kind[:-1]} {path!r}: it has no method {missing}"


@pytest.mark.usefixtures("doubles")
class TestChains:
    def test_stages_by_name(self) -> None:
        chain = registry.build_defense("doubles:Below,doubles:Halve,trimmed-mean", {"trimmed-mean": {"trim": 2}})
        assert isinstance(chain, Chain)
        assert [type(stage).__name__ for stage in chain.stages] == ["Below", "Halve"]
        assert chain.aggregator == TrimmedMean(trim=2)

    @pytest.mark.parametrize("name", ["doubles:Halve", "doubles:Below", "doubles:Below,doubles:Halve"])
    def test_without_an_aggregator_the_mean_comes_last(self, name: str) -> None:
        chain = registry.build_defense(name, {})
        assert isinstance(chain, Chain)
        assert (len(chain.stages), chain.aggregator) == (name.count(",") + 1, Mean())

    @pytest.mark.parametrize(
        ("name", "stage"),
        [
            ("skymask", "detector"),
            ("sieve", "detector"),
            ("fldetector", "detector"),
            ("norm-clipping", "pre-aggregator"),
            ("krum", "aggregator"),
        ],
    )
    def test_kinds_of_stages(self, name: str, stage: str) -> None:
        assert registry.stage(name) == stage

    def test_parameters_are_completed_per_stage(self) -> None:
        found = registry.complete(
            "defenses", "doubles:Below,trimmed-mean", {"doubles:Below": {"id": 4}}, {"trimmed-mean": {"trim": 1}}
        )
        assert found == {"doubles:Below": {"id": 4}, "trimmed-mean": {"trim": 1}}

    @pytest.mark.parametrize(
        ("name", "parameters", "message"),
        [
            (
                "mean,trimmed-mean",
                {},
                "mean is an aggregator, so it must come last; only detectors and pre-aggregators may precede it",
            ),
            ("doubles:Below,doubles:Below", {}, "every stage is named once"),
            ("doubles:Below,", {}, "every stage is named once"),
            ("doubles:Below,mean", {"mean": 3}, "parameters of mean were expected, got 3"),
            ("doubles:Below,trimmed-mean", {"trimmed-mean": {"trin": 3}}, "did you mean trim?"),
            ("doubles:Below,trimmed-mean", {"trim": 3}, "did you mean trimmed-mean?"),
            ("doubles:Below,trimed-mean", {}, "did you mean trimmed-mean"),
        ],
    )
    def test_mistakes(self, name: str, parameters: dict[str, Any], message: str) -> None:
        def made() -> None:
            registry.complete("defenses", name, parameters)
            registry.build_defense(name, parameters)

        with pytest.raises(FedSieveError) as error:
            made()
        assert message in str(error.value)


@pytest.mark.usefixtures("doubles")
class TestParts:
    def test_by_default(self) -> None:
        spec = registry.complete("attacks", "doubles:Pair", {}, {"scaling": {"size": 2}})
        assert [part["name"] for part in spec["attacks"]] == ["none", "scaling"]
        assert (spec["attacks"][1]["size"], spec["bonus"]) == (2, 0)
        built = registry.build("attacks", "doubles:Pair", spec)
        assert built.attacks == (NoAttack(), Scaling(size=2))

    def test_as_given(self) -> None:
        parts = ["label-flip", {"name": "scaling", "factor": 3}]
        built = registry.build("attacks", "doubles:Pair", {"attacks": parts, "bonus": 2})
        assert built.attacks == (LabelFlip(), Scaling(factor=3.0))
        assert built.bonus == 2

    def test_once_completed_nothing_changes(self) -> None:
        once = registry.complete("attacks", "doubles:Pair", {"attacks": ["label-flip"]})
        assert registry.complete("attacks", "doubles:Pair", once) == once

    @pytest.mark.parametrize(
        ("parts", "message"),
        [
            (["label-flop"], "did you mean label-flip"),
            ([{"name": "scaling", "factr": 3}], "did you mean factor?"),
            ([{"factor": 3}], "a mapping with a name, was expected"),
            ([3], "was expected, got 3"),
        ],
    )
    def test_mistakes(self, parts: list[Any], message: str) -> None:
        with pytest.raises(FedSieveError) as error:
            registry.complete("attacks", "doubles:Pair", {"attacks": parts})
        assert message in str(error.value)


class TestEntryPoints:
    @pytest.fixture
    def entries(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EntryPoint]]:
        """What is installed in the group ``fedsieve.attacks``."""
        found: list[EntryPoint] = []
        monkeypatch.setattr(installed, "entry_points", lambda group: EntryPoints(found).select(group=group))
        installed.registered.cache_clear()
        yield found
        installed.registered.cache_clear()

    def test_a_third_partys(self, entries: list[EntryPoint], doubles: ModuleType) -> None:
        entries.append(EntryPoint("mine", "doubles:Spy", "fedsieve.attacks"))
        assert registry.names("attacks") == ("mine",)
        assert registry.load("attacks", "mine") is doubles.Spy
        assert registry.names("defenses") == ()

    def test_a_third_partys_class_of_another_kind(self, entries: list[EntryPoint], doubles: ModuleType) -> None:
        entries.append(EntryPoint("mine", "doubles:Tiny", "fedsieve.attacks"))
        with pytest.raises(UnknownNameError, match=r"can't load attack 'mine': it has no method poison or craft"):
            registry.load("attacks", "mine")

    def test_two_of_one_name(self, entries: list[EntryPoint]) -> None:
        entries += [EntryPoint("mine", value, "fedsieve.attacks") for value in ("a:A", "b:B")]
        with pytest.raises(FedSieveError, match=r"two packages register attack 'mine': a:A and b:B; uninstall one"):
            registry.names("attacks")

    def test_the_same_one_twice(self, entries: list[EntryPoint]) -> None:
        entries += [EntryPoint("mine", "doubles:Spy", "fedsieve.attacks")] * 2
        assert registry.names("attacks") == ("mine",)


def test_a_default_that_a_function_makes(doubles: ModuleType) -> None:
    assert registry.complete("defenses", "doubles:Weighted", {}) == {"weights": [1.0, 2.0]}
    assert registry.build("defenses", "doubles:Weighted", {"weights": [3.0]}).weights == [3.0]
