"""Maps inside of maps: tables that are replaced whole while a program reads them."""

import socket
import struct

from bpfkeeperd import kernel
from tests.examples.conftest import Example, MakeExample
from tests.examples.traffic import flood, until
from tests.machine import inside_cgroup

STANDARD, NIGHT, FREE = (100, 2), (50, 1), (0, 0)
"""Tariffs of config/examples/tariffs.yaml: the price of a packet and of a byte."""

DNS, RSYNC, OTHER = 53, 873, 4242
SIZE = 20 + 8 + 32
"""IPv4 and UDP headers, and what is sent."""

REPLACEMENTS = 50


def bill(example: Example) -> dict[tuple[int, tuple[int, int]], tuple[int, int, int]]:
    """Packets, bytes and cost by class and by the two prices, of all versions of the program."""
    sums: dict[tuple[int, tuple[int, int]], tuple[int, int, int]] = {}
    for key, value in example.contents("bill").items():
        kind, _, packet_price, byte_price = struct.unpack("=IIQQ", key)
        line = (kind, (packet_price, byte_price))
        packets, size, cost = sums.get(line, (0, 0, 0))
        more_packets, more_size, more_cost = struct.unpack("=QQQ", value)
        sums[line] = (packets + more_packets, size + more_size, cost + more_cost)
    return sums


def billed(example: Example, prices: tuple[int, int]) -> int:
    """Packets of class 0 by a tariff."""
    return bill(example).get((0, prices), (0, 0, 0))[0]


def are_billed_by(example: Example, prices: tuple[int, int], more_than: int) -> bool:
    return billed(example, prices) > more_than


def start(example: MakeExample) -> Example:
    tariffs = example("tariffs")
    tariffs.edit("cgroup: system.slice", f"cgroup: {tariffs.world.cgroup}")
    return tariffs


def inner_id(example: Example, outer: str, key: int) -> int:
    """The ID of the map in a slot."""
    (number,) = struct.unpack("=I", example.contents(outer)[struct.pack("=I", key)])
    return int(number)


def test_tables_are_looked_up_in_each_other(example: MakeExample) -> None:
    tariffs = start(example)
    with tariffs.keeper() as keeper, inside_cgroup(tariffs.world.cgroup):
        ids = tariffs.map_ids()
        assert inner_id(tariffs, "tariffs", 0) == ids["standard_tariff"]
        assert inner_id(tariffs, "port_classes", 17) == ids["udp_ports"]
        assert inner_id(tariffs, "address_classes", 17) == ids["addresses"]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for port, packets in ((OTHER, 3), (DNS, 2)):
                for _ in range(packets):
                    sender.sendto(b"x" * 32, ("127.0.0.1", port))
        expected = {
            (0, STANDARD): (3, 3 * SIZE, 3 * (100 + 2 * SIZE)),
            (2, FREE): (2, 2 * SIZE, 0),  # by its port
        }
        assert bill(tariffs) == expected

        # An address goes before a port, and what others wrote into a table stays.
        found = kernel.pinned_map(str(tariffs.map_path("addresses")))
        assert found
        with kernel.holding(found[0]):
            address = socket.inet_aton("127.0.0.2")
            kernel.map_update(found[0], address, struct.pack("=I", 1))
        tariffs.put("tariffs", VERSION=2)
        tariffs.reload(keeper)
        assert tariffs.map_ids() == ids and bill(tariffs) == expected
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x" * 32, ("127.0.0.2", DNS))
        assert bill(tariffs) == {**expected, (1, NIGHT): (1, SIZE, 50 + SIZE)}


def test_a_table_is_replaced_whole(example: MakeExample) -> None:
    """Under traffic: the two prices that a packet is billed by are of one tariff."""
    tariffs = start(example)
    with (
        tariffs.keeper() as keeper,
        inside_cgroup(tariffs.world.cgroup),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind(("127.0.0.1", 0))
        sender.connect(receiver.getsockname())
        ids = tariffs.map_ids()
        now, following = "standard_tariff", "night_tariff"
        with flood(sender, receiver) as told:
            for _ in range(REPLACEMENTS):
                tariffs.edit(f"{{key: 0, value: {now}}}", f"{{key: 0, value: {following}}}")
                tariffs.reload(keeper)
                assert inner_id(tariffs, "tariffs", 0) == ids[following]
                now, following = following, now
                prices = STANDARD if now == "standard_tariff" else NIGHT
                until(are_billed_by, tariffs, prices, billed(tariffs, prices))
        assert tariffs.map_ids() == ids
        lines = bill(tariffs)
        assert lines.keys() == {(0, STANDARD), (0, NIGHT)}, "never a price of each"
        assert sum(packets for packets, _, _ in lines.values()) == told.sent
        for (_, (packet_price, byte_price)), (packets, size, cost) in lines.items():
            assert cost == packets * packet_price + size * byte_price
