"""Programs of bpf/ that tell of all maps of the machine when their iterator is read."""

import os
from pathlib import Path

from bpfkeeperd import kernel
from bpfkeeperd.errors import KeeperError, KernelError

OBJECTS = Path(__file__).parent / "bpf"

_READ_BYTES = 1 << 16
"""The kernel hands out at most 32 KiB (eight pages) a read."""


def load(file: Path, program: str) -> int:
    """Loads one program of an object; returns the link that keeps it.

    Raises:
        KeeperError: the kernel does not take it, or the file is not there.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise KeeperError(
            f"cannot read {file}: {error.strerror}: install bpfkeeperd again, its files are not"
            " complete"
        ) from error
    with kernel.open_object(data, file.name.partition(".")[0]) as opened:
        for spec in opened.spec.programs:
            opened.set_autoload(spec.name, spec.name == program)
        opened.load()
        return kernel.link_create(opened.program_fd(program), 0, kernel.TRACE_ITER)


def read(link_fd: int) -> bytes:
    """All that the program writes, of one turn through all maps.

    Raises:
        KernelError: the iterator cannot be made or read.
    """
    with kernel.holding(kernel.iter_create(link_fd)) as iterator_fd:
        return read_all(iterator_fd)


def read_all(iterator_fd: int) -> bytes:
    """What an iterator writes until its end; a record may be split between two reads."""
    chunks: list[bytes] = []
    while True:
        try:
            chunk = os.read(iterator_fd, _READ_BYTES)
        except BlockingIOError:
            continue  # a pause after a million objects (MAX_ITER_OBJECTS): the next read goes on
        except OSError as error:
            raise KernelError("read the map iterator", error.errno or 0) from error
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)
