"""Words of error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean", "what_is"]


#: Of known words, those shown.
_MOST_NAMES = 24

def what_is(value: object) -> str:
    """A value in words for an error message."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "nothing"
    text = str(value)
    return repr(text[:64] + "..." if len(text) > 64 else value)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint for an unknown word: the nearest known one, or else what is known."""
    names = sorted(set(known))
    by_folded = {name.casefold(): name for name in names}
    close = difflib.get_close_matches(word.casefold()[:80], by_folded, n=1)
    if close:
        return f"; did you mean {by_folded[close[0]]!r}?"
    if not names:
        return ""
    shown = ", ".join(names[:_MOST_NAMES])
    return f"; known: {shown}{', ...' if len(names) > _MOST_NAMES else ''}"
