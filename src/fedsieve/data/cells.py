"""What a cell of a table is: a number, something that only looks like one, a missing value, a date or another word."""

import math
import re
import unicodedata
from datetime import date
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
DECIMAL_COMMA = re.compile(r"[+-]?(?:[0-9]+,[0-9]+|,[0-9]+)(?:[eE][+-]?[0-9]+)?")
_CLOCK = r"(?:[ T]+[0-2]?\d:[0-5]\d(?::[0-5]\d(?:[.,]\d+)?)?(?: ?[AaPp][Mm])?(?:Z| ?[+-]\d{2}:?\d{2}| ?UTC)?)?"
_YEAR_FIRST = re.compile(rf"([12]\d{{3}})([-/.])(\d{{1,2}})\2(\d{{1,2}}){_CLOCK}")
_YEAR_LAST = re.compile(rf"\d{{1,2}}([-/.])\d{{1,2}}\1(?:\d{{2}}|[12]\d{{3}}){_CLOCK}")


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


def is_date(cell: str) -> bool:
    """Whether a word is a date, with or without a time: year first, or year last.

    >>> [is_date(cell) for cell in ("2024-01-31", "31.1.2024 12:30", "1/31/24", "1.2.3", "12:30")]
    [True, True, True, False, False]
    """
    return len(cell) <= _LONGEST and bool(_YEAR_FIRST.fullmatch(cell) or _YEAR_LAST.fullmatch(cell))


def day_of(cell: str) -> float:
    """Days from 1970-01-01 to a date; not a number unless the year is first, since 1/2/2024 is two days.

    >>> day_of("1970-02-01 12:00"), day_of("1/2/1970")
    (31.0, nan)
    """
    if found := _YEAR_FIRST.fullmatch(cell):
        try:
            return float((date(int(found[1]), int(found[3]), int(found[4])) - date(1970, 1, 1)).days)
        except ValueError:  # 2024-02-30
            pass
    return math.nan


def text_of(cell: str) -> str:
    """A cell for an error message: in quotes, without control characters, cut to 40 characters."""
    return repr(cell) if len(cell) <= 40 else f"{cell[:40]!r}..."
