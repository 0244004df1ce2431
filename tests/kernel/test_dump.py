"""Contents of maps of every type, as text: what is in them, all of it, once."""

import contextlib
import dataclasses
import errno
import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpfkeeperd import kernel, readable
from bpfkeeperd.btf import BtfBuilder
from bpfkeeperd.dump import DumpError, dump
from bpfkeeperd.errors import KeeperError, KernelError
from bpfkeeperd.format import Style
from bpfkeeperd.kernel import dump as reading
from bpfkeeperd.maptypes import BY_NAME
from tests.conftest import BuildObject
from tests.machine import fill_map, run_program

CPUS = kernel.cpu_numbers()
COOKIE_OPTION = 57
"""SO_COOKIE, which Python has no name for."""


@pytest.fixture
def contents(build_object: BuildObject) -> Iterator[kernel.OpenObject]:
    """The maps of tests/bpf/contents.bpf.c."""
    with kernel.open_object(build_object("contents").read_bytes(), "contents") as opened:
        opened.load()
        yield opened


def text(fd: int, style: Style, limit: int | None = None) -> str:
    """What is shown of a map; there must be no remark."""
    output = os.memfd_create("dump")
    with kernel.holding(output):
        assert dump(fd, "m", output, style, limit) == ""
        size = os.lseek(output, 0, os.SEEK_CUR)
        return os.pread(output, size, 0).decode()


def entries(fd: int) -> list[Any]:
    found = json.loads(text(fd, Style.JSON))
    assert isinstance(found, list)
    return found


@contextlib.contextmanager
def a_map(name: str, key_size: int, value_size: int, size: int, **more: Any) -> Iterator[int]:
    number = BY_NAME[name].number
    fd = kernel.map_create(number, "dumped", key_size, value_size, size, **more)
    with kernel.holding(fd):
        yield fd


def u32(*numbers: int) -> bytes:
    return struct.pack(f"={len(numbers)}I", *numbers)


def u64(*numbers: int) -> bytes:
    return struct.pack(f"={len(numbers)}Q", *numbers)


EVERYTHING = (
    struct.pack("=bxhxxxxq", -1, -300, -(1 << 60))
    + bytes([1, 2, 3, 4])
    + u32(0x00020001)
    + u64(5 | 8191 << 3 | (-3 & 31) << 16 | ((1 << 40) - 1) << 21)
    + u32(2, 99)
    + struct.pack("=fxxxxddd", 0.1, -1.5, float("nan"), float("inf"))
    + b'a"b\\\n\xff\xc3\xa9\xe2\x82\xac\xc2\x85\0zz'
    + b"fullab\0c"
    + bytes.fromhex("0242ac110002")
    + struct.pack(">H", 8080)
    + bytes([10, 0, 0, 1])
    + bytes(4)
    + struct.pack(">Q", 1 << 63)
    + socket.inet_pton(socket.AF_INET6, "2001:db8::1")
    + u64(0xFFFF888000000000)
    + b"".join(struct.pack("=H2s", number, b"xy") for number in range(4))
    + bytes([1, 0, 65]).ljust(16, b"\0")
    + bytes(range(16))
)


def test_every_kind_of_member(contents: kernel.OpenObject) -> None:
    fd = contents.map_fd("everything")
    kernel.map_update(fd, u32(0), EVERYTHING)
    assert entries(fd) == [
        {
            "key": 0,
            "value": {
                "negative": {"small": -1, "shorter": -300, "longer": -(1 << 60)},
                "either": {"number": 0x04030201, "raw": "01:02:03:04"},
                "first": 0x00020001,
                "low": 1,
                "high": 2,
                "three": 5,
                "thirteen": 8191,
                "minus": -3,
                "forty": (1 << 40) - 1,
                "state": "STATE_OPEN",
                "other": 99,
                "single": 0.1,
                "twice": [-1.5, None, None],
                "text": 'a"b\\\n\u00ff\u00e9\u20ac\u00c2\u0085',
                "lines": ["full", "ab"],
                "mac": "02:42:ac:11:00:02",
                "port": 8080,
                "address": 0x0A000001,
                "big": 1 << 63,
                "six": "2001:db8::1",
                "pointer": "0xffff888000000000",
                "pairs": [
                    [{"a": 0, "b": "xy"}, {"a": 1, "b": "xy"}],
                    [{"a": 2, "b": "xy"}, {"a": 3, "b": "xy"}],
                ],
                "yes": True,
                "no": False,
                "letter": 65,
                "huge": "00:01:02:03:04:05:06:07:08:09:0a:0b:0c:0d:0e:0f",
            },
        }
    ]


