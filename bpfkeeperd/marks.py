"""Who made a map's pin, and why, told by a second pin until the state file tells it.

A keeper can be killed between the two. The mark is made first, so the next one does not take its
pin for somebody else's.
"""

import os

from bpfkeeperd import kernel
from bpfkeeperd.churn import OwnPins
from bpfkeeperd.directories import (
    check_usable,
    link,
    make_directory,
    pins_below,
    remove_tree,
    rights_of,
    set_rights,
    unlink,
)
from bpfkeeperd.layout import Layout, escape
from bpfkeeperd.pinrights import WantedRights
from bpfkeeperd.state import MapIdChange


def mark(layout: Layout, name: str, reason: MapIdChange, fd: int) -> str:
    """Marks the map that is about to be pinned under a name; returns the mark's path."""
    directory = f"{layout.made}/{reason}"
    make_directory(layout.made)
    make_directory(directory)
    path = f"{directory}/{escape(name)}"
    unlink(path)
    kernel.pin(fd, path)
    return path


def pin_marked(fd: int, marked: str, path: str, wanted: WantedRights) -> None:
    """Pins a marked map under its name; nobody sees it there without the rights that are wanted."""
    if wanted:
        set_rights(marked, wanted.over(rights_of(marked)))
        check_usable(marked)
        link(marked, path)
    else:
        kernel.pin(fd, path)


def marked(layout: Layout) -> OwnPins:
    """All marks; the names are escaped.

    Raises:
        KernelError: one cannot be read.
    """
    found: dict[str, dict[int, MapIdChange]] = {}
    for path in pins_below(layout.made, 2):
        reason, _, name = path.partition("/")
        if reason not in tuple(MapIdChange):  # of another version
            continue
        opened = kernel.pinned_map(f"{layout.made}/{path}")
        if opened:
            os.close(opened[0])
            found.setdefault(name, {})[opened[1].id] = MapIdChange(reason)
    return found


def remove_marks(layout: Layout) -> None:
    """The state file tells it now."""
    remove_tree(layout.made)
