"""`fedsieve list`."""

import json
import subprocess
import sys

import pytest

from fedsieve.config import registry
from fedsieve.config.catalog import Entry
from fedsieve.core.traits import Traits
from tests.cli.conftest import Command, assert_mistake, words


class TestList:
    def test_everything(self, fedsieve_: Command) -> None:
        result = fedsieve_("list")
        assert (result.code, result.err) == (0, "")
        count = 0
        for kind in registry.KINDS:
            assert kind in result.out
            for name in registry.names(kind):
                assert name in result.out.split()
                count += 1
        assert count >= 20

    def test_json(self, fedsieve_: Command) -> None:
        result = fedsieve_("list", "--json")
        assert (result.code, result.err) == (0, "")
        found = json.loads(result.out)
        assert list(found) == list(registry.KINDS)
        for kind, entries in found.items():
            assert [entry["name"] for entry in entries] == list(registry.names(kind))
            for entry in entries:
                own = {"defenses": ["stage"], "attacks": ["targets"]}.get(kind, [])
                keys = ["name", "summary", "paper", "needs", "bound", "breaks_at", "cost", "parameters", "about", *own]
                assert list(entry) == keys
                assert entry["summary"]
        by_name = {entry["name"]: entry for entry in found["defenses"]}
        assert by_name["trimmed-mean"]["bound"] == "n > 2f"
        assert by_name["skymask"]["needs"] == ["root data"]
        stages = [by_name[name]["stage"] for name in ("skymask", "momentum", "krum")]
        assert stages == ["detector", "pre-aggregator", "aggregator"]
        assert by_name["skymask"]["parameters"]["preset"] == "paper"
        targets = {entry["name"]: entry["targets"] for entry in found["attacks"]}
        assert (targets["label-flip"], targets["min-max"]) == (["data"], ["updates"])
        assert targets["scaling"] == ["data", "updates"]
        assert found["models"][registry.names("models").index("mlp")]["parameters"] == {"hidden": [64]}

    @pytest.mark.parametrize("kind", registry.KINDS)
    def test_one_kind(self, fedsieve_: Command, kind: str) -> None:
        result = fedsieve_("list", kind, "--json")
        assert list(json.loads(result.out)) == [kind]
        table = fedsieve_("list", kind)
        assert (table.code, table.err) == (0, "")
        for name in registry.names(kind):
            assert name in table.out.split()
            traits = registry.traits(kind, name)
            assert traits.summary.split()[0] in table.out
            for parameter in registry.complete(kind, name, {}):
                assert f"{parameter} = " in words(table.out)

    def test_an_unknown_kind(self, fedsieve_: Command) -> None:
        assert_mistake(
            fedsieve_("list", "rules"), "can't list 'rules'; there are attacks, defenses, datasets, models, partitions"
        )

    def test_is_quick_and_imports_nothing_heavy(self) -> None:
        """Half a second on an idle machine; what takes longer is importing torch or scikit-learn."""
        code = (
            "import sys, time\n"
            "start = time.process_time()\n"
            "sys.argv = ['fedsieve', 'list']\n"
            "from fedsieve.cli import main\n"
            "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
            "heavy = {'torch', 'numpy', 'sklearn', 'fedsieve.config.registry'} & set(sys.modules)\n"
            "assert not heavy, heavy\n"
            "print(time.process_time() - start)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "skymask" in done.stdout
        assert float(done.stdout.splitlines()[-1]) < 1.5


@pytest.mark.parametrize("text", ["[/]", "[red]x", "\x1b[2J", "a\nb", "\u202ex"], ids=range(5))
def test_texts_of_packages_are_shown_as_they_are(
    fedsieve_: Command, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    entry = Entry(text, Traits(text, text, (), text, text, text), {text: text}, "detector")
    monkeypatch.setattr("fedsieve.cli.list.entries", lambda kind: [entry])
    result = fedsieve_("list", "defenses")
    assert (result.code, result.err) == (0, "")
    assert "".join(result.out.splitlines()).isprintable()
    shown = text if text.isprintable() else text.encode("unicode_escape").decode()
    assert words(result.out).count(shown) == 8
