"""Experiments: defaults, keys, files, error messages of one line."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import ValidationError

from fedsieve.config.experiment import Experiment
from fedsieve.config.merging import override
from fedsieve.config.yaml_files import read_yaml
from fedsieve.core.errors import BoundError, FedSieveError, ParameterError
from fedsieve.federation.clients import LocalTraining


def refused(settings: Any) -> str:
    """The error message for these settings."""
    with pytest.raises(FedSieveError) as error:
        Experiment.of(settings)
    assert "\n" not in str(error.value)
    return str(error.value)


class TestDefaults:
    @pytest.mark.parametrize(
        ("dataset", "model", "clients", "malicious", "partition", "steps", "mask_learning_rate"),
        [
            ("fashion-mnist", "cnn", 100, 20, "groups", 1, 1e7),
            ("cifar10", "resnet20", 100, 20, "groups", 5, 1e8),
            ("har", "logistic-regression", 30, 6, "natural", 1, 1e7),
            ("digits", "mlp", 30, 6, "groups", 1, 1e7),
        ],
    )
    def test_are_the_papers(
        self,
        dataset: str,
        model: str,
        clients: int,
        malicious: int,
        partition: str,
        steps: int,
        mask_learning_rate: float,
    ) -> None:
        e = Experiment.of({"dataset": dataset, "attack": "min-max"})
        assert (e.dataset.name, e.model.name, e.partition.name) == (dataset, model, partition)
        assert (e.clients, e.malicious, e.n_malicious, e.assumed_malicious) == (clients, *[malicious] * 3)
        assert e.clients_per_round == clients
        assert (e.local.learning_rate, e.server.learning_rate) == (0.5, 0.5)
        assert (e.local.batch_size, e.local.steps, e.local.epochs) == (32, steps, None)
        assert (e.local.momentum, e.local.weight_decay, e.local.clip_norm, e.local.clip_value) == (0, 0, None, None)
        assert (e.local.loss, e.local.proximal, e.local.batch_norm) == ("cross-entropy", 0, "shared")
        assert e.server.optimizer is None
        assert (e.root.size, e.root.bias, e.root.label) == (None, None, 0)
        assert (e.rounds, e.seed, e.knowledge, e.evaluate_every) == (50, 0, "full", 1)
        assert e.defense.name == "skymask"
        mask = e.defense.parameters
        assert (mask["preset"], mask["mask_steps"], mask["tau"], mask["n_components"]) == ("paper", 20, 0.5, 2)
        assert mask["mask_learning_rate"] == mask_learning_rate

    def test_nothing_given(self) -> None:
        e = Experiment.of({})
        assert (e.dataset.name, e.attack.name, e.defense.name) == ("digits", "none", "skymask")
        assert e == Experiment.of({"dataset": "digits"})

    def test_what_is_given_wins(self) -> None:
        e = Experiment.of(
            {
                "dataset": "cifar10",
                "model": "cnn",
                "local": {"steps": 2},
                "defense": {"name": "skymask", "mask_learning_rate": 5},
                "attack": {"name": "scaling", "value": 0.25},
            }
        )
        assert (e.model.name, e.local.steps, e.local.batch_size) == ("cnn", 2, 32)
        assert e.defense.parameters["mask_learning_rate"] == 5
        assert e.attack.parameters["value"] == 0.25

    def test_a_datasets_trigger(self) -> None:
        values = {
            d: Experiment.of({"dataset": d, "attack": "scaling"}).attack.parameters for d in ("digits", "cifar10")
        }
        assert values["digits"]["size"] == 2
        assert values["cifar10"]["value"] == 2.1

    @pytest.mark.parametrize(
        ("settings", "assumed"),
        [
            ({"clients": 20, "malicious": 8, "clients_per_round": 10}, 4),
            ({"clients": 20, "malicious": 8}, 8),
            ({"clients": 20, "malicious": 8, "assumed_malicious": 3}, 3),
            ({"clients": 20}, 4),
        ],
    )
    def test_assumed_malicious(self, settings: dict[str, Any], assumed: int) -> None:
        assert Experiment.of(settings).assumed_malicious == assumed

    @pytest.mark.parametrize(("rounds", "every"), [(1, 1), (100, 1), (101, 2), (200, 2), (2500, 25)])
    def test_about_a_hundred_evaluations(self, rounds: int, every: int) -> None:
        assert Experiment.of({"rounds": rounds}).evaluate_every == every

    def test_no_attack_no_malicious_clients(self) -> None:
        e = Experiment.of({"clients": 10, "malicious": 4})
        assert (e.malicious, e.n_malicious) == (4, 0)


# One value for every setting, each other than the default.
CHANGES: list[dict[str, Any]] = [
    {"dataset": "har"},
    {"model": "logistic-regression"},
    {"model": {"name": "mlp", "hidden": [32]}},
    {"partition": "iid"},
    {"partition": {"q": 0.6}},
    {"attack": "min-max"},
    {"attack": {"name": "min-max", "deviation": "sign"}},
    {"defense": "mean"},
    {"defense": "fedavg"},
    {"defense": "sieve"},
    {"defense": {"name": "skymask", "tau": 0.4}},
    {"defense": {"preset": "code"}},
    {"clients": 29},
    {"malicious": 5},
    {"assumed_malicious": 5},
    {"clients_per_round": 29},
    {"knowledge": "partial"},
    {"rounds": 49},
    {"seed": 1},
    {"local": {"learning_rate": 0.4}},
    {"local": {"batch_size": 16}},
    {"local": {"steps": 2}},
    {"local": {"epochs": 1}},
    {"local": {"momentum": 0.1}},
    {"local": {"weight_decay": 0.1}},
    {"local": {"clip_norm": 1}},
    {"local": {"clip_value": 1}},
    {"local": {"loss": "batch"}},
    {"local": {"proximal": 0.1}},
    {"local": {"batch_norm": "local"}},
    {"local": {"precision": "tf32"}},
    {"local": {"precision": "bfloat16"}},
    {"server": {"learning_rate": 0.4}},
    {"server": {"weighting": "samples"}},
    {"server": {"weighting": "samples", "weight_cap": 2}},
    {"server": {"optimizer": "Adam"}},
    {"server": {"optimizer": {"name": "Adam", "eps": 0.001}}},
    {"root": {"size": 99}},
    {"root": {"bias": 0.2}},
    {"root": {"bias": 0.1, "label": 1}},
    {"root": {"shift": -1}},
    {"root": {"wrong_labels": 0.1}},
    {"root": {"noise": 0.1}},
    {"odd": {"kind": "noise"}},
    {"odd": {"kind": "brightness"}},
    {"odd": {"kind": "one-class"}},
    {"odd": {"kind": "more-data"}},
    {"odd": {"kind": "noise", "clients": 2}},
    {"odd": {"kind": "noise", "amount": 0.2}},
    {"evaluate_every": 2},
    {"knows_defense": True},
]


class TestKey:
    def test_every_setting_changes_it(self) -> None:
        keys = [Experiment.of(change).key for change in ({}, *CHANGES)]
        assert len(keys) == len(set(keys)) == 52
        assert all(len(key) == 12 and set(key) <= set("0123456789abcdef") for key in keys)

    def test_every_setting_is_changed_above(self) -> None:
        changed = {key for change in CHANGES for key in change}
        assert changed == set(Experiment.model_fields)
        for group in ("local", "server", "root", "odd"):
            inner = {key for change in CHANGES for key in change.get(group, {})}
            assert inner == set(type(getattr(Experiment.of({}), group)).model_fields), group

    def test_order_does_not_matter(self) -> None:
        settings = {
            "seed": 3,
            "attack": {"name": "scaling", "factor": 2, "share": 0.25},
            "root": {"size": 9, "bias": 0.3},
        }
        turned = {
            "root": {"bias": 0.3, "size": 9},
            "attack": {"share": 0.25, "factor": 2, "name": "scaling"},
            "seed": 3,
        }
        assert list(settings) != list(turned)
        assert Experiment.of(settings).key == Experiment.of(turned).key

    @pytest.mark.parametrize(
        "explicit",
        [
            {"seed": 0},
            {"dataset": "digits"},
            {"dataset": {"name": "digits"}},
            {"attack": {"name": "none"}},
            {"defense": {"name": "skymask", "tau": 0.5}},
            {"partition": {"name": "groups", "q": 0.5}},
            {"model": {"name": "mlp", "hidden": [64]}},
            {"clients": 30, "malicious": 6, "clients_per_round": 30, "assumed_malicious": 6},
            {"local": {}, "server": {"optimizer": None}, "root": {"size": None}},
            {"root": {"shift": 0, "wrong_labels": 0, "noise": -0.0}, "odd": {}},
            {"odd": {"kind": "none", "clients": None, "amount": None}},
            {"local": {"learning_rate": 0.5, "momentum": 0}},
            {"rounds": 50, "evaluate_every": 1, "knowledge": "full"},
        ],
    )
    def test_an_explicit_default_does_not_change_it(self, explicit: dict[str, Any]) -> None:
        assert Experiment.of(explicit) == Experiment.of({})
        assert Experiment.of(explicit).key == Experiment.of({}).key

    def test_what_is_off_is_not_in_it(self) -> None:
        """So that experiments of before these settings existed keep their keys and files."""
        settings = Experiment.of({}).model_dump(mode="json")
        assert "odd" not in settings
        assert settings["root"] == {"size": None, "bias": None, "label": 0}
        assert Experiment.of({"dataset": "har", "attack": "min-max", "defense": "trimmed-mean"}).key == "4f674ec624ac"
        changed = Experiment.of({"root": {"shift": 1}, "odd": {"kind": "more-data"}}).model_dump(mode="json")
        assert changed["root"] == {"size": None, "bias": None, "label": 0, "shift": 1}
        assert changed["odd"] == {"kind": "more-data", "clients": 3, "amount": 5.0}

    @pytest.mark.parametrize(
        ("kind", "amount"), [("noise", 0.3), ("brightness", 0.3), ("one-class", None), ("more-data", 5)]
    )
    def test_an_explicit_default_of_odd_clients(self, kind: str, amount: float | None) -> None:
        short, whole = Experiment.of({"odd": {"kind": kind}}), {"kind": kind, "clients": 3, "amount": amount}
        assert Experiment.of({"odd": whole}) == short
        assert Experiment.of({"odd": whole}).key == short.key

    def test_is_the_same_in_another_process(self) -> None:
        code = "from fedsieve.config.experiment import Experiment; print(Experiment.of({'seed': 5}).key)"
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert found.stdout.strip() == Experiment.of({"seed": 5}).key

    @pytest.mark.parametrize("change", CHANGES)
    def test_a_file_brings_it_back(self, tmp_path: Path, change: dict[str, Any]) -> None:
        e = Experiment.of(change)
        (tmp_path / "e.yaml").write_text(e.to_yaml())
        back = Experiment.read(tmp_path / "e.yaml")
        assert back == e
        assert back.key == e.key
        assert back.to_yaml() == e.to_yaml()

    @pytest.mark.parametrize("value", [float("inf"), float("nan")])
    def test_numbers_that_json_lacks_are_refused(self, value: float) -> None:
        """Else a file and a key would have null in their place, which is another setting."""
        for settings in ({"attack": {"name": "scaling", "factor": value}}, {"local": {"clip_norm": value}}):
            with pytest.raises(FedSieveError, match=r"factor|clip_norm"):
                Experiment.of(settings)

    def test_is_frozen(self) -> None:
        e = Experiment.of({})
        with pytest.raises(ValidationError):
            e.seed = 3
        with pytest.raises(ValidationError):
            e.local.steps = 3


class TestMistakes:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"sed": 3}, "unknown setting sed; did you mean seed"),
            ({"zzzz": 3}, "unknown setting zzzz; there are dataset, model, partition"),
            ({"local": {"step": 3}}, "unknown setting local.step; did you mean steps"),
            ({"server": {"learnin_rate": 3}}, "unknown setting server.learnin_rate; did you mean learning_rate?"),
            ({"root": {"sice": 3}}, "unknown setting root.sice; did you mean size or shift or noise?"),
            ({"attack": "minmax"}, "unknown attack 'minmax'; did you mean min-max"),
            ({"defense": "skymsk"}, "unknown defense 'skymsk'; did you mean skymask"),
            ({"dataset": "digit"}, "unknown dataset 'digit'; did you mean digits?"),
            ({"model": "mpl"}, "unknown model 'mpl'; did you mean mlp?"),
            ({"partition": "idd"}, "unknown partition 'idd'; did you mean iid?"),
            ({"attack": {"name": "scaling", "facto": 3}}, "attack scaling has no parameter 'facto'; did you mean"),
            ({"partition": {"q": 2}}, "groups: q must be in [0, 1], got 2.0"),
            ({"defense": {"name": "skymask", "tau": 7}}, "skymask: tau must be in (0, 1), got 7.0"),
            ({"malicious": 31}, "31 malicious clients are more than the 30 clients there are"),
            ({"clients": 5, "malicious": 6}, "6 malicious clients are more than the 5 clients there are"),
            ({"clients_per_round": 31}, "clients_per_round is 31, more than the 30 clients there are"),
            ({"assumed_malicious": 31}, "assumed_malicious is 31, more than the 30 clients there are"),
            ({"clients": 0}, "clients: Input should be greater than or equal to 1, got 0"),
            ({"malicious": -1}, "malicious: Input should be greater than or equal to 0, got -1"),
            ({"rounds": 0}, "rounds: Input should be greater than or equal to 1, got 0"),
            ({"rounds": 2.5}, "rounds: Input should be a valid integer"),
            ({"seed": -1}, "seed: Input should be greater than or equal to 0, got -1"),
            ({"seed": "x"}, "seed: Input should be a valid integer"),
            ({"knowledge": "ful"}, "knowledge: Input should be 'full' or 'partial', got 'ful'"),
            ({"local": {"learning_rate": 0}}, "local.learning_rate: Input should be greater than 0, got 0"),
            ({"local": {"momentum": 1}}, "local.momentum: Input should be less than 1, got 1"),
            ({"local": 5}, "local: Input should be a valid dictionary"),
            ({"local": {"clip_value": 0}}, "local.clip_value: Input should be greater than 0, got 0"),
            ({"local": {"clip_norm": -1}}, "local.clip_norm: Input should be greater than 0, got -1"),
            ({"local": {"loss": "hinge"}}, "local.loss: Input should be 'cross-entropy' or 'batch', got 'hinge'"),
            ({"local": {"clip_valu": 1}}, "unknown setting local.clip_valu; did you mean clip_value or clip_norm?"),
            ({"root": {"size": 0, "shift": 1}}, "root: shift=1 has no effect with size=0, which is no root data"),
            ({"root": {"size": 0, "noise": 0.5}}, "root: noise=0.5 has no effect with size=0"),
            ({"root": {"shift": 1.5}}, "root.shift: Input should be a valid integer"),
            ({"root": {"wrong_labels": 1}}, "root.wrong_labels: Input should be less than 1, got 1"),
            ({"root": {"noise": -1}}, "root.noise: Input should be greater than or equal to 0, got -1"),
            ({"root": {"noise": 1e9}}, "root.noise: Input should be less than or equal to 1000, got 1000000000.0"),
            ({"root": {"wrong_label": 0.1}}, "unknown setting root.wrong_label; did you mean wrong_labels or label?"),
            ({"odd": "noise"}, "odd: a mapping such as {kind: noise, clients: 3} was expected, got 'noise'"),
            ({"odd": {"kind": "nois"}}, "odd.kind: Input should be 'none', 'noise', 'brightness', 'one-class' or"),
            ({"odd": {"kind": ["noise"]}}, "odd.kind: Input should be 'none'"),
            ({"odd": {"knd": "noise"}}, "unknown setting odd.knd; did you mean kind?"),
            ({"odd": {"clients": 3}}, "odd: clients=3 has no effect with kind=none"),
            ({"odd": {"kind": "none", "amount": 0.3}}, "odd: amount=0.3 has no effect with kind=none"),
            ({"odd": {"kind": "one-class", "amount": 2}}, "odd: amount=2 has no effect with kind=one-class"),
            ({"odd": {"kind": "more-data", "amount": 1}}, "odd: amount=1 is not more data: with kind=more-data it"),
            ({"odd": {"kind": "noise", "amount": 0}}, "odd.amount: Input should be greater than 0, got 0"),
            ({"odd": {"kind": "noise", "clients": 0}}, "odd.clients: Input should be greater than or equal to 1,"),
            ({"odd": {"kind": "noise", "clients": 31}}, "odd.clients is 31, more than the 30 benign clients there are"),
            ({"odd": {"kind": "noise", "clients": 25}, "attack": "lie"}, "odd.clients is 25, more than the 24 benign"),
            ({"root": {"bias": 1.5}}, "root.bias: Input should be less than or equal to 1, got 1.5"),
            ({"server": {"optimizer": "adam"}}, "server: unknown optimizer 'adam'; try Adam"),
            ({"server": {"optimizer": "Optimizer"}}, "server: unknown optimizer 'Optimizer'; try"),
            ({"server": {"optimizer": "LBFGS"}}, "server: unknown optimizer 'LBFGS'; try"),
            ({"server": {"optimizer": {"name": "Adam", "bets": 3}}}, "server: Adam: "),
            ({"server": {"optimizer": {"name": "SGD", "momentum": -1}}}, "server: SGD: Invalid momentum"),
        ],
    )  # fmt: skip
    def test_message_of_one_line(self, settings: dict[str, Any], message: str) -> None:
        assert refused(settings).startswith(message)

    @pytest.mark.parametrize("settings", [{"clients": "thirty"}, {"clients": None}, {"rounds": "many"}])
    def test_one_mistake_is_one_message(self, settings: dict[str, Any]) -> None:
        (name,) = settings
        assert refused(settings).startswith(f"{name}: Input should be a valid integer")
        assert ";" not in refused(settings)

    @pytest.mark.parametrize(
        ("kind", "parameters"), [("attack", {"factor": 5}), ("attack", {"nam": "min-max"}), ("dataset", {"n": 3})]
    )
    def test_parameters_without_a_name_name_the_component(self, kind: str, parameters: dict[str, Any]) -> None:
        assert kind in refused({kind: parameters})

    def test_parameters_of_the_default_defense_need_no_name(self) -> None:
        e = Experiment.of({"defense": {"tau": 0.4}})
        assert (e.defense.name, e.defense.parameters["tau"]) == ("skymask", 0.4)

    @pytest.mark.parametrize("value", [5, ["min-max"], None])
    def test_an_attack_of_a_wrong_type(self, value: Any) -> None:
        assert "attack" in refused({"attack": value})

    def test_a_bound_refuses_before_any_data_is_loaded(self, doubles: ModuleType) -> None:
        settings = {"dataset": "doubles:Tiny", "defense": "trimmed-mean", "clients": 10, "malicious": 5}
        with pytest.raises(BoundError) as error:
            Experiment.of(settings)
        assert str(error.value) == "trimmed-mean needs n > 2f, got n=10 clients and f=5 assumed malicious"
        assert doubles.seen == []
        assert Experiment.of({**settings, "malicious": 4}).malicious == 4
        assert Experiment.of({**settings, "assumed_malicious": 4}).assumed_malicious == 4
        with pytest.raises(BoundError, match="n=4 clients and f=2 assumed"):
            Experiment.of({**settings, "malicious": 4, "clients_per_round": 4, "assumed_malicious": 2})
        with pytest.raises(BoundError, match="f=5"):
            Experiment.of({**settings, "malicious": 1, "defense": {"name": "trimmed-mean", "trim": 5}})

    def test_optimizers(self) -> None:
        for name in ("SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "NAdam"):
            optimizer = Experiment.of({"server": {"optimizer": name}}).server.optimizer
            assert optimizer is not None
            assert (optimizer.name, optimizer.parameters) == (name, {})

    def test_numbers_that_yaml_takes_for_text(self, tmp_path: Path) -> None:
        (tmp_path / "e.yaml").write_text("server: {optimizer: {name: Adam, eps: 1e-3}}\nlocal: {learning_rate: 1e-1}\n")
        e = Experiment.read(tmp_path / "e.yaml")
        assert e.local.learning_rate == 0.1
        assert e.server.optimizer is not None
        assert e.server.optimizer.parameters == {"eps": 0.001}


class TestFiles:
    def test_overrides_go_on_top(self, tmp_path: Path) -> None:
        path = tmp_path / "e.yaml"
        path.write_text("attack: {name: scaling, factor: 2, share: 0.25}\nlocal: {steps: 3}\nseed: 4\n")
        e = Experiment.read(path, {"attack": {"factor": 5}, "local": {"momentum": 0.5}, "seed": 9})
        assert e.attack.name == "scaling"
        assert (e.attack.parameters["factor"], e.attack.parameters["share"]) == (5, 0.25)
        assert (e.local.steps, e.local.momentum, e.seed) == (3, 0.5, 9)

    @pytest.mark.parametrize("written", ["attack: scaling", "attack: {name: scaling}"])
    def test_a_parameter_keeps_the_files_attack(self, tmp_path: Path, written: str) -> None:
        (tmp_path / "e.yaml").write_text(written)
        overrides: dict[str, Any] = {}
        override(overrides, "attack.factor", 5)
        e = Experiment.read(tmp_path / "e.yaml", overrides)
        assert (e.attack.name, e.attack.parameters["factor"]) == ("scaling", 5)

    def test_another_attack_brings_its_own_parameters(self, tmp_path: Path) -> None:
        (tmp_path / "e.yaml").write_text("attack: {name: scaling, factor: 5}")
        for other in ("min-max", {"name": "min-max"}):
            e = Experiment.read(tmp_path / "e.yaml", {"attack": other})
            assert (e.attack.name, e.attack.parameters) == ("min-max", {"deviation": "unit-vector"})

    def test_the_same_attack_keeps_them(self, tmp_path: Path) -> None:
        (tmp_path / "e.yaml").write_text("attack: {name: scaling, factor: 5}")
        assert Experiment.read(tmp_path / "e.yaml", {"attack": "scaling"}).attack.parameters["factor"] == 5

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"a: [", "can't read"),
            (b"a: b: c", "can't read"),
            (b"\xff\xfe\xfa", "can't read"),
            (b"", "holds no settings: a mapping such as 'dataset: digits' was expected"),
            (b"- a\n- b", "holds no settings"),
            (b"digits", "holds no settings"),
            (b"!!python/object/apply:os.getcwd []", "can't read"),
        ],
    )
    def test_malformed(self, tmp_path: Path, content: bytes, message: str) -> None:
        path = tmp_path / "e.yaml"
        path.write_bytes(content)
        for read in (read_yaml, Experiment.read):
            with pytest.raises(ParameterError) as error:
                read(path)
            assert str(path) in str(error.value)
            assert message in str(error.value)
            assert "\n" not in str(error.value)

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ParameterError) as error:
            Experiment.read(tmp_path / "e.yaml")
        assert str(error.value) == f"can't read {tmp_path}/e.yaml: No such file or directory"
        with pytest.raises(ParameterError, match="Is a directory"):
            Experiment.read(tmp_path)


class TestStepsOrEpochs:
    def test_one_step_by_default(self) -> None:
        for local in ({}, {"steps": None}, {"epochs": None}, {"steps": None, "epochs": None}):
            e = Experiment.of({"local": local})
            assert (e.local.steps, e.local.epochs) == (1, None)

    @pytest.mark.parametrize("dataset", ["digits", "cifar10"])
    def test_the_users_choice_replaces_the_datasets(self, dataset: str) -> None:
        e = Experiment.of({"dataset": dataset, "local": {"epochs": 3}})
        assert (e.local.steps, e.local.epochs) == (None, 3)
        e = Experiment.of({"dataset": dataset, "local": {"steps": 2}})
        assert (e.local.steps, e.local.epochs) == (2, None)

    def test_a_datasets_other_settings_stay(self) -> None:
        e = Experiment.of({"dataset": "sentiment140", "local": {"epochs": 3}})
        assert (e.local.steps, e.local.epochs, e.local.batch_size, e.local.clip_norm) == (None, 3, 64, 1.0)
        e = Experiment.of({"dataset": "cifar10", "local": {"momentum": 0.5}})
        assert (e.local.steps, e.local.epochs, e.local.momentum) == (5, None, 0.5)

    @pytest.mark.parametrize("dataset", ["digits", "cifar10"])
    @pytest.mark.parametrize("steps", [1, 5])
    def test_both_are_refused(self, dataset: str, steps: int) -> None:
        message = refused({"dataset": dataset, "local": {"steps": steps, "epochs": 3}})
        assert message == f"local: steps={steps} has no effect with epochs=3; set one of them"

    def test_both_from_a_file_and_an_override(self, tmp_path: Path) -> None:
        (tmp_path / "e.yaml").write_text(Experiment.of({"dataset": "cifar10"}).to_yaml())
        with pytest.raises(ParameterError, match="steps=5 has no effect with epochs=2"):
            Experiment.read(tmp_path / "e.yaml", {"local": {"epochs": 2}})
        e = Experiment.read(tmp_path / "e.yaml", {"local": {"epochs": 2, "steps": None}})
        assert e == Experiment.of({"dataset": "cifar10", "local": {"epochs": 2}})

    @pytest.mark.parametrize("local", [{}, {"steps": 3}, {"epochs": 3}])
    def test_a_file_brings_it_back(self, tmp_path: Path, local: dict[str, Any]) -> None:
        e = Experiment.of({"dataset": "cifar10", "local": local})
        (tmp_path / "e.yaml").write_text(e.to_yaml())
        back = Experiment.read(tmp_path / "e.yaml")
        assert (back, back.key) == (e, e.key)

    def test_training_takes_one_of_them(self) -> None:
        for local in ({"steps": 3}, {"epochs": 3}):
            settings = Experiment.of({"local": local}).local.model_dump(exclude={"batch_norm"}, exclude_none=True)
            training = LocalTraining(**settings)
            assert (training.epochs, training.steps) == (local.get("epochs"), local.get("steps", 1))


class TestPresets:
    @pytest.mark.parametrize("name", ["skymask", "skymask-nr"])
    @pytest.mark.parametrize("preset", ["anchored", "official"])
    def test_former_ones_name_their_successors(self, name: str, preset: str) -> None:
        assert refused({"defense": {"name": name, "preset": preset}}) == (
            f"defense {name}: preset: Input should be 'paper' or 'code', got '{preset}'; "
            "the former preset anchored is the defense sieve, the former preset official is preset code"
        )

    def test_no_hint_for_others(self) -> None:
        message = refused({"defense": {"preset": "papr"}})
        assert message == "defense skymask: preset: Input should be 'paper' or 'code', got 'papr'"
        assert "sieve" not in refused({"defense": {"name": "invariant", "preset": "papr"}})


class TestOverride:
    @pytest.mark.parametrize(
        ("settings", "key", "value", "result"),
        [
            ({}, "seed", 3, {"seed": 3}),
            ({}, "local.steps", 3, {"local": {"steps": 3}}),
            ({"local": {"momentum": 0.5}}, "local.steps", 3, {"local": {"momentum": 0.5, "steps": 3}}),
            ({"attack": "scaling"}, "attack.factor", 5, {"attack": {"name": "scaling", "factor": 5}}),
            ({"attack": {"name": "scaling"}}, "attack", "none", {"attack": "none"}),
            (
                {"server": {"optimizer": "Adam"}},
                "server.optimizer.eps",
                0.1,
                {"server": {"optimizer": {"name": "Adam", "eps": 0.1}}},
            ),
        ],
    )
    def test_nested(self, settings: dict[str, Any], key: str, value: Any, result: dict[str, Any]) -> None:
        override(settings, key, value)
        assert settings == result

    def test_below_a_number(self) -> None:
        with pytest.raises(ParameterError, match=r"can't set seed\.a: seed is 3"):
            override({"seed": 3}, "seed.a", 4)

    def test_leaves_nested_settings_of_others_alone(self) -> None:
        inner = {"momentum": 0.5}
        settings = {"local": inner}
        override(settings, "local.steps", 3)
        assert inner == {"momentum": 0.5}
        assert settings["local"] == {"momentum": 0.5, "steps": 3}
