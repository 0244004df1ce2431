"""The explicit way down: detaches everything the keeper attached, and removes what it pinned."""

import os
from contextlib import suppress

from bpfkeeperd import kernel
from bpfkeeperd.churn import Memory
from bpfkeeperd.directories import is_directory, pins_below, remove_empty, remove_tree, unlink
from bpfkeeperd.errors import KeeperError, KernelError
from bpfkeeperd.hooks import STORED_LINKS
from bpfkeeperd.kernel import PinKind
from bpfkeeperd.layout import OWN_DIRECTORY, PARTS_MAX, Layout, unescape
from bpfkeeperd.recorded import detach_recorded


def unload(layout: Layout, memory: Memory, *, with_maps: bool) -> tuple[list[str], Memory]:
    """Returns a line for each thing that is gone now, and what remains to be remembered.

    Maps lose their pins only ``with_maps``, and only those whose pin the keeper made: with the last
    reference their contents are gone.

    Raises:
        KeeperError: something cannot be removed; what was removed before stays removed.
    """
    lines = []
    try:
        for pin in kernel.scan(layout.links, depth=3, kind=PinKind.LINK):
            if pin.kind == PinKind.LINK:
                name, program, target = (unescape(part) for part in pin.path)
                path = f"{layout.links}/{'/'.join(pin.path)}"
                if pin.type in STORED_LINKS and "/".join(pin.path) not in memory.adopted:
                    _detach(path)
                unlink(path)
                lines.append(f"detached {name}/{program} from {target}")
        for pin in kernel.scan(layout.attached, depth=3, kind=PinKind.PROGRAM):
            if len(pin.path) == 3:
                key = pin.path[0], pin.path[1], pin.path[2]
                name, program, target = (unescape(part) for part in key)
                left = detach_recorded(layout, key)
                lines.append(left or f"detached {name}/{program} from {target}")
        if is_directory(layout.own):
            remove_tree(layout.own)
            lines.append("unloaded all programs")
        maps = dict(memory.maps)
        for name, record in memory.maps.items():
            known = with_maps and record.made and memory.boot_id == kernel.boot_id()
            if known and _is_pinned(layout, name, record.id):
                unlink(layout.map(name))
                remove_empty(layout.map(name), layout.root)
                lines.append(f"unpinned map {name} (ID {record.id}): its contents are gone")
                del maps[name]
    except OSError as error:
        raise KeeperError(f"cannot remove {error.filename}: {error.strerror}") from None
    return lines, Memory(memory.boot_id, maps)


def _detach(path: str) -> None:
    """The service manager may hold a descriptor of the link; it goes with the pin of any other."""
    fd = kernel.pinned(path, PinKind.LINK)
    if fd is not None:
        with kernel.holding(fd), suppress(KernelError):
            kernel.link_detach(fd)


def _is_pinned(layout: Layout, name: str, map_id: int) -> bool:
    found = kernel.pinned_map(layout.map(name))
    if found is None:
        return False
    os.close(found[0])
    return found[1].id == map_id


def pinned_maps(layout: Layout) -> list[str]:
    """The names of all maps that are pinned in the pin root, whoever made them, as deep as a
    manifest can name them."""
    names = []
    for name in sorted(pins_below(layout.root, PARTS_MAX)):
        if name.startswith(f"{OWN_DIRECTORY}/"):
            continue
        try:
            found = kernel.pinned_map(layout.map(name))
        except KeeperError:  # a program, something of the kernel's own
            continue
        if found:
            os.close(found[0])
            names.append(name)
    return names
