"""Programs are exchanged a thousand times under full load: no event is missed.

Every event has a number, and a kept map has how often each was seen. Where a link can be updated or
a filter replaced, none is seen twice; where both run for a moment, that is counted.
"""

import mmap
import os
import struct
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.state import ReloadResult
from tests.bench.gap import quiet_pair, received
from tests.machine import Netns, inside_cgroup, map_value
from tests.scenario import World

SWAPS = 1000
EVENTS = 1 << 25
PORT = 7802
SENDER = Path(__file__).parents[1] / "bench/sender.c"
CONNECTOR = Path(__file__).with_name("connector.c")


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    where: str
    target: str
    more: str = ""
    overlaps: bool = False
    first: bool = False
    """It sees events before anything can drop them."""


VETH = "{interface: veth0, netns: HERE}"
PACKETS = (
    Row("sent", "CGROUP", "{cgroup: CGROUP}", first=True),
    # Native mode is in the benchmark: there a swap takes the veth driver 10 ms and more.
    Row("xdp", "XDP", "{interface: veth0, netns: HERE, mode: generic}"),
    Row("tcx", "TC", VETH),
    Row("filter", "TC", VETH, more="type: clsact/ingress, "),
    Row(
        "local", "NETFILTER", "{netfilter: ipv4/local_in, priority: 0, netns: HERE}", overlaps=True
    ),
)
# The queues of RPS, which ask for the flow of each packet, drop some: nothing else is there.
DISSECTED = (Row("dissector", "DISSECTOR", "{netns: HERE}"),)
CONNECTIONS = (
    Row("connects", "CONNECT", "{cgroup: CGROUP}", first=True),
    Row("sockets", "SOCKOPS", "{cgroup: CGROUP}", first=True),
    Row("lookup", "LOOKUP", "{netns: HERE}", first=True),
)


@pytest.fixture
def quiet() -> Iterator[Netns]:
    with quiet_pair(f"keeper-exact-{os.getpid()}") as pair:
        yield pair


class Load:
    """Events, from a process in the cgroup and in the namespace that makes them."""

    def __init__(self, world: World, pair: Netns, *, connects: bool) -> None:
        source = CONNECTOR if connects else SENDER
        program = world.directory / source.stem
        subprocess.run(["gcc", "-O2", "-o", str(program), str(source)], check=True)
        command = [str(program), str(PORT), str(EVENTS)]
        if not connects:
            command.insert(1, pair.here_address)
        self._pair = pair
        self._before = received(pair)
        with inside_cgroup(world.cgroup), pair.inside(pair.here if connects else pair.there):
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe)

    def stop(self, world: World) -> tuple[int, int]:
        """How many were sent, and how many packets arrived."""
        output, _ = self._process.communicate()
        assert self._process.returncode == 0
        sent = int(output)
        assert sent + 64 < EVENTS, "it had sent all it may before the end"
        last = [-1]

        def settled() -> bool:
            last.append(received(self._pair))
            return last[-1] == last[-2]

        world.wait(settled)
        return sent, last[-1] - self._before


def put(world: World, rows: Sequence[Row], version: int) -> None:
    for row in rows:
        macros: dict[str, object] = {f"AT_{row.where}": 1, "EVENTS": EVENTS, "PORT": PORT}
        names = {"TIMES": f"times_{row.name}", "VERSIONS": f"versions_{row.name}"}
        world.put(row.name, "numbered", VERSION=version, **macros, **names)


def write(world: World, pair: Netns, rows: Sequence[Row]) -> None:
    lines = []
    for row in rows:
        maps = f"[times_{row.name}, versions_{row.name}]"
        program = f"{{{row.more}attach: [{row.target.replace('HERE', pair.here)}]}}"
        programs = f"programs: {{see: {program}}}"
        lines.append(f"  {row.name}: {{file: {row.name}.bpf.o, pin_maps: {maps}, {programs}}}")
    world.write("objects:\n" + "\n".join(lines) + "\n")


def seen_by(world: World, row: Row, version: int) -> int:
    key = struct.pack("=I", version)
    value = map_value(world.pins / f"versions_{row.name}", key, 8)
    return int.from_bytes(value or b"", "little")


def times(world: World, row: Row, count: int) -> bytes:
    """How often each event was seen."""
    found = kernel.pinned_map(str(world.pins / f"times_{row.name}"))
    assert found
    with kernel.holding(found[0]), mmap.mmap(found[0], EVENTS) as noted:
        return bytes(noted[:count])


def exchange(world: World, pair: Netns, rows: Sequence[Row]) -> None:
    put(world, rows, 2)
    put(world, rows, 1)
    write(world, pair, rows)
    connects = rows is CONNECTIONS
    with world.keeper() as keeper:
        outcome = world.reload(keeper)
        assert outcome.result is ReloadResult.OK, outcome
        load = Load(world, pair, connects=connects)
        try:
            world.wait(lambda: seen_by(world, rows[-1], 1) > 100)
            for turn in range(SWAPS):
                put(world, rows, 2 - turn % 2)
                assert len(world.reload(keeper).done) == 2 * len(rows)
        finally:
            sent, arrived = load.stop(world)
    for row in rows:
        noted = times(world, row, sent + 1)[int(connects) :][:sent]
        seen = sent - noted.count(0)
        doubled = seen - noted.count(1)
        wanted = sent if row.first else arrived
        print(f"{row.name}: {seen} of {wanted} seen, {doubled} of them twice, in {SWAPS} swaps")
        assert min(seen_by(world, row, 1), seen_by(world, row, 2)) > 100
        assert seen == wanted, f"{row.name} missed {wanted - seen} of {wanted}"
        assert doubled == 0 or row.overlaps, f"{row.name} saw {doubled} of {wanted} twice"


def test_no_packet_is_missed(world: World, quiet: Netns) -> None:
    """Each goes through all of the hooks."""
    exchange(world, quiet, PACKETS)


def test_no_connection_is_missed(world: World, quiet: Netns) -> None:
    exchange(world, quiet, CONNECTIONS)


def test_no_packet_is_missed_by_the_flow_dissector(world: World, quiet: Netns) -> None:
    path = "/sys/class/net/veth0/queues/rx-0/rps_cpus"
    command = ["ip", "netns", "exec", quiet.here, "sh", "-c", f"echo 1 > {path}"]
    subprocess.run(command, check=True)
    exchange(world, quiet, DISSECTED)
