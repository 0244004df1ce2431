"""Waits until a map's name has another ID, as any reader of the map can: with a look at its pin."""

import math
import time

from bpfkeeperd import kernel
from bpfkeeperd.errors import KeeperError
from bpfkeeperd.layout import Layout, name_fault
from bpfkeeperd.trust import NOBODY_ELSE, Trust


def pin_path(name: str, config: str, trust: Trust = NOBODY_ELSE) -> str:
    """Where a map is pinned: a kept map by its name, any other by the path of its pin.

    Raises:
        KeeperError: no map can have this name.
        ManifestError: the manifest, which says where kept maps are, is wrong.
    """
    if name.startswith("/"):
        return name
    # Reading a manifest takes its time to import, which a path need not spend.
    from bpfkeeperd.manifest import read_manifest

    fault = name_fault(name)
    if fault:
        raise KeeperError(f"cannot wait for map {name}: {fault}")
    return Layout(read_manifest(config, trust).pin_root).map(name)


def next_id(path: str, *, known: int | None, timeout_seconds: float | None) -> int | None:
    """The first ID under a pin's name that is not the known one, or None: not in time.

    Without a known one it is that of now; where nothing is pinned now, the first that is. A pin
    that is gone is no other ID: it may come back with the same.

    Raises:
        KernelError: the pin may not be opened, or is no map.
    """
    deadline = time.monotonic() + (math.inf if timeout_seconds is None else timeout_seconds)
    if known is None:
        known = _id_at(path)
    with kernel.PathWatch(path) as watch:
        while True:
            watch.arm()
            found = _id_at(path)
            if found not in (None, known):
                return found
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            watch.wait(None if left == math.inf else left)


def _id_at(path: str) -> int | None:
    fd = kernel.pinned_for_reading(path)
    if fd is None:
        return None
    with kernel.holding(fd):
        return kernel.map_info(fd).id
