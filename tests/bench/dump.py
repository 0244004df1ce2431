"""Showing a large map: the command against reading alone, in C."""

import re
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator
from pathlib import Path

from bpfkeeperd import kernel
from tests.bench.daemon import BenchError
from tests.bench.places import Places
from tests.bench.table import Row, alternate, milliseconds
from tests.machine import fill_map

ENTRIES = 1_000_000
RATIO_MAX = 3.0
MEMORY_MAX_BYTES = 60e6


def _full_map(places: Places) -> Path:
    """Pins a hash of flows (key 16 bytes, value 32), full."""
    path = places.pin_root("dump") / "flows"
    data = places.compile_bpf("contents", ENTRIES=ENTRIES)
    keys = array("Q", bytes(16 * ENTRIES))
    keys[0::2] = array("Q", range(1 << 56, (1 << 56) + ENTRIES))
    values = array("Q", bytes(32 * ENTRIES))
    for place, factor in enumerate((3, 1500, 7, 1 << 20)):
        values[place::4] = array("Q", range(0, factor * ENTRIES, factor))
    with kernel.open_object(data, "contents") as opened:
        opened.load()
        fd = opened.map_fd("flows")
        fill_map(fd, keys.tobytes(), values.tobytes(), ENTRIES)
        kernel.pin(fd, str(path))
    return path


_TELL_MEMORY = (
    "import sys; from bpfkeeperd.__main__ import main; code = main();"
    " sys.stderr.write(open('/proc/self/status').read()); sys.exit(code)"
)


def _run(*command: str) -> str:
    """Runs Python with what follows; its standard error."""
    done = subprocess.run(
        [sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise BenchError(f"{' '.join(command)} exits with {done.returncode}: {done.stderr}")
    return done.stderr


def _peak_bytes(status: str) -> int:
    """The most a process ever had in memory, from its /proc/self/status."""
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) << 10


def measure_dumps(places: Places, rounds: int) -> Iterator[Row]:
    """A million entries, as JSON and as a table."""
    path = _full_map(places)
    reader = str(places.compile_c("plain_loader", "-lbpf"))
    memory = []

    def read() -> float:
        done = subprocess.run([reader, "batch", str(path)], check=True, capture_output=True)
        count, spent_ms = done.stdout.split()
        if int(count) != ENTRIES:
            raise BenchError(f"{int(count)} entries read, there are {ENTRIES}")
        return float(spent_ms) / 1e3

    for name, options in (("as JSON", ["--json"]), ("as a table", [])):
        command = ["dump", str(path), *options]

        def show(command: list[str] = command) -> float:
            started = time.perf_counter()
            _run("-m", "bpfkeeperd", *command)
            return time.perf_counter() - started

        ours, plain = alternate(rounds, show, read)
        yield Row(
            f"dump {ENTRIES} entries {name}",
            milliseconds(ours),
            f"{milliseconds(plain)} read in C",
            ours / plain,
            f"<= {RATIO_MAX:g}",
            ours / plain <= RATIO_MAX,
        )
        memory.append(_peak_bytes(_run("-c", _TELL_MEMORY, *command)))
    tell = "import sys; sys.stderr.write(open('/proc/self/status').read())"
    bare = _peak_bytes(_run("-c", tell))
    yield Row(
        "memory of a dump, at most",
        f"{max(memory) / 1e6:.1f} MB",
        f"{bare / 1e6:.1f} MB bare Python",
        max(memory) / bare,
        f"< {MEMORY_MAX_BYTES / 1e6:g} MB",
        max(memory) < MEMORY_MAX_BYTES,
    )
    path.unlink()