def test_every_kind_of_member_in_a_table(contents: kernel.OpenObject) -> None:
    fd = contents.map_fd("everything")
    kernel.map_update(fd, u32(0), EVERYTHING)
    assert text(fd, Style.TABLE) == (
        "KEY  VALUE\n"
        "0    negative={small=-1 shorter=-300 longer=-1152921504606846976}"
        " either={number=67305985 raw=01:02:03:04} first=131073 low=1 high=2"
        " three=5 thirteen=8191 minus=-3 forty=1099511627775 state=STATE_OPEN other=99"
        r' single=0.1 twice=[-1.5 nan inf] text="a\"b\\\u000a\u00ff' + "é€" + r'\u00c2\u0085"'
        ' lines=["full" "ab"] mac=02:42:ac:11:00:02 port=8080 address=10.0.0.1'
        " big=9223372036854775808 six=2001:db8::1 pointer=0xffff888000000000"
        ' pairs=[[{a=0 b="xy"} {a=1 b="xy"}] [{a=2 b="xy"} {a=3 b="xy"}]]'
        " yes=true no=false letter=65 huge=00:01:02:03:04:05:06:07:08:09:0a:0b:0c:0d:0e:0f\n"
    )


def test_columns_are_as_wide_as_the_widest_key(contents: kernel.OpenObject) -> None:
    fd = contents.map_fd("routes")
    for length, address in ((8, [10, 0, 0, 0]), (32, [192, 168, 100, 200])):
        kernel.map_update(fd, u32(length) + bytes(address), u32(length))
    assert sorted(text(fd, Style.TABLE).splitlines()) == [
        "KEY                                   VALUE",
        "prefixlen=32 address=192.168.100.200  32",
        "prefixlen=8 address=10.0.0.0          8",
    ]
    assert sorted(entry["key"]["prefixlen"] for entry in entries(fd)) == [8, 32]


def test_values_of_every_cpu(contents: kernel.OpenObject) -> None:
    fd = contents.map_fd("percpu_numbers")
    kernel.map_update(fd, u32(2), b"".join(u64(100 + cpu) for cpu in CPUS))
    found = entries(fd)
    assert [entry["key"] for entry in found] == [0, 1, 2, 3]
    assert found[1]["values"] == [{"cpu": cpu, "value": 0} for cpu in CPUS]
    assert found[2]["values"] == [{"cpu": cpu, "value": 100 + cpu} for cpu in CPUS]
    lines = text(fd, Style.TABLE).splitlines()
    assert lines[:2] == ["KEY  CPU  VALUE", "0      0  0"]
    assert f"2    {CPUS[-1]:>3}  {100 + CPUS[-1]}" in lines
    assert len(lines) == 1 + 4 * len(CPUS)


def test_values_of_every_cpu_in_a_hash(contents: kernel.OpenObject) -> None:
    fd = contents.map_fd("percpu_flows")
    value = struct.pack("=QQiHBBII", 1, 2, -3, 4, 1, 64, 1, 9)
    kernel.map_update(fd, u32(7), b"".join(u64(cpu) + value[8:] for cpu in CPUS))
    assert entries(fd) == [
        {
            "key": 7,
            "values": [
                {
                    "cpu": cpu,
                    "value": {
                        "packets": cpu,
                        "bytes": 2,
                        "delta": -3,
                        "mark": 4,
                        "seen": True,
                        "ttl": 64,
                        "state": "STATE_NEW",
                        "last": 9,
                    },
                }
                for cpu in CPUS
            ],
        }
    ]


