"""Pins of kept maps, which stand where others may pin, too."""

import errno
import os
import stat
from typing import Any

from bpfkeeperd._libbpf import ffi, lib
from bpfkeeperd.errors import KeeperError
from bpfkeeperd.kernel.bpf import checked, kind_checked, map_info
from bpfkeeperd.kernel.scan import PinKind
from bpfkeeperd.pinrights import Rights
from bpfkeeperd.state import MapInfo

_OVERFLOW_UID = 65534  # what a user namespace shows of a user that it does not know


def kept_map(
    root: str, name: str, owner: int = 0, former_owner: int = 0
) -> tuple[int, MapInfo, Rights] | None:
    """The map pinned under a name below a pin root: descriptor, info, and whose the pin is; None
    when nothing is pinned there.

    The pin has to belong to root, to this process's user or to one of the two owners, the
    directories between root and pin to one of the first two. No symbolic link is followed.

    Raises:
        KeeperError: somebody else put there what is there: it was not opened.
        KernelError: it cannot be opened, or is no map (EINVAL).
    """
    path, found = f"{root}/{name}", ffi.new("struct keeper_kept_pin *")
    raw = os.fsencode(path)
    fd: int = lib.keeper_open_kept(raw, len(os.fsencode(root)), owner, former_owner, found)
    if fd == -errno.ENOENT:
        return None
    if found.refused:
        raise KeeperError(_why_refused(os.fsdecode(raw[: found.refused]), found))
    kind_checked(checked(fd, f"open the pin {path}"), PinKind.MAP, path)
    try:
        rights = Rights(found.uid, found.gid, stat.S_IMODE(found.mode))
        return fd, map_info(fd), rights
    except BaseException:
        os.close(fd)
        raise


def _why_refused(path: str, found: Any) -> str:
    own = found.uid in (0, os.geteuid())
    if stat.S_ISLNK(found.mode):
        return f"{path} is a symbolic link, which is not followed: remove it"
    if own:
        return f"everybody can exchange what is in {path}: chmod o-w {path}, or chmod +t {path}"
    user = f"user {found.uid}"
    if found.uid == _OVERFLOW_UID:
        user += " (nobody, or one that this user namespace does not know)"
    trusted = f"chown root {path} if it is to be trusted"
    if stat.S_ISDIR(found.mode):
        whose = f"the directory {path} belongs to {user}, who can exchange what is in it"
        return f"{whose}: {trusted}, or move it away"
    whose = f"the pin {path} belongs to {user}, and was not opened"
    return f"{whose}: {trusted}, name its owner in the manifest (pin: owner), or remove it"
