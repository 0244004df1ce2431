"""What a daemon costs that has nothing to do."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tests.bench.daemon import DaemonProcess, cpu_ticks, resident_bytes
from tests.bench.gap import INTERFACE, quiet_pair
from tests.bench.places import BUNDLED, ObjectSet, Places
from tests.bench.table import Row

IDLE_SECONDS = 10.0
METRICS = 'metrics: {listen: "127.0.0.1:0"}'


@contextmanager
def _interpreter() -> Iterator[int]:
    """A Python that sleeps; its process ID."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def _demo(stack: ExitStack, places: Places) -> DaemonProcess:
    """As config/demo: three objects, four maps, metrics."""
    pair = stack.enter_context(quiet_pair(f"keeper-bench-{os.getpid()}-idle"))
    cgroup = f"{{cgroup: {places.cgroup('demo')}}}"
    lines = [
        METRICS,
        "maps:",
        "  settings: {type: array, key_size: 4, value_size: 8, max_entries: 4,"
        " entries: [{key: 0, value: 1500}]}",
        "objects:",
    ]
    for name, kept, program, target in (
        ("sockops", "sock_ops_map", "add_to_sockhash", cgroup),
        ("destinations", "destinations", "count_destinations", cgroup),
        (
            "protocols",
            "protocols",
            "count_protocols",
            f"{{interface: {INTERFACE}, netns: {pair.here}}}",
        ),
    ):
        lines += [
            f"  {name}:",
            f"    file: {BUNDLED / name}.bpf.o",
            f"    pin_maps: [{kept}]",
            f"    programs: {{{program}: {{attach: [{target}]}}}}",
        ]
    return stack.enter_context(DaemonProcess(places, "demo", "\n".join(lines)))


def _hundred(stack: ExitStack, places: Places) -> DaemonProcess:
    """A hundred objects, all of them reloaded once."""
    objects = ObjectSet.make(places, "small", "count", 100)
    cgroups = places.cgroup("hundred")
    for number in range(len(objects.names)):
        (cgroups / str(number)).mkdir()
    manifest = f"{METRICS}\n{objects.manifest(cgroups)}"
    daemon = stack.enter_context(DaemonProcess(places, "hundred", manifest))
    objects.change()
    daemon.reload(expect_done=200)
    return daemon


def measure_idle(places: Places) -> Iterator[Row]:
    """Memory and CPU time, after a reload and a scrape, beside those of a bare interpreter."""
    with ExitStack() as stack:
        bare = stack.enter_context(_interpreter())
        daemons = {
            "the demo's manifest": _demo(stack, places),
            "100 objects": _hundred(stack, places),
        }
        for daemon in daemons.values():
            daemon.scrape()
        time.sleep(1)
        pids = [bare, *(daemon.pid for daemon in daemons.values())]
        before = [cpu_ticks(pid) for pid in pids]
        time.sleep(IDLE_SECONDS)
        used = [cpu_ticks(pid) - ticks for pid, ticks in zip(pids, before, strict=True)]
        resident = [resident_bytes(pid) for pid in pids]
    for number, what in enumerate(daemons, start=1):
        ratio = resident[number] / resident[0]
        yield Row(
            f"memory of the idle daemon, {what}",
            _megabytes(resident[number]),
            f"{_megabytes(resident[0])} bare Python",
            ratio,
            "< 45 MB",
            resident[number] < 45e6,
        )
    for number, what in enumerate(daemons, start=1):
        yield Row(
            f"CPU time in {IDLE_SECONDS:g} s idle, {what}",
            f"{used[number]} ticks",
            f"{used[0]} ticks bare Python",
            None,
            "0",
            used[number] == 0,
        )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
