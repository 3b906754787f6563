"""Enter a cgroup, turn on merging for the process, drop to a user and exec a program.

usage: launch.py CGROUP USER LOG DIRECTORY MERGE -- PROGRAM [ARG ...]

The three steps before the exec are what a container manager does; the prctl is what systemd does
for a unit with ``MemoryKSM=yes``.  All of it is inherited by everything the program forks.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import sys

PR_SET_MEMORY_MERGE = 67


def main(argv: list[str]) -> None:
    """Become the program; only returns by raising."""
    cgroup, user, log, directory, merge = argv[1:6]
    program = argv[7:]
    with open(os.path.join(cgroup, "cgroup.procs"), "w") as procs:
        procs.write(str(os.getpid()))
    if merge == "merge":
        # Needs CAP_SYS_RESOURCE, so it comes before the change of user.
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0) != 0:
            error = ctypes.get_errno()
            raise OSError(error, f"PR_SET_MEMORY_MERGE: {os.strerror(error)}")
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.closerange(3, 256)
    os.chdir(directory)
    account = pwd.getpwnam(user)
    if account.pw_uid != os.getuid():
        os.initgroups(user, account.pw_gid)
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
    os.execvp(program[0], program)


if __name__ == "__main__":
    main(sys.argv)
