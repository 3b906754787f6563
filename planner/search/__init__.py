"""Which domains to join: the greatest saving for a number of exposed domain pairs."""

from __future__ import annotations

__all__: list[str] = []
