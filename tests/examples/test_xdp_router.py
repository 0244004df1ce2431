"""An IPv4 router in XDP, with routes, neighbours and ports from its manifest."""

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import pytest

from tests.examples.conftest import Example, MakeExample
from tests.examples.fullness import used
from tests.examples.ports import Host, Ports, know, make_ports, port_mac, send
from tests.machine import ip

SECONDS_MANY = 10**6
IP_RECVTTL = 12


class Outcome(IntEnum):
    FROM_CACHE = 0
    FROM_ROUTES = 1
    NO_ROUTE = 2
    NO_NEIGHBOUR = 3
    NO_PORT = 4
    TTL_EXCEEDED = 5
    NOT_IPV4 = 6


def outcomes(router: Example) -> dict[Outcome, int]:
    """Without those that there were none of."""
    found = {}
    for key, value in router.contents("outcomes").items():
        if count := int.from_bytes(value, "little"):
            found[Outcome(struct.unpack("=I", key)[0])] = count
    return found


@dataclass(frozen=True, slots=True)
class Network:
    ports: Ports
    left: Host
    right: Host


@pytest.fixture
def network() -> Iterator[Network]:
    """Two hosts as the manifest has them, each a gateway to addresses of its own behind it."""
    with make_ports() as ports:
        left = ports.add_host("192.0.2.2", "02:00:00:00:02:02")
        right = ports.add_host("198.51.100.2", "02:00:00:00:64:02")
        for number, (host, router, behind) in enumerate(
            [(left, "192.0.2.1", ["10.1.0.1"]), (right, "198.51.100.1", ["10.2.0.1", "10.0.0.1"])]
        ):
            know(host, router, port_mac(number))
            ip("-n", host.netns, "route", "add", "default", "via", router)
            for address in behind:
                ip("-n", host.netns, "address", "add", f"{address}/32", "dev", "lo")
        yield Network(ports, left, right)


@pytest.fixture
def router(example: MakeExample, network: Network) -> Example:
    netns = network.ports.netns
    names = {f"value: eth{n}}}": f"value: {{interface: port{n}, netns: {netns}}}}}" for n in (0, 1)}
    names |= {f"interface: eth{n}}}": f"interface: port{n}, netns: {netns}}}" for n in (0, 1)}
    return example("xdp_router", names)


def test_tables_and_cache_go_on(router: Example, network: Network) -> None:
    left, right = network.left, network.right
    with (
        router.keeper() as keeper,
        left.udp(address="10.1.0.1") as behind_left,
        right.udp(address="10.2.0.1") as behind_right,
        left.udp() as at_left,
        right.udp() as at_right,
    ):
        ids = router.map_ids()
        assert set(ids) == {"routes", "neighbours", "hops", "ports", "outcomes"}
        pairs = [(behind_left, behind_right), (behind_right, behind_left), (at_left, at_right)]
        for sender, receiver in pairs:
            send(sender, receiver, 4)
        found = outcomes(router)
        assert set(found) <= {Outcome.FROM_CACHE, Outcome.FROM_ROUTES} and sum(found.values()) == 12
        assert found[Outcome.FROM_ROUTES] >= 3
        hops = router.contents("hops")
        assert set(hops) == {socket.inet_aton(a) for a in ("10.2.0.1", "10.1.0.1", "198.51.100.2")}
        assert used(router) == {"routes": 4, "neighbours": 2, "hops": 3, "ports": 2}
        tables = {name: router.contents(name) for name in ("routes", "neighbours", "ports")}

        # A program that trusts the cache for weeks: what the former one stored serves it at once.
        router.put("xdp_router", CACHE_SECONDS=SECONDS_MANY)
        router.reload(keeper)
        assert router.map_ids() == ids
        assert router.contents("hops") == hops
        for sender, receiver in pairs:
            send(sender, receiver, 2)
        assert outcomes(router) == {**found, Outcome.FROM_CACHE: found[Outcome.FROM_CACHE] + 6}

        # And one that trusts it never.
        router.put("xdp_router", CACHE_SECONDS=0)
        router.reload(keeper)
        assert router.map_ids() == ids
        before = outcomes(router)
        for sender, receiver in pairs:
            send(sender, receiver, 1)
        assert outcomes(router) == {
            **before,
            Outcome.FROM_ROUTES: before[Outcome.FROM_ROUTES] + 3,
        }
        assert {name: router.contents(name) for name in tables} == tables


def test_a_packet_is_changed_as_a_router_does(router: Example, network: Network) -> None:
    left, right = network.left.udp(address="10.1.0.1"), network.right.udp(address="10.2.0.1")
    with router.keeper(), left as sender, right as receiver:
        receiver.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
        for ttl in range(2, 256):  # with as many checksums
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
            sender.sendto(b"hello", receiver.getsockname())
            data, ancillary, _, _ = receiver.recvmsg(100, 100)
            ((_, _, value),) = ancillary
            assert (data, struct.unpack("=i", value)) == (b"hello", (ttl - 1,))


def test_what_it_does_not_know_goes_to_the_stack(router: Example, network: Network) -> None:
    with router.keeper(), network.left.udp() as sender, network.right.udp() as receiver:
        sender.sendto(b"x", ("203.0.113.1", 9))  # no route
        sender.sendto(b"x", ("198.51.100.77", 9))  # no neighbour
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
        sender.sendto(b"x", ("198.51.100.2", 9))
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 2)
        send(sender, receiver, 1)  # by when all of those before it are through
        assert outcomes(router) == {
            Outcome.NO_ROUTE: 1,
            Outcome.NO_NEIGHBOUR: 1,
            Outcome.TTL_EXCEEDED: 1,
            Outcome.FROM_ROUTES: 1,
        }
