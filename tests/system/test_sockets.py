"""The reload that used to lose everything: sockets in a SOCKHASH, over a thousand reloads (A1)."""

import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bpfkeeperd import kernel
from bpfkeeperd.counting import MapCounter
from tests.machine import inside_cgroup
from tests.scenario import World
from tests.system.conftest import Start
from tests.system.process import NO_METRICS

RELOADS = 1000
LASTING = 100
"""Connections that are open from before the first reload until after the last."""
PASSING = 100
"""How many of the others are open at a time."""
NAME = "sock_ops_map"

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Connection:
    """Both ends of a connection over loopback."""

    client: socket.socket
    server: socket.socket

    def ends(self) -> tuple[bytes, bytes]:
        """The keys of both ends: ``struct connection`` of sockops.bpf.c."""
        client, server = self.client.getsockname(), self.server.getsockname()
        return _key(client, server), _key(server, client)

    def close(self) -> None:
        """Without TIME_WAIT: thousands of them would use up the ports."""
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.client.close()
        self.server.close()


def _key(local: tuple[str, int], remote: tuple[str, int]) -> bytes:
    addresses = socket.inet_aton(local[0]) + socket.inet_aton(remote[0])
    return addresses + struct.pack("=II", local[1], remote[1])


@dataclass(slots=True)
class Connecting:
    """Opens connections until it is told to stop, and looks each end up while it is open."""

    map_fd: int
    listener: socket.socket
    open: list[Connection] = field(default_factory=list)
    made: int = 0
    missed: list[tuple[str, bytes]] = field(default_factory=list)
    failure: BaseException | None = None
    _thread: threading.Thread | None = None
    _stop: threading.Event = field(default_factory=threading.Event)

    def connect(self) -> Connection:
        client = socket.create_connection(self.listener.getsockname(), timeout=10)
        server, _ = self.listener.accept()
        connection = Connection(client, server)
        self.open.append(connection)
        self.made += 1
        self.look_up(connection, "when it was opened")
        return connection

    def cookies(self, connection: Connection) -> tuple[bytes | None, ...]:
        """What tells a socket from every other one, of both ends; None for one that is missed."""
        return tuple(kernel.map_lookup(self.map_fd, key, 8) for key in connection.ends())

    def look_up(self, connection: Connection, when: str) -> None:
        for key, cookie in zip(connection.ends(), self.cookies(connection), strict=True):
            if cookie is None:
                self.missed.append((when, key))

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self.connect()
                if len(self.open) > LASTING + PASSING:
                    at = random.randrange(LASTING, len(self.open))
                    connection = self.open.pop(at)
                    self.look_up(connection, "before it was closed")
                    connection.close()
        except BaseException as error:
            self.failure = error

    def close(self) -> None:
        self.stop()
        for connection in self.open:
            connection.close()
        self.listener.close()


@contextmanager
def connecting(map_fd: int) -> Iterator[Connecting]:
    """Lasting connections first; then a thread that goes on while the block runs."""
    connecting = Connecting(map_fd, socket.create_server(("127.0.0.1", 0), backlog=64))
    try:
        for _ in range(LASTING):
            connecting.connect()
        connecting.start()
        yield connecting
    finally:
        connecting.close()


def keys(map_fd: int) -> set[bytes]:
    return set(kernel.map_keys(map_fd, 16))


def test_a_thousand_reloads_keep_every_socket(world: World, start: Start) -> None:
    variants = [world.build("sockops_variant", VARIANT=number).read_bytes() for number in (1, 2)]
    target = world.directory / "sockops.bpf.o"

    def exchange(number: int) -> None:
        staged = Path(f"{target}.new")
        staged.write_bytes(variants[number % 2])
        staged.rename(target)

    exchange(0)
    world.write(
        f"{NO_METRICS}\n"
        "objects:\n"
        f"  sockops: {{file: sockops.bpf.o, pin_maps: [{NAME}],\n"
        "            programs: {add_to_sockhash: {attach: [{cgroup: CGROUP}]}}}\n"
    )
    daemon = start()
    found = kernel.pinned_map(str(world.pins / NAME))
    assert found
    map_fd, info = found
    with kernel.holding(map_fd), inside_cgroup(world.cgroup), connecting(map_fd) as traffic:
        lasting = traffic.open[:LASTING]
        cookies = [traffic.cookies(connection) for connection in lasting]
        made_before = traffic.made
        ((link_id, _),) = world.link_ids().values()
        map_ids, link_ids, programs = set(), set(), set()
        for number in range(1, RELOADS + 1):
            exchange(number)
            assert ": 2 actions, 1 map kept" in daemon.hup()
            map_ids.add(world.map_id(NAME))
            link_ids |= {link_now for link_now, _ in world.link_ids().values()}
            programs |= {program for _, program in world.link_ids().values()}
        traffic.stop()
        assert traffic.failure is None, traffic.failure

        assert (map_ids, link_ids) == ({info.id}, {link_id})
        assert len(programs) == RELOADS, "some reload loaded nothing"
        assert not traffic.missed, f"{len(traffic.missed)} of {2 * traffic.made}"
        assert traffic.made - made_before > RELOADS, "hardly a connection per reload"
        assert [traffic.cookies(connection) for connection in lasting] == cookies
        wanted = {key for connection in traffic.open for key in connection.ends()}
        assert keys(map_fd) == wanted
        with MapCounter.open() as counter:
            assert counter.counts()[info.id] == len(wanted)
