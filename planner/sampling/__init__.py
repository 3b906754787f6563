"""Fleets too large for every page of every host: a share of contents, a part of the hosts.

- `scale`: a host of which a share of the contents is simulated, at the pace of the whole one
- `estimate`: totals of the fleet from the hosts that were simulated, with standard errors
- `design`: how many hosts and which share a wanted error needs
"""

from planner.sampling.design import Design, choose, first_design, sampled_hosts, work_pages
from planner.sampling.estimate import (
    N_GROUPS,
    Groups,
    Observed,
    Total,
    estimate_total,
    saved_by_group,
)
from planner.sampling.scale import (
    FullSizeRecorder,
    Scale,
    scale_of,
    scaled_cost,
    scaled_knobs,
    scaled_policy,
)

__all__ = ["N_GROUPS", "Design", "FullSizeRecorder", "Groups", "Observed", "Scale", "Total",
           "choose", "estimate_total", "first_design", "sampled_hosts", "saved_by_group",
           "scale_of", "scaled_cost", "scaled_knobs", "scaled_policy", "work_pages"]
