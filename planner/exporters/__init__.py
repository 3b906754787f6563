"""From a result to settings that somebody else's software takes.

`export_settings` gives the text of one kind for one policy, `planner.exporters.metrics` the
forecast for a monitoring system. Nothing is applied here: every text says what it changes, what
it is expected to save, from which run that is, and how to undo it. A kind refuses a policy that
it cannot express, with the reason and what can.
"""

from __future__ import annotations

from planner.exporters.common import Current, current_settings
from planner.exporters.settings import KINDS, export_settings

__all__ = ["KINDS", "Current", "current_settings", "export_settings"]
