"""Progress on standard error: one line with time left, only on a terminal."""

from __future__ import annotations

import sys
import time

from planner.escape import printable

__all__ = ["ProgressLine"]

_QUIET_S = 2.0
_EVERY_S = 0.2
#: Longest name in the line, which must not wrap.
_WIDTH = 48


class ProgressLine:
    """A line that rewrites itself; says nothing in the first two seconds or off a terminal."""

    def __init__(self) -> None:
        self._on = sys.stderr.isatty()
        self._started = time.monotonic()
        self._shown_at = 0.0
        self._width = 0

    def update(self, what: str, share: float) -> None:
        """Show `what` and the share done (0 to 1) with the time left."""
        now = time.monotonic()
        elapsed = now - self._started
        if not self._on or elapsed < _QUIET_S or now - self._shown_at < _EVERY_S:
            return
        self._shown_at = now
        left = f", {elapsed * (1 - share) / share:.0f} s left" if share > 0.02 else ""
        text = f"{printable(what, _WIDTH)}: {share:.0%}{left}"
        sys.stderr.write("\r" + text.ljust(self._width))
        sys.stderr.flush()
        self._width = len(text)

    def done(self) -> None:
        """Clear the line."""
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()
            self._width = 0
