"""Made-up trace facts for the scenario tests: no trace files are read."""

from __future__ import annotations

from pathlib import Path

from planner.errors import DataError, NotATraceError
from planner.scenario import ArrivalFacts, GuestFacts, TraceFacts

GIB = 1 << 30
MINUTE_NS = 60 * 10**9
HOUR_NS = 60 * MINUTE_NS


def guest(guest_id: int, name: str, **labels: str) -> GuestFacts:
    return GuestFacts(guest_id, name, "vm", labels, 192 << 20, 40_000)


FLEET = tuple(
    guest(i, f"vm-{i}", tenant=f"tenant-{i % 3 + 1}", role=role, image="debian12")
    for i, role in enumerate(["nginx", "nginx", "redis", "redis", "postgres", "postgres"])
)
TRACES = {
    "fleet": {},
    "copy": {"digest": "c0" * 32, "guests": (guest(0, "vm-0"), guest(7, "solo", tenant="blue"))},
    "short": {"digest": "5a" * 32, "span_ns": 2 * MINUTE_NS, "guests": (guest(0, "brief"),)},
    "single": {"digest": "51" * 32, "span_ns": 0, "n_snapshots": 1, "guests": (guest(0, "once"),)},
    "other-key": {"digest": "ee" * 32, "key_id": "99999999", "guests": (guest(0, "keyed"),)},
    "other-hash": {"digest": "ab" * 32, "algorithm": "blake2b64", "guests": (guest(0, "hashed"),)},
    "empty": {"digest": "00" * 32, "guests": ()},
}


def facts_of(path: Path) -> TraceFacts:
    """Facts by the folder's name; anything else is no trace."""
    if path.name not in TRACES:
        raise NotATraceError("no trace here", where=path.name, instead="capture one first")
    fields = {
        "path": str(path),
        "digest": "f1" * 32,
        "span_ns": 10 * MINUTE_NS,
        "n_snapshots": 5,
        "guests": FLEET,
        "region_label_keys": frozenset({"content", "library"}),
        "region_labels": {"content": frozenset({"heap", "guest-ram"})},
        "key_id": "0badcafe",
        "algorithm": "xxh64-siphash24",
    } | TRACES[path.name]
    return TraceFacts(**fields)


def arrivals_of(path: Path) -> ArrivalFacts:
    """An arrival table of a day, or a fault by the file's name."""
    if path.name != "day.parquet":
        raise DataError("not an arrival table", where=path.name,
                        instead="import one with planner import arrivals")
    return ArrivalFacts(str(path), "da" * 32, 637, 40, HOUR_NS, 23 * HOUR_NS, 64 * GIB)


def refuse(path: Path) -> TraceFacts:
    raise DataError("not for this test", where=str(path))
