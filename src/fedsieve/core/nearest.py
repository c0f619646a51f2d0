"""What a user may have meant by a name that does not exist."""

import re
from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: object, known: Iterable[str], cutoff: float = 0.5) -> list[str]:
    """Up to three of the known names, most similar first; capitals and punctuation do not count, and initials do.

    >>> nearest("FashionMNIST", ["har", "fashion-mnist"]), nearest("lr", ["clip_norm", "learning_rate"])
    (['fashion-mnist'], ['learning_rate'])
    """
    by_letters = {_letters(other): other for other in known}
    meant = _letters(str(name))
    by_initials = {"".join(word[0] for word in re.findall(r"[^\W_]+", other)): other for other in by_letters.values()}
    for same in (by_letters, by_initials):
        if meant in same:
            return [same[meant]]
    return [by_letters[found] for found in get_close_matches(meant, by_letters, n=3, cutoff=cutoff)]


def hint(name: object, known: Iterable[str], otherwise: str = "there are", cutoff: float = 0.5) -> str:
    """The end of an error message: the nearest names, or all of them where none is near.

    >>> hint("dp", ["steps", "batch_size"]), hint("batchsize", ["steps", "batch_size"])
    ('there are steps, batch_size', 'did you mean batch_size?')
    """
    there = list(known)
    if near := nearest(name, there, cutoff):
        return f"did you mean {' or '.join(near)}?"
    return f"{otherwise} {', '.join(there) or 'none'}"


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name).casefold() or name
