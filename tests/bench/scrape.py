"""Counting entries, and whole scrapes, against doing so in C from user space."""

import http.client
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bpfkeeperd import kernel
from bpfkeeperd.counting import MapCounter
from bpfkeeperd.maptypes import DEVMAP, HASH
from tests.bench.daemon import BenchError, DaemonProcess
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


_READS = 20
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


def _counts_row(places: Places, counter: MapCounter, entries: int, rounds: int) -> Row:
    """The counts of one large map, beside reading it in C with the largest batches."""
    pins = places.pin_root(f"large-{entries}")
    path = str(pins / "large")
    with kernel.holding(kernel.map_create(HASH, "large", 4, 8, entries)) as fd:
        kernel.pin(fd, path)
        map_id = kernel.map_info(fd).id
    program = str(places.compile_c("plain_loader", "-lbpf"))
    subprocess.run([program, "fill", path, str(entries)], check=True)

    def count() -> float:
        """The median of some in a row: the first finds caches full of the batches' entries."""
        seconds = []
        for _ in range(_READS):
            started = time.perf_counter()
            counts = counter.survey().counts
            seconds.append(time.perf_counter() - started)
            if counts.get(map_id) != entries:
                raise BenchError(f"{counts.get(map_id)} entries were counted, there are {entries}")
        return median(seconds)

    def batch() -> float:
        done = subprocess.run([program, "batch", path], check=True, capture_output=True)
        return float(done.stdout.split()[1]) / 1e3

    ours, plain = alternate(rounds, count, batch)
    os.unlink(path)
    return Row(
        f"read the counts, one map of {entries / 1e6:g} M entries",
        f"{ours * 1e6:.0f} us",
        f"{milliseconds(plain)} lookup batch in C",
        ours / plain,
        "<= 50 us",
        ours <= 50e-6,
    )


def _get(daemon: DaemonProcess, client: http.client.HTTPConnection) -> float:
    """Seconds that a scrape takes, as seen by who scrapes."""
    started = time.perf_counter()
    client.request("GET", "/metrics")
    body = client.getresponse().read()
    seconds = time.perf_counter() - started
    client.close()
    if b"\nbpfkeeper_map_entries{" not in body:
        raise BenchError(f"no counts in the scrape:\n{daemon.log}")
    return seconds


@contextmanager
def _daemon_with(places: Places, maps: int) -> Iterator[tuple[DaemonProcess, list[str]]]:
    """A daemon that keeps so many maps of 100 entries, and their pins."""
    lines = [
        f"  map{number:04}: {{type: hash, key: u32, value: u64, max_entries: 200}}"
        for number in range(maps)
    ]
    parts = ["\n".join(["maps:", *lines[at : at + 1000]]) for at in range(0, maps, 1000)]
    name = f"kept-{maps}"
    with DaemonProcess(places, name, "", parts) as daemon:
        paths = [str(places.bpffs / name / f"map{number:04}") for number in range(maps)]
        for path in paths:
            found = kernel.pinned_map(path)
            if not found:
                raise BenchError(f"{path} is not pinned")
            with kernel.holding(found[0]) as fd:
                for key in range(100):
                    kernel.map_update(fd, struct.pack("=I", key), bytes(8))
        yield daemon, paths


def _http_rows(places: Places, rounds: int) -> Iterator[Row]:
    """Whole scrapes over HTTP, beside bpftool's list and a walk of every map in C."""
    program = str(places.compile_c("plain_loader", "-lbpf"))
    with _daemon_with(places, 1000) as (daemon, paths):
        client = http.client.HTTPConnection(*daemon.metrics_address)

        def bpftool() -> float:
            started = time.perf_counter()
            subprocess.run(["bpftool", "map", "list"], check=True, stdout=subprocess.DEVNULL)
            subprocess.run([program, "walk", *paths], check=True, stdout=subprocess.DEVNULL)
            return time.perf_counter() - started

        ours, plain = alternate(rounds, lambda: _get(daemon, client), bpftool)
        yield Row(
            "scrape of 1000 maps over HTTP",
            milliseconds(ours),
            f"{milliseconds(plain)} bpftool map list, keys walked in C",
            ours / plain,
            "<= 0.2 and 15 ms",
            ours / plain <= 0.2 and ours <= 15e-3,
        )
        with _daemon_with(places, 5000) as (large, _):
            more = http.client.HTTPConnection(*large.metrics_address)
            many, few = alternate(rounds, lambda: _get(large, more), lambda: _get(daemon, client))
    yield Row(
        "scrape of 5000 maps over HTTP",
        milliseconds(many),
        f"{milliseconds(few)} scrape of 1000, beside these",
        many / few,
        "<= 6",
        many / few <= 6,
    )


def measure_scrapes(places: Places, rounds: int, large_entries: int) -> Iterator[Row]:
    """One large map, and many small ones. All maps of the machine are counted along."""
    with ExitStack() as stack:
        counter = stack.enter_context(MapCounter.open())
        yield _counts_row(places, counter, large_entries, rounds)
        for kind in (_HASHES, _DEVMAPS):
            yield _row(places, counter, kind, 1, 100_000, rounds)
            yield _row(places, counter, kind, 1000, 100, rounds)
    yield from _http_rows(places, rounds)
