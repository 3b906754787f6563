"""KSM counters over time, from this host or from a monitoring system, in one Parquet table.

One row per sample and counter. Counters have the kernel's names (`pages_shared`, `full_scans`,
`cow_ksm`, ...); `ksmd_cpu_ns` is the CPU time of the ksmd thread; `ksmtuned_committed_bytes` and
`ksmtuned_free_bytes` are what ksmtuned saw. Times are Unix time in ns; values are integers
(`sleep_millisecs` in ms, `advisor_mode` 0 none, 1 scan-time).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from planner.errors import DataError
from planner.inventory import refuse_existing, write_private
from planner.tables import TableKind, read_table

__all__ = ["COUNTERS", "KNOWN", "CounterTable", "Sample", "read_counters", "write_counters"]

COUNTERS = TableKind("planner.counters", 1, 0, pa.schema([
    pa.field("time_ns", pa.int64(), nullable=False),
    pa.field("host", pa.string(), nullable=False),
    pa.field("process", pa.string()),
    pa.field("counter", pa.string(), nullable=False),
    pa.field("value", pa.int64(), nullable=False),
]), delta_columns=("time_ns",))

#: Files of /sys/kernel/mm/ksm that hold one integer, and the counters of /proc/vmstat.
KNOWN = frozenset({
    "advisor_max_cpu", "advisor_max_pages_to_scan", "advisor_min_pages_to_scan", "advisor_mode",
    "advisor_target_scan_time", "cow_ksm", "full_scans", "general_profit", "ksm_swpin_copy",
    "ksm_zero_pages", "max_page_sharing", "merge_across_nodes", "pages_scanned", "pages_shared",
    "pages_sharing", "pages_skipped", "pages_to_scan", "pages_unshared", "pages_volatile", "run",
    "sleep_millisecs", "smart_scan", "stable_node_chains", "stable_node_chains_prune_millisecs",
    "stable_node_dups", "use_zero_pages"})


class Sample(NamedTuple):
    """One value of one counter at one time; `process` is set for counters of one process."""

    time_ns: int
    host: str
    counter: str
    value: int
    process: str | None = None


@dataclass(frozen=True, slots=True)
class CounterTable:
    """All samples of one file, in order of time."""

    path: str
    samples: tuple[Sample, ...]
    provenance: Mapping[str, Any]

    @property
    def hosts(self) -> list[str]:
        """Hosts with samples, sorted."""
        return sorted({sample.host for sample in self.samples})

    def series(self, host: str, counter: str) -> tuple[np.ndarray, np.ndarray]:
        """Times (i64[n], ns, rising) and values (i64[n]) of one host-wide counter."""
        found = {sample.time_ns: sample.value for sample in self.samples
                 if sample.host == host and sample.counter == counter and sample.process is None}
        times = sorted(found)
        return (np.array(times, np.int64),
                np.array([found[time] for time in times], np.int64))


def write_counters(path: Path, samples: Iterable[Sample], provenance: Mapping[str, Any], *,
                   force: bool = False) -> int:
    """Write samples to a new file at `path` (mode 0600), aside and renamed; returns their number.

    They are put in order of time, host and counter; of equal ones one is kept.
    """
    refuse_existing(path, force)
    ordered = sorted(set(samples), key=lambda s: (s.time_ns, s.host, s.process or "", s.counter))
    columns = {name: [getattr(sample, name) for sample in ordered]
               for name in COUNTERS.schema.names}
    write_private(path, COUNTERS, pa.table(columns, schema=COUNTERS.schema), provenance)
    return len(ordered)


def read_counters(path: Path) -> CounterTable:
    """The counters at `path`; raises DataError where it holds none."""
    table, metadata = read_table(path, COUNTERS)
    samples = tuple(Sample(**row) for row in table.to_pylist())
    if not samples:
        raise DataError("holds no sample", where=str(path), instead="capture or import again")
    provenance = metadata.get("provenance")
    return CounterTable(str(path), samples, provenance if isinstance(provenance, dict) else {})
