"""What a user may have meant: names, settings, parameters; and what `list` says about these."""

from typing import Any

import pytest

from fedsieve.config import registry
from fedsieve.config.catalog import KINDS, entries
from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import FedSieveError, ParameterError
from fedsieve.core.nearest import hint, nearest


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("FashionMNIST", ["har", "fashion-mnist"], ["fashion-mnist"]),
        ("CIFAR-10", ["cifar10", "cifar100"], ["cifar10"]),
        ("wd", ["weight_decay", "momentum"], ["weight_decay"]),
        ("momentun", ["weight_decay", "momentum"], ["momentum"]),
        ("xyz", ["weight_decay", "momentum"], []),
        ("", ["a"], []),
        ("---", ["a"], []),
        (3, ["three"], []),
    ],
)
def test_nearest(name: object, known: list[str], expected: list[str]) -> None:
    assert nearest(name, known) == expected


def test_hint() -> None:
    assert hint("xyz", ["weight_decay"], "it has") == "it has weight_decay"
    assert hint("x", [], "it has") == "it has none"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dataset": "FashionMNIST"}, "unknown dataset 'FashionMNIST'; did you mean fashion-mnist?"),
        ({"attack": "LIE"}, "unknown attack 'LIE'; did you mean lie?"),
        ({"defense": "SkyMask"}, "unknown defense 'SkyMask'; did you mean skymask?"),
        (
            {"model": "my_model.Net"},
            "unknown model 'my_model.Net'; a class of your own has a colon before its name: my_model:Net",
        ),
        ({"model": "my.model"}, "unknown model 'my.model'; "),
        (
            {"local": {"lr": 0.1}},
            "unknown setting local.lr; did you mean learning_rate? There are learning_rate, batch_size, steps, ",
        ),
        ({"local": {"xyz": 0.1}}, "unknown setting local.xyz; there are learning_rate, batch_size, steps, epochs, "),
        ({"learning_rate": 0.1}, "unknown setting learning_rate; did you mean local.learning_rate or server.learning_"),
        ({"rounds": "x"}, "rounds: Input should be a valid integer"),
        ({"clients": 3, "malicious": 4}, "4 malicious clients are more than the 3 clients there are"),
    ],
)
@pytest.mark.parametrize("made", [Experiment.of, lambda settings: Experiment(**settings)], ids=["of", "by name"])
def test_messages(made: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(FedSieveError) as error:
        made(settings)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


def test_by_name_is_the_same_experiment() -> None:
    assert Experiment(attack="min-max", rounds=3) == Experiment.of({"attack": "min-max", "rounds": 3})
    assert Experiment().key == Experiment.of({}).key


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_described_and_can_be_set(kind: str) -> None:
    for entry in entries(kind):
        assert entry.about.keys() == entry.parameters.keys(), entry.name
        for parameter, text in entry.about.items():
            assert len(text) > 7, f"{entry.name}.{parameter}"
            assert "`" not in text
        if "file" not in entry.parameters and "folder" not in entry.parameters:
            given = registry.complete(kind, entry.name, {})
            assert registry.complete(kind, entry.name, given) == given
            with pytest.raises(ParameterError, match=f"{entry.name} has no parameter 'nonsense'"):
                registry.complete(kind, entry.name, {"nonsense": 1})


def test_the_vocabulary_of_texts_can_be_set() -> None:
    for name, more in (("sentiment140", {}), ("csv", {"file": "t.csv", "text": "words"})):
        assert registry.complete("datasets", name, {**more, "vocabulary": 100})["vocabulary"] == 100