def test_global_data(contents: kernel.OpenObject) -> None:
    name = next(spec.name for spec in contents.spec.maps if spec.name.endswith(".data"))
    value = {"limits": {"low": 1, "high": 2}, "name": "keeper"}
    assert entries(contents.map_fd(name)) == [{"key": 0, "value": value}]


def test_without_btf_bytes_are_shown() -> None:
    with a_map("hash", 3, 5, 4) as fd:
        assert text(fd, Style.JSON) == "[\n]\n"
        assert text(fd, Style.TABLE) == "KEY  VALUE\n"
        kernel.map_update(fd, b"\0\x01\xff", b"hello")
        assert entries(fd) == [{"key": "00:01:ff", "value": "68:65:6c:6c:6f"}]
        assert text(fd, Style.TABLE) == "KEY       VALUE\n00:01:ff  68:65:6c:6c:6f\n"
    with a_map("lpm_trie", 8, 1, 4, flags=1) as fd:
        kernel.map_update(fd, u32(9) + bytes([10, 128, 0, 0]), b"\x07")
        assert entries(fd) == [{"key": {"prefixlen": 9, "data": "0a:80:00:00"}, "value": "07"}]


@pytest.mark.parametrize(
    ("name", "size"), [("array", 4 << 20), ("percpu_array", 32 << 10), ("hash", 1 << 20)]
)
def test_values_larger_than_any_buffer(name: str, size: int) -> None:
    per_cpu = BY_NAME[name].per_cpu
    value = os.urandom(size)
    with a_map(name, 4, size, 2) as fd:
        for key in range(2):
            kernel.map_update(fd, u32(key), value * (len(CPUS) if per_cpu else 1))
        found = entries(fd)
    shown = value.hex(":")
    expected = {"values": [{"cpu": cpu, "value": shown} for cpu in CPUS]}
    assert len(found) == 2
    for entry in found:
        del entry["key"]
        assert entry == (expected if per_cpu else {"value": shown})


def test_programs_and_maps_in_maps(build_object: BuildObject) -> None:
    data = build_object("verdict", HOOK='"cgroup_skb/egress"').read_bytes()
    with kernel.open_object(data, "x") as opened, a_map("prog_array", 4, 4, 8) as fd:
        opened.load()
        program = opened.program_fd("program")
        kernel.map_update(fd, u32(5), u32(program))
        value = {"program_id": kernel.program_info(program).id}
        assert entries(fd) == [{"key": 5, "value": value}]
    with a_map("array", 4, 8, 1) as inner:
        number = kernel.map_info(inner).id
        with a_map("array_of_maps", 4, 4, 8, inner_fd=inner) as fd:
            kernel.map_update(fd, u32(3), u32(inner))
            assert entries(fd) == [{"key": 3, "value": {"map_id": number}}]
        with a_map("hash_of_maps", 2, 4, 8, inner_fd=inner) as fd:
            kernel.map_update(fd, b"ab", u32(inner))
            assert entries(fd) == [{"key": "61:62", "value": {"map_id": number}}]
            assert text(fd, Style.TABLE) == f"KEY    VALUE\n61:62  map_id={number}\n"


def test_devices_and_cpus() -> None:
    loopback = socket.if_nametoindex("lo")
    for name in ("devmap", "devmap_hash"):
        with a_map(name, 4, 4, 8) as fd:
            kernel.map_update(fd, u32(6), u32(loopback))
            assert entries(fd) == [{"key": 6, "value": {"ifindex": loopback}}]
        with a_map(name, 4, 8, 8) as fd:
            kernel.map_update(fd, u32(6), struct.pack("=Ii", loopback, -1))
            value = {"ifindex": loopback, "program_id": 0}
            assert entries(fd) == [{"key": 6, "value": value}]
    with a_map("cpumap", 4, 4, 1) as fd:
        kernel.map_update(fd, u32(0), u32(192))
        assert entries(fd) == [{"key": 0, "value": {"queue_size": 192}}]


