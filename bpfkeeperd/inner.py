"""stub"""

from bpfkeeperd import kernel
from bpfkeeperd.state import InnerInfo, MapInfo


def inner_infos() -> dict[int, InnerInfo]:
    return {}


def slots(fd: int, info: MapInfo) -> dict[bytes, int]:
    found = {}
    for key in kernel.map_keys(fd, info.key_size):
        data = kernel.map_lookup(fd, key, 4)
        if data and any(data):
            found[key] = int.from_bytes(data, "little")
    return found
