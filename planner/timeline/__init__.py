"""Fleet events: who comes when (`requests`), where they stand (`clock`, `placement`, `admission`).

    requests = draw_requests(scenario, captured_bytes, replicate, arrivals)
    timeline = place(scenario, requests, sketches, replicate)
"""

from __future__ import annotations

from planner.timeline.admission import SafeSaving
from planner.timeline.clock import place
from planner.timeline.fewest import fewest_hosts
from planner.timeline.records import Cause, Incident, Pressure, Requests, Sketches, Timeline
from planner.timeline.requests import draw_requests

__all__ = ["Cause", "Incident", "Pressure", "Requests", "SafeSaving", "Sketches", "Timeline",
           "draw_requests", "fewest_hosts", "place"]
