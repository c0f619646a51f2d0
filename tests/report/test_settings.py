"""Settings as text: what differs from the defaults, without importing what they name."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedsieve.cli.options import nested_settings
from fedsieve.config import registry
from fedsieve.config.experiment import Experiment
from fedsieve.config.settings import Component, Local, Odd, RootData, ServerSide
from fedsieve.report.settings import component, setting
from fedsieve.report.text import as_command


def recorded(tmp_path: Path, base: dict[str, Any] | None = None, **changed: Any) -> Experiment:
    """An experiment as a report reads it, with some of its settings changed in the file."""
    settings = yaml.safe_load(Experiment.of(base or {}).to_yaml())
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump({**settings, **changed}, sort_keys=False))
    return Experiment.recorded(tmp_path / "experiment.yaml")


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        ("defense", "skymask", "skymask"),
        ("defense", {"name": "skymask", "tau": 0.3}, "skymask (tau=0.3)"),
        ("defense", ["norm-clipping", "median"], "norm-clipping,median"),
        ("attack", "mixture", "mixture"),
        ("attack", {"name": "split-layers", "factor": 2.0}, "split-layers (factor=2.0)"),
        ("model", {"name": "mlp", "hidden": [9, 8]}, "mlp (hidden=[9, 8])"),
        ("partition", {"name": "groups", "q": 0.25}, "groups (q=0.25)"),
    ],
    ids=str,
)
def test_what_differs_from_the_defaults(tmp_path: Path, kind: str, value: Any, said: str) -> None:
    e = recorded(tmp_path, {kind: value})
    assert component(kind, getattr(e, kind), e.dataset.name) == said


def test_part_of_a_mixture_that_is_not_the_default(tmp_path: Path) -> None:
    parts = ["min-max", {"name": "scaling", "factor": 5.0}]
    e = recorded(tmp_path, {"attack": {"name": "mixture", "attacks": parts}})
    assert component("attack", e.attack, "digits").startswith("mixture (attacks=[{'name': 'min-max'")
    usual = recorded(tmp_path, {"attack": {"name": "mixture", "attacks": ["min-max", "label-flip", "scaling"]}})
    assert component("attack", usual.attack, "digits") == "mixture"


def test_every_default_is_known() -> None:
    """A component with its default parameters is shown by its name alone."""
    for kind in ("attack", "defense", "partition", "dataset", "model"):
        for name in registry.names(f"{kind}s"):
            parameters = json.loads(json.dumps(registry.complete(f"{kind}s", name, {})))
            assert component(kind, Component(name=name, **parameters)) == name


EVIL = [
    {"defense": {"name": "evil:Evil", "x": 1}},
    {"attack": {"name": "evil:Evil"}},
    {"dataset": {"name": "evil:Evil", "file": "a"}},
    {"model": {"name": "evil:Evil"}},
    {"partition": {"name": "evil:Evil"}},
    {"defense": {"name": "median,evil:Evil", "evil:Evil": {"x": 1}}},
    {"attack": {"name": "mixture", "attacks": [{"name": "evil:Evil"}]}},
    {"server": {"learning_rate": 1.0, "optimizer": {"name": "evil:Evil"}}},
    {"defense": {"name": "subprocess:Popen", "args": [sys.executable, "-c", "open('ran', 'w')"]}},
    {"defense": {"name": "no such defense"}},
]


@pytest.mark.parametrize("changed", EVIL, ids=lambda changed: "-".join(changed))
def test_nothing_is_imported_or_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    (tmp_path / "evil.py").write_text("open('ran', 'w')\nclass Evil: pass\n")
    e = recorded(tmp_path, **changed)
    ((kind, value),) = changed.items()
    text = component(kind, e.defense, e.dataset.name) if kind == "defense" else str(setting(e))
    assert kind in ("attack", "server") or value["name"] in text
    words = shlex.split(as_command(e))
    assert not (tmp_path / "ran").exists()
    assert "evil" not in sys.modules
    # the command has every setting of the experiment
    options: dict[str, Any] = {}
    pairs = []
    for name, word in zip(words[2::2], words[3::2], strict=True):
        if name == "--set":
            pairs.append(word)
        else:
            options[name[2:]] = int(word) if name[2:] in ("clients", "malicious", "rounds", "seed") else word
    found = nested_settings(options, pairs)
    name = found[kind] if isinstance(found[kind], str) else found[kind].get("name", found[kind])
    assert value.get("name", value) == name or kind == "server"


def test_all_parameters_of_another_package_are_shown(tmp_path: Path) -> None:
    e = recorded(tmp_path, defense={"name": "evil:Evil", "x": 1, "y": [2]})
    assert component("defense", e.defense, "digits") == "evil:Evil (x=1, y=[2])"


def test_a_name_that_cannot_be_seen_is_escaped_in_the_command(tmp_path: Path) -> None:
    e = recorded(tmp_path, attack={"name": "a\x1b[2J\n", "x": "\u202e"})
    text = as_command(e)
    assert text.isprintable()
    assert text.isascii()
    words = shlex.split(text)
    pairs = [value for name, value in zip(words[2::2], words[3::2], strict=True) if name == "--set"]
    assert nested_settings({}, pairs)["attack"] == {"name": "a\x1b[2J\n", "x": "\u202e"}


def test_defects_and_odd_clients(tmp_path: Path) -> None:
    given = {"root": {"shift": 1, "noise": 0.1}, "odd": {"kind": "noise", "clients": 2}}
    e = recorded(tmp_path, given)
    found, plain = setting(e), setting(Experiment.of({}))
    assert dict(found.items() - plain.items()) == {
        **{"root shift": "1", "root noise": "0.1"},
        **{"odd kind": "noise", "odd clients": "2", "odd amount": "0.3"},
    }
    assert not [key for key in plain if key.startswith(("root", "odd"))]
    words = shlex.split(as_command(e))
    pairs = [value for name, value in zip(words[2::2], words[3::2], strict=True) if name == "--set"]
    names = {name[2:]: value for name, value in zip(words[2::2], words[3::2], strict=True) if name != "--set"}
    assert Experiment.of(nested_settings(dict(names), pairs)) == e


PLAIN: dict[str, Any] = {"clients": 20, "malicious": 4, "rounds": 200}
# Another value of every setting of an experiment, and what a report says of it. The others stay as they are recorded:
# f is 4 and every second round is evaluated, whether or not these would be the defaults.
CHANGED: dict[str, tuple[Any, dict[str, str]]] = {
    "dataset": ({"name": "other", "file": "a"}, {"dataset": "other (file=a)"}),
    "model": ({"name": "mlp", "hidden": [9]}, {"model": "mlp (hidden=[9])"}),
    "partition": ({"name": "groups", "q": 0.25}, {"partition": "groups (q=0.25)"}),
    "clients": (21, {"clients": "21"}),
    "malicious": (5, {"malicious": "5", "assumed malicious": "4"}),
    "assumed_malicious": (5, {"assumed malicious": "5"}),
    "clients_per_round": (7, {"clients per round": "7", "assumed malicious": "4"}),
    "knowledge": ("partial", {"knowledge": "partial"}),
    "knows_defense": (True, {"knows defense": "True"}),
    "rounds": (201, {"rounds": "201", "evaluate every": "2"}),
    "evaluate_every": (1, {"evaluate every": "1"}),
}
OF_A_CELL = {
    "attack": {"name": "sign-flip", "factor": 2.0},
    "defense": {"name": "median"},
    "seed": 1,
}
SECTIONS: dict[str, dict[str, Any]] = {
    "local": {
        **{"learning_rate": 0.1, "batch_size": 5, "steps": 2, "epochs": 3, "momentum": 0.5, "weight_decay": 0.1},
        **{"clip_norm": 1.0, "clip_value": 1.0, "proximal": 0.1, "loss": "batch", "batch_norm": "local"},
        "precision": "tf32",
    },
    "server": {"learning_rate": 0.1, "optimizer": Component(name="Adam"), "weighting": "samples", "weight_cap": 2.0},
    "root": {"size": 20, "bias": 0.5, "label": 1, "shift": 1, "wrong_labels": 0.1, "noise": 0.1},
    "odd": {"kind": "noise", "clients": 2, "amount": 0.2},
}


class TestEverySetting:
    """Two runs of one cell of a table differ in nothing but the seed."""

    def test_is_in_the_tables_above(self) -> None:
        """Whoever adds a setting to an experiment says here how a report tells it."""
        assert {*CHANGED, *OF_A_CELL, *SECTIONS} == set(Experiment.model_fields)
        kinds = {"local": Local, "server": ServerSide, "root": RootData, "odd": Odd}
        assert {name: set(values) for name, values in SECTIONS.items()} == {
            name: set(kind.model_fields) for name, kind in kinds.items()
        }

    @pytest.mark.parametrize("name", CHANGED)
    def test_is_told_where_it_is_not_the_default(self, tmp_path: Path, name: str) -> None:
        value, said = CHANGED[name]
        plain = setting(recorded(tmp_path, PLAIN))
        found = setting(recorded(tmp_path, PLAIN, **{name: value}))
        assert dict(found.items() - plain.items()) == said

    @pytest.mark.parametrize(
        ("section", "name"), [(section, name) for section, values in SECTIONS.items() for name in values]
    )
    def test_of_a_section(self, section: str, name: str) -> None:
        e, value = Experiment.of(PLAIN), SECTIONS[section][name]
        changed = getattr(e, section).model_copy(update={name: value})
        found = setting(e.model_copy(update={section: changed}))
        said = "{'name': 'Adam'}" if name == "optimizer" else str(value)
        assert dict(found.items() - setting(e).items()) == {f"{section} {name}": said}

    @pytest.mark.parametrize("name", OF_A_CELL)
    def test_of_a_cell_is_left_out(self, tmp_path: Path, name: str) -> None:
        changed = recorded(tmp_path, PLAIN, **{name: OF_A_CELL[name]})
        assert setting(changed) == setting(recorded(tmp_path, PLAIN))

    @pytest.mark.parametrize(
        ("attack", "needed"),
        [
            ("min-max", False),
            ("adaptive-skymask", True),
            ({"name": "sleeper", "attack": {"name": "mixture", "attacks": ["min-max", "adaptive-sieve"]}}, True),
            ({"name": "evil:Evil", "attack": "min-max"}, False),
        ],
        ids=["no", "yes", "a part", "unknown"],
    )
    def test_what_an_attack_must_know_is_no_setting(self, tmp_path: Path, attack: Any, needed: bool) -> None:
        """Adaptive attacks stay in one table with the others; any other choice is apart."""
        base = {} if isinstance(attack, dict) and "evil" in attack["name"] else {"attack": attack}
        spec = attack if isinstance(attack, dict) else {"name": attack}
        given = {"attack": spec} if not base else {}
        for granted in (True, False):
            e = recorded(tmp_path, {**PLAIN, **base, "knows_defense": True}, **given, knows_defense=granted)
            found = setting(e).get("knows defense")
            assert found == (None if granted == needed else str(granted))

    def test_defaults_that_follow_from_others_are_left_out(self) -> None:
        for given in (PLAIN, {"clients": 7, "malicious": 3, "clients_per_round": 4, "rounds": 1000}, {"clients": 1}):
            assert not setting(Experiment.of(given)).keys() & {"assumed malicious", "evaluate every", "knows defense"}
