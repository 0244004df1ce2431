"""Descriptors passed to a process as the service manager passes them (sd_listen_fds(3))."""

import sys
from collections.abc import Sequence
from typing import Protocol

_PASS = """
import fcntl, os, resource, sys
names, fds, *command = sys.argv[1:]
fds = [int(fd) for fd in fds.split(",")]
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
above = max(*fds, 3 + len(fds)) + 1
moved = [fcntl.fcntl(fd, fcntl.F_DUPFD, above) for fd in fds]
for number, fd in enumerate(moved):
    os.dup2(fd, 3 + number)
    os.close(fd)
os.closerange(3 + len(moved), above)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(moved)), LISTEN_FDNAMES=names)
os.execvp(command[0], command)
"""


class HasDescriptor(Protocol):
    def fileno(self) -> int: ...


def passing_sockets(
    command: Sequence[str], sockets: Sequence[tuple[str, HasDescriptor]]
) -> list[str]:
    """The command that runs another with descriptors under these names; they are to be passed on
    (``pass_fds``)."""
    return passing_descriptors(command, [(name, each.fileno()) for name, each in sockets])


def passing_descriptors(command: Sequence[str], passed: Sequence[tuple[str, int]]) -> list[str]:
    """The same for plain descriptors."""
    names = ":".join(name for name, _ in passed)
    fds = ",".join(str(fd) for _, fd in passed)
    return [sys.executable, "-ISc", _PASS, names, fds, *command]
