"""Which cgroups stand in a CGROUP_ARRAY: bpf(2) does not tell, bpf/map_cgroups.bpf.c does."""

import struct
from pathlib import Path

from bpfkeeperd import kernel
from bpfkeeperd.counting import read_all
from bpfkeeperd.errors import KeeperError

OBJECT_FILE = Path(__file__).parent / "bpf" / "map_cgroups.bpf.o"

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
        with kernel.open_object(OBJECT_FILE.read_bytes(), "map_cgroups") as opened:
            opened.load()
            link_fd = kernel.link_create(opened.program_fd(_PROGRAM), 0, kernel.TRACE_ITER)
        with kernel.holding(link_fd), kernel.holding(kernel.iter_create(link_fd)) as iterator_fd:
            records = read_all(iterator_fd)
    except (KeeperError, OSError):
        return None
    return {
        slot: cgroup for number, slot, cgroup in _RECORD.iter_unpack(records) if number == map_id
    }
