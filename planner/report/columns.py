"""Tables of plain text for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "BOLD",
    "DIM",
    "GREEN",
    "RED",
    "YELLOW",
    "Column",
    "render_table",
    "sgr",
    "short_count",
    "table_width",
]

#: SGR parameters.
BOLD, RED, GREEN, YELLOW, DIM = "1", "31", "32", "33", "2"


@dataclass(frozen=True, slots=True)
class Column:
    """One column: `head` of one to three lines, `cells` top to bottom, `styles` SGR or empty."""

    head: tuple[str, ...]
    cells: tuple[str, ...]
    styles: tuple[str, ...] = ()
    is_left: bool = False

    @property
    def width(self) -> int:
        """Characters of the widest line."""
        return max(map(len, self.head + self.cells), default=0)


def _pad(text: str, column: Column, width: int) -> str:
    return text.ljust(width) if column.is_left else text.rjust(width)


def sgr(text: str, style: str, colour: bool) -> str:
    """`text` in an SGR style where colours are wanted and there is something to colour."""
    return f"\x1b[{style}m{text}\x1b[0m" if colour and style and text.strip() else text


def table_width(columns: Sequence[Column], gap: int = 2) -> int:
    """Characters of a table's widest line with `gap` spaces between columns."""
    return sum(column.width for column in columns) + gap * (len(columns) - 1)


def render_table(columns: Sequence[Column], *, width: int, colour: bool,
                 gap: int = 2) -> list[str]:
    """Lines of a table at most `width` wide; too wide, it goes on in further tables.

    The first column names the rows and leads every part. Lines of a single column that is too
    wide stay so.
    """
    between = " " * gap
    first, rest = columns[0], list(columns[1:])
    lines: list[str] = []
    while rest:
        part = [first, rest.pop(0)]
        while rest and table_width([*part, rest[0]], gap) <= width:
            part.append(rest.pop(0))
        if lines:
            lines.append("")
        depth = max(len(column.head) for column in part)
        for level in range(depth):
            cells = []
            for column in part:
                head = ("",) * (depth - len(column.head)) + column.head
                cells.append(_pad(head[level], column, column.width))
            lines.append(sgr(between.join(cells).rstrip(), BOLD, colour))
        for i in range(len(first.cells)):
            cells = [sgr(_pad(column.cells[i], column, column.width),
                          column.styles[i] if column.styles else "", colour) for column in part]
            lines.append(between.join(cells).rstrip())
    return lines


def short_count(n: int) -> str:
    """A count in at most five characters, such as `812`, `61.2k` or `1.34M`."""
    if n < 1_000:
        return str(n)
    value = float(n)
    for unit in ("k", "M", "G"):
        value /= 1000
        if value < 999.5 or unit == "G":
            break
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f}{unit}"
