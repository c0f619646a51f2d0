"""Settings in YAML: numbers as they look, limits, one line for everything else."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsieve.config.yaml_files import MAX_BYTES, MAX_DEPTH, parse_yaml, read_yaml, yaml_text
from fedsieve.core.errors import ParameterError

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 30)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("-5", -5),
        ("+5", 5),
        ("0", 0),
        ("0o17", 15),
        ("0x1F", 31),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1.", 1.0),
        ("1e-3", 0.001),
        ("-1E3", -1000.0),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("1:30", "1:30"),
        ("190:20:30", "190:20:30"),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("Off", "Off"),
        ("y", "y"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("2020-01-01", "2020-01-01"),
        ("2020-01-01 10:00:00", "2020-01-01 10:00:00"),
        ("inf", "inf"),
        ("nan", "nan"),
        ("'010'", "010"),
        ('"1e-3"', "1e-3"),
        ("'true'", "true"),
        ("=", "="),
        ("pkg.mod:Class", "pkg.mod:Class"),
        ("a,b", "a,b"),
        ("{a: [1, 'x'], b: {c: no}}", {"a": [1, "x"], "b": {"c": "no"}}),
        ("--- 5\n...", 5),
        ("# nothing", None),
        ("\ufeffa: 1", {"a": 1}),
        ("'<<': 1", {"<<": 1}),
        ("'1': 2", {"1": 2}),
        ("|\n a\n b\n", "a\nb\n"),
    ],
)
def test_values_as_yaml_1_2_reads_them(text: str, value: Any) -> None:
    found = parse_yaml(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", "line 3 has the key 'a' a second time"),
        ("x:\n  a: 1\n  a: 1", "line 3 has the key 'a' a second time"),
        ("a: 1\n'a': 1", "line 2 has the key 'a' a second time"),
        ("a: 010", "line 1 has 010: write 10 for a decimal number, '010' for a text"),
        ("-00", "line 1 has -00: write 0 for a decimal number, '-00' for a text"),
        ("a:\n- .inf", "line 2 has .inf, not a finite number"),
        ("-.INF", "line 1 has -.INF, not a finite number"),
        (".nan", "line 1 has .nan, not a finite number"),
        ("1e400", "line 1 has '1e400', not a finite number"),
        ("9" * 5000, "line 1 has a number of 5000 characters, more than 100"),
        ("-" + "9" * 5000, "line 1 has a number of 5001 characters, more than 100"),
        ("1." + "0" * 5000, "line 1 has a number of 5002 characters, more than 100"),
        ("0x" + "f" * 5000, "line 1 has a number of 5002 characters, more than 100"),
        ("{1: 2}", "line 1 has the key 1, which is no text; in quotes it would be"),
        ("true: 2", "line 1 has the key True, which is no text; in quotes it would be"),
        ("{[a]: 2}", "line 1 has the key ['a'], which is no text; in quotes it would be"),
        ("~: 2", "line 1 has the key None, which is no text; in quotes it would be"),
        ("a: &x 1\nb: *x", "line 1 has an anchor or alias, 'x'"),
        ("&a [*a]", "line 1 has an anchor or alias, 'a'"),
        ("a: *b", "line 1 has an anchor or alias, 'b'"),
        (LAUGHS, "line 1 has an anchor or alias, 'a0'"),
        ("a:\n  <<: {b: 1}", "line 2 has a merge key"),
        ("a: 1\n---\nb: 2", "line 2 has a second document"),
        ("a: !!python/object/apply:os.system [x]", "line 1 has the tag 'tag:yaml.org,2002:python/object/apply:os"),
        ("a: !!str 5", "line 1 has the tag 'tag:yaml.org,2002:str'"),
        ("a: !!binary aGk=", "line 1 has the tag"),
        ("!x {}", "line 1 has the tag '!x'"),
        ("[" * 100_000, f"line 1 has more than {MAX_DEPTH} levels"),
        ("- " * 60 + "x", f"line 1 has more than {MAX_DEPTH} levels"),
        ("? " * 60 + "x", f"line 1 has more than {MAX_DEPTH} levels"),
        ("{a: " * 60, f"line 1 has more than {MAX_DEPTH} levels"),
        ("a" * (MAX_BYTES + 1), "more than 200,000 characters"),
        ("a\0b", "unacceptable character #x0000"),
        ("a: \x1b[2J", "unacceptable character #x001b"),
        ("\udcff", "surrogates not allowed"),
        ("a: b: c", "line 1: mapping values are not allowed in this context"),
        ("{a: 1", "line 2: did not find expected"),
        ("\ta: 1", "line 1: found character that cannot start any token"),
        ("@x", "line 1: found character that cannot start any token"),
    ],
    ids=lambda text: repr(text)[:30],
)  # fmt: skip
def test_one_line_for_everything_else(text: str, said: str) -> None:
    start = time.process_time()
    with pytest.raises(ValueError) as error:  # noqa: PT011 (its text is compared)
        parse_yaml(text)
    assert said in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 300
    assert time.process_time() - start < 0.5


def test_depth_at_its_limit() -> None:
    assert parse_yaml("[" * MAX_DEPTH + "]" * MAX_DEPTH) is not None


ODD = [
    "1e5",
    "010",
    "0o7",
    "0x1",
    "1:30",
    "yes",
    "<<",
    "=",
    "~",
    "null",
    ".inf",
    ".5",
    "1.",
    "2020-01-01",
    "",
    " a",
    "- a",
    "a: b",
    "#x",
    "&a",
    "*a",
    "!x",
    "%x",
    "@x",
    "...",
    "---",
    "\x1b",
    "\u202e",
    "é\n",
]
TEXTS = st.text() | st.sampled_from(ODD)
NUMBERS = st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
TREES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)


@given(TREES, st.booleans())
def test_what_is_written_is_read_again(tree: Any, flow: bool) -> None:
    assert repr(parse_yaml(yaml_text(tree, flow))) == repr(tree)


class TestFiles:
    def refused(self, path: Path) -> str:
        with pytest.raises(ParameterError) as error:
            read_yaml(path)
        assert "\n" not in str(error.value)
        return str(error.value)

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "holds no settings"),
            (b"- a", "holds no settings"),
            (b"krum", "holds no settings"),
            (b"\xff\xfea\x00", "can't decode byte 0xff"),
            (b"a: 1\na: 2", "line 2 has the key 'a' a second time"),
            (b"# " + b"x" * MAX_BYTES, "it has more than 200,000 bytes"),
        ],
    )
    def test_contents(self, tmp_path: Path, content: bytes, said: str) -> None:
        path = tmp_path / "e.yaml"
        path.write_bytes(content)
        assert said in self.refused(path)
        assert str(path) in self.refused(path)

    def test_no_file(self, tmp_path: Path) -> None:
        assert self.refused(tmp_path / "e.yaml").endswith("No such file or directory")
        assert self.refused(tmp_path).endswith("Is a directory")
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        assert "symbolic links" in self.refused(tmp_path / "loop")

    @pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs /dev/zero")
    def test_a_file_without_an_end(self, tmp_path: Path) -> None:
        (tmp_path / "e.yaml").symlink_to("/dev/zero")
        assert "it has more than 200,000 bytes" in self.refused(tmp_path / "e.yaml")

    def test_a_mark_of_byte_order(self, tmp_path: Path) -> None:
        (tmp_path / "e.yaml").write_bytes(b"\xef\xbb\xbfseed: 1" + os.linesep.encode())
        assert read_yaml(tmp_path / "e.yaml") == {"seed": 1}
