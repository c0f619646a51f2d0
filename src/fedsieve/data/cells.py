"""What a cell of a table is: a number, something that only looks like one, a missing value, or a word."""

import re
import unicodedata
from typing import Literal

Kind = Literal["number", "nearly", "missing", "word"]

# What common programs write for a value that is not there; compared in lower case.
MISSING = frozenset(
    {"", "?", ".", "-", "--", "\N{EN DASH}", "\N{EM DASH}", "na", "n/a", "n.a.", "#n/a", "#n/a n/a", "#na", "<na>"}
    | {"nan", "-nan", "nat", "null", "none", "nil", "(null)"}
)
NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")

# Numbers as people and other programs write them. None is written plainly enough to be sure of its value.
_SHAPES = (
    r"\d{1,3}(?:[,.'_ ]\d{3})+(?:[.,]\d+)?",  # 5,400 or 1.234,5 or 12 000
    r"\d{1,2}(?:,\d{2})+,\d{3}(?:\.\d+)?",  # 1,00,000
    r"(?:\d+[,.]?\d*|[,.]\d+)(?:[ed][+-]?\d+)?",  # 5,4 or 1.5d3, and digits of other scripts
    r"\d+(?:_\d+)+",
    r"0x[0-9a-f]+",
    r"inf(?:inity)?",
)
_MONEY = "[$\N{EURO SIGN}\N{POUND SIGN}\N{YEN SIGN}\N{INDIAN RUPEE SIGN}]"
_NEARLY = re.compile(rf"\(?[+-]? ?(?:{_MONEY} ?)?[+-]?(?:{'|'.join(_SHAPES)})(?: ?(?:%|{_MONEY}))?\)?", re.IGNORECASE)
_PLAIN = str.maketrans(
    {
        "\N{MINUS SIGN}": "-",
        "\N{RIGHT SINGLE QUOTATION MARK}": "'",
        "\N{ARABIC DECIMAL SEPARATOR}": ".",
        "\N{ARABIC THOUSANDS SEPARATOR}": ",",
    }
)
_LONGEST = 100  # characters of what may look like a number


def kind_of(cell: str, missing: frozenset[str] = frozenset()) -> Kind:
    """What a cell is.

    Args:
        cell: The text of the cell, without outer spaces.
        missing: Texts, in lower case, that mean a missing value beside the usual ones.

    >>> [kind_of(cell) for cell in ("-1.5e3", "5,400", "1_000", "inf", "N/A", "7 km")]
    ['number', 'nearly', 'nearly', 'nearly', 'missing', 'word']
    """
    if NUMBER.fullmatch(cell):
        return "missing" if cell.lower() in missing else "number"
    if cell.lower() in MISSING or cell.lower() in missing:
        return "missing"
    if len(cell) > _LONGEST:
        return "word"
    return "nearly" if _NEARLY.fullmatch(unicodedata.normalize("NFKC", cell).translate(_PLAIN)) else "word"


def text_of(cell: str) -> str:
    """A cell for an error message: in quotes, without control characters, cut to 40 characters."""
    return repr(cell) if len(cell) <= 40 else f"{cell[:40]!r}..."
