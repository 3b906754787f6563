# SPDX-License-Identifier: GPL-2.0
"""Faults seeded into Selective KSM, one at a time, each with the tests that must catch it."""

from __future__ import annotations

from faults import Fault

FAULTS = (
    Fault("references to a page are not checked", "replace.c",
          "if (page_ref_count(page) != 2 + folio_test_swapcache(page_folio(page))) {", "if (0) {",
          ("p_refuse",), r"not ok .*pages that a pipe refers to are busy", "spent"),
    # Between the first compare and the TLB flush there are microseconds: made milliseconds here.
    Fault("pages are compared only while they can be written", "replace.c",
          "compat_zap_page_range(vma, address, PAGE_SIZE);\n\tunlock_page(old);\n\n"
          "\tis_equal = planner_is_equal(old, merged);",
          "schedule_timeout_uninterruptible(1);\n"
          "\tcompat_zap_page_range(vma, address, PAGE_SIZE);\n\tunlock_page(old);\n\n"
          "\tis_equal = true;",
          ("p_stress",), r"not ok .*no page was corrupted", "broken"),
    Fault("pages with one hash are taken for equal", "merge.c",
          "bool is_equal = !memcmp(at_a, at_b, PAGE_SIZE);", "bool is_equal = true;",
          ("p_stress",), r"not ok .*no page was corrupted", "broken"),
    Fault("partitions look for frames in one table", "partition_table.c",
          "node = rb_find_first(&hash, &partition->frames, planner_frame_hash_cmp);",
          "static struct rb_root *first; if (!first) first = &partition->frames; "
          "node = rb_find_first(&hash, first, planner_frame_hash_cmp);",
          ("p_stress",), r"not ok .*no frame is in both partitions", "broken"),
    Fault("a frame of another partition is not recognised", "merge.c",
          "if (planner_frame_of(batch->partition, page))", "if (page)",
          ("p_merge",), r"not ok .*refused by the other"),
    Fault("anybody may merge any process", "partition_device.c",
          "return mm == current->mm || ns_capable(mm->user_ns, CAP_SYS_PTRACE);", "return true;",
          ("p_calls",), r"not ok .*but not another process's"),
    Fault("a capability in a user namespace is enough for any process", "partition_device.c",
          "ns_capable(mm->user_ns, CAP_SYS_PTRACE)",
          "ns_capable(current_user_ns(), CAP_SYS_PTRACE)",
          ("p_calls",), r"not ok .*user namespace of one's own does not help"),
    Fault("permission bits are not looked at", "partition.c",
          "return !(access & ~granted) || capable(CAP_DAC_OVERRIDE);", "return true;",
          ("p_calls",), r"not ok .*no reading by others"),
    Fault("a descriptor for reading merges", "partition_device.c",
          "\tif (!(file->f_mode & FMODE_WRITE))\n\t\treturn -EACCES;\n", "",
          ("p_calls",), r"not ok .*O_RDONLY does not"),
    Fault("merging cannot be turned off", "partition_device.c",
          "(is_merge && !READ_ONCE(planner_allow_merge))", "0",
          ("p_calls",), r"not ok .*allow_merge=0: merge"),
    Fault("the limit is not looked at", "partition_table.c",
          "> READ_ONCE(planner_max_pages)", "< 0",
          ("p_refuse",), r"not ok .*max_pages merged pages may be"),
    Fault("merged pages are charged to nobody", "partition_table.c",
          "alloc_page(GFP_KERNEL_ACCOUNT | __GFP_NOWARN | __GFP_NORETRY)",
          "alloc_page(GFP_KERNEL | __GFP_NOWARN | __GFP_NORETRY)",
          ("p_refuse",), r"not ok .*its cgroup is charged"),
    Fault("pages shared since a fork are merged", "replace.c",
          "if (compat_page_mapcount(*page) != 1)", "if (0)",
          ("p_refuse",), r"not ok .*pages shared since a fork"),
    Fault("the mapping is left as one of bare frames", "replace.c",
          "compat_vm_flags_clear(vma, VM_MIXEDMAP);", "",
          ("p_merge",), r"not ok .*locks all of it"),
    Fault("frames without mapping are kept", "partition_table.c",
          "\t\tif (planner_frame_is_unused(frame)) {\n\t\t\tplanner_frame_discard(",
          "\t\tif (0) {\n\t\t\tplanner_frame_discard(",
          ("p_merge",), r"not ok .*no memory is lost"),
    Fault("a page that changes is a candidate", "merge.c",
          "if (batch->is_gated && (!site || site->hash != hash)) {", "if (0) {",
          ("p_scan",), r"not ok .*pages that change are volatile"),
    Fault("a page cannot be put back", "replace.c",
          "ret = vm_insert_page(vma, address, page);", "ret = -EBUSY;",
          ("p_killed",), r"not ok .*the target lives \(status 0x9, killed 1, said 1\)"),
)
