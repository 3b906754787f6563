"""When things happen: simpy processes that drive one host under one policy.

The engine decides *when* (samples, merge triggers, the time a call takes), the policies decided
*what*, `planner.ksm` knows what happens, the recorder remembers. The clock is integer
nanoseconds since the start; nothing reads the wall clock.
"""

from __future__ import annotations

from collections.abc import Callable

from planner.engine.host_run import HostRun
from planner.fleet import FleetHost
from planner.ksm.cost import CostModel
from planner.ksm.knobs import Knobs
from planner.ksm.space import MergeSpaces
from planner.metrics import Recorder
from planner.scenario.spec import PolicySpec

__all__ = ["simulate_host"]


def simulate_host(host: FleetHost, policy: PolicySpec, *, sensitive: tuple[str, ...],
                  horizon_ns: int, sample_every_ns: int, cost: CostModel, recorder: Recorder,
                  progress: Callable[[int], None] | None = None,
                  knobs: Callable[[Knobs], Knobs] | None = None,
                  at_end: Callable[[MergeSpaces], None] | None = None) -> None:
    """Replay `host` under `policy` from 0 to `horizon_ns` and record samples and events.

    `sensitive` names domains whose exposure is counted apart. `progress` is called with the
    simulated time in ns at each sample, `at_end` with the merge spaces after the last one.
    Everything goes to `recorder`. Pages of a host that is a sample stand for
    `1 / host.content_share` each where free memory is looked at; costs are taken as they are, and
    `knobs` translates those of each scanner before it gets them.
    """
    HostRun(host, policy, sensitive, cost, recorder, knobs).run(horizon_ns, sample_every_ns,
                                                                progress, at_end)
