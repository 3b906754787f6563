"""Where work is done: in this process, in processes of this machine, or on a cluster.

Work is written once, for `concurrent.futures.Executor`: local processes are started by a fork
server; a cluster is an existing dask one, whose client gives such an executor. A case is a small
picklable task with a key; its outcome is bytes. Which process does which case, in what order, and
how many there are makes no difference to the outcomes.

A process that dies takes down no other case: each case that it may have worked on is tried again.
"""

from __future__ import annotations

import multiprocessing
import platform
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Any, Protocol, Self

import planner
from planner import errors
from planner.cases import CaseFolder
from planner.errors import DataError, MachineError, PlannerError, ScenarioError, UsageError

__all__ = ["Case", "Pool", "Progress", "open_pool", "run_cases", "versions_here"]

#: How often a case is tried again after its process died while doing it and nothing else.
RETRIES = 3
#: How long a cluster may take to answer, and may be without workers.
CONNECT_S = 10.0
_WITHOUT_WORKERS_S = 60.0
_LOOK_EVERY_S = 5.0
#: Packages whose version can change a result.
_PACKAGES = ("numpy", "numba", "simpy", "pyarrow")

Work = Callable[[Any], bytes]
Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Case:
    """One piece of work: `key` names its outcome (a file name, too), `name` is for people.

    `task` is given to the work function; it is pickled where that runs in another process.
    """

    key: str
    name: str
    task: Any


Done = Callable[[Case, bytes], None]


class Pool(Protocol):
    """Something that does cases."""

    #: How many cases it does at once.
    n_workers: int

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None: ...

    def run(self, work: Work, cases: Sequence[Case], done: Done) -> None:
        """Do the cases, in any order; `done` hears of each one as it is finished.

        Raises what `work` raises, and MachineError where a case cannot be finished.
        """


def run_cases(work: Work, cases: Sequence[Case], pool: Pool, *, folder: CaseFolder | None = None,
              progress: Progress | None = None) -> dict[str, bytes]:
    """Outcomes of all cases by key, in the order of `cases`.

    What `folder` holds is not done again; what gets finished is kept there. `work` is a function
    of a module, so that other processes find it. `progress(name, share)` hears of each case.
    """
    found: dict[str, bytes] = {}
    todo: list[Case] = []
    for case in cases:
        kept = folder.get(case.key) if folder is not None else None
        if kept is None:
            todo.append(case)
        else:
            found[case.key] = kept

    def done(case: Case, outcome: bytes) -> None:
        if folder is not None:
            folder.put(case.key, outcome)
        found[case.key] = outcome
        if progress is not None:
            progress(case.name, len(found) / len(cases))

    if todo:
        pool.run(work, todo, done)
    return {case.key: found[case.key] for case in cases}


def open_pool(workers: int = 1, cluster: str | None = None) -> Pool:
    """The pool for so many local processes (1: this one), or for the cluster at an address.

    Use it as a context. A program that asks for more than one worker must be guarded by
    `if __name__ == "__main__":`, as for all process pools. Raises UsageError for a number below 1,
    an address that is none, or a missing extra; MachineError for a cluster that does not answer,
    has no workers or has workers of another version.
    """
    if cluster is not None:
        return _Cluster(cluster)
    if workers < 1:
        raise UsageError(f"expected at least 1, got {workers}", where="--workers")
    return _Here() if workers == 1 else _Processes(workers)


