"""The Selective KSM calls: names, modes, errno, lifetimes, counts."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from planner.ksm import (
    KSM_CREAT,
    KSM_EXCL,
    KSM_SYNC,
    Credentials,
    EventTable,
    Knobs,
    MergeSpaces,
    SelectiveKsm,
)
from tests.ksm_worlds import site_table

MS = 1_000_000
PAGE = 4096
BASE = 0x7F00_0000_0000
PID_A, PID_B = 4711, 4712
NEW = KSM_SYNC | KSM_CREAT
USER = Credentials(
    uid=1000, gid=100, groups=(50,), has_cap_dac_override=False, has_cap_fowner=False, umask=0o027
)


def host(**options: object) -> tuple[SelectiveKsm, MergeSpaces]:
    """Two processes with 8 equal pages each, the last two of each in partition "b", others "a"."""
    sites, is_zero = site_table(([0] * 6 + [1] * 2) * 2, [1] * 16, mm=[0] * 8 + [1] * 8)
    vpn = BASE // PAGE + np.arange(16) % 8
    spaces = MergeSpaces(
        replace(sites, vpn=vpn),
        EventTable.empty(),
        n_partitions=2,
        content_is_zero=is_zero,
        domain_is_sensitive=[False, False],
    )
    mms = {PID_A: 0, PID_B: 1}
    return SelectiveKsm(spaces, ["a", "b"], mms, **options), spaces


def refusal(call: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(OSError, match=r".+") as caught:
        call(*arguments)
    assert caught.value.errno is not None
    if caught.value.errno == errno.EOPNOTSUPP:  # one number with ENOTSUP on Linux
        return "EOPNOTSUPP"
    return errno.errorcode[caught.value.errno]


def test_merging_stays_within_the_partition_and_says_what_it_did() -> None:
    ksm, spaces = host()
    a = ksm.ksm_open("a", os.O_RDWR | NEW | KSM_EXCL, 0o600)
    b = ksm.ksm_open("b", os.O_RDWR | NEW, 0o600)
    assert (a, b) == (3, 4)
    first = ksm.ksm_merge(a, PID_A, BASE, 8 * PAGE)
    assert (first.requested_pages, first.tried_pages) == (8, 6)
    assert (first.candidate_pages, first.merged_pages) == (1, 5)
    second = ksm.ksm_merge(a, PID_B, BASE, 8 * PAGE)
    assert (second.tried_pages, second.merged_pages) == (6, 6)
    for pid in (PID_A, PID_B):
        ksm.ksm_merge(b, pid, BASE, 8 * PAGE)
    files = ksm.counters(a)
    assert (files["pages_shared"], files["pages_sharing"]) == (1, 11)
    assert (files["calls"], files["pages_scanned"], files["mode"]) == (2, 12, 0o600)
    assert files["general_profit"] == 11 * 4096 - 12 * 64
    assert ksm.counters(b)["pages_sharing"] == 3
    assert spaces.counters().saved_frames == 14
    assert ksm.ksm_unmerge(a, PID_B, BASE + PAGE, 2 * PAGE).unmerged_pages == 2
    assert ksm.counters(a)["pages_sharing"] == 9
    assert spaces.counters().merge_cpu_ns > 5 * spaces.cost.call_ns


def test_names_are_checked() -> None:
    ksm, _ = host()
    for name in ("", ".", "..", "/", "a/b", "/a", "a\0b"):
        assert refusal(ksm.ksm_open, name, NEW) == "EINVAL"
        assert refusal(ksm.ksm_unlink, name) == "EINVAL"
    assert refusal(ksm.ksm_open, "n" * 64, NEW) == "ENAMETOOLONG"
    assert refusal(ksm.ksm_open, "ä" * 32, NEW) == "ENAMETOOLONG"
    assert refusal(ksm.ksm_unlink, "n" * 64) == "ENAMETOOLONG"
    ksm.ksm_open("n" * 63, NEW)
    assert ksm.partition_names == ("n" * 63,)


def test_flags_and_modes_are_checked() -> None:
    ksm, _ = host()
    assert refusal(ksm.ksm_open, "a", 3 | NEW) == "EINVAL"
    assert refusal(ksm.ksm_open, "a", NEW | os.O_TRUNC) == "EINVAL"
    assert refusal(ksm.ksm_open, "a", NEW, 0o1600) == "EINVAL"
    assert refusal(ksm.ksm_open, "a", KSM_SYNC) == "ENOENT"
    assert refusal(ksm.ksm_open, "a", KSM_SYNC | KSM_EXCL) == "ENOENT"
    ksm.ksm_open("a", NEW | KSM_EXCL | os.O_CLOEXEC)
    assert refusal(ksm.ksm_open, "a", NEW | KSM_EXCL) == "EEXIST"
    assert ksm.ksm_open("a", NEW) == 4
    assert ksm.ksm_open("a", KSM_SYNC | KSM_EXCL) == 5


def test_a_read_only_descriptor_reads_counters_and_does_not_merge() -> None:
    ksm, _ = host()
    fd = ksm.ksm_open("a", os.O_RDONLY | NEW)
    assert ksm.counters(fd)["pages_shared"] == 0
    assert refusal(ksm.ksm_merge, fd, PID_A, BASE, PAGE) == "EACCES"
    assert refusal(ksm.ksm_unmerge, fd, PID_A, BASE, PAGE) == "EACCES"
    blind = ksm.ksm_open("a", os.O_WRONLY | KSM_SYNC)
    assert ksm.ksm_merge(blind, PID_A, BASE, PAGE).tried_pages == 1
    assert refusal(ksm.counters, blind) == "EACCES"


@pytest.mark.parametrize(
    ("mode", "who", "access", "is_allowed"),
    [
        (0o600, USER, os.O_RDWR, True),
        (0o400, USER, os.O_RDWR, False),
        (0o400, USER, os.O_RDONLY, True),
        (0o200, USER, os.O_WRONLY, True),
        (0o077, USER, os.O_RDONLY, False),  # the owner's class counts, not the widest
        (0o640, replace(USER, uid=1), os.O_RDONLY, True),
        (0o640, replace(USER, uid=1), os.O_WRONLY, False),
        (0o640, replace(USER, uid=1, gid=9, groups=(100,)), os.O_RDONLY, True),
        (0o640, replace(USER, uid=1, gid=9), os.O_RDONLY, False),
        (0o647, replace(USER, uid=1, gid=9), os.O_RDONLY, False),  # the umask took it
        (0o600, replace(USER, uid=1, has_cap_dac_override=True), os.O_RDWR, True),
    ],
)
def test_permission_bits_decide_who_may_open(
    mode: int, who: Credentials, access: int, is_allowed: bool
) -> None:
    ksm, _ = host(credentials=USER)
    ksm.ksm_open("a", os.O_RDWR | NEW, mode)  # the creator gets what it asks for
    ksm.credentials = who
    if is_allowed:
        ksm.ksm_open("a", access | KSM_SYNC)
    else:
        assert refusal(ksm.ksm_open, "a", access | KSM_SYNC) == "EACCES"


def test_only_the_owner_or_cap_fowner_unlinks() -> None:
    ksm, _ = host(credentials=USER)
    ksm.ksm_open("a", NEW)
    ksm.credentials = replace(USER, uid=1)
    assert refusal(ksm.ksm_unlink, "a") == "EACCES"
    ksm.credentials = replace(USER, uid=1, has_cap_fowner=True)
    ksm.ksm_unlink("a")
    assert refusal(ksm.ksm_unlink, "a") == "ENOENT"


def test_ranges_and_processes_are_checked() -> None:
    ksm, _ = host()
    fd = ksm.ksm_open("a", os.O_RDWR | NEW)
    bad = [(BASE + 1, PAGE), (BASE, PAGE + 1), (BASE, 0), (BASE, -PAGE), (-PAGE, PAGE)]
    for addr, size in [*bad, (2**64 - PAGE, 2 * PAGE)]:
        assert refusal(ksm.ksm_merge, fd, PID_A, addr, size) == "EINVAL"
        assert refusal(ksm.ksm_unmerge, fd, PID_A, addr, size) == "EINVAL"
    assert refusal(ksm.ksm_merge, fd, 1, BASE, PAGE) == "ESRCH"
    assert refusal(ksm.ksm_merge, fd + 1, PID_A, BASE, PAGE) == "EBADF"
    assert refusal(ksm.counters, 0) == "EBADF"
    whole = ksm.ksm_merge(fd, PID_A, 0, 2**64 - PAGE)
    assert whole.tried_pages == 6
    assert ksm.counters(fd)["calls"] == 1


def test_a_partition_lives_until_it_is_unlinked_and_closed() -> None:
    ksm, spaces = host()
    fd = ksm.ksm_open("a", os.O_RDWR | NEW)
    ksm.ksm_merge(fd, PID_A, BASE, 8 * PAGE)
    ksm.close(fd)
    assert refusal(ksm.close, fd) == "EBADF"
    assert spaces.counters().pages_sharing == 5
    fd = ksm.ksm_open("a", os.O_RDWR | KSM_SYNC)
    assert fd == 3
    ksm.ksm_unlink("a")
    assert ksm.partition_names == ()
    assert refusal(ksm.ksm_open, "a", KSM_SYNC) == "ENOENT"
    assert ksm.ksm_merge(fd, PID_A, BASE, 8 * PAGE).already_pages == 6
    ksm.close(fd)
    after = spaces.counters()
    assert (after.pages_shared, after.rmap_items, after.saved_frames) == (0, 0, 0)
    again = ksm.ksm_open("a", os.O_RDWR | NEW)
    assert ksm.ksm_merge(again, PID_A, BASE, 8 * PAGE).merged_pages == 5


def test_a_name_created_again_is_another_partition() -> None:
    ksm, spaces = host()
    old = ksm.ksm_open("a", os.O_RDWR | NEW)
    ksm.ksm_merge(old, PID_A, BASE, 3 * PAGE)
    ksm.ksm_unlink("a")
    new = ksm.ksm_open("a", os.O_RDWR | NEW | KSM_EXCL)
    counts = ksm.ksm_merge(new, PID_A, BASE, 6 * PAGE)
    assert (counts.refused_pages, counts.merged_pages, counts.candidate_pages) == (3, 2, 1)
    assert ksm.counters(old)["pages_sharing"] == 2
    assert ksm.counters(new)["pages_sharing"] == 2
    assert spaces.partition_counters()[0].pages_sharing == 4
    assert spaces.partition_counters()[0].pages_shared == 2
    ksm.close(old)
    assert ksm.ksm_merge(new, PID_A, BASE, 6 * PAGE).merged_pages == 3
    assert spaces.partition_counters()[0].pages_shared == 1


def test_a_partition_without_ksm_sync_is_served_in_the_background() -> None:
    ksm, spaces = host(knobs=Knobs(pages_to_scan=1000, sleep_millisecs=20))
    spaces.advance(500 * MS)
    fd = ksm.ksm_open("a", os.O_RDWR | KSM_CREAT)
    assert refusal(ksm.ksm_merge, fd, PID_A, BASE, PAGE) == "EOPNOTSUPP"
    assert refusal(ksm.ksm_unmerge, fd, PID_A, BASE, PAGE) == "EOPNOTSUPP"
    assert refusal(ksm.ksm_open, "a", os.O_RDWR | KSM_SYNC) == "EOPNOTSUPP"
    spaces.advance(540 * MS)
    assert ksm.counters(fd)["full_scans"] == 2
    assert ksm.counters(fd)["pages_sharing"] == 11
    assert spaces.partition_counters()[1].rmap_items == 0
    ksm.ksm_unlink("a")
    ksm.close(fd)
    spaces.advance(1000 * MS)
    assert spaces.counters().pages_sharing == 0
    assert spaces.counters().full_scans == 2


def test_a_synchronous_partition_is_never_scanned() -> None:
    ksm, spaces = host()
    fd = ksm.ksm_open("a", os.O_RDWR | NEW)
    reader = ksm.ksm_open("a", os.O_RDWR)  # without KSM_SYNC: may not merge
    assert refusal(ksm.ksm_merge, reader, PID_A, BASE, PAGE) == "EOPNOTSUPP"
    assert spaces.advance(10_000 * MS) == []
    assert ksm.counters(fd)["pages_scanned"] == 0


def test_a_name_outside_the_plan_is_a_partition_without_pages() -> None:
    ksm, spaces = host()
    fd = ksm.ksm_open("elsewhere", os.O_RDWR | NEW)
    counts = ksm.ksm_merge(fd, PID_A, BASE, 8 * PAGE)
    assert (counts.requested_pages, counts.tried_pages) == (8, 0)
    assert ksm.ksm_unmerge(fd, PID_A, BASE, 8 * PAGE).unmerged_pages == 0
    assert ksm.counters(fd)["calls"] == 2
    ksm.ksm_unlink("elsewhere")
    ksm.close(fd)
    assert spaces.counters().rmap_items == 0


def test_descriptors_run_out() -> None:
    ksm, _ = host(max_open=2)
    first = ksm.ksm_open("a", NEW)
    ksm.ksm_open("a", NEW)
    assert refusal(ksm.ksm_open, "b", NEW) == "EMFILE"
    assert ksm.partition_names == ("a",)
    ksm.close(first)
    assert ksm.ksm_open("b", NEW) == first


def test_the_limit_of_sharers_is_that_of_the_host() -> None:
    ksm, _ = host(knobs=Knobs(max_page_sharing=3))
    fd = ksm.ksm_open("a", os.O_RDWR | NEW)
    for pid in (PID_A, PID_B):
        ksm.ksm_merge(fd, pid, BASE, 8 * PAGE)
    assert ksm.counters(fd)["pages_shared"] == 4


def test_names_must_fit_the_partitions() -> None:
    _, spaces = host()
    for names in (["a", "a"], ["a", "b", "c"]):
        with pytest.raises(ValueError, match="one name"):
            SelectiveKsm(spaces, names, {})
