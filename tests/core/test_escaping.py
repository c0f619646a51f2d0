"""Text from a stranger in a terminal."""

import pytest

from fedsieve.core.escaping import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("krum", "krum"),
        ("", ""),
        ("Größe 5 µm – 日本語 🙂", "Größe 5 µm – 日本語 🙂"),  # noqa: RUF001
        ("[bold]x[/] <b> \\input $x$", "[bold]x[/] <b> \\input $x$"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\x9b2Jb", "a\\x9b2Jb"),
        ("a\nb\r\tc\x00", "a\\nb\\r\\tc\\x00"),
        ("a\u2028b\u2029c\x85", "a\\u2028b\\u2029c\\x85"),
        ("abc\u202efed", "abc\\u202efed"),
        ("\u2066x\u2069\u200f\u061c", "\\u2066x\\u2069\\u200f\\u061c"),
        ("a\u200bb\ufeff\u00adc", "a\\u200bb\\ufeff\\xadc"),
        ("\udc80", "\\udc80"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_control_and_unseen_characters_become_visible(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown
    shown.encode("utf-8")
