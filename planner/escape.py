"""Foreign text made safe: names in traces, scenarios and results may hold anything.

One place for every target: terminals, file names, comments and quoted strings of the files that
are exported. HTML is escaped by the templates themselves.
"""

from __future__ import annotations

import json
import re
import unicodedata

__all__ = ["MAX_LINE", "UNPRINTABLE", "clean", "file_name", "printable", "quoted"]

#: Longest name shown; longer ones end in an ellipsis.
MAX_NAME = 48
#: Longest line of a message on the terminal.
MAX_LINE = 2000
#: Categories that print nothing, move the cursor or turn the text around.
UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def printable(text: str, limit: int = MAX_LINE) -> str:
    """One line without characters that could drive the terminal, at most `limit` long.

    Characters that cannot be shown become U+FFFD, so that it is seen where they were.
    """
    shown = "".join(character if character.isprintable() or character == "\t" else "\ufffd"
                    for character in text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def clean(text: object, limit: int = MAX_NAME) -> str:
    """`text` without control, format and surrogate characters, at most `limit` long."""
    # A name may be far longer than what is shown; look at no more of it than needed.
    head = str(text)[: 4 * limit]
    kept = "".join(c for c in head if unicodedata.category(c) not in UNPRINTABLE).strip()
    if len(kept) > limit or (len(head) < len(str(text)) and kept):
        kept = kept[: limit - 1] + "…"
    return kept or "(unnamed)"


def file_name(text: str, fallback: str = "unnamed", limit: int = 64) -> str:
    """`text` as one part of a path: ASCII letters, digits, `_`, `.` and `-`, no leading dot."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", text[: 4 * limit]).strip("-.")
    return plain[:limit].rstrip("-.") or fallback


def quoted(text: str) -> str:
    """`text` as a double-quoted string on one line that JSON and YAML read alike.

    Characters that cannot be shown become U+FFFD, line ends and tabs their escapes.
    """
    # Escapes of astral characters are pairs in JSON and refused by YAML: they stay as they are.
    shown = "\n".join(printable(line, len(line)) for line in text.split("\n"))
    return json.dumps(shown, ensure_ascii=False)