@contextlib.contextmanager
def a_connection() -> Iterator[socket.socket]:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
        server.accept()[0],
    ):
        yield client


def cookie(of: socket.socket) -> int:
    return int.from_bytes(of.getsockopt(socket.SOL_SOCKET, COOKIE_OPTION, 8), "little")


def test_sockets() -> None:
    with a_connection() as client:
        value = {"socket_cookie": cookie(client)}
        with a_map("sockmap", 4, 8, 4) as fd:
            kernel.map_update(fd, u32(2), u64(client.fileno()))
            assert entries(fd) == [{"key": 2, "value": value}]
        with a_map("sockhash", 3, 8, 4) as fd:
            kernel.map_update(fd, b"abc", u64(client.fileno()))
            assert entries(fd) == [{"key": "61:62:63", "value": value}]
        with a_map("sockhash", 3, 4, 4) as fd:  # the kernel tells no cookie, but the keys
            kernel.map_update(fd, b"abc", u32(client.fileno()))
            assert entries(fd) == [{"key": "61:62:63", "value": None}]
            assert text(fd, Style.TABLE) == "KEY       VALUE\n61:62:63  -\n"


def test_sockets_that_share_a_port() -> None:
    with a_map("reuseport_sockarray", 4, 8, 4) as fd, socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        udp.bind(("127.0.0.1", 0))
        kernel.map_update(fd, u32(1), u64(udp.fileno()))
        assert entries(fd) == [{"key": 1, "value": {"socket_cookie": cookie(udp)}}]


def test_stacks(build_object: BuildObject) -> None:
    with kernel.open_object(build_object("stack").read_bytes(), "x") as opened:
        opened.load()
        key = run_program(opened.program_fd("note"))
        fd = opened.map_fd("stacks")
        (entry,) = entries(fd)
        assert entry["key"] == key
        assert 1 < len(entry["value"]) < 127
        assert all(int(address, 16) >> 40 == 0xFFFFFF for address in entry["value"])
        assert entries(fd) == [entry]  # it is still there


@pytest.mark.parametrize("name", ["hash", "lru_hash", "percpu_hash", "lru_percpu_hash"])
def test_hashes(name: str) -> None:
    per_cpu = BY_NAME[name].per_cpu
    with a_map(name, 2, 3, 4) as fd:
        kernel.map_update(fd, b"ab", b"xyz     " * len(CPUS) if per_cpu else b"xyz")
        value = "78:79:7a"
        values = [{"cpu": cpu, "value": value} for cpu in CPUS]
        assert entries(fd) == [
            {"key": "61:62", "values": values} if per_cpu else {"key": "61:62", "value": value}
        ]


@pytest.mark.parametrize("per_cpu", [False, True])
def test_storage_of_cgroups(build_object: BuildObject, cgroup: Path, per_cpu: bool) -> None:
    data = build_object("cgroup_storage", TYPE=21 if per_cpu else 19).read_bytes()
    target = os.open(cgroup, os.O_RDONLY)
    with kernel.holding(target), kernel.open_object(data, "x") as opened:
        opened.load()
        assert entries(opened.map_fd("storage")) == []
        egress = 1  # BPF_CGROUP_INET_EGRESS
        with kernel.holding(kernel.link_create(opened.program_fd("count"), target, egress)):
            key = {"cgroup_inode_id": os.stat(cgroup).st_ino, "attach_type": egress}
            values = [{"cpu": cpu, "value": 0} for cpu in CPUS]
            assert entries(opened.map_fd("storage")) == [
                {"key": key, "values": values} if per_cpu else {"key": key, "value": 0}
            ]


