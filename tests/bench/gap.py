"""Packets that no program saw, while programs are exchanged under full load.

Every packet has a number, and the programs note in a kept map how often they saw which: one that is
missed cannot be made up for by one that is seen twice. What reached the hook is the receiving
interface's rx_packets: veth counts there what it hands to XDP or to the stack, after its own drops.
Nothing else is on the wire: no IPv6, no ARP.
"""

import mmap
import os
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bpfkeeperd import kernel
from bpfkeeperd.attach import XDP_FLAGS_DRV_MODE
from bpfkeeperd.hooks import TCX_INGRESS, XDP, Hook
from tests.bench.daemon import BenchError, DaemonProcess
from tests.bench.places import Places
from tests.bench.table import Row
from tests.machine import Netns, ip

PACKETS = 1 << 25
"""The most that one batch may send: a byte each in the map."""
PORT = 7799
BATCH = 100
"""Exchanges while one sender runs."""
INTERFACE = "veth0"


@dataclass(slots=True)
class Seen:
    """Packets of all batches."""

    delivered: int = 0
    missed: int = 0
    doubled: int = 0
    exchanges: int = 0
    seconds: float = 0

    def __str__(self) -> str:
        return f"{self.missed} of {self.delivered / 1e6:.1f} M"


@contextmanager
def quiet_pair(name: str) -> Iterator[Netns]:
    """A veth pair where only what is sent on purpose is sent."""
    pair = Netns(name)
    try:
        pair.make()
        links = {}
        for netns in (pair.here, pair.there):
            with pair.inside(netns):
                Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
            shown = _ip_output("-n", netns, "-br", "link", "show", INTERFACE)
            links[netns] = shown.split()[2]
        for netns, address, other in (
            (pair.here, pair.there_address, pair.there),
            (pair.there, pair.here_address, pair.here),
        ):
            neighbour = ("neigh", "replace", address, "lladdr", links[other], "dev", INTERFACE)
            ip("-n", netns, *neighbour, "nud", "permanent")
        yield pair
    finally:
        pair.remove()


