"""Selective KSM by the rules of the kernel module, worked out by hand."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from planner.ksm import (
    Credentials,
    EventTable,
    MergeSpaces,
    ModuleMemory,
    partition_object,
)
from planner.ksm.partition_names import KSM_CREAT, KSM_SYNC
from planner.ksm.partition_rules import KERNEL_THREAD, ModuleKsm, RangeCounts
from planner.ksm.selective import SelectiveKsm
from tests.agreement.machine import differences
from tests.agreement.script import ModelRun, n_calls, random_script, scripts
from tests.ksm_worlds import site_table

PAGE = 4096
A, B = 100, 101
NEW = os.O_RDWR | KSM_SYNC | KSM_CREAT


def machine(*contents: list[int]) -> tuple[ModuleMemory, ModuleKsm, int]:
    """A process from pid 100 on for each list, its pages from vpn 0; and a partition's fd."""
    memory = ModuleMemory()
    for pid, pages in enumerate(contents, A):
        memory.spawn(pid)
        memory.map(pid, 0, len(pages))
        memory.write(pid, 0, pages)
    ksm = ModuleKsm(memory)
    return memory, ksm, ksm.ksm_open("p", NEW)


def merge(ksm: ModuleKsm, fd: int, pid: int, n: int, start: int = 0) -> RangeCounts:
    counts = ksm.ksm_merge(fd, pid, start * PAGE, n * PAGE)
    assert counts.n_requested == n == (
        counts.n_absent + counts.n_already + counts.n_merged + counts.n_candidates
        + counts.n_volatile + counts.refused.total())
    return counts


def refusal(call: Callable[..., object], *arguments: object) -> int | None:
    with pytest.raises(OSError, match=r".+") as caught:
        call(*arguments)
    return caught.value.errno


def test_the_first_of_a_content_waits_and_the_second_takes_it_along() -> None:
    _, ksm, fd = machine([1, 2, 1, 1], [2, 3])
    counts = merge(ksm, fd, A, 4)
    assert (counts.n_candidates, counts.n_merged, counts.n_partners) == (2, 2, 1)
    counts = merge(ksm, fd, B, 2)
    assert (counts.n_candidates, counts.n_merged, counts.n_partners) == (1, 1, 1)
    files = ksm.files("p")
    assert (files["pages_shared"], files["pages_sharing"], files["pages_unshared"]) == (2, 3, 1)


def test_pages_of_zeroes_merge_but_the_shared_zero_page_does_not() -> None:
    memory, ksm, fd = machine([0, 0])
    memory.map(A, 2, 2)
    memory.read(A, 2, 1)
    counts = merge(ksm, fd, A, 5)
    assert (counts.n_merged, counts.n_partners, counts.n_absent) == (1, 1, 2)
    assert counts.refused == {"zero_page": 1}


def test_what_the_kernel_needs_the_module_refuses() -> None:
    memory, ksm, fd = machine([1] * 6)
    memory.advise(A, 0, 2, is_mergeable=True)
    memory.lock(A, 2, 1)
    memory.wipe_on_fork(A, 3, 1, is_wiped=True)
    assert merge(ksm, fd, A, 6).refused == {"mergeable": 2, "locked": 1, "mapping": 1}


def test_pages_shared_since_a_fork_are_refused_until_one_side_is_written_or_gone() -> None:
    memory, ksm, fd = machine([1, 1, 1])
    memory.fork(A, B)
    assert merge(ksm, fd, A, 3).refused == {"shared": 3}
    memory.write(B, 0, [1])
    counts = merge(ksm, fd, A, 3)
    assert (counts.n_candidates, counts.refused) == (1, {"shared": 2})
    memory.exit(B)
    assert merge(ksm, fd, A, 3).n_merged == 2


def test_merged_pages_are_inherited_and_written_in_private() -> None:
    memory, ksm, fd = machine([1, 1])
    merge(ksm, fd, A, 2)
    memory.fork(A, B)
    assert ksm.files("p")["pages_sharing"] == 3
    memory.write(B, 0, [5])
    assert ksm.files("p")["pages_sharing"] == 2
    assert memory.processes[A].places[0].frame is memory.processes[B].places[1].frame


def test_huge_pages_are_refused_until_they_are_replaced_by_small_ones() -> None:
    memory, ksm, fd = machine([])
    memory.map(A, 512, 1024, huge=True)
    memory.write(A, 600, [7])
    assert merge(ksm, fd, A, 1024, 512).refused == {"thp": 512}
    memory.dontneed(A, 600, 2)
    memory.write(A, 600, [7, 7])
    counts = merge(ksm, fd, A, 512, 512)
    assert (counts.n_merged, counts.refused) == (1, {"thp": 510})
    memory.dontneed(A, 1024, 512)
    memory.write(A, 1100, [1])
    assert merge(ksm, fd, A, 512, 1024).refused == {"thp": 512}


def test_a_candidate_that_changed_is_found_by_its_new_content() -> None:
    memory, ksm, fd = machine([1, 2], [1, 5])
    merge(ksm, fd, A, 1)
    memory.write(A, 0, [5])
    counts = merge(ksm, fd, B, 2)
    # The first page of B looks at the candidate, which has become one for the second.
    assert (counts.n_candidates, counts.n_merged, counts.n_partners) == (1, 1, 1)


def test_an_item_that_is_a_partner_too_is_counted_once() -> None:
    memory, ksm, fd = machine([2, 1])
    merge(ksm, fd, A, 1, 1)
    memory.write(A, 0, [1])
    counts = merge(ksm, fd, A, 2)
    assert (counts.n_merged, counts.n_partners, counts.n_candidates) == (2, 0, 0)