@pytest.mark.parametrize(
    ("name", "key_size", "value_size", "size", "flags", "why"),
    [
        ("queue", 0, 4, 4, 0, "its values cannot be read without taking them out"),
        ("stack", 0, 4, 4, 0, "its values cannot be read without taking them out"),
        ("bloom_filter", 0, 4, 4, 0, "it keeps no values, and can only be asked"),
        ("ringbuf", 0, 0, 4096, 0, "it is a stream of records for one consumer"),
        ("user_ringbuf", 0, 0, 4096, 0, "it is a stream of records for one consumer"),
        ("arena", 0, 0, 1, 0x400, "it is memory without keys"),
        ("perf_event_array", 4, 4, 4, 0, "the kernel does not tell which perf events"),
        ("cgroup_array", 4, 4, 4, 0, "the kernel does not tell which cgroups"),
        ("xskmap", 4, 4, 4, 0, "the kernel does not tell which sockets"),
        ("sockmap", 4, 4, 4, 0, "the kernel tells of its sockets only where value_size is 8"),
        ("reuseport_sockarray", 4, 4, 4, 0, "the kernel tells of its sockets only where"),
        ("sk_storage", 4, 4, 0, 1, "its entries belong to sockets: user space cannot list"),
        ("inode_storage", 4, 4, 0, 1, "its entries belong to inodes: user space cannot list"),
        ("task_storage", 4, 4, 0, 1, "its entries belong to tasks: user space cannot list"),
        ("cgrp_storage", 4, 4, 0, 1, "its entries belong to cgroups: user space cannot list"),
    ],
)
def test_what_cannot_be_read(
    name: str, key_size: int, value_size: int, size: int, flags: int, why: str
) -> None:
    builder = BtfBuilder()
    number = builder.add_int("int", 4, signed=True)
    with kernel.holding(kernel.btf_load(builder.data())) as btf:
        types = (btf, number, number) if name.endswith("_storage") else (0, 0, 0)
        with (
            a_map(name, key_size, value_size, size, flags=flags, btf=types) as fd,
            pytest.raises(DumpError) as caught,
        ):
            text(fd, Style.JSON)
    assert str(caught.value).startswith(f"cannot dump map m ({name}): {why}")


FLOWS = 200_000


def a_flow(number: int) -> bytes:
    return struct.pack(">IIHHB3x", number, 1, 2, 3, 4)


@pytest.fixture
def flows(build_object: BuildObject) -> Iterator[int]:
    """A full hash of many entries."""
    data = build_object("contents", ENTRIES=FLOWS).read_bytes()
    with kernel.open_object(data, "contents") as opened:
        opened.load()
        fd = opened.map_fd("flows")
        keys = b"".join(map(a_flow, range(FLOWS)))
        values = b"".join(u64(number, 0, 0, 0) for number in range(FLOWS))
        fill_map(fd, keys, values, FLOWS)
        yield fd


def test_all_of_a_large_map_once(flows: int) -> None:
    found = [(entry["key"]["source"], entry["value"]["packets"]) for entry in entries(flows)]
    assert sorted(found) == [(number, number) for number in range(FLOWS)]
    assert text(flows, Style.TABLE).count("\n") == FLOWS + 1


def test_limit(flows: int) -> None:
    for limit in (0, 1, 3, 50_000):
        assert len(json.loads(text(flows, Style.JSON, limit))) == limit


def test_walk_gives_what_batches_give(flows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """For kernels that have no batches for a type."""
    batched = sorted(text(flows, Style.TABLE).splitlines())
    with monkeypatch.context() as patch:
        patch.setattr(readable, "_BATCHED", frozenset())
        assert sorted(text(flows, Style.TABLE).splitlines()) == batched


def test_batches_that_the_kernel_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readable, "_BATCHED", frozenset({"cpumap"}))
    with a_map("cpumap", 4, 4, 1) as fd:
        kernel.map_update(fd, u32(0), u32(192))
        assert entries(fd) == [{"key": 0, "value": {"queue_size": 192}}]


