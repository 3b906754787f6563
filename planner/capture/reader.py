"""Reading pages of another process without changing its memory.

Two ways, chosen page by page by the caller:

- /proc/PID/mem takes a short reference on one page at a time. It leaves shared frames alone, so
  it serves every page.
- process_vm_readv pins pages (FOLL_PIN), and the kernel unshares a page that is not exclusive
  before it pins it: a COW break, which would unmerge the host it measures. It is faster, and used
  only for anonymous pages mapped once that are the mapping's own and not KSM's.

Both would fault in an absent page, so only present pages may be asked for. Both set the accessed
bits of what they read.
"""

from __future__ import annotations

import ctypes
import errno
import os
from types import TracebackType

import numpy as np
import numpy.typing as npt

from planner.capture.procfs import ProcRoot, TargetExitedError, no_permission

__all__ = ["PageReader"]

_PAGE_BYTES = 4096
#: None where the C library lacks it (not Linux).
_process_vm_readv = getattr(ctypes.CDLL(None, use_errno=True), "process_vm_readv", None)
if _process_vm_readv is not None:
    _process_vm_readv.restype = ctypes.c_ssize_t
    _process_vm_readv.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p,
                                  ctypes.c_ulong, ctypes.c_ulong]


class PageReader:
    """Reads pages of one process. A context manager.

    Raises TargetExitedError when the process is gone, MachineError without permission.
    """

    def __init__(self, root: ProcRoot, pid: int, *, may_pin: bool) -> None:
        self._pid = pid
        #: Whether process_vm_readv may be used; turned off where the system forbids it.
        self.may_pin = may_pin and _process_vm_readv is not None
        path = root.of(pid, "mem")
        try:
            self._fd = os.open(path, os.O_RDONLY)
        except (FileNotFoundError, ProcessLookupError):
            raise TargetExitedError from None
        except PermissionError as error:
            raise no_permission(path) from error

    def __enter__(self) -> PageReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        os.close(self._fd)

    def read(self, vpns: npt.NDArray[np.int64], out: npt.NDArray[np.uint8], *, pin: bool
             ) -> npt.NDArray[np.bool_]:
        """Read pages i64[n] (ascending, all present) into `out` u8[>= n, 4096].

        Returns bool[n], False where a page could not be read. Nothing between the pages is
        touched.
        """
        if pin and self.may_pin:
            is_read = self._read_pinned(vpns, out)
            if self.may_pin:
                return is_read
        return self._read_mem(vpns, out)

    def _read_mem(self, vpns: npt.NDArray[np.int64], out: npt.NDArray[np.uint8]
                  ) -> npt.NDArray[np.bool_]:
        is_read = np.ones(len(vpns), np.bool_)
        view = out.data.cast("B")
        starts, ends = _runs(vpns)
        for start, end, vpn in zip(starts.tolist(), ends.tolist(), vpns[starts].tolist(),
                                   strict=True):
            at = start
            while at < end:
                try:
                    n_bytes = os.preadv(self._fd, [view[at * _PAGE_BYTES:end * _PAGE_BYTES]],
                                        (vpn + at - start) * _PAGE_BYTES)
                except OSError as error:
                    if error.errno not in (errno.EIO, errno.EFAULT, errno.ENOMEM):
                        raise
                    n_bytes = 0
                at += n_bytes // _PAGE_BYTES
                if at < end:
                    # One bad page ends a read early; those behind it are read on their own.
                    is_read[at] = False
                    at += 1
        return is_read

    def _read_pinned(self, vpns: npt.NDArray[np.int64], out: npt.NDArray[np.uint8]
                     ) -> npt.NDArray[np.bool_]:
        assert _process_vm_readv is not None
        is_read = np.ones(len(vpns), np.bool_)
        at = 0
        while at < len(vpns):
            starts, ends = _runs(vpns[at:])
            # struct iovec: address, length. At most IOV_MAX (1024) in one call.
            remote = np.empty((min(len(starts), 1024), 2), np.uint64)
            remote[:, 0] = vpns[at + starts[:1024]] * _PAGE_BYTES
            remote[:, 1] = (ends[:1024] - starts[:1024]) * _PAGE_BYTES
            n_pages = int(ends[len(remote) - 1])
            local = np.array([out[at:].ctypes.data, n_pages * _PAGE_BYTES], np.uint64)
            n_bytes = _process_vm_readv(
                self._pid, local.ctypes.data, 1, remote.ctypes.data, len(remote), 0)
            if n_bytes < 0:
                problem = ctypes.get_errno()
                if problem == errno.ESRCH:
                    raise TargetExitedError
                if problem in (errno.EPERM, errno.ENOSYS, errno.EINVAL):
                    # A seccomp filter or a security module: /proc/PID/mem serves alone from here.
                    self.may_pin = False
                    return is_read
                n_bytes = 0
            done = n_bytes // _PAGE_BYTES
            at += done
            if done < n_pages:
                is_read[at] = False
                at += 1
        return is_read


def _runs(vpns: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Runs of consecutive pages as index intervals `[start, end)`."""
    if not len(vpns):
        return np.zeros(0, np.intp), np.zeros(0, np.intp)
    if int(vpns[-1]) - int(vpns[0]) == len(vpns) - 1:
        return np.zeros(1, np.intp), np.full(1, len(vpns), np.intp)
    breaks = np.flatnonzero(vpns[1:] - vpns[:-1] != 1) + 1
    return np.concatenate([[0], breaks]), np.append(breaks, len(vpns))
