"""Counting entries: the keeper's iterator against doing so in C from user space."""

import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bpfkeeperd import kernel
from bpfkeeperd.counting import MapCounter
from bpfkeeperd.maptypes import DEVMAP, HASH
from tests.bench.daemon import BenchError
from tests.bench.places import Places
from tests.bench.table import Row, alternate, milliseconds


def _full_hash(pins: Path, name: str, entries: int) -> int:
    """Pins a HASH of so many entries; its ID."""
    fd = kernel.map_create(HASH, name, 4, 8, entries)
    with kernel.holding(fd):
        for key in range(entries):
            kernel.map_update(fd, struct.pack("=I", key), bytes(8))
        kernel.pin(fd, str(pins / name))
        return kernel.map_info(fd).id


def _half_full_devmap(pins: Path, name: str, entries: int) -> int:
    """Pins a DEVMAP of so many entries, in twice as many slots; its ID."""
    loopback = struct.pack("=I", socket.if_nametoindex("lo"))
    fd = kernel.map_create(DEVMAP, name, 4, 4, 2 * entries)
    with kernel.holding(fd):
        for key in range(entries):
            kernel.map_update(fd, struct.pack("=I", 2 * key), loopback)
        kernel.pin(fd, str(pins / name))
        return kernel.map_info(fd).id


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of map, and how else its entries can be counted."""

    name: str
    make: Callable[[Path, str, int], int]
    command: str
    """Of plain_loader."""
    way: str


_HASHES = _Kind("hash", _full_hash, "walk", "keys walked in C")
_DEVMAPS = _Kind("device", _half_full_devmap, "slots", "slots looked up in C")


def _row(
    places: Places, counter: MapCounter, kind: _Kind, maps: int, entries: int, rounds: int
) -> Row:
    """All maps of this kind and size counted, by either."""
    pins = places.pin_root(f"{maps}-{kind.command}")
    ids = [kind.make(pins, f"map{number}", entries) for number in range(maps)]
    paths = [str(pins / name) for name in sorted(os.listdir(pins))]
    program = str(places.compile_c("plain_loader", "-lbpf"))

    def count() -> float:
        started = time.perf_counter()
        counts = counter.counts()
        seconds = time.perf_counter() - started
        if any(counts.get(map_id) != entries for map_id in ids):
            raise BenchError(f"not all of {maps} maps were counted right")
        return seconds

    def walk() -> float:
        done = subprocess.run([program, kind.command, *paths], check=True, capture_output=True)
        walked, spent_ms = done.stdout.split()
        if int(walked) != maps * entries:
            raise BenchError(f"{int(walked)} entries walked, there are {maps * entries}")
        return float(spent_ms) / 1e3

    ours, plain = alternate(rounds, count, walk)
    for path in paths:
        os.unlink(path)
    plural = "s" if maps > 1 else ""
    return Row(
        f"count {maps} {kind.name} map{plural} of {entries} entries",
        milliseconds(ours),
        f"{milliseconds(plain)} {kind.way}",
        ours / plain,
    )


def measure_scrapes(places: Places, rounds: int) -> Iterator[Row]:
    """One large map, and many small ones. All maps of the machine are counted along."""
    with ExitStack() as stack:
        counter = stack.enter_context(MapCounter.open())
        for kind in (_HASHES, _DEVMAPS):
            yield _row(places, counter, kind, 1, 100_000, rounds)
            yield _row(places, counter, kind, 1000, 100, rounds)