def test_bucket_larger_than_a_batch(flows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BATCH_BYTES", 1)
    found = {entry["key"]["source"] for entry in entries(flows)}
    assert len(found) == FLOWS


@contextlib.contextmanager
def writing(fd: int, kept: int) -> Iterator[None]:
    """A thread that adds and deletes entries all the while, but never one of the first ``kept``."""
    stop = threading.Event()

    def write() -> None:
        number = kept
        while not stop.is_set():
            number = number + 1 if number < FLOWS - 1 else kept
            with contextlib.suppress(KernelError):  # another one is there, or none
                kernel.map_delete(fd, a_flow(number))
            kernel.map_update(fd, a_flow(number), u64(number, 0, 0, 0))
            kernel.map_delete(fd, a_flow(number))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_writers_do_not_disturb_batches(flows: int) -> None:
    kept = FLOWS // 2
    with writing(flows, kept):
        for _ in range(3):
            found = [entry["key"]["source"] for entry in entries(flows)]
            assert sorted(number for number in found if number < kept) == list(range(kept))


def test_a_walk_ends_whatever_is_written(flows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readable, "_BATCHED", frozenset())
    kept = FLOWS // 2
    with writing(flows, kept):
        for _ in range(3):
            try:
                found = entries(flows)
            except KeeperError as error:
                assert "it changes faster than it can be read" in str(error)
            else:
                assert len(found) <= 2 * FLOWS
                assert {entry["key"]["source"] for entry in found} >= set(range(kept))


def test_a_walk_that_never_ends_is_ended() -> None:
    """A map that says it is smaller than it is stands for one that changes too fast."""
    with a_map("hash", 4, 4, 64) as fd:
        for key in range(64):
            kernel.map_update(fd, u32(key), u32(key))
        info = dataclasses.replace(kernel.map_info(fd), max_entries=10)
        for batch in (False, True):
            reader = kernel.MapReader(fd, info, 4, batch=batch)
            with pytest.raises(KeeperError, match="it changes faster than it can be read"):
                while reader.read():
                    pass


def test_reading_takes_no_right_to_write(bpffs: Path) -> None:
    with a_map("hash", 4, 4, 4) as fd:
        kernel.pin(fd, str(bpffs / "m"))
        number = kernel.map_info(fd).id
    for opened in (kernel.pinned_for_reading(str(bpffs / "m")), kernel.map_for_reading(number)):
        assert opened is not None
        with kernel.holding(opened), pytest.raises(KernelError) as caught:
            kernel.map_update(opened, u32(1), u32(1))
        assert caught.value.errno == errno.EPERM
    assert kernel.pinned_for_reading(str(bpffs / "n")) is None


def test_what_is_no_map(bpffs: Path, build_object: BuildObject) -> None:
    data = build_object("verdict", HOOK='"cgroup_skb/egress"').read_bytes()
    with kernel.open_object(data, "x") as opened:
        opened.load()
        kernel.pin(opened.program_fd("program"), str(bpffs / "p"))
    with pytest.raises(KernelError, match=r"cannot open the pin .*/p: .*: it is no map"):
        kernel.pinned_for_reading(str(bpffs / "p"))


def test_an_output_that_is_full() -> None:
    why = "cannot write the contents of map m: No space left"
    with (
        a_map("array", 4, 8, 100_000) as fd,
        open("/dev/full", "wb") as full,
        pytest.raises(DumpError, match=why),
    ):
        dump(fd, "m", full.fileno(), Style.JSON, None)


def test_an_output_that_must_be_waited_for() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    parts = []

    def read() -> None:
        while part := os.read(reader, 1000):
            parts.append(part)

    thread = threading.Thread(target=read)
    thread.start()
    with a_map("array", 4, 8, 10_000) as fd:
        assert dump(fd, "m", writer, Style.JSON, None) == ""
    os.close(writer)
    thread.join()
    os.close(reader)
    assert [entry["key"] for entry in json.loads(b"".join(parts))] == list(range(10_000))