def test_steps_of_512_pages_find_what_the_step_before_has_merged() -> None:
    memory, ksm, fd = machine(list(range(1, 601)))
    merge(ksm, fd, A, 1, 599)
    memory.write(A, 0, [600])
    counts = merge(ksm, fd, A, 600)
    assert (counts.n_merged, counts.n_partners, counts.n_already) == (1, 1, 1)


def test_partitions_refuse_what_another_has_merged_also_when_it_is_gone() -> None:
    _, ksm, fd = machine([1, 1], [1, 1])
    other = ksm.ksm_open("q", NEW)
    merge(ksm, fd, A, 2)
    assert merge(ksm, other, A, 2).refused == {"foreign": 2}
    assert ksm.ksm_unmerge(other, A, 0, 2 * PAGE).refused == {"foreign": 2}
    ksm.ksm_unlink("p")
    ksm.close(fd)
    again = ksm.ksm_open("p", NEW)
    assert merge(ksm, again, A, 2).refused == {"foreign": 2}
    assert merge(ksm, again, B, 2).n_merged == 1


def test_unmerging_forgets_candidates_and_gives_frames_back() -> None:
    memory, ksm, fd = machine([1, 1, 2])
    merge(ksm, fd, A, 3)
    counts = ksm.ksm_unmerge(fd, A, 0, 4 * PAGE)
    assert (counts.n_unmerged, counts.n_already, counts.n_absent) == (2, 1, 1)
    files = ksm.files("p")
    assert (files["pages_shared"], files["pages_unshared"], files["n_unmerged"]) == (0, 0, 2)
    assert len({id(place.frame) for place in memory.processes[A].places.values()}) == 3


def test_a_scanner_merges_what_stayed_the_same_and_only_what_is_attached() -> None:
    _, ksm, _ = machine([1, 1, 1])
    fd = ksm.ksm_open("s", os.O_RDWR | KSM_CREAT)
    ksm.ksm_attach(fd, A, 0, 3 * PAGE)
    ksm.ksm_detach(fd, A, PAGE, PAGE)
    ksm.scan("s")
    assert (ksm.files("s")["pages_sharing"], ksm.files("s")["pages_unshared"]) == (1, 0)
    ksm.ksm_unlink("s")
    assert refusal(ksm.ksm_attach, fd, A, 0, PAGE) == errno.EOPNOTSUPP


def test_processes_are_checked_after_the_range_and_permission_comes_last() -> None:
    _, ksm, fd = machine([1])
    assert refusal(ksm.ksm_merge, fd, 4000, 1, PAGE) == errno.EINVAL
    assert refusal(ksm.ksm_merge, fd, 4000, 0, PAGE) == errno.ESRCH
    assert refusal(ksm.ksm_merge, fd, KERNEL_THREAD, 0, PAGE) == errno.EINVAL
    ksm.is_merging_allowed = False
    assert refusal(ksm.ksm_merge, fd, A, 0, PAGE) == errno.EPERM
    assert refusal(ksm.ksm_open, "/", NEW) == errno.EPERM
    assert ksm.ksm_unmerge(fd, A, 0, PAGE).n_already == 1
    ksm.credentials = Credentials(uid=1, has_cap_sys_ptrace=False)
    assert refusal(ksm.ksm_unmerge, fd, A, 0, PAGE) == errno.EPERM
    assert ksm.files("p")["calls"] == 1


def test_planning_goes_by_the_kernels_rules() -> None:
    sites, is_zero = site_table([0, 0], [1, 1])
    spaces = MergeSpaces(sites, EventTable.empty(), n_partitions=1, content_is_zero=is_zero,
                         domain_is_sensitive=[False])
    planned = partition_object(spaces, names=["a"], mms={4711: 0})
    assert isinstance(planned, SelectiveKsm)
    assert planned.rules == "kernel"
    module = partition_object(ModuleMemory(), rules="module")
    assert isinstance(module, ModuleKsm)
    assert module.rules == "module"
    with pytest.raises(TypeError, match="do not go with"):
        partition_object(spaces, rules="module")


def test_the_comparison_sees_every_answer() -> None:
    script = random_script(5)
    answers = list(map(ModelRun(), script))
    assert differences(script, answers) == []
    for number in (0, len(script) // 2, len(script) - 1):
        wrong = answers.copy()
        wrong[number] += " 1"
        [found] = differences(script, wrong)
        assert found.startswith(f"{number}: ")
    assert len(differences(script, answers[:-2])) == 2


def test_scripts_are_the_same_for_a_seed_and_use_every_call() -> None:
    made = scripts(3, 1000)
    assert made[:2] == scripts(3, 150)[:2]
    assert sum(map(n_calls, made)) >= 1000
    names = {operation[0] for script in made for operation in script}
    assert names == {name.removeprefix("do_") for name in dir(ModelRun) if name.startswith("do_")}


def test_random_scripts_reach_merges_partners_and_refusals() -> None:
    model_lines = [(operation[0], answer) for seed in range(20)
                   for script in [random_script(seed)]
                   for model in [ModelRun()]
                   for operation in script for answer in [model(operation)]]
    merges = [answer.split() for name, answer in model_lines
              if name == "merge" and answer.startswith("ok")]
    assert sum(int(words[4]) for words in merges) > 200
    assert sum(int(words[7]) for words in merges) > 50
    reasons = {word.partition("=")[0] for words in merges for word in words[9:]}
    assert reasons >= {"mapping", "locked", "mergeable", "thp", "shared", "zero_page", "foreign"}
    errors = {answer for _, answer in model_lines if answer.startswith("error")}
    assert errors >= {f"error {number}" for number in (
        errno.EPERM, errno.ENOENT, errno.ESRCH, errno.EBADF, errno.EACCES, errno.EEXIST,
        errno.EINVAL, errno.ENAMETOOLONG, errno.EOPNOTSUPP)}
