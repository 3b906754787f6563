"""Planning: from what replicates came to, to what to roll out, what it saves, what is at risk.

`outcome` makes a row of the table of replicates from the samples of one policy and replicate;
`plan` makes the document that is kept as plan.json and that reports tell; `safe_shares` is what
hosts needed are counted with; `effects` ranks what a sweep varied.
"""

from __future__ import annotations

from planner.measures import METRICS
from planner.planning.outcomes import Outcome, outcome
from planner.planning.plan import plan, safe_shares
from planner.planning.samples import Fleet
from planner.planning.sensitivity import effects
from planner.planning.summary import summary_row
from planner.planning.sweeps import inputs_of, points_of, sweep_document

__all__ = ["METRICS", "Fleet", "Outcome", "effects", "inputs_of", "outcome", "plan", "points_of",
           "safe_shares", "summary_row", "sweep_document"]
