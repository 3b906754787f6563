"""A slow, readable twin of the kernel's KSM: Linux 6.1, 6.12 and 6.18, object by object.

    machine.py   processes, knobs and counters (`Machine`)
    ksm.py       mm/ksm.c
    memory.py    VMAs, page tables, page frames, THPs, COW, fork
    rbtree.py    lib/rbtree.c
    advisor.py   the scan-time advisor and ksmd's sleep, in integers

docs/ksm-model.md says what is modelled and what is not.
"""

from tests.oracles.kernel_ksm.machine import Machine

__all__ = ["Machine"]
