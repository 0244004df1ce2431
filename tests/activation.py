"""Descriptors passed to a process as the service manager passes them (sd_listen_fds(3))."""

import sys
from collections.abc import Sequence
from typing import Protocol

_PASS = """
import fcntl, os, sys
names, fds, *command = sys.argv[1:]
moved = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in fds.split(",")]
for number, fd in enumerate(moved):
    os.dup2(fd, 3 + number)
    os.close(fd)
os.closerange(3 + len(moved), 100)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(moved)), LISTEN_FDNAMES=names)
os.execv(command[0], command)
"""


class HasDescriptor(Protocol):
    def fileno(self) -> int: ...


def passing_sockets(
    command: Sequence[str], sockets: Sequence[tuple[str, HasDescriptor]]
) -> list[str]:
    """The command that runs another with descriptors under these names; they are to be passed on
    (``pass_fds``)."""
    names = ":".join(name for name, _ in sockets)
    fds = ",".join(str(each.fileno()) for _, each in sockets)
    return [sys.executable, "-ISc", _PASS, names, fds, *command]
