"""Reads the files that others wrote: whole, regular, of a bearable size."""

import errno
import os
import re
import stat

from bpfkeeperd.errors import KeeperError

_HOMES = ("/home", "/root", "/run/user")


def read_file(path: str, size_max: int, what: str = "") -> bytes:
    """A regular file's bytes; what else stands there (a FIFO, a device) is not waited for.

    Raises:
        KeeperError: ``cannot read WHAT PATH: why``.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise KeeperError(unreadable(path, error, what)) from None
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


def unreadable(path: str, error: OSError, what: str = "") -> str:
    """``cannot read WHAT PATH: why``, and what to do where the unit of the service is the cause."""
    text = f"cannot read {what}{path}: {error.strerror}"
    if error.errno not in (errno.ENOENT, errno.EACCES):
        return text
    try:
        with open("/proc/self/mountinfo", "rb") as mounts:  # a carriage return is part of a path
            hint = hidden_by_unit(os.path.realpath(path), os.fsdecode(mounts.read()))
    except OSError:
        hint = ""
    if not hint and error.errno == errno.EACCES and os.geteuid() == 0:
        hint = "root needs the right to read it like anybody without CAP_DAC_OVERRIDE: see ls -l"
    return f"{text}: {hint}" if hint else text


def hidden_by_unit(path: str, mountinfo: str) -> str:
    """What to do when systemd covers a path for this service, in which it may well be there for
    others; empty if it does not.
    """
    covered = root = ""
    for line in mountinfo.rstrip("\n").split("\n"):
        _, _, _, here, place, *_ = line.split(" ")
        # The deepest is the one that is seen, and of several at one place the last.
        if f"{path}/".startswith(f"{place.rstrip('/')}/") and len(place) >= len(covered):
            covered, root = place, here
    if root.endswith("/inaccessible/dir"):
        setting = "ProtectHome=" if covered in _HOMES else "InaccessiblePaths="
    elif re.search("/systemd-private-[^/]*/tmp$", root):
        setting = "PrivateTmp="
    else:
        return ""
    return f"{setting} of its unit hides {covered} from the service: put the file elsewhere"
