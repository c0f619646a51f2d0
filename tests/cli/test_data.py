"""`fedsieve data`."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command, assert_mistake, words


class TestData:
    def test_list(self, fedsieve_: Command, tmp_path: Path) -> None:
        result = fedsieve_("data", "list", "--json")
        assert (result.code, result.err) == (0, "")
        found = json.loads(result.out)
        assert found["folder"] == str(tmp_path / "data")
        states = {entry["name"]: entry["state"] for entry in found["datasets"]}
        published = ("fashion-mnist", "cifar10", "cifar100", "har", "sentiment140")
        yours = dict.fromkeys(("csv", "images", "npz"), "yours")
        assert states == {"digits": "ready", **yours, **dict.fromkeys(published, "missing")}
        files = {entry["name"]: entry["files"] for entry in found["datasets"]}
        assert files["digits"] == []
        assert files["har"] == ["har/UCI HAR Dataset.zip"]
        assert len(files["fashion-mnist"]) == 4
        table = fedsieve_("data", "list")
        assert str(tmp_path / "data") in table.out
        assert "missing" in table.out

    def test_a_broken_file(self, fedsieve_: Command, tmp_path: Path) -> None:
        path = tmp_path / "data/har/UCI HAR Dataset.zip"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"rubbish")
        found = json.loads(fedsieve_("data", "list", "--json").out)["datasets"]
        assert {entry["state"] for entry in found if entry["name"] == "har"} == {"broken"}
        assert_mistake(fedsieve_("data", "verify", "har"), f"{path} is corrupt")

    def test_verify(self, fedsieve_: Command) -> None:
        result = fedsieve_("data", "verify", "digits")
        assert (result.code, result.err) == (0, "")
        assert words(result.out) == "digits: checksums match"
        assert_mistake(fedsieve_("data", "verify", "har"), "har` downloads it")
        assert_mistake(fedsieve_("data", "verify", "hat"), "unknown dataset 'hat'; did you mean har")

    def test_fetch(self, fedsieve_: Command) -> None:
        assert words(fedsieve_("data", "fetch", "digits").out) == "digits: complete"
        assert_mistake(fedsieve_("data", "fetch", "har"), "is missing and could not be downloaded")

    def test_a_folder_with_markup_in_its_name(
        self, fedsieve_: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("FEDSIEVE_DATA", str(tmp_path / "[/bold]\x1b[2J"))
        result = fedsieve_("data", "list")
        assert (result.code, result.err) == (0, "")
        assert f"data folder: {tmp_path}/[/bold]\\x1b[2J (FEDSIEVE_DATA sets another)" in result.out
