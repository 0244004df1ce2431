"""Which cgroups stand in a CGROUP_ARRAY: bpf(2) does not tell, bpf/map_cgroups.bpf.c does."""

import struct

from bpfkeeperd import iterators, kernel
from bpfkeeperd.errors import KeeperError

OBJECT_FILE = iterators.OBJECTS / "map_cgroups.bpf.o"

SLOTS_MAX = 1024
"""The iterator looks no further."""

_PROGRAM = "list_cgroups"
_RECORD = struct.Struct("=IIQ")
"""``struct record`` of the program."""


def cgroup_ids(map_id: int) -> dict[int, int] | None:
    """Slot to cgroup ID, which is the inode of its directory, of the slots that are not empty.

    None where that cannot be had: no BTF, no CAP_PERFMON, Linux before 5.17. The iterator is
    loaded, read once and gone again, which takes some 10 ms.
    """
    try:
        with kernel.holding(iterators.load(OBJECT_FILE, _PROGRAM)) as link_fd:
            records = iterators.read(link_fd)
    except KeeperError:
        return None
    return {
        slot: cgroup for number, slot, cgroup in _RECORD.iter_unpack(records) if number == map_id
    }
