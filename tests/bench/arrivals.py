"""How soon interfaces that match a pattern are served when many come at once."""

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from bpfkeeperd import kernel
from bpfkeeperd.layout import Layout
from tests.bench.daemon import BenchError, DaemonProcess, resident_bytes
from tests.bench.places import Places
from tests.bench.table import Row, milliseconds
from tests.machine import Netns, ip

INTERFACES = 200
LONGEST_SECONDS = 60.0
MEMORY_MAX_BYTES = 60e6


def measure_arrivals(places: Places) -> Iterator[Row]:
    """200 veth pairs that one command adds, each with one end that matches; and their removal."""
    for hook in ("tcx/ingress", "xdp"):
        with ExitStack() as stack:
            pair = Netns(f"keeper-bench-{os.getpid()}-arrivals")
            pair.make()
            stack.callback(ip, "netns", "delete", pair.here)
            yield from _measure(stack, places, pair, hook)


def _measure(stack: ExitStack, places: Places, pair: Netns, hook: str) -> Iterator[Row]:
    name = hook.replace("/", "-")
    verdict = 2 if hook == "xdp" else -1
    file = places.directory / f"arrivals-{name}.bpf.o"
    file.write_bytes(places.compile_bpf("counter", HOOK=f'"{hook}"', VERDICT=verdict))
    manifest = (
        f"objects: {{one: {{file: {file}, pin_maps: [counts], programs: {{count: {{attach:\n"
        f'  [{{interface: "many*", netns: {pair.here}}}]}}}}}}}}\n'
    )
    daemon = stack.enter_context(DaemonProcess(places, f"arrivals-{name}", manifest))
    alone = _alone(pair, file.read_bytes(), hook)
    layout = Layout(str(places.bpffs / f"arrivals-{name}"))
    links = Path(layout.links) / "one" / "count"
    began = time.monotonic()
    watched = stack.enter_context(_Watched(lambda: _count(links) == INTERFACES))
    _add(pair, "many")
    added = time.monotonic()
    served = watched.wait("interfaces are not served", daemon)
    late = max(0.0, served - added)
    yield Row(
        f"{INTERFACES} new interfaces served by {hook} after",
        milliseconds(late),
        f"{milliseconds(alone)} BPF_LINK_CREATE alone",
        late / alone,
        "< 1000 ms",
        late < 1,
    )
    memory = resident_bytes(daemon.pid)
    yield Row(
        "memory of the daemon then",
        f"{memory / 1e6:.1f} MB",
        "",
        None,
        "< 60 MB",
        memory < MEMORY_MAX_BYTES,
    )
    began = time.monotonic()
    ip("netns", "delete", pair.there)
    watched = stack.enter_context(_Watched(lambda: _count(links) == 0))
    gone = watched.wait("links are left", daemon)
    yield Row("nothing is left of them after", milliseconds(gone - began), "", None)


def _alone(pair: Netns, data: bytes, hook: str) -> float:
    """How long it takes to do nothing but attach a program to as many interfaces."""
    _add(pair, "alone")
    attach_type = 37 if hook == "xdp" else 46
    with ExitStack() as stack, pair.inside(pair.here):
        opened = stack.enter_context(kernel.open_object(data, "alone"))
        opened.load()
        program = opened.program_fd("count")
        indexes = kernel.interfaces()
        began = time.monotonic()
        for number in range(INTERFACES):
            link = kernel.link_create(program, indexes[f"alone{number}"], attach_type)
            stack.callback(os.close, link)
        return time.monotonic() - began


def _count(directory: Path) -> int:
    try:
        return len(os.listdir(directory))
    except FileNotFoundError:
        return 0


def _add(pair: Netns, name: str) -> None:
    lines = [
        f"link add {name}{number} type veth peer name {name}{number} netns {pair.there}\n"
        for number in range(INTERFACES)
    ]
    command = ["ip", "-n", pair.here, "-batch", "-"]
    subprocess.run(command, input="".join(lines), text=True, check=True)


class _Watched:
    """Notes when something is the case for the first time; a context manager."""

    def __init__(self, is_so: Callable[[], bool]) -> None:
        self._is_so = is_so
        self._at: float | None = None
        self._over = False
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._over:
            if self._is_so():
                self._at = time.monotonic()
                return
            time.sleep(0.002)

    def wait(self, otherwise: str, daemon: DaemonProcess) -> float:
        self._thread.join(LONGEST_SECONDS)
        if self._at is None:
            raise BenchError(f"{otherwise}; the daemon's log ends:\n{daemon.log[-4000:]}")
        return self._at

    def __enter__(self) -> "_Watched":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._thread.join()
