"""Entries of maps, read in batches and shown without ever becoming Python objects."""

import errno
import os
from collections.abc import Callable, Sequence
from typing import Any

from bpfkeeperd._libbpf import ffi, lib
from bpfkeeperd.errors import KeeperError, KernelError
from bpfkeeperd.format import Code, Format, Op
from bpfkeeperd.kernel.bpf import checked
from bpfkeeperd.kernel.scan import PinKind
from bpfkeeperd.state import MapInfo

BATCH_BYTES = 256 << 10
"""What is read at once, if it is more than one entry: fits into a CPU's cache."""
OUTPUT_BYTES = 64 << 10
COLUMN_MAX = 128
"""A column is made no wider for the sake of alignment."""
UNBOUNDED = 1 << 20
"""Entries that a map without a max_entries (storage of cgroups) is taken to have at most."""

READING = "read the map's entries"

_CODES = {code: getattr(lib, f"KEEPER_{code.name}") for code in Code}
# Buffers need not be cleared: C writes before it reads.
_new = ffi.new_allocator(should_clear_after_alloc=False)


def pinned_for_reading(path: str) -> int | None:
    """A descriptor of a pinned map that can be read, not written; None when nothing is there.

    Raises:
        KernelError: it cannot be opened, or is no map.
    """
    return _opened(lib.keeper_open_pin_for_reading(os.fsencode(path)), f"open the pin {path}")


def map_for_reading(map_id: int) -> int | None:
    """As `pinned_for_reading`, by ID, which takes CAP_SYS_ADMIN."""
    return _opened(lib.keeper_open_map_for_reading(map_id), f"open the map with ID {map_id}")


def _opened(fd: int, action: str) -> int | None:
    if fd == -errno.ENOENT:
        return None
    # Programs cannot be opened for reading alone: the kernel says EINVAL.
    if fd >= 0 and lib.keeper_kind(fd) != PinKind.MAP:
        os.close(fd)
        fd = -errno.EINVAL
    if fd == -errno.EINVAL:
        raise KernelError(action, -fd, "it is no map")
    if fd < 0:
        raise KernelError(action, -fd)
    return fd


class MapReader:
    """Reads a map's entries once, a batch at a time, into ``keys`` and ``values``.

    ``value_size`` is that of an entry as the kernel gives it, of all CPUs; 0: values are not read.
    The kernel's batches show an entry that is there all the while exactly once (LPM tries apart);
    walks from key to key, for types without batches, can show it twice or miss it when others are
    deleted meanwhile.
    """

    def __init__(self, fd: int, info: MapInfo, value_size: int, *, batch: bool) -> None:
        most = info.max_entries or UNBOUNDED
        reader = ffi.new(
            "struct keeper_reader *",
            {
                "fd": fd,
                "key_size": info.key_size,
                "value_size": value_size,
                "batch": batch,
                "keys_only": not value_size,
                "left": 2 * most,
            },
        )
        self._reader = ffi.gc(reader, lib.keeper_reader_end)
        checked(lib.keeper_reader_begin(self._reader, BATCH_BYTES, most), READING)
        self._count = ffi.new("uint32_t *")

    @property
    def keys(self) -> Any:
        return self._reader.keys

    @property
    def values(self) -> Any:
        return self._reader.values

    def read(self) -> int:
        """Reads the next entries; how many, 0 at the end.

        Raises:
            KernelError: the map cannot be read.
            KeeperError: it changes faster than it can be read.
        """
        while not self._reader.ended:
            result = lib.keeper_reader_some(self._reader, self._count)
            if result == -errno.ELOOP:
                message = "cannot read all of the map: it changes faster than it can be read"
                raise KeeperError(message)
            checked(result, READING)
            if self._count[0]:
                return int(self._count[0])
        return 0


class Printer:
    """Shows entries in a format, written to a descriptor that stays the caller's."""

    def __init__(
        self, form: Format, info: MapInfo, value_size: int, cpus: Sequence[int], fd: int
    ) -> None:
        self._fd = fd
        self._buffer = _new("char[]", OUTPUT_BYTES)
        self._output = ffi.new(
            "struct keeper_output *", {"data": self._buffer, "capacity": OUTPUT_BYTES, "fd": fd}
        )
        texts = bytearray()

        def placed(text: str) -> tuple[int, int]:
            data = text.encode()
            texts.extend(data)
            return len(texts) - len(data), len(data)

        names: list[tuple[int, int, int]] = []
        ops = [_packed(op, placed, names) for op in form.ops]
        between = placed(form.between)
        self._kept = [
            ffi.new("struct keeper_op[]", ops),
            ffi.new("struct keeper_name[]", names),
            ffi.new("char[]", bytes(texts) + bytes(lib.KEEPER_SLACK)),
            ffi.new("uint32_t[]", list(cpus)),
        ]
        self._format = ffi.new(
            "struct keeper_format *",
            {
                "ops": self._kept[0],
                "nr_ops": len(ops),
                "names": self._kept[1],
                "text": self._kept[2],
                "cpus": self._kept[3],
                "nr_cpus": len(cpus),
                "key_size": info.key_size,
                "value_size": value_size,
                "cpu_size": value_size // len(cpus),
                "between": between[0],
                "between_size": between[1],
            },
        )

    @property
    def shown(self) -> int:
        """How many entries were shown."""
        return int(self._format.shown)

    def measure(self, reader: MapReader, count: int, least: int) -> int:
        """Makes the first column wide enough for these entries; its width."""
        self._format.width = least
        self._output.fd = -1
        lib.keeper_show(self._format, self._output, reader.keys, reader.values, count)
        lib.keeper_output_flush(self._output)
        self._output.fd = self._fd
        self._format.shown = 0
        self._format.width = min(self._format.width, COLUMN_MAX)
        return int(self._format.width)

    def show(self, reader: MapReader, count: int) -> None:
        """Shows the first entries that were read.

        Raises:
            BrokenPipeError: nobody reads any more.
            OSError: the output cannot be written.
        """
        _written(lib.keeper_show(self._format, self._output, reader.keys, reader.values, count))

    def text(self, text: str) -> None:
        data = text.encode()
        _written(lib.keeper_output_text(self._output, data, len(data)))

    def flush(self) -> None:
        _written(lib.keeper_output_flush(self._output))


def _written(result: int) -> None:
    if result < 0:
        raise OSError(-result, os.strerror(-result))


def _packed(
    op: Op, placed: Callable[[str], tuple[int, int]], names: list[tuple[int, int, int]]
) -> dict[str, int]:
    text, text_size = placed(op.text) if op.text else (0, 0)
    count = op.count
    if op.code is Code.ENUM:
        text, count = len(names), len(op.names)
        by_value = sorted((number & (1 << 64) - 1, name) for name, number in op.names)
        names.extend((number, *placed(name)) for number, name in by_value)
    return {
        "code": _CODES[op.code],
        "offset": op.offset,
        "size": op.size,
        "count": count,
        "end": op.end,
        "text": text,
        "text_size": text_size,
        "flags": lib.KEEPER_SIGNED * op.signed
        | lib.KEEPER_NETWORK * op.network
        | lib.KEEPER_UNTIL_ZERO * op.until_zero,
        "bit": op.bit,
        "bits": op.bits,
    }
