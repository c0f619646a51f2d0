"""A user's mistake in a run: exit code 2 and one clear line."""

from pathlib import Path

import pytest

from tests.cli.conftest import Command, assert_mistake


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("--attack", "minmax"), "unknown attack 'minmax'; did you mean min-max"),
            (("--defense", "skymsk"), "unknown defense 'skymsk'; did you mean skymask"),
            (("--dataset", "cifar"), "unknown dataset 'cifar'; did you mean cifar10"),
            (("--model", "resnet"), "unknown model 'resnet'; did you mean resnet20"),
            (("--attack", "nowhere:Attack"), "can't load attack 'nowhere:Attack': No module named 'nowhere'"),
            (
                ("--attack", "scaling", "--set", "attack.facto=5"),
                "attack scaling has no parameter 'facto'; did you mean factor?",
            ),
            (("--set", "local.step=5"), "unknown setting local.step; did you mean steps"),
            (("--set", "sed=5"), "unknown setting sed; did you mean seed"),
            (("--clients", "10", "--malicious", "11"), "11 malicious clients are more than the 10 clients there are"),
            (
                ("--defense", "trimmed-mean", "--clients", "10", "--malicious", "5"),
                "trimmed-mean needs n > 2f, got n=10 clients and f=5 assumed malicious",
            ),
            (("--rounds", "0"), "rounds: Input should be greater than or equal to 1, got 0"),
            (("--set", "seed"), "--set takes key=value, e.g. --set attack.factor=5, got 'seed'"),
            (("--set", "=3"), "--set takes key=value"),
            (("--set", "seed=[1"), "--set seed: '[1' is not a YAML value"),
            (("--set", "seed=x"), "seed: Input should be a valid integer"),
            (("--set", "seed=1", "--set", "seed.a=1"), "can't set seed.a: seed is 1"),
            (("no such file.yaml",), "can't read no such file.yaml: No such file or directory"),
            (("--model", "cnn"), "cnn needs images of at least 10 x 10 pixels, got samples of shape [1, 8, 8]"),
            (("--set", "partition=natural"), "natural: this dataset has no natural clients"),
            (("--clients", "2000"), "2000 clients"),
            (("--device", "gpu"), "can't compute on device 'gpu'"),
            (("--device", "cuda:99"), "can't compute on device 'cuda:99'"),
            (("--device", "meta"), "can't compute on device 'meta'"),
            (("--dataset", "har"), "UCI HAR Dataset.zip is missing"),
            (("--out", "file/run"), "can't lock run directories in file/.locks: "),
            (("--set", "attack.factor=5"), "attack"),
        ],
    )
    def test_exit_with_two_and_one_line(
        self, fedsieve_: Command, tmp_path: Path, arguments: tuple[str, ...], said: str
    ) -> None:
        (tmp_path / "file").write_text("in the way")
        assert_mistake(fedsieve_("run", *arguments), said)

    def test_a_bad_file(self, fedsieve_: Command, tmp_path: Path) -> None:
        (tmp_path / "e.yaml").write_text("attack: {name: [")
        assert_mistake(fedsieve_("run", "e.yaml"), "can't read e.yaml")
        (tmp_path / "e.yaml").write_text("")
        assert_mistake(fedsieve_("run", "e.yaml"), "e.yaml holds no settings")

    def test_markup_in_a_name_is_text(self, fedsieve_: Command) -> None:
        assert_mistake(fedsieve_("run", "--attack", "[red]x[/]"), "unknown attack '[red]x[/]'")

    def test_nothing_is_left_behind(self, fedsieve_: Command, tmp_path: Path) -> None:
        assert fedsieve_("run", "--malicious", "31").code == 2
        assert fedsieve_("run", "--device", "gpu").code == 2
        assert list(tmp_path.iterdir()) == []

    def test_an_unknown_option(self, fedsieve_: Command) -> None:
        result = fedsieve_("run", "--atack", "none")
        assert result.code == 2
        assert "--atack" in result.err
        assert result.out == ""

    def test_an_interruption(self, fedsieve_: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("fedsieve.runs.run.run", interrupted)
        result = fedsieve_("run", "--quiet")
        assert result.code == 130
        assert "--resume continues from" in result.err
        assert "Traceback" not in result.err
