"""/dev/ksm_planner: the module's page-hash dumps. Linux only; imported where it is used.

The interface is kmod/include/uapi/planner/pagehash.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from types import TracebackType

import numpy as np

from planner.capture import abi
from planner.capture.procfs import TargetExitedError
from planner.errors import MachineError

__all__ = ["PagehashDevice"]

_USE_PROC = "capture with --source proc"


class PagehashDevice:
    """One open file of the module's device: one dump at a time. A context manager.

    `abi` is the module's (major, minor). Raises MachineError where the device cannot serve: it is
    not there, may not be opened, or its ABI has another major version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise MachineError("the module ksm_planner is not loaded", where=str(path),
                               instead=f"load it (kmod/README.md), or {_USE_PROC}") from error
        except PermissionError as error:
            raise MachineError("no permission to open it", where=str(path),
                               instead="run as root") from error
        except OSError as error:
            raise MachineError(f"cannot open it: {error.strerror}", where=str(path),
                               instead=_USE_PROC) from error
        try:
            self.abi = self._read_abi()
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> PagehashDevice:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close it; the module forgets the key."""
        os.close(self._fd)

    def _read_abi(self) -> tuple[int, int]:
        try:
            word = fcntl.ioctl(self._fd, abi.IOC_ABI)
        except OSError as error:
            raise MachineError("not the device of the module ksm_planner", where=str(self.path),
                               instead=_USE_PROC) from error
        version = (word >> 16, word & 0xFFFF)
        if version[0] != abi.ABI_MAJOR:
            side = "ksm-planner" if version[0] > abi.ABI_MAJOR else "the module"
            raise MachineError(
                f"the module has ABI {version[0]}.{version[1]}, this version of ksm-planner "
                f"speaks {abi.ABI_MAJOR}.x", where=str(self.path),
                instead=f"upgrade {side}, or {_USE_PROC}")
        return version

    def start(self, pid: int, key: bytes, flags: int = 0) -> None:
        """Begin a dump of the memory of a process, dropping the one before.

        `flags` are StartFlag bits. Raises TargetExitedError when there is no such process or it
        has no memory, MachineError without permission or where the module refuses.
        """
        request = np.zeros(1, abi.START)
        request["size"] = abi.START_SIZE
        request["flags"], request["pid"] = flags, pid
        request["end"] = abi.END_OF_MEMORY
        request["key"] = np.frombuffer(key, np.uint8)
        argument = bytearray(request.tobytes())
        try:
            self._start(argument)
        except ProcessLookupError:
            raise TargetExitedError from None
        except PermissionError as error:
            raise MachineError(
                "the module refuses to dump: no CAP_SYS_PTRACE in the first user namespace, or "
                "the kernel is locked down", where=str(self.path),
                instead=f"run as root outside containers, or {_USE_PROC}") from error
        except OSError as error:
            if error.errno == errno.EINVAL:
                # What is asked here is valid but for the pid: it is a kernel thread's.
                raise TargetExitedError from None
            raise MachineError(
                f"the module refuses to dump process {pid}: "
                f"{errno.errorcode.get(error.errno or 0, '')} {error.strerror}",
                where=str(self.path), instead=_USE_PROC) from error
        finally:
            argument[:] = bytes(len(argument))
            request["key"] = 0

    def _start(self, argument: bytearray) -> None:
        while True:
            try:
                fcntl.ioctl(self._fd, abi.IOC_START, argument)
                return
            except InterruptedError:
                # Python has run the signal's handler by now; it raises where that is wanted.
                continue

    def read(self, n_bytes: int) -> bytes:
        """Up to `n_bytes` more of the dump; empty at its end."""
        return os.read(self._fd, n_bytes)
