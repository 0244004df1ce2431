"""Pins of kept maps, which stand where others may pin, too."""

import errno
import os
import stat
import struct

from bpfkeeperd._libbpf import ffi, lib
from bpfkeeperd.errors import KeeperError
from bpfkeeperd.kernel.bpf import check_kind, checked
from bpfkeeperd.kernel.scan import PinKind
from bpfkeeperd.pinrights import Rights
from bpfkeeperd.state import MapInfo

# struct keeper_kept_map of _build/pins.h
_KEPT = struct.Struct("@9IQ16s5I")
_ENCODING = "utf-8", "surrogateescape"
# Thousands of maps are looked at in a row: what C does not write is not read.
_new = ffi.new_allocator(should_clear_after_alloc=False)
_OVERFLOW_UID = 65534  # what a user namespace shows of a user that it does not know


def kept_map(
    root: str, name: str, owner: int = 0, former_owner: int = 0
) -> tuple[MapInfo, Rights] | None:
    """The map pinned under a name below a pin root, and whose the pin is; None when nothing is
    pinned there.

    The pin has to belong to root, to this process's user or to one of the two owners, the
    directories between root and pin to one of the first two. No symbolic link is followed.

    Raises:
        KeeperError: somebody else put there what is there: it was not opened.
        KernelError: it cannot be opened, or is no map (EINVAL).
    """
    path = f"{root}/{name}"
    raw, kept = path.encode(*_ENCODING), _new("struct keeper_kept_map *")
    root_size = len(raw) - len(name.encode(*_ENCODING)) - 1
    result = lib.keeper_kept_map(raw, root_size, owner, former_owner, kept)
    if result == -errno.ENOENT:
        return None
    found = _KEPT.unpack_from(ffi.buffer(kept))
    map_id, kind, key_size, value_size, max_entries, flags, *btf = found[:9]
    map_extra, map_name, uid, gid, mode, refused, object_kind = found[9:]
    if refused:
        raise KeeperError(_why_refused(os.fsdecode(raw[:refused]), uid, mode))
    checked(result, f"open the pin {path}")
    check_kind(object_kind, PinKind.MAP, path)
    text = map_name.partition(b"\0")[0].decode("utf-8", "replace")
    sizes = key_size, value_size, max_entries
    info = MapInfo(map_id, text, kind, *sizes, flags, map_extra, (btf[0], btf[1], btf[2]))
    return info, Rights(uid, gid, mode & 0o7777)


def _why_refused(path: str, uid: int, mode: int) -> str:
    own = uid in (0, os.geteuid())
    if stat.S_ISLNK(mode):
        return f"{path} is a symbolic link, which is not followed: remove it"
    if own:
        return f"everybody can exchange what is in {path}: chmod o-w {path}, or chmod +t {path}"
    user = f"user {uid}"
    if uid == _OVERFLOW_UID:
        user += " (nobody, or one that this user namespace does not know)"
    trusted = f"chown root {path} if it is to be trusted"
    if stat.S_ISDIR(mode):
        whose = f"the directory {path} belongs to {user}, who can exchange what is in it"
        return f"{whose}: {trusted}, or move it away"
    whose = f"the pin {path} belongs to {user}, and was not opened"
    return f"{whose}: {trusted}, name its owner in the manifest (pin: owner), or remove it"
