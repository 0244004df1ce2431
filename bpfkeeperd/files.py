"""Reads the files that others wrote: whole, regular, of a bearable size."""

import os
import stat

from bpfkeeperd.errors import KeeperError


def read_file(path: str, size_max: int, what: str = "") -> bytes:
    """A regular file's bytes; what else stands there (a FIFO, a device) is not waited for.

    Raises:
        KeeperError: ``cannot read WHAT PATH: why``.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise KeeperError(f"cannot read {what}{path}: {error.strerror}") from None
    try:
        return read_open(fd, path, size_max, what)
    finally:
        os.close(fd)


def read_open(fd: int, path: str, size_max: int, what: str = "") -> bytes:
    """As `read_file`, of a file that is open, and stays so."""
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            kind = "is a directory" if stat.S_ISDIR(status.st_mode) else "is no regular file"
            raise KeeperError(f"cannot read {what}{path}: it {kind}")
        if status.st_size > size_max:
            raise KeeperError(
                f"cannot read {what}{path}: it is larger than {size_max} bytes ({status.st_size})"
            )
        data = os.read(fd, status.st_size + 1)
        while len(data) < status.st_size and (more := os.read(fd, status.st_size)):
            data += more
        return data
    except OSError as error:
        raise KeeperError(f"cannot read {what}{path}: {error.strerror}") from None
