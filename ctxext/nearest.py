"""The nearest of some known names, for messages about one that is unknown."""

import difflib
from collections.abc import Iterable

CLOSE = 0.6
"""How alike two names must be, from 0 to 1, for one to be taken for the other."""


def nearest(name: str, known: Iterable[str], *, close: float = CLOSE) -> str | None:
    """The known name that is most like `name`, whatever their case; None if none is close."""
    by_folded = {candidate.casefold(): candidate for candidate in known}
    found = difflib.get_close_matches(name.casefold(), by_folded, 1, close)
    return by_folded[found[0]] if found else None


def hint(name: str, known: Iterable[str], *, close: float = CLOSE) -> str:
    """ "did you mean 'x'?", or all known names if none is close."""
    known = list(known)
    found = nearest(name, known, close=close)
    return f"did you mean {found!r}?" if found else f"known: {', '.join(known)}"
