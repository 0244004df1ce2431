"""A parser in stages: a reload changes all of them, and no packet passes two versions."""

import socket
import struct

from tests.examples.conftest import Example, MakeExample
from tests.examples.traffic import flood, send_ipv6, until
from tests.machine import Netns

PORT = 4242
RELOADS = 20


def paths(example: Example) -> dict[tuple[int, ...], int]:
    """Packets by the version that each of the three stages was."""
    return {
        struct.unpack("=III", key): struct.unpack("=Q", value)[0]
        for key, value in example.contents("paths").items()
    }


def services(example: Example) -> dict[tuple[int, ...], int]:
    """Packets by protocol and port."""
    return {
        struct.unpack("=II", key): struct.unpack("=Q", value)[0]
        for key, value in example.contents("services").items()
    }


def has_served(example: Example, version: int) -> bool:
    return (version,) * 3 in paths(example)


def test_stages(example: MakeExample, netns: Netns) -> None:
    """Each protocol takes the way that the manifest's entries say."""
    parser = example("parser", {"interface: eth0": f"interface: veth0, netns: {netns.here}"})
    with parser.keeper():
        netns.send(3)
        assert services(parser) == {(socket.IPPROTO_UDP, 9): 3}
        with netns.inside(netns.there), socket.socket() as client:
            refused = client.connect_ex((netns.here_address, PORT))
        assert refused and services(parser)[socket.IPPROTO_TCP, PORT] == 1
        send_ipv6(netns, 2)
        assert services(parser)[socket.IPPROTO_UDP, 9] == 5
        assert paths(parser) == {(1, 1, 1): 6}


def test_a_reload_mixes_no_versions(example: MakeExample, netns: Netns) -> None:
    parser = example("parser", {"interface: eth0": f"interface: veth0, netns: {netns.here}"})
    with netns.inside(netns.here):
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver.bind((netns.here_address, PORT))
    with netns.inside(netns.there):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sender.connect((netns.here_address, PORT))
    with sender, receiver, parser.keeper() as keeper:
        ids = parser.map_ids()
        assert {"services", "paths"} <= ids.keys()
        with flood(sender, receiver) as told:
            for version in range(1, RELOADS + 1):
                parser.put("parser", VERSION=version)
                parser.reload(keeper)
                until(has_served, parser, version)
        assert {*paths(parser)} == {(version,) * 3 for version in range(1, RELOADS + 1)}
        assert sum(paths(parser).values()) == told.sent, "each packet passed all stages, once"
        assert services(parser) == {(socket.IPPROTO_UDP, PORT): told.sent}
        now = parser.map_ids()
        assert {name: now[name] for name in ("services", "paths")} == {
            name: ids[name] for name in ("services", "paths")
        }
