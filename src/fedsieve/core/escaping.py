"""Text from a file or a stranger, made safe to show."""

import unicodedata
from typing import Any

# Control, format (bidirectional overrides, zero width) and surrogate characters; separators of lines and paragraphs.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def printable(text: str) -> str:
    r"""``text`` in one line, with visible escapes in place of characters that control a terminal or can't be seen.

    These are control characters (escape sequences, line breaks), bidirectional overrides, zero-width characters and
    lone surrogates. Markup of rich, HTML or LaTeX is left as it is.

    >>> print(printable("krum\x1b[2J\n\u202emean"))
    krum\x1b[2J\n\u202emean
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in _UNSEEN else c for c in text)


def shown(value: Any) -> str:
    """A value in an error message: in one line, not too long.

    >>> shown("a" * 1000)[-10:], shown(10**5000)
    ('aaaaaaa...', 'a number of 16610 bits')
    """
    if isinstance(value, int) and value.bit_length() > 1000:  # Python refuses to write the largest
        return f"a number of {value.bit_length()} bits"
    text = printable(repr(value))
    return text if len(text) <= 100 else f"{text[:97]}..."
