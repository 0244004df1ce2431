"""Where an attachment is, noted on its pin, because the kernel does not tell.

The info of a netfilter link does not say in which network namespace it is; a filter of tc has no
link. Names of namespaces and interfaces come and go meanwhile. The note is the pin's time of
modification, which nothing else uses: it is there for as long as the pin, goes along when that is
renamed, and is set in one step. Namespaces have inodes from 2^31 on, so that a note is a time after
the year 2116.
"""

import os
from typing import NamedTuple

from bpfkeeperd.directories import doing, status_of

_INDEX_BITS = 31


class PinNote(NamedTuple):
    netns: int
    """Inode of the network namespace; no other has it as long as that one is alive."""
    interface: int
    """Index of an interface; 0 where there is none."""


def write_note(path: str, note: PinNote) -> None:
    number = note.netns << _INDEX_BITS | note.interface
    with doing(f"note where the attachment of {path} is"):
        os.utime(path, ns=(number, number))


def read_note(path: str) -> PinNote | None:
    """None: there is no such pin, or no note on it.

    Raises:
        KernelError: nobody can tell.
    """
    found = status_of(path)
    if found is None:
        return None
    number = found.st_mtime_ns
    netns, index = number >> _INDEX_BITS, number & ((1 << _INDEX_BITS) - 1)
    return PinNote(netns, index) if netns >= 1 << 31 else None
