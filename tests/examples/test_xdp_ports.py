"""Frames forwarded between interfaces: a wire over a DEVMAP, a hub over a DEVMAP_HASH."""

import select
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from bpfkeeperd import kernel
from tests.examples.conftest import Example, MakeExample
from tests.examples.fullness import used
from tests.examples.ports import Ports, know, make_ports, send

HEADERS = 14 + 20 + 8


@pytest.fixture
def ports() -> Iterator[Ports]:
    """Three hosts on one network, who know each other."""
    with make_ports() as made:
        for number in (1, 2, 3):
            made.add_host(f"192.0.2.{number}", f"02:00:00:00:00:0{number}")
        for host in made.hosts:
            for other in made.hosts:
                if other is not host:
                    know(host, other.address, other.mac)
        yield made


def devices(example: Example, name: str) -> dict[int, int]:
    """Keys of a devmap to interface indexes."""
    return {
        struct.unpack("=I", key)[0]: struct.unpack_from("=I", value)[0]
        for key, value in example.contents(name).items()
    }


def programs(example: Example, name: str) -> set[int]:
    """IDs of the programs beside the interfaces of a devmap."""
    return {struct.unpack_from("=I", value, 4)[0] for value in example.contents(name).values()}


def program_id(example: Example, object_name: str, program: str) -> int:
    fd = kernel.pinned(str(example.pinned_program(object_name, program)), kernel.PinKind.PROGRAM)
    assert fd is not None
    with kernel.holding(fd):
        return kernel.program_info(fd).id


def packets(example: Example, name: str) -> dict[int, int]:
    """Keys of a map of packets and bytes to packets; all frames are of one length."""
    found = {}
    for key, value in example.contents(name).items():
        count, size = struct.unpack("=QQ", value)
        found[struct.unpack("=I", key)[0]] = count
        assert size == 0 or size // count > HEADERS
    return found


def make_wire(example: MakeExample, ports: Ports) -> Example:
    names = {}
    for number in (0, 1):
        place = f"interface: port{number}, netns: {ports.netns}}}"
        names[f"interface: eth{number}}}"] = place
        names[f"value: eth{number}}}"] = f"value: {{{place}}}"
    return example("xdp_forward", names)


def test_a_wire(example: MakeExample, ports: Ports) -> None:
    wire = make_wire(example, ports)
    with wire.keeper() as keeper, ports.hosts[0].udp() as left, ports.hosts[1].udp() as right:
        ids = wire.map_ids()
        assert set(ids) == {"wire_ports", "forwarded"}
        slots = {0: ports.index(0), 1: ports.index(1)}
        assert devices(wire, "wire_ports") == slots
        send(left, right, 3)
        send(right, left, 2)
        assert packets(wire, "forwarded") == {0: 3, 1: 2}
        wire.reload(keeper, force=True)
        assert wire.map_ids() == ids
        assert devices(wire, "wire_ports") == slots
        send(right, left, 4)
        send(left, right, 5)
        assert packets(wire, "forwarded") == {0: 8, 1: 6}
        assert used(wire) == {"wire_ports": 2}


def test_a_slot_is_put_right_again(example: MakeExample, ports: Ports) -> None:
    wire = make_wire(example, ports)
    with wire.keeper() as keeper, ports.hosts[0].udp() as left, ports.hosts[1].udp() as right:
        ids = wire.map_ids()
        found = kernel.pinned_map(str(wire.map_path("wire_ports")))
        assert found
        with kernel.holding(found[0]):
            kernel.map_delete(found[0], struct.pack("=I", 1))
        assert devices(wire, "wire_ports") == {0: ports.index(0)}
        wire.reload(keeper)
        assert wire.map_ids() == ids
        assert devices(wire, "wire_ports") == {0: ports.index(0), 1: ports.index(1)}
        send(left, right, 1)


def arrive(taps: list[socket.socket], *counts: int) -> None:
    """As many frames arrive at each host, and no more."""
    for tap, count in zip(taps, counts, strict=True):
        for _ in range(count):
            assert len(tap.recv(2048)) > HEADERS
    assert not select.select(taps, [], [], 0)[0]


def test_a_hub(example: MakeExample, ports: Ports) -> None:
    names = {f"interface: eth{n}": f"interface: port{n}, netns: {ports.netns}" for n in range(3)}
    hub = example("xdp_broadcast", names)
    with ExitStack() as stack:
        first, second, third = (stack.enter_context(host.udp()) for host in ports.hosts)
        taps = [stack.enter_context(host.tap()) for host in ports.hosts]
        keeper = stack.enter_context(hub.keeper())
        ids = hub.map_ids()
        assert set(ids) == {"hub_ports", "hub_sent"}
        keys = {10 * (n + 1): ports.index(n) for n in range(3)}
        assert devices(hub, "hub_ports") == keys
        former = program_id(hub, "xdp_broadcast", "count_sent")
        assert programs(hub, "hub_ports") == {former}
        send(first, second, 3)
        send(third, first, 2)
        arrive(taps, 2, 3 + 2, 3)
        assert used(hub) == {"hub_ports": 3, "hub_sent": 3}
        sent = packets(hub, "hub_sent")
        assert sent == {ports.index(0): 2, ports.index(1): 3 + 2, ports.index(2): 3}
        hub.reload(keeper, force=True)
        assert hub.map_ids() == ids
        assert devices(hub, "hub_ports") == keys
        new = program_id(hub, "xdp_broadcast", "count_sent")
        assert new != former and programs(hub, "hub_ports") == {new}
        assert packets(hub, "hub_sent") == sent
        send(second, third, 4)
        arrive(taps, 4, 0, 4)
        assert packets(hub, "hub_sent") == {
            ports.index(0): 2 + 4,
            ports.index(1): 3 + 2,
            ports.index(2): 3 + 4,
        }