def versions_here() -> dict[str, str]:
    """Versions of what a result depends on, in this process."""
    return {"planner": planner.__version__, "python": _minor(platform.python_version()),
            **{name: _version(name) for name in _PACKAGES}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _minor(python: str) -> str:
    return ".".join(python.split(".")[:2])


# ---- what runs in the other process -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Failure:
    """An error of the package, in a form that any process can read."""

    kind: str
    what: str
    where: str
    instead: str

    def error(self) -> PlannerError:
        made: PlannerError = getattr(errors, self.kind)(
            self.what, where=self.where, instead=self.instead)
        return made


def _guarded(work: Work, task: Any) -> bytes | _Failure:
    """`work(task)`; errors of the package come back as data, others as they are."""
    try:
        return work(task)
    except ScenarioError as error:
        return _Failure("DataError", str(error), "", "")
    except PlannerError as error:
        return _Failure(type(error).__name__, error.what, error.where, error.instead)


def _ignore_interrupts() -> None:
    """Ctrl-C reaches every process of a terminal; the parent ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


# ---- this process ---------------------------------------------------------------------------


class _Here:
    """Cases one after another in this process."""

    n_workers = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        return None

    def run(self, work: Work, cases: Sequence[Case], done: Done) -> None:
        for case in cases:
            done(case, work(case.task))


# ---- any executor -------------------------------------------------------------------------------


class _Flight:
    """Cases that an executor is working on: not many more than it has workers."""

    def __init__(self, executor: Executor, work: Work, done: Done) -> None:
        self._executor = executor
        self._work = work
        self._done = done
        self.cases: dict[Future[bytes | _Failure], Case] = {}

    def submit(self, case: Case) -> None:
        self.cases[self._executor.submit(_guarded, self._work, case.task)] = case

    def land(self, timeout_s: float | None = None) -> list[tuple[Case, BaseException]]:
        """Wait until one or more have ended; returns those that failed, with their errors."""
        ended, _ = wait(self.cases, timeout_s, FIRST_COMPLETED)
        failed: list[tuple[Case, BaseException]] = []
        for future in ended:
            case = self.cases.pop(future)
            try:
                outcome = future.result()
            except (Exception, CancelledError) as error:
                failed.append((case, error))
                continue
            if isinstance(outcome, _Failure):
                raise outcome.error()
            self._done(case, outcome)
        return failed


# ---- processes of this machine ------------------------------------------------------------------


class _Processes:
    """Local processes. Where one dies, all of its pool do: a new pool then does the rest.

    Who was to blame is not known; so all cases that were under way are done one by one, and a case
    that ends its process `RETRIES` times more, alone, is given up.
    """

    def __init__(self, n_workers: int) -> None:
        self.n_workers = n_workers
        self._pool: ProcessPoolExecutor | None = None
        self._others = set(multiprocessing.active_children())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._end(is_killed=kind is not None)

    def _executor(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self.n_workers, mp_context=multiprocessing.get_context("forkserver"),
                initializer=_ignore_interrupts)
        return self._pool

    def _end(self, *, is_killed: bool) -> None:
        if self._pool is None:
            return
        pool, self._pool = self._pool, None
        if is_killed:  # a case may take long, and nobody wants it any more
            for process in set(multiprocessing.active_children()) - self._others:
                process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)

    def run(self, work: Work, cases: Sequence[Case], done: Done) -> None:
        waiting = deque(cases)
        suspects: deque[Case] = deque()
        n_tries: dict[str, int] = {}
        while waiting or suspects:
            is_alone = bool(suspects)
            source = deque([suspects.popleft()]) if is_alone else waiting
            broken = self._fly(work, source, done)
            if not broken:
                continue
            self._end(is_killed=True)
            if is_alone:
                case = broken[0]
                n_tries[case.key] = n_tries.get(case.key, 0) + 1
                if n_tries[case.key] > RETRIES:
                    raise MachineError(
                        f"the process that worked on it ended {n_tries[case.key]} times without "
                        "an answer", where=case.name,
                        instead="if memory ran out (see dmesg), use fewer --workers or a smaller "
                                "precision.contents; a program of yours needs its main part "
                                "under `if __name__ == \"__main__\":`; what was finished is kept")
            suspects.extend(broken)

    def _fly(self, work: Work, source: deque[Case], done: Done) -> list[Case]:
        """Do all of `source`, or until a process dies; returns what was under way then."""
        flight = _Flight(self._executor(), work, done)
        broken: list[Case] = []
        while (source and not broken) or flight.cases:
            while source and not broken and len(flight.cases) <= self.n_workers:
                case = source.popleft()
                try:
                    flight.submit(case)
                except BrokenProcessPool:
                    broken.append(case)
            for case, error in flight.land() if flight.cases else ():
                if not isinstance(error, BrokenProcessPool):
                    raise error
                broken.append(case)
        return broken


# ---- a cluster ----------------------------------------------------------------------------------


class _Cluster:
    """Workers of a dask cluster that somebody else runs, reached through their scheduler.

    The scheduler itself gives the cases of a lost worker to others, and gives a case up that
    ended several of them.
    """

    def __init__(self, address: str) -> None:
        try:
            import distributed
        except ImportError:
            raise UsageError("dask.distributed is not installed", where="--cluster",
                             instead="pip install 'ksm-planner[cluster]'") from None
        host, _, port = address.partition("://")[2].rpartition(":")
        if not address.startswith(("tcp://", "tls://")) or not host or not port.isdigit():
            raise UsageError(f"{address[:80]!r} is no address", where="--cluster",
                             instead="expected one such as tcp://10.0.0.1:8786")
        self._address = address
        try:
            self._client = distributed.Client(address, timeout=CONNECT_S, set_as_default=False)
        except (OSError, TimeoutError, ValueError, RuntimeError) as error:
            raise MachineError(
                f"no scheduler of dask answers there ({type(error).__name__})", where=address,
                instead="start one with `dask scheduler`, or leave --cluster out") from None
        self._without_workers_since: float | None = None
        try:
            self._check_workers()
            self.n_workers = self._n_threads()
        except BaseException:
            self._client.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._client.close()

    def _n_threads(self) -> int:
        workers: dict[str, Any] = self._client.scheduler_info(n_workers=-1)["workers"]
        return sum(int(worker["nthreads"]) for worker in workers.values())

    def _check_workers(self) -> None:
        """Raise MachineError unless there are workers, all of them of this version."""
        try:
            self._client.wait_for_workers(1, timeout=CONNECT_S)
        except TimeoutError:
            raise MachineError("the cluster has no workers", where=self._address,
                               instead=f"start some with `dask worker {self._address}`") from None
        mine = versions_here()
        found = self._client.get_versions(check=False)["workers"]
        pythons = {name: _minor(str((about or {}).get("packages", {}).get("python", "unknown")))
                   for name, about in found.items()}
        _refuse(_differences({name: {"python": python} for name, python in pythons.items()},
                             {"python": mine["python"]}), self._address)
        _refuse(_differences(self._ask(), mine), self._address)

    def _ask(self) -> dict[str, dict[str, str]]:
        def versions() -> dict[str, str]:
            # Inside this function, so that it reaches workers that lack the planner.
            try:
                from planner.executor import versions_here
            except ImportError:
                return {"planner": "missing"}
            return versions_here()

        answers: dict[str, dict[str, str]] = self._client.run(versions)
        return answers

    def run(self, work: Work, cases: Sequence[Case], done: Done) -> None:
        waiting = deque(cases)
        with self._client.get_executor(pure=False) as executor:
            flight = _Flight(executor, work, done)
            try:
                while waiting or flight.cases:
                    while waiting and len(flight.cases) < 2 * self.n_workers:
                        flight.submit(waiting.popleft())
                    for case, error in flight.land(_LOOK_EVERY_S):
                        raise self._told(case, error)
                    self._look_after_workers()
            except BaseException:
                for future in flight.cases:
                    future.cancel()
                raise

    def _told(self, case: Case, error: BaseException) -> BaseException:
        """The error to raise for a case that failed on the cluster."""
        from distributed import KilledWorker

        if isinstance(error, KilledWorker):
            return MachineError(
                "the workers that did it ended without an answer, one after another",
                where=case.name,
                instead="if memory ran out, give workers more of it or use a smaller "
                        "precision.contents; what was finished is kept")
        if isinstance(error, CancelledError | OSError):
            return self._lost()
        return error

    def _lost(self) -> MachineError:
        return MachineError("the connection to the cluster was lost", where=self._address,
                            instead="what was finished is kept: run again to go on")

    def _look_after_workers(self) -> None:
        """Notice a cluster that is gone, and new workers."""
        if self._client.status != "running":
            raise self._lost()
        n_workers = self._n_threads()
        now = time.monotonic()
        if n_workers:
            self.n_workers, self._without_workers_since = n_workers, None
        elif self._without_workers_since is None:
            self._without_workers_since = now
        elif now - self._without_workers_since > _WITHOUT_WORKERS_S:
            raise MachineError("the cluster has no workers any more", where=self._address,
                               instead="what was finished is kept: run again to go on")


def _differences(found: Mapping[str, Mapping[str, str]], mine: Mapping[str, str]) -> Iterable[str]:
    """A text for each worker that has another version of something."""
    for worker, theirs in found.items():
        for name, here in mine.items():
            there = theirs.get(name, "missing")
            if there != here:
                yield f"{worker} has {_title(name)} {there}, this program has {here}"
                break


def _title(name: str) -> str:
    return "ksm-planner" if name == "planner" else name


def _refuse(differences: Iterable[str], address: str) -> None:
    texts = list(differences)
    if texts:
        more = f" (and {len(texts) - 1} more)" if len(texts) > 1 else ""
        raise MachineError(f"worker {texts[0]}{more}", where=address,
                           instead="install the same versions on all machines")


def require_versions(expected: Mapping[str, str]) -> None:
    """Raise DataError unless this process has the versions of whoever sent a task."""
    for text in _differences({platform.node(): versions_here()}, expected):
        raise DataError(f"worker {text}", where="versions",
                        instead="install the same versions on all machines")
