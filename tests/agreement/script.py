"""Scripts of calls: made at random, run on the model, written out for the driver.

A script is a list of operations, an operation a tuple of a name and integers or text. One line
tells what came of it, in the same words by the model and by the driver:

    spawn P                      a process; P = 0 is the caller itself, which is there already
    map P V N KIND               KIND 0 small pages, 1 huge pages, 2 shared memory
    write P V CONTENT...         read, dontneed, unmap, lock, unlock P V N
    advise P V N HOW             HOW 1 MADV_MERGEABLE 2 MADV_UNMERGEABLE 3 WIPEONFORK 4 KEEPONFORK
    protect P V N WRITABLE       move P V N TO        fork P CHILD        exit P
    as WHO                       the caller's credentials from here on: index into `CALLERS`
    allow 0|1                    allow_merge
    open FD @NAME FLAGS MODE     FD is a number of the script's own
    close FD                     unlink @NAME
    merge FD PID ADDRESS BYTES   unmerge, attach, detach; PID is P, or one of `PIDS` below 0
    store @NAME FILE PID ADDRESS BYTES   as root, to the file merge or unmerge in sysfs
    counters FD                  files @NAME          scan @NAME
    look                         every page: contents, and which pages share a frame

V counts pages from `BASE`. Script and answers are text, so that a difference can be read.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from typing import Any

from planner.ksm.partition_memory import FrameKind, ModuleMemory, Place
from planner.ksm.partition_names import KSM_CREAT, KSM_EXCL, KSM_SYNC, Credentials
from planner.ksm.partition_rules import KERNEL_THREAD, ModuleKsm, RangeCounts

Operation = tuple[Any, ...]

PAGE = 4096
#: vpn of page 0 of a script; at a multiple of 2 MiB.
BASE = 0x10_0000_0000 // PAGE
#: Pages with small mappings, and where the huge ones begin.
N_SMALL, HUGE_AT, N_HUGE = 64, 512, 1024
N_PROCESSES = 24
REASONS = ("mapping", "hugetlb", "locked", "userfaultfd", "mergeable", "thp", "shared",
           "zero_page", "swapped", "pinned", "busy", "changed", "foreign", "special", "limit",
           "memory")
#: Calls of the interface.
CALLS = ("open", "close", "unlink", "merge", "unmerge", "attach", "detach", "counters", "store")
CALLERS = (
    Credentials(umask=0),
    Credentials(uid=1000, gid=100, groups=(50,), has_cap_dac_override=False, has_cap_fowner=False,
                has_cap_sys_ptrace=False, umask=0o027),
    Credentials(uid=1001, gid=50, has_cap_dac_override=False, has_cap_fowner=False,
                has_cap_sys_ptrace=False, umask=0o022),
)
#: Pids that are no process of the script: none at all, beyond all, a kernel thread's.
PIDS = {-1: 0, -2: 0x7FFF_FFFF, -3: KERNEL_THREAD}
#: Model numbers of processes begin here, so that they are none of `PIDS`.
_FIRST_PID = 100


class ModelRun:
    """One script on the model."""

    def __init__(self) -> None:
        self.memory = ModuleMemory()
        self.ksm = ModuleKsm(self.memory, credentials=CALLERS[0], own_process=_FIRST_PID)
        self.memory.spawn(_FIRST_PID)
        self.fds: dict[int, int] = {}

    def __call__(self, operation: Operation) -> str:
        """Do one operation; the line that tells what came of it."""
        name, *arguments = operation
        do: Callable[..., str | None] = getattr(self, f"do_{name}")
        try:
            return do(*arguments) or "ok"
        except OSError as error:
            return f"error {error.errno}"

    def place(self, p: int, v: int) -> Place | None:
        """What is mapped at a page of a process that lives."""
        return self.memory.processes[_FIRST_PID + p].places.get(BASE + v)

    def do_spawn(self, p: int) -> None:
        self.memory.spawn(_FIRST_PID + p)

    def do_map(self, p: int, v: int, n: int, kind: int) -> None:
        self.memory.map(_FIRST_PID + p, BASE + v, n, huge=kind == 1, shared=kind == 2)

    def do_write(self, p: int, v: int, *contents: int) -> None:
        self.memory.write(_FIRST_PID + p, BASE + v, contents)

    def do_read(self, p: int, v: int, n: int) -> None:
        self.memory.read(_FIRST_PID + p, BASE + v, n)

    def do_dontneed(self, p: int, v: int, n: int) -> None:
        self.memory.dontneed(_FIRST_PID + p, BASE + v, n)

    def do_unmap(self, p: int, v: int, n: int) -> None:
        self.memory.unmap(_FIRST_PID + p, BASE + v, n)

    def do_lock(self, p: int, v: int, n: int) -> None:
        self.memory.lock(_FIRST_PID + p, BASE + v, n)

    def do_unlock(self, p: int, v: int, n: int) -> None:
        self.memory.unlock(_FIRST_PID + p, BASE + v, n)

    def do_advise(self, p: int, v: int, n: int, how: int) -> None:
        if how <= 2:
            self.memory.advise(_FIRST_PID + p, BASE + v, n, is_mergeable=how == 1)
        else:
            self.memory.wipe_on_fork(_FIRST_PID + p, BASE + v, n, is_wiped=how == 3)

    def do_protect(self, p: int, v: int, n: int, writable: int) -> None:
        self.memory.protect(_FIRST_PID + p, BASE + v, n, is_writable=bool(writable))

    def do_move(self, p: int, v: int, n: int, to: int) -> None:
        self.memory.move(_FIRST_PID + p, BASE + v, n, BASE + to)

    def do_fork(self, p: int, child: int) -> None:
        self.memory.fork(_FIRST_PID + p, _FIRST_PID + child)

    def do_exit(self, p: int) -> None:
        self.memory.exit(_FIRST_PID + p)

    def do_as(self, who: int) -> None:
        self.ksm.credentials = CALLERS[who]

    def do_allow(self, is_allowed: int) -> None:
        self.ksm.is_merging_allowed = bool(is_allowed)

    def do_open(self, fd: int, name: str, flags: int, mode: int) -> None:
        self.fds[fd] = self.ksm.ksm_open(name[1:], flags, mode)

    def do_close(self, fd: int) -> None:
        self.ksm.close(self.fds.pop(fd))

    def do_unlink(self, name: str) -> None:
        self.ksm.ksm_unlink(name[1:])

    def do_merge(self, fd: int, pid: int, address: int, size: int) -> str:
        return _told(self.ksm.ksm_merge(self._fd(fd), self._pid(pid), address, size))

    def do_unmerge(self, fd: int, pid: int, address: int, size: int) -> str:
        return _told(self.ksm.ksm_unmerge(self._fd(fd), self._pid(pid), address, size))

    def do_attach(self, fd: int, pid: int, address: int, size: int) -> None:
        self.ksm.ksm_attach(self._fd(fd), self._pid(pid), address, size)

    def do_detach(self, fd: int, pid: int, address: int, size: int) -> None:
        self.ksm.ksm_detach(self._fd(fd), self._pid(pid), address, size)

    def do_store(self, name: str, file: str, pid: int, address: int, size: int) -> None:
        who, self.ksm.credentials = self.ksm.credentials, CALLERS[0]
        try:
            self.ksm.store(name[1:], self._pid(pid), address, size, is_merge=file == "merge")
        finally:
            self.ksm.credentials = who

    def do_counters(self, fd: int) -> str:
        return _counted(self.ksm.counters(self._fd(fd)), is_files=False)

    def do_files(self, name: str) -> str:
        try:
            return _counted(self.ksm.files(name[1:]), is_files=True)
        except KeyError:
            return f"error {errno.ENOENT}"

    def do_scan(self, name: str) -> None:
        self.ksm.scan(name[1:])

    def do_look(self) -> str:
        numbers: dict[int, int] = {}
        words = ["ok"]
        for pid, process in sorted(self.memory.processes.items()):
            words.append(f"{pid - _FIRST_PID}:")
            for vpn, place in sorted(process.places.items()):
                frame = place.frame
                if frame is not None and not place.is_shared and vpn - BASE < N_SMALL:
                    # There is one zero page.
                    key = 0 if frame.kind is FrameKind.ZERO else id(frame)
                    number = numbers.setdefault(key, len(numbers))
                    words.append(f"{vpn - BASE}={frame.content}@{number}")
        return " ".join(words)

    def _fd(self, fd: int) -> int:
        return self.fds.get(fd, -1)

    def _pid(self, pid: int) -> int:
        return PIDS.get(pid, _FIRST_PID + pid)


def _told(counts: RangeCounts) -> str:
    words = [str(number) for number in (
        counts.n_requested, counts.n_absent, counts.n_already, counts.n_merged,
        counts.n_candidates, counts.n_volatile, counts.n_partners, counts.n_unmerged)]
    return " ".join(["ok", *words, *_refusals(counts.refused)])


def _counted(counters: dict[str, int], *, is_files: bool) -> str:
    names = ["owner", "group", "mode", "sync", "pages_shared", "pages_sharing", "pages_unshared",
             "pages_volatile"]
    if counters["sync"]:
        names += ["pages_scanned", "calls"] if is_files else \
            ["pages_scanned", "calls", "n_merged", "n_unmerged"]
    words = [str(counters[name]) for name in names]
    refused = {name.removeprefix("refused_"): number for name, number in counters.items()
               if name.startswith("refused_")}
    return " ".join(["ok", *words, *(_refusals(refused) if counters["sync"] else [])])


def _refusals(refused: dict[str, int]) -> list[str]:
    return [f"{name}={refused[name]}" for name in REASONS if refused.get(name)]


def written(script: list[Operation]) -> str:
    """A script as the driver reads it."""
    return "".join(" ".join(map(str, operation)) + "\n" for operation in script) + "end\n"


def n_calls(script: list[Operation]) -> int:
    """How many operations of a script are calls of the interface."""
    return sum(operation[0] in CALLS for operation in script)


def random_script(seed: int, n_operations: int = 140) -> list[Operation]:
    """A script that only does what a process can do; calls may be wrong in any way."""
    return _Maker(seed).script(n_operations)


def scripts(seed: int, calls: int) -> list[list[Operation]]:
    """Random scripts with at least this many calls in all."""
    made: list[list[Operation]] = []
    n_made = 0
    while n_made < calls:
        made.append(random_script(seed * 100_000 + len(made)))
        n_made += n_calls(made[-1])
    return made


class _Maker:
    """Makes a script while running it on the model, which knows what is mapped."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._model = ModelRun()
        self._script: list[Operation] = []
        self._alive = [0]
        self._next_process = 1
        self._fds: list[int] = []
        # Those that may merge, and those of partitions with a scanner.
        self._merging: list[int] = []
        self._scanning: list[int] = []
        self._next_fd = 0
        self._is_huge: set[int] = set()

    def script(self, n_operations: int) -> list[Operation]:
        for _ in range(3):
            self._spawn()
        for name, flags in (("@a", KSM_SYNC), ("@b", KSM_SYNC), ("@s", 0)):
            self._open(name, os.O_RDWR | KSM_CREAT | flags, 0o600)
        weighted = (
            (24, self._merge), (7, self._unmerge), (8, self._write), (3, self._map),
            (2, self._spawn), (2, self._fork), (1, self._exit), (3, self._open_any),
            (2, self._close), (1, self._unlink), (2, self._unmap), (2, self._dontneed),
            (3, self._lock), (3, self._advise), (1, self._protect), (1, self._move),
            (1, self._read), (3, self._who), (3, self._counters), (3, self._files),
            (4, self._scan), (2, self._attach), (1, self._detach), (1, self._odd_range),
            (2, self._store), (1, self._look), (1, self._allow))
        kinds = [make for weight, make in weighted for _ in range(weight)]
        while len(self._script) < n_operations:
            self._random.choice(kinds)()
        self._do("as", 0)
        for name in sorted(self._model.ksm.partition_names):
            self._do("files", f"@{name}")
        self._do("look")
        return self._script

    def _do(self, *operation: Any) -> str:
        self._script.append(operation)
        return self._model(operation)

    # ---- processes ---------------------------------------------------------------------------

    def _pick(self) -> int:
        return self._random.choice(self._alive)

    def _extent(self, longest: int = 24) -> tuple[int, int]:
        v = self._random.randrange(N_SMALL)
        return v, min(self._random.randint(1, longest), N_SMALL - v)

    def _mapped(self, may: Callable[[Place], bool] = lambda place: True) -> \
            tuple[int, int, int] | None:
        """A process and a range of it that is mapped, and may be used so; None if none is found."""
        for _ in range(6):
            p = self._pick()
            v, n = self._extent()
            places = [self._model.place(p, at) for at in range(v, v + n)]
            if all(place is not None and may(place) for place in places):
                return p, v, n
        return None

    def _spawn(self) -> None:
        if self._next_process >= N_PROCESSES or len(self._alive) > 6:
            return
        p, self._next_process = self._next_process, self._next_process + 1
        self._do("spawn", p)
        self._alive.append(p)
        self._do("map", p, 0, 40, 0)
        self._do("write", p, 0, *(self._random.choices(range(8), k=self._random.randint(4, 40))))
        if self._random.random() < 0.5:
            # Absent pages most of the time.
            self._do("read", p, 36, 4)
        if self._random.random() < 0.2:
            self._is_huge.add(p)
            self._do("map", p, HUGE_AT, N_HUGE, 1)
            self._do("write", p, HUGE_AT + self._random.randrange(500), 1, 2, 1)

    def _fork(self) -> None:
        p = self._pick()
        if p and p not in self._is_huge and self._next_process < N_PROCESSES \
                and len(self._alive) < 9:
            child, self._next_process = self._next_process, self._next_process + 1
            self._do("fork", p, child)
            self._alive.append(child)

    def _exit(self) -> None:
        p = self._pick()
        if p:
            self._alive.remove(p)
            self._do("exit", p)

    def _map(self) -> None:
        p = self._pick()
        v, n = self._extent()
        free = [at for at in range(v, v + n) if self._model.place(p, at) is None]
        # The first run of free pages.
        n = next((i for i, at in enumerate(free) if at != free[0] + i), len(free))
        if n:
            self._do("map", p, free[0], n, 2 if self._random.random() < 0.1 else 0)

    def _write(self) -> None:
        if self._is_huge and self._random.random() < 0.1:
            p = self._random.choice(sorted(self._is_huge))
            if p in self._alive:
                v = HUGE_AT + self._random.randrange(N_HUGE - 4)
                self._do("write", p, v, *self._random.choices(range(8), k=4))
            return
        found = self._mapped(lambda place: place.is_writable and not place.is_shared)
        if found:
            p, v, n = found
            self._do("write", p, v, *self._random.choices(range(8), k=n))

    def _read(self) -> None:
        found = self._mapped(lambda place: not place.is_shared)
        if found:
            self._do("read", *found)

    def _unmap(self) -> None:
        self._do("unmap", self._pick(), *self._extent(8))

    def _dontneed(self) -> None:
        if self._is_huge and self._random.random() < 0.3:
            p = self._random.choice(sorted(self._is_huge))
            if p in self._alive:
                if self._random.random() < 0.5:
                    self._do("dontneed", p, HUGE_AT, 512)
                else:
                    self._do("dontneed", p, HUGE_AT + self._random.randrange(900), 20)
            return
        found = self._mapped(lambda place: not place.is_locked and not place.is_shared)
        if found:
            self._do("dontneed", *found)

    def _lock(self) -> None:
        if self._random.random() < 0.5:
            found = self._mapped(lambda place: not place.is_shared)
            if found:
                self._do("lock", *found)
        else:
            found = self._mapped()
            if found:
                self._do("unlock", *found)

    def _advise(self) -> None:
        found = self._mapped(lambda place: not place.is_shared)
        if found:
            self._do("advise", *found, self._random.choice((1, 2, 2, 3, 4, 4)))

    def _protect(self) -> None:
        found = self._mapped(lambda place: not place.is_shared)
        if found:
            self._do("protect", *found, self._random.choice((0, 1, 1)))

    def _move(self) -> None:
        found = self._mapped(lambda place: not place.is_locked and not place.is_shared)
        if found:
            p, v, n = found
            to = self._random.randrange(N_SMALL - n + 1)
            there = [self._model.place(p, at) for at in range(to, to + n)]
            if (to >= v + n or v >= to + n) and all(
                    place is None or not place.is_locked for place in there):
                self._do("move", p, v, n, to)

    # ---- calls -------------------------------------------------------------------------------

    def _who(self) -> None:
        self._do("as", self._random.choice((0, 0, 0, 0, 0, 0, 1, 2)))

    def _allow(self) -> None:
        # A scanner does nothing while merging is off, so nothing is asked of one meanwhile.
        self._do("allow", 0)
        self._open("@off", os.O_RDWR | KSM_CREAT, 0o600)
        self._merge()
        self._unmerge()
        self._call("attach")
        self._do("allow", 1)

    def _name(self) -> str:
        return self._random.choice(("@a", "@a", "@b", "@b", "@c", "@s"))

    def _open(self, name: str, flags: int, mode: int) -> None:
        fd, self._next_fd = self._next_fd, self._next_fd + 1
        if self._do("open", fd, name, flags, mode) == "ok":
            self._fds.append(fd)
            if flags & KSM_SYNC and flags & os.O_ACCMODE != os.O_RDONLY:
                self._merging.append(fd)
            elif name == "@s":
                self._scanning.append(fd)

    def _open_any(self) -> None:
        choose = self._random
        name = self._name() if choose.random() < 0.85 else choose.choice(
            ("@", "@.", "@..", "@a/b", "@/", "@" + "n" * 63, "@" + "n" * 64, "@absent"))
        flags = choose.choice((os.O_RDWR, os.O_RDWR, os.O_RDONLY, os.O_WRONLY))
        for flag, likely in ((KSM_SYNC, 0.7), (KSM_CREAT, 0.5), (KSM_EXCL, 0.2),
                             (os.O_CLOEXEC, 0.1), (os.O_ACCMODE, 0.03), (0x80, 0.03)):
            if choose.random() < likely:
                flags |= flag
        mode = choose.choice((0o600, 0o600, 0o640, 0o660, 0o444, 0o222, 0, 0o777, 0o1600))
        if not flags & KSM_SYNC:
            # The driver stops a scanner by its files, which sysfs lets nobody write without a bit.
            mode |= 0o200
        self._open(name, flags, mode)

    def _fd(self, good: list[int]) -> int:
        chance = self._random.random()
        if good and chance < 0.85:
            return self._random.choice(good)
        return self._random.choice(self._fds) if self._fds and chance < 0.97 else 999

    def _pid(self) -> int:
        if self._random.random() < 0.95:
            return self._pick()
        odd: list[int] = [*PIDS, *range(1, self._next_process)]
        return self._random.choice(odd)

    def _call(self, name: str) -> None:
        pid = self._pid()
        if pid in self._is_huge and self._random.random() < 0.4:
            v, n = HUGE_AT + self._random.randrange(N_HUGE - 8), self._random.randint(1, 700)
        else:
            v, n = self._extent(64)
        good = self._merging if name in ("merge", "unmerge") else self._scanning
        self._do(name, self._fd(good), pid, (BASE + v) * PAGE, n * PAGE)

    def _merge(self) -> None:
        self._call("merge")

    def _unmerge(self) -> None:
        self._call("unmerge")

    def _store(self) -> None:
        v, n = self._extent(64)
        address, size = self._random.choice((
            *[((BASE + v) * PAGE, n * PAGE)] * 8, (BASE * PAGE + 1, PAGE), (BASE * PAGE, 0),
            (2**64 - PAGE, PAGE)))
        self._do("store", self._name(), self._random.choice(("merge", "merge", "unmerge")),
                 self._pid(), address, size)

    def _attach(self) -> None:
        self._call("attach")
        self._settle()

    def _detach(self) -> None:
        self._call("detach")
        self._settle()

    def _odd_range(self) -> None:
        address, size = self._random.choice((
            (BASE * PAGE + 1, PAGE), (BASE * PAGE, PAGE + 1), (BASE * PAGE, 0),
            (2**64 - PAGE, 2 * PAGE), (2**64 - PAGE, PAGE), (0, PAGE), (BASE * PAGE, 2**40)))
        self._do(self._random.choice(("merge", "unmerge")), self._fd(self._merging), self._pid(),
                 address, size)

    def _close(self) -> None:
        if self._fds:
            fd = self._random.choice(self._fds)
            for each in (self._fds, self._merging, self._scanning):
                if fd in each:
                    each.remove(fd)
            self._do("close", fd)

    def _unlink(self) -> None:
        if self._random.random() < 0.6:
            self._do("unlink", self._name())

    def _counters(self) -> None:
        self._do("counters", self._fd(self._fds))

    def _files(self) -> None:
        self._do("files", self._name())

    def _look(self) -> None:
        self._do("look")

    def _scan(self) -> None:
        self._settle()

    def _settle(self) -> None:
        for name in self._model.ksm.partition_names:
            if not self._model.ksm.files(name)["sync"]:
                self._do("scan", f"@{name}")
                self._do("files", f"@{name}")
