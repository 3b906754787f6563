# SPDX-License-Identifier: GPL-2.0
"""Faults seeded into the module, one at a time, each with the tests that must catch it.

A fault is a replacement in one source file, so that the sources carry nothing for it. `caught_by`
is what a problem that the runner reports must look like: caught for the right reason. `leaves`
tells what becomes of the kernel: "whole" (other faults are tried in the same machine), "spent"
(whole ones are not tried after it) or "broken" (it has a machine of its own).
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One change that breaks the module."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    caught_by: str
    leaves: str = "whole"

    def seed(self, text: str) -> str:
        """The text of the file with the fault; ValueError where its place is not found."""
        if text.count(self.old) != 1:
            raise ValueError(f"{self.name}: {self.file} has the text {text.count(self.old)} times")
        return text.replace(self.old, self.new)

    def is_caught(self, problems: list[str]) -> bool:
        """Whether one of the problems is what this fault must cause."""
        return any(re.search(self.caught_by, problem) for problem in problems)


FAULTS = (
    Fault("the hash is not finished with SipHash", "hash.c",
          "return siphash_1u64(xxh64(page, PAGE_SIZE, keys->seed), &keys->site);",
          "return xxh64(page, PAGE_SIZE, keys->seed);",
          ("t_content",), r"not ok .*(zero hash is that of docs|hashes equal the oracle's)"),
    Fault("every page of a huge page is taken for its first", "walk.c",
          "planner_add_page(dump, address, page + ((address & ~PMD_MASK) >> PAGE_SHIFT), bits);",
          "planner_add_page(dump, address, page, bits);",
          ("t_content",), r"not ok .*huge: hashes equal"),
    Fault("frame ids are frame numbers", "hash.c",
          "u64 id = siphash_1u64(page_to_pfn(page), &keys->frame);",
          "u64 id = page_to_pfn(page);",
          ("t_content",), r"not ok .*no frame id is a frame number"),
    Fault("swapped pages are left out", "walk.c",
          "flags = PAGEHASH_PAGE_ANON | PAGEHASH_PAGE_SWAPPED;", "return;",
          ("t_content",), r"not ok .*swapped pages are records"),
    Fault("memfd_secret is read", "walk.c",
          "->i_sb->s_magic == SECRETMEM_MAGIC", "->i_sb->s_magic == ~0UL",
          ("t_content",), r"kernel: .*(BUG: unable|Oops)|no 'done'|not ok .*memfd_secret",
          "broken"),
    Fault("the walk sets accessed bits", "walk.c",
          "planner_add_pte(dump, address, READ_ONCE(*ptep));",
          "{ planner_add_pte(dump, address, READ_ONCE(*ptep)); "
          "if (pte_present(*ptep)) set_pte(ptep, pte_mkyoung(*ptep)); }",
          ("t_undisturbed",), r"not ok .*no accessed bit was set"),
    Fault("references to pages are not dropped", "hash.c",
          "put_page(entry->page);", "(void)0;",
          ("t_leak",), r"not ok .*no memory is lost", "spent"),
    Fault("references to pages are dropped twice", "hash.c",
          "put_page(entry->page);", "{ put_page(entry->page); put_page(entry->page); }",
          ("t_content",), r"kernel: .*(Bad page|BUG|Oops|WARNING)", "broken"),
    Fault("pages are not held while they are hashed", "walk.c",
          "if (!try_get_page(page)) {", "if (!page) {",
          ("t_content",), r"kernel: .*(Bad page|BUG|Oops|WARNING)", "broken"),
    Fault("the target's memory is kept while a dump is open", "chardev.c",
          "mmgrab(mm);\n\tmmput(mm);", "mmgrab(mm);",
          ("t_races",), r"not ok .*does not keep the memory", "spent"),
    Fault("the state of a closed file is not freed", "chardev.c",
          "kmem_cache_free(planner_dump_cache, dump);", "(void)dump;",
          ("t_unload",), r"kernel: .*(Objects remaining|still has objects)", "broken"),
    Fault("anybody with the file may start", "chardev.c",
          "if (!capable(CAP_SYS_PTRACE))", "if (0)",
          ("t_abi",), r"not ok .*EPERM"),
    Fault("a capability in a user namespace is enough", "chardev.c",
          "if (!capable(CAP_SYS_PTRACE))",
          "if (!ns_capable(current_user_ns(), CAP_SYS_PTRACE))",
          ("t_abi",), r"not ok .*root of a user namespace"),
    Fault("a reserved field is not checked", "chardev.c",
          "if (start->reserved0 || ", "if (",
          ("t_abi",), r"not ok .*reserved0"),
    Fault("a failed copy to the reader loses bytes", "chardev.c",
          "\t\t\tret = -EFAULT;\n\t\t\tbreak;",
          "\t\t\tdump->out_pos += n;\n\t\t\tret = -EFAULT;\n\t\t\tbreak;",
          ("t_abi",), r"not ok .*(nothing was lost|the magic)|t_abi: exit"),
    Fault("the key is kept after the dump", "chardev.c",
          "dump->phase = PLANNER_OVER;\n\tplanner_dump_forget(dump);",
          "dump->phase = PLANNER_OVER;",
          ("t_key",), r"not ok .*is nowhere"),
    Fault("an open file does not keep the module", "chardev.c",
          "\t.owner = THIS_MODULE,\n", "",
          ("t_unload",), r"not ok .*keeps the module|kernel: .*(BUG|Oops)|no 'done'", "broken"),
    Fault("lockdown is not asked", "chardev.c",
          "return security_locked_down(LOCKDOWN_KCORE);", "return 0;",
          ("t_lockdown",), r"not ok .*confidentiality", "spent"),
    Fault("a mapping that changed is not listed again", "walk.c",
          "if (!memcmp(&now, &dump->seen, sizeof(now)))",
          "if (dump->seen.file == now.file && dump->seen.pgoff == now.pgoff && dump->seen.end)",
          ("t_races",), r"not ok .*(mappings are listed again|well formed)|t_races: exit"),
)

#: What the module broken/broken.c can do wrong, and what must be reported.
BREAKAGES = {
    "warn": r"kernel: .*WARNING: ",
    "bug": r"kernel: .*kernel BUG at",
    "bad_page": r"kernel: .*Bad page state",
    "leak": r"kernel: .*(Objects remaining|still has objects)",
    "taint": r"taint is \d+, expected",
    "use_after_free": r"kernel: .*([Pp]oison overwritten|Poison)",
    "hang": r"did not stop in time",
}

#: Which of them share a machine: those after which it goes on, and which are told apart.
BREAKAGE_GROUPS = (("warn", "bad_page", "leak", "use_after_free"), ("bug",), ("taint",), ("hang",))