def _ip_output(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
    return done.stdout


def received(pair: Netns) -> int:
    """rx_packets of the receiving interface."""
    with pair.inside(pair.here):
        for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
            name, _, fields = line.strip().partition(":")
            if name == INTERFACE:
                return int(fields.split()[1])
    raise BenchError(f"there is no {INTERFACE} in {pair.here}")


class Load:
    """A pair under load, and the maps in which its packets are noted; the descriptors stay the
    caller's."""

    def __init__(self, places: Places, pair: Netns, times_fd: int, versions_fd: int) -> None:
        self._sender = str(places.compile_c("sender"))
        self._pair = pair
        self._times = mmap.mmap(times_fd, PACKETS)
        self._versions_fd = versions_fd
        self.seen = Seen()

    def batch(self, exchange: Callable[[], None]) -> None:
        """Exchanges programs while packets arrive, then counts who was seen how often."""
        before, versions = received(self._pair), self._by_version()
        command = [self._sender, self._pair.here_address, str(PORT), str(PACKETS)]
        with self._pair.inside(self._pair.there):
            sender = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            self._wait_for_packets(before)
            started = time.monotonic()
            for _ in range(BATCH):
                exchange()
            self.seen.seconds += time.monotonic() - started
        finally:
            output, _ = sender.communicate()
        if sender.returncode:
            raise BenchError("the sender failed")
        sent = int(output)
        if sent + 64 > PACKETS:
            raise BenchError("the exchanges took so long that the sender had sent all it may")
        self._count(self._settled() - before, sent)
        if any(now == then for now, then in zip(self._by_version(), versions, strict=True)):
            raise BenchError("one of the two programs saw no packet at all")
        self.seen.exchanges += BATCH

    def _by_version(self) -> list[bytes | None]:
        return [kernel.map_lookup(self._versions_fd, struct.pack("=I", n), 8) for n in (1, 2)]

    def _wait_for_packets(self, before: int) -> None:
        deadline = time.monotonic() + 5
        while received(self._pair) < before + 1000:
            if time.monotonic() > deadline:
                raise BenchError("no packets arrive")
            time.sleep(0.01)

    def _settled(self) -> int:
        """rx_packets when nothing is under way any more."""
        last = -1
        while (now := received(self._pair)) != last:
            last = now
            time.sleep(0.1)
        return now

    def _count(self, delivered: int, sent: int) -> None:
        times = bytes(self._times[:sent])
        self._times[:sent] = bytes(sent)
        noted = sent - times.count(0)
        if noted > delivered:
            raise BenchError(f"{noted} packets were seen, but {delivered} delivered")
        self.seen.delivered += delivered
        self.seen.missed += delivered - noted
        self.seen.doubled += noted - times.count(1)

    def close(self) -> None:
        self._times.close()


@contextmanager
def _pinned(path: Path) -> Iterator[int]:
    found = kernel.pinned_map(str(path))
    if found is None:
        raise BenchError(f"the daemon did not pin {path}")
    with kernel.holding(found[0]):
        yield found[0]


def _objects(places: Places, hook: Hook) -> tuple[bytes, bytes]:
    macros: dict[str, object] = {"PACKETS": PACKETS, "PORT": PORT}
    if hook is TCX_INGRESS:
        macros["TCX"] = 1
    first = places.compile_bpf("seen", VERSION=1, **macros)
    return first, places.compile_bpf("seen", VERSION=2, **macros)


class _Reloads:
    """The daemon exchanges the program: a changed file, a reload."""

    def __init__(self, stack: ExitStack, places: Places, hook: Hook, name: str) -> None:
        pair = stack.enter_context(quiet_pair(name))
        self._directory = places.directory / name
        self._directory.mkdir()
        for version, data in zip("ab", _objects(places, hook), strict=True):
            (self._directory / version).write_bytes(data)
        self._turn = 0
        self._change()
        mode = ", mode: native" if hook is XDP else ""
        target = f"{{interface: {INTERFACE}, netns: {pair.here}{mode}}}"
        manifest = (
            f"objects:\n  seen:\n    file: {self._directory}/seen.bpf.o\n"
            f"    pin_maps: [times, versions]\n    programs: {{see: {{attach: [{target}]}}}}"
        )
        self._daemon = stack.enter_context(DaemonProcess(places, f"{name}-pins", manifest))
        times, versions = (
            stack.enter_context(_pinned(places.bpffs / f"{name}-pins" / kept))
            for kept in ("times", "versions")
        )
        self.load = Load(places, pair, times, versions)
        stack.callback(self.load.close)

    def _change(self) -> None:
        self._turn += 1
        new = self._directory / "new"
        new.symlink_to("ab"[self._turn % 2])
        new.rename(self._directory / "seen.bpf.o")

    def _exchange(self) -> None:
        self._change()
        self._daemon.reload(expect_done=2)

    def batch(self) -> None:
        self.load.batch(self._exchange)


class _Cycles:
    """The link is destroyed and made anew with the other program, as a plain restart does."""

    def __init__(self, stack: ExitStack, places: Places, hook: Hook, name: str) -> None:
        pair = stack.enter_context(quiet_pair(name))
        self._pair, self._hook, self._turn = pair, hook, 0
        first, second = (
            stack.enter_context(kernel.open_object(data, "seen")) for data in _objects(places, hook)
        )
        first.load()
        for kept in ("times", "versions"):
            second.reuse_map(kept, first.map_fd(kept))
        second.load()
        self._programs = first.program_fd("see"), second.program_fd("see")
        self.load = Load(places, pair, first.map_fd("times"), first.map_fd("versions"))
        stack.callback(self.load.close)
        self._link = self._attach()
        stack.callback(lambda: os.close(self._link))

    def _attach(self) -> int:
        flags = XDP_FLAGS_DRV_MODE if self._hook is XDP else 0
        program = self._programs[self._turn % 2]
        with self._pair.inside(self._pair.here):
            index = kernel.interface_index(INTERFACE)
            return kernel.link_create(program, index, self._hook.attach_type, flags)

    def _exchange(self) -> None:
        self._turn += 1
        os.close(self._link)
        self._link = self._attach()

    def batch(self) -> None:
        self.load.batch(self._exchange)


def measure_gaps(places: Places, rounds: int) -> Iterator[Row]:
    """Reloads and plain exchanges take turns, each under the load of its own pair."""
    for hook, what in ((XDP, "XDP, native on veth"), (TCX_INGRESS, "TCX ingress on veth")):
        name = f"keeper-bench-{os.getpid()}-{hook.kind}"
        with ExitStack() as stack:
            reloads = _Reloads(stack, places, hook, f"{name}-r")
            cycles = _Cycles(stack, places, hook, f"{name}-c")
            for _ in range(rounds):
                reloads.batch()
                cycles.batch()
        yield from _rows(what, reloads.load.seen, cycles.load.seen)


def _rows(what: str, ours: Seen, plain: Seen) -> Iterator[Row]:
    count = ours.exchanges
    if not plain.missed:
        raise BenchError(f"{count} times detached and attached, and nothing missed: no load")
    yield Row(
        f"packets missed in {count} reloads, {what}",
        str(ours),
        f"{plain}, {count} detach and attach",
        ours.missed / plain.missed,
        "0",
        ours.missed == 0,
    )
    yield Row(
        f"packets seen twice in {count} reloads, {what}",
        str(ours.doubled),
        str(plain.doubled),
        None,
        "0",
        ours.doubled == 0,
    )
    rate, plain_rate = ours.delivered / ours.seconds, plain.delivered / plain.seconds
    yield Row(
        f"  packets a second meanwhile, {what}",
        f"{rate / 1e6:.2f} M",
        f"{plain_rate / 1e6:.2f} M",
        rate / plain_rate,
    )
