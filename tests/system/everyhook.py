"""One table of hooks: how each is written, and what makes it happen how often."""

import os
import socket
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from bpfkeeperd import kernel
from tests.kernel.exactness import put_socket
from tests.kernel.test_net_hooks import connections, spread
from tests.kernel.test_struct_ops import connection as congested
from tests.kernel.test_struct_ops import transfer
from tests.machine import Netns
from tests.scenario import World

EVENTS = 3
"""How many of each hook are made at a time."""
WAIT_SECONDS = 5.0


@dataclass(slots=True)
class Scene:
    """Where things happen."""

    world: World
    pair: Netns
    victim: Path
    """A binary with functions to probe."""
    congestion: str = field(default_factory=lambda: f"keep_{uuid.uuid4().hex[:8]}")
    ends: dict[str, tuple[socket.socket, socket.socket]] = field(default_factory=dict)
    """Of each map of sockets: who sends, and who receives."""

    def connect(self) -> None:
        """Puts sockets into the maps for them. Those that are in a map when it has no program have
        none even when it has."""
        self.disconnect()
        for name, which in (("streams", 1), ("others", 1), ("senders", 0)):
            ends = _connection(("127.0.0.1", 0))
            self.ends[name] = ends
            put_socket(self.world, name, 0, ends[which])

    def disconnect(self) -> None:
        for ends in self.ends.values():
            for end in ends:
                end.close()
        self.ends.clear()


def _connection(address: tuple[str, int]) -> tuple[socket.socket, socket.socket]:
    with socket.create_server(address) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    for end in (client, server):
        end.settimeout(WAIT_SECONDS)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client, server


@contextmanager
def _bound(family: int, where: tuple[str, int] | str) -> Iterator[socket.socket]:
    with socket.socket(family, socket.SOCK_DGRAM) as receiver:
        receiver.settimeout(WAIT_SECONDS)
        receiver.bind(where)
        yield receiver


LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


def datagrams(family: int) -> Callable[[Scene], None]:
    """From one socket to another, each without a connection."""

    def happen(scene: Scene) -> None:
        with (
            _bound(family, (LOOPBACK[socket.AddressFamily(family)], 0)) as receiver,
            socket.socket(family, socket.SOCK_DGRAM) as sender,
        ):
            for _ in range(EVENTS):
                sender.sendto(b"x", receiver.getsockname())
                receiver.recvfrom(1)

    return happen


def binds(family: int) -> Callable[[Scene], None]:
    def happen(scene: Scene) -> None:
        for _ in range(EVENTS):
            with _bound(family, (LOOPBACK[socket.AddressFamily(family)], 0)):
                pass

    return happen


def names(family: int) -> Callable[[Scene], None]:
    """Connections without packets, and both their ends asked for."""

    def happen(scene: Scene) -> None:
        for _ in range(EVENTS):
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.connect((LOOPBACK[socket.AddressFamily(family)], 9))
                sock.getpeername()
                sock.getsockname()

    return happen


def unix(scene: Scene) -> None:
    path = scene.world.directory / f"unix-{uuid.uuid4().hex[:8]}"
    with _bound(socket.AF_UNIX, str(path)) as receiver:
        for _ in range(EVENTS):
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"x", str(path))
                receiver.recvfrom(1)
                sender.connect(str(path))
                sender.getpeername()
                receiver.getsockname()  # one that has no name is not asked for it


def sockets(scene: Scene) -> None:
    for _ in range(EVENTS):
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()


def options(scene: Scene) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(EVENTS):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)


def connects(scene: Scene) -> None:
    for end in _connection(("127.0.0.1", 0)):
        end.close()


def devices(scene: Scene) -> None:
    with open("/dev/null", "rb"):
        pass


def sysctls(scene: Scene) -> None:
    fd = os.open("/proc/sys/kernel/ostype", os.O_RDONLY)
    with kernel.holding(fd):
        for _ in range(EVENTS):
            os.pread(fd, 16, 0)


def arrives(scene: Scene) -> None:
    scene.pair.send(EVENTS)


def leaves(scene: Scene) -> None:
    scene.pair.send(EVENTS, backwards=True)


def stays(scene: Scene) -> None:
    """Packets over the loopback interface of a namespace, which are not answered."""
    with scene.pair.inside(scene.pair.here):
        datagrams(socket.AF_INET)(scene)


def lookups(scene: Scene) -> None:
    connections(scene.pair, EVENTS)


def dissected(scene: Scene) -> None:
    spread(scene.pair, EVENTS)


def messages(name: str) -> Callable[[Scene], None]:
    def happen(scene: Scene) -> None:
        sender, receiver = scene.ends[name]
        for _ in range(EVENTS):
            sender.sendall(b"x")
            assert receiver.recv(1) == b"x"

    return happen


def calls(scene: Scene) -> None:
    for _ in range(EVENTS):
        os.getpgid(0)


def touches(scene: Scene) -> None:
    command = [str(scene.victim), "0", "0", str(EVENTS)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def works(scene: Scene) -> None:
    """Takes time of the CPU, so that its clock comes to be sampled."""
    for _ in range(20):
        sum(range(200_000))


def reads(program: str) -> Callable[[Scene], None]:
    """Reads an iterator where its link is pinned."""

    def happen(scene: Scene) -> None:
        for path in Path(scene.world.layout.links, "iterators", program).glob("*"):
            path.read_bytes()

    return happen


def transfers(scene: Scene) -> None:
    with suppress(FileNotFoundError), congested(scene.congestion) as ends:
        transfer(ends)


@dataclass(frozen=True, slots=True)
class Row:
    """A hook in an object with others."""

    object: str
    program: str
    hook: str
    attach: str
    """As in the manifest: a list of targets, or ``auto``."""
    happen: Callable[[Scene], None]
    events: int = EVENTS
    """How many events that makes; 0: some."""
    type: str = ""
    exact: bool = False

    def __str__(self) -> str:
        return f"{self.hook}-{self.program}"


@dataclass(frozen=True, slots=True)
class Group:
    """An object."""

    macro: str
    keeps: tuple[str, ...] = ()
    suffix: str = ""
    source: str = "hooks"


GROUPS = {
    "cgroups": Group("CGROUPS"),
    "unix": Group("UNIX"),
    "interfaces": Group("INTERFACES"),
    "netfilter": Group("NETFILTER"),
    "netfilter_exact": Group("NETFILTER", suffix="_exact"),
    "sockets": Group("SOCKETS", keeps=("streams", "others", "senders")),
    "traces": Group("TRACES"),
    "traces_exact": Group("TRACES", suffix="_exact"),
    "multi": Group("MULTI"),
    "multi_exact": Group("MULTI", suffix="_exact"),
    "iterators": Group("ITERATORS", keeps=("table",)),
    "functions": Group("FUNCTIONS"),
    "security": Group("SECURITY"),
    "congestion": Group("CONGESTION", source="congestion"),
}


def _cgroup(
    program: str, happen: Callable[[Scene], None], *, hook: str = "", events: int = EVENTS
) -> Row:
    group = "unix" if program.endswith("_unix") else "cgroups"
    return Row(group, program, hook or f"cgroup/{program}", "[{cgroup: CGROUP}]", happen, events)


def _traces(suffix: str) -> tuple[Row, ...]:
    victim = "binary: VICTIM, symbol:"
    exact = bool(suffix)
    traces, multi = f"traces{suffix}", f"multi{suffix}"

    def row(group: str, program: str, hook: str, attach: str) -> Row:
        happen = touches if "uprobe" in hook or "uretprobe" in hook else calls
        return Row(group, f"{program}{suffix}", hook, attach, happen, exact=exact)

    return (
        row(traces, "tracepoint", "tracepoint", "auto"),
        row(traces, "raw", "raw_tracepoint", "auto"),
        row(traces, "typed", "tp_btf", "auto"),
        row(traces, "entry", "uprobe", f"[{{{victim} victim_touch}}]"),
        row(traces, "leave", "uretprobe", f"[{{{victim} victim_touch}}]"),
        Row(
            traces,
            f"sampled{suffix}",
            "perf_event",
            "[{perf_event: cpu-clock, frequency: 999}]",
            works,
            events=0,
            exact=exact,
        ),
        row(multi, "entries", "uprobe.multi", f'[{{{victim} "victim_*"}}]'),
        row(multi, "leaves", "uretprobe.multi", f'[{{{victim} "victim_*"}}]'),
    )


_V4, _V6 = socket.AF_INET, socket.AF_INET6
_HERE = "interface: veth0, netns: HERE"
_PGID = {"x86_64": "__x64_sys_getpgid", "aarch64": "__arm64_sys_getpgid"}.get(
    os.uname().machine, "sys_getpgid"
)

ROWS = (
    _cgroup("skb_ingress", datagrams(_V4), hook="cgroup_skb/ingress"),
    _cgroup("skb_egress", datagrams(_V4), hook="cgroup_skb/egress"),
    _cgroup("operations", connects, hook="sockops", events=0),
    _cgroup("dev", devices, events=0),
    _cgroup("sock_create", sockets),
    _cgroup("sock_release", sockets),
    _cgroup("bind4", binds(_V4)),
    _cgroup("bind6", binds(_V6)),
    _cgroup("post_bind4", binds(_V4)),
    _cgroup("post_bind6", binds(_V6)),
    _cgroup("connect4", names(_V4)),
    _cgroup("connect6", names(_V6)),
    _cgroup("sendmsg4", datagrams(_V4)),
    _cgroup("sendmsg6", datagrams(_V6)),
    _cgroup("recvmsg4", datagrams(_V4)),
    _cgroup("recvmsg6", datagrams(_V6)),
    _cgroup("getpeername4", names(_V4)),
    _cgroup("getpeername6", names(_V6)),
    _cgroup("getsockname4", names(_V4)),
    _cgroup("getsockname6", names(_V6)),
    _cgroup("sysctl", sysctls),
    _cgroup("getsockopt", options),
    _cgroup("setsockopt", options),
    _cgroup("connect_unix", unix),
    _cgroup("sendmsg_unix", unix),
    _cgroup("recvmsg_unix", unix),
    _cgroup("getpeername_unix", unix),
    _cgroup("getsockname_unix", unix),
    Row("interfaces", "native", "xdp", f"[{{{_HERE}, mode: native}}]", arrives),
    Row("interfaces", "generic", "xdp", "[{interface: lo, netns: HERE, mode: generic}]", stays),
    Row("interfaces", "tcx_ingress", "tcx/ingress", f"[{{{_HERE}}}]", arrives),
    Row("interfaces", "tcx_egress", "tcx/egress", f"[{{{_HERE}}}]", leaves),
    Row(
        "interfaces",
        "clsact_ingress",
        "clsact/ingress",
        f"[{{{_HERE}, priority: 7}}]",
        arrives,
        type="clsact/ingress",
    ),
    Row(
        "interfaces",
        "clsact_egress",
        "clsact/egress",
        f"[{{{_HERE}}}]",
        leaves,
        type="clsact/egress",
    ),
    Row("interfaces", "lookup", "sk_lookup", "[{netns: HERE}]", lookups),
    Row("interfaces", "dissector", "flow_dissector", "[{netns: HERE}]", dissected, events=0),
    Row(
        "netfilter",
        "filter",
        "netfilter",
        "[{netfilter: ipv4/local_in, priority: 10, netns: HERE}]",
        arrives,
    ),
    Row(
        "netfilter_exact",
        "filter_exact",
        "netfilter",
        "[{netfilter: ipv4/local_in, priority: 20, netns: HERE}]",
        arrives,
        exact=True,
    ),
    Row("sockets", "parser", "sk_skb/stream_parser", "[{map: streams}]", messages("streams"), 0),
    Row("sockets", "verdict", "sk_skb/stream_verdict", "[{map: streams}]", messages("streams")),
    Row("sockets", "plain", "sk_skb/verdict", "[{map: others}]", messages("others")),
    Row("sockets", "message", "sk_msg", "[{map: senders}]", messages("senders")),
    *_traces(""),
    *_traces("_exact"),
    Row("iterators", "tasks", "iter", "auto", reads("tasks"), 0),
    Row("iterators", "maps", "iter", "auto", reads("maps"), 0),
    Row("iterators", "elements", "iter", "[{map: table}]", reads("elements"), 0),
    Row("functions", "entered", "fentry", f"[{{function: {_PGID}}}]", calls),
    Row("functions", "left", "fexit", f"[{{function: {_PGID}}}]", calls),
    Row("functions", "probe", "kprobe", f"[{{function: {_PGID}}}]", calls),
    Row("functions", "return_probe", "kretprobe", f"[{{function: {_PGID}}}]", calls),
    Row("functions", "probes", "kprobe.multi", f'[{{function: "{_PGID}*"}}]', calls),
    Row("security", "allowed", "lsm", "auto", calls),
    Row("congestion", "ops", "struct_ops", "", transfers, events=0),
)
"""Netkit has tests of its own."""


def counts(scene: Scene, row: Row) -> tuple[int, ...]:
    """Events that each version of a row's program has seen so far."""
    found = kernel.pinned_map(str(scene.world.pins / f"{row.object}_seen"))
    assert found, f"the map of {row.object} is not pinned"
    with kernel.holding(found[0]) as fd:
        if row.object == "congestion":
            keys = [number.to_bytes(4, "little") for number in range(4)]
            values = [kernel.map_lookup(fd, key, 8) or bytes(8) for key in keys]
            return tuple(int.from_bytes(value, "little") for value in values)
        value = kernel.map_lookup(fd, row.program.encode().ljust(32, b"\0"), 32) or bytes(32)
        return tuple(int.from_bytes(value[i : i + 8], "little") for i in range(0, 32, 8))
