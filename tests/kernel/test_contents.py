"""Maps of the manifest's own: created, filled, read back, put right again."""

import os
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bpfkeeperd import cgroupslots, kernel
from bpfkeeperd import contents as entries_of
from bpfkeeperd.cgroupslots import SLOTS_MAX, cgroup_ids
from bpfkeeperd.compare import canonical
from bpfkeeperd.create import create_map
from bpfkeeperd.entries import Content, MapDefinition
from bpfkeeperd.errors import KeeperError, KernelError
from bpfkeeperd.fill import Resolver, astray, fill
from bpfkeeperd.manifest import parse_manifest
from bpfkeeperd.nodes import Place
from bpfkeeperd.ownmaps import own_spec
from bpfkeeperd.state import MapSpec, ReloadResult
from tests.conftest import BuildObject
from tests.machine import Netns, verified_instructions
from tests.scenario import World, refused


def differing(
    fd: int, spec: MapSpec, contents: Sequence[Content], resolver: Resolver
) -> tuple[str, ...]:
    """The entries that are not there as they should be, each in words."""
    found = astray(fd, spec, contents, resolver)
    return tuple(f"entry {contents[place].text}: {how}" for place, how in found.items())


def no_program(object_name: str, program: str) -> int:
    raise KeeperError(f"there is no program {object_name}/{program}")


def no_map(name: str) -> int:
    raise KeeperError(f"there is no map {name}")


NOBODY = Resolver(no_program, no_map)


def defined(text: str) -> tuple[MapSpec, MapDefinition]:
    """A map of a manifest, as a manifest defines it."""
    source = f"version: 1\nmaps:\n  m: {text}\n"
    definition = parse_manifest([("/m.yaml", source.encode())]).maps["m"].definition
    assert definition
    return canonical(own_spec("m", definition), kernel.machine()), definition


@dataclass(frozen=True, slots=True)
class Made:
    fd: int
    spec: MapSpec
    contents: tuple[Content, ...]
    resolver: Resolver

    def fill(self) -> None:
        fill(self.fd, self.spec, self.contents, self.resolver)

    def differing(self) -> tuple[str, ...]:
        return differing(self.fd, self.spec, self.contents, self.resolver)

    def read(self) -> dict[bytes, bytes | None]:
        return {
            key: kernel.map_lookup(self.fd, key, self.size)
            for key in kernel.map_keys(self.fd, self.spec.key_size)
        }

    @property
    def size(self) -> int:
        """Of what a look-up gives."""
        if self.spec.type not in (5, 6, 10):
            return self.spec.value_size
        return (self.spec.value_size + 7) // 8 * 8 * kernel.possible_cpus()


@contextmanager
def made(text: str, resolver: Resolver = NOBODY) -> Iterator[Made]:
    """A map of a manifest, created and filled."""
    spec, definition = defined(text)
    with kernel.holding(create_map("m", spec, definition)) as fd:
        one = Made(fd, spec, definition.contents, resolver)
        one.fill()
        yield one


def u32(*numbers: int) -> bytes:
    return struct.pack(f"={len(numbers)}I", *numbers)


def u64(number: int) -> bytes:
    return number.to_bytes(8, sys.byteorder)


def every_cpu(value: bytes) -> bytes:
    return value.ljust((len(value) + 7) // 8 * 8, b"\0") * kernel.possible_cpus()


PLAIN: Mapping[str, tuple[str, dict[bytes, bytes]]] = {
    "hash": (
        "{type: hash, key: {src: be32, port: be16}, value: u64, max_entries: 8, entries:"
        " [{key: {src: 10.0.0.1, port: 443}, value: 7}, {key: {src: 5, port: 1}, value: 8}]}",
        {b"\n\0\0\1\1\xbb\0\0": u64(7), b"\0\0\0\5\0\1\0\0": u64(8)},
    ),
    "lru_hash": (
        "{type: lru_hash, key: 'char[4]', value: s16, max_entries: 64,"
        " entries: [{key: ab, value: -2}]}",
        {b"ab\0\0": struct.pack("=h", -2)},
    ),
    "array": (
        "{type: array, value: 'u16[2]', max_entries: 2, entries: [{key: 1, value: [1, 2]}]}",
        {u32(0): bytes(4), u32(1): struct.pack("=HH", 1, 2)},
    ),
    "percpu_array": (
        "{type: percpu_array, value: u32, max_entries: 1, entries: [{key: 0, value: 0x10}]}",
        {u32(0): every_cpu(u32(16))},
    ),
    "percpu_hash": (
        "{type: percpu_hash, key_size: 2, value: ipv6, max_entries: 1,"
        " entries: [{key: 513, value: '::1'}]}",
        {struct.pack("=H", 513): every_cpu(bytes(15) + b"\1")},
    ),
    "lru_percpu_hash": (
        "{type: lru_percpu_hash, key: u8, value: bool, max_entries: 64,"
        " entries: [{key: 1, value: true}]}",
        {b"\1": every_cpu(b"\1")},
    ),
    "lpm_trie": (
        "{type: lpm_trie, key: {prefix_len: u32, address: be32}, value: u32, max_entries: 16,"
        " flags: [no_prealloc], entries: [{key: 10.0.0.0/8, value: 1}, {key: 0.0.0.0/0, value: 2},"
        " {key: {prefix_len: 32, address: 10.0.0.1}, value: 3}]}",
        {
            u32(8) + b"\n\0\0\0": u32(1),
            u32(0) + bytes(4): u32(2),
            u32(32) + b"\n\0\0\1": u32(3),
        },
    ),
    "lpm_trie_6": (
        "{type: lpm_trie, key_size: 20, value_size: 4, max_entries: 16, flags: [no_prealloc],"
        " entries: [{key: '2001:db8::/32', value: 1}]}",
        {u32(32) + bytes.fromhex("20010db8") + bytes(12): u32(1)},
    ),
    "cpumap": (
        "{type: cpumap, max_entries: 1, value_size: 4, entries: [{key: 0, value: 192}]}",
        {u32(0): u32(192)},
    ),
}


@pytest.mark.parametrize("name", PLAIN)
def test_what_is_written_is_there(name: str) -> None:
    text, expected = PLAIN[name]
    with made(text) as one:
        assert one.read() == expected
        assert one.differing() == ()


@pytest.mark.parametrize("name", PLAIN)
def test_what_differs_is_told_and_put_right(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, expected = PLAIN[name]
    with made(text) as one:
        content = one.contents[0]
        assert content.key is not None
        spoilt = bytearray(expected[content.key])
        spoilt[-8 if len(spoilt) > one.spec.value_size else 0] ^= 1  # of one CPU only
        kernel.map_update(one.fd, content.key, bytes(spoilt))
        assert one.differing() == (f"entry {content.text}: its value is another",)
        written = []

        def update(fd: int, key: bytes | None, value: bytes) -> None:
            written.append(key)
            original(fd, key, value)

        original = kernel.map_update
        monkeypatch.setattr(kernel, "map_update", update)
        one.fill()
        assert written == [content.key]
        assert one.read() == expected


@pytest.mark.parametrize("name", [name for name in PLAIN if "array" not in name])
def test_what_is_missing_is_told_and_put_right(name: str) -> None:
    text, expected = PLAIN[name]
    with made(text) as one:
        content = one.contents[0]
        assert content.key is not None
        kernel.map_delete(one.fd, content.key)
        # In a trie the next shorter prefix would answer for it.
        assert one.differing() == (f"entry {content.text}: it is not there",)
        one.fill()
        assert one.read() == expected


def test_what_the_manifest_does_not_name_stays() -> None:
    with made(PLAIN["hash"][0]) as one:
        kernel.map_update(one.fd, bytes(8), u64(1))
        one.fill()
        assert kernel.map_lookup(one.fd, bytes(8), 8) == u64(1)


@pytest.mark.parametrize(("kind", "order"), [("queue", [1, 2, 3]), ("stack", [3, 2, 1])])
def test_queues_and_stacks(kind: str, order: list[int]) -> None:
    text = f"{{type: {kind}, value: u32, max_entries: 8, entries: [{{value: 1}}, {{value: 2}},"
    with made(f"{text} {{value: 3}}]}}") as one:
        assert one.differing() == ()
        assert [kernel.map_pop(one.fd, None, 4) for _ in range(4)] == [*map(u32, order), None]
        assert one.differing() == ()


def test_bloom_filter() -> None:
    with made(
        "{type: bloom_filter, value: ipv4, max_entries: 9, entries: [value: 10.0.0.1]}"
    ) as one:
        assert kernel.map_contains(one.fd, b"\n\0\0\1")
        assert not kernel.map_contains(one.fd, b"\n\0\0\2")
        assert one.differing() == ()
        spec, definition = defined("{type: bloom_filter, value: ipv4, max_entries: 9}")
        with kernel.holding(create_map("m", spec, definition)) as empty:
            found = differing(empty, spec, one.contents, NOBODY)
            assert found == ("entry 10.0.0.1: it is not there",)


SHAPES = (
    "u8", "u16", "u32", "u64", "s8", "s16", "s32", "s64", "be16", "be32", "be64", "bool", "ipv4",
    "ipv6", "'char[7]'", "'u64[3]'", "'ipv6[2]'", "{a: u8}", "{a: u8, b: u64, c: u8}",
    "{a: u8, b: {c: u32, d: 'char[3]', e: {f: bool, g: be64}}, h: 'u16[5]'}", "{a: u8, b: ipv6}",
)  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_has_the_layout(shape: str) -> None:
    with made(f"{{type: hash, key: {{k: {shape}}}, value: {shape}, max_entries: 1}}") as one:
        info = kernel.map_info(one.fd)
        layouts = kernel.btf_layouts(*info.btf)
        assert None not in layouts
        assert layouts == (one.spec.key_layout, one.spec.value_layout)
        assert (info.key_size, info.value_size) == (one.spec.key_size, one.spec.value_size)


@pytest.mark.parametrize(
    ("text", "described"),
    [
        ("{type: array, value: u64, max_entries: 1}", True),
        ("{type: lpm_trie, key: {l: u32, a: u8}, value: u64, max_entries: 1, flags: 1}", True),
        ("{type: lpm_trie, key: 'u8[8]', value: u64, max_entries: 1, flags: 1}", False),
        ("{type: lpm_trie, key_size: 8, value: u64, max_entries: 1, flags: 1}", True),
        ("{type: array, key: 'u8[4]', value: u64, max_entries: 1}", False),
        ("{type: queue, value: u64, max_entries: 1}", False),
        ("{type: bloom_filter, value: {a: u64}, max_entries: 1}", True),
        ("{type: devmap, key: u32, value: u32, max_entries: 1}", False),
        ("{type: devmap_hash, key: u32, value: u32, max_entries: 1}", False),
        ("{type: cpumap, key: u32, value: u32, max_entries: 1}", False),
        ("{type: xskmap, key: u32, value: u32, max_entries: 1}", False),
        ("{type: sockmap, key: u32, value: u32, max_entries: 1}", False),
        ("{type: sockhash, key: {a: u32}, value: u64, max_entries: 1}", False),
        ("{type: stack_trace, key: u32, value: 'u64[4]', max_entries: 1}", False),
        ("{type: perf_event_array, key: u32, value: u32, max_entries: 1}", False),
        ("{type: cgroup_array, key: u32, value: u32, max_entries: 1}", False),
    ],
)
def test_types_without_a_place_for_btf(text: str, described: bool) -> None:
    """A map is made all the same; the kernel answers BTF with 524 or EINVAL there."""
    with made(text) as one:
        assert bool(kernel.map_info(one.fd).btf[0]) is described


@pytest.mark.parametrize("kind", ["sk_storage", "inode_storage", "task_storage", "cgrp_storage"])
@pytest.mark.parametrize("value", ["value_size: 20", "value: {hits: u64, seen: u32}"])
def test_storages(kind: str, value: str) -> None:
    with made(f"{{type: {kind}, {value}, flags: [no_prealloc]}}") as one:
        info = kernel.map_info(one.fd)
        layouts = kernel.btf_layouts(*info.btf)
        assert layouts[0] == "0:32:int:\n" and layouts[1]
        if value.startswith("value:"):
            assert layouts[1] == one.spec.value_layout


def test_a_map_that_the_kernel_refuses() -> None:
    with (
        pytest.raises(KernelError, match=r"cannot create map m .*EINVAL"),
        made("{type: hash, key: u32, value: u32, max_entries: 0}"),
    ):
        pass


def test_devmaps(netns: Netns) -> None:
    with netns.inside(netns.here):
        index = kernel.interface_index("veth0")
    for kind, key in (("devmap", 0), ("devmap_hash", 77)):
        with made(
            f"{{type: {kind}, value_size: 4, max_entries: 4, entries: [{{key: {key},"
            f" value: {{interface: veth0, netns: {netns.here}}}}}, {{key: 1, value: lo}}]}}"
        ) as one:
            assert one.read().get(u32(key)) == u32(index)
            assert kernel.map_lookup(one.fd, u32(1), 4) == u32(1)
            assert one.differing() == ()
            kernel.map_delete(one.fd, u32(key))
            assert one.differing() == (f"entry {key}: it is not there",)


def test_an_interface_that_is_not_there() -> None:
    text = "{type: devmap, value_size: 4, max_entries: 4, entries: [{key: 2, value: nowhere0}]}"
    with pytest.raises(KeeperError) as caught, made(text):
        pass
    assert str(caught.value) == (
        "cannot write entry 2 of map m: cannot find interface nowhere0: No such device (ENODEV):"
        " it is at /m.yaml:3:62"
    )
    spec, definition = defined(text)
    with kernel.holding(create_map("m", spec, definition)) as fd:
        assert differing(fd, spec, definition.contents, NOBODY) == (
            "entry 2: cannot find interface nowhere0: No such device (ENODEV)",
        )


@contextmanager
def programs(build_object: BuildObject) -> Iterator[Resolver]:
    """The programs of entries.bpf.c under the name ``o``."""
    with kernel.open_object(build_object("entries").read_bytes(), "x") as opened:
        opened.load()

        def program_fd(object_name: str, program: str) -> int:
            assert object_name == "o"
            return opened.program_fd(program)

        yield Resolver(program_fd, no_map)


def test_programs_of_devmaps_and_cpumaps(build_object: BuildObject) -> None:
    port = "{type: devmap_hash, value_size: 8, max_entries: 4, entries: [{key: 1, value:"
    cpu = "{type: cpumap, value_size: 8, max_entries: 4, entries: [{key: 0, value:"
    with programs(build_object) as resolver:
        ids = {
            name: kernel.program_info(resolver.program_fd("o", name)).id
            for name in ("at_port", "at_cpu")
        }
        with made(f"{port} {{interface: lo, program: o/at_port}}}}]}}", resolver) as one:
            assert one.read() == {u32(1): u32(1, ids["at_port"])}
            assert one.differing() == ()
        with made(f"{cpu} {{qsize: 64, program: o/at_cpu}}}}]}}", resolver) as one:
            assert one.read()[u32(0)] == u32(64, ids["at_cpu"])
            assert one.differing() == ()
        for text, section in (
            (f"{port} {{interface: lo, program: o/first}}}}]}}", "xdp/devmap"),
            (f"{cpu} {{qsize: 64, program: o/first}}}}]}}", "xdp/cpumap"),
        ):
            with (
                pytest.raises(KeeperError, match=f'has the section "{section}"'),
                made(text, resolver),
            ):
                pass


def test_prog_array(build_object: BuildObject) -> None:
    with (
        programs(build_object) as resolver,
        made(
            "{type: prog_array, max_entries: 8, entries: [{key: 0, value: o/first},"
            " {key: 7, value: o/second}]}",
            resolver,
        ) as one,
    ):
        ids = [
            kernel.program_info(resolver.program_fd("o", name)).id for name in ("first", "second")
        ]
        assert kernel.map_lookup(one.fd, u32(0), 4) == u32(ids[0])
        assert kernel.map_lookup(one.fd, u32(7), 4) == u32(ids[1])
        assert one.differing() == ()
        kernel.map_update(one.fd, u32(0), u32(resolver.program_fd("o", "second")))
        assert one.differing() == ("entry 0: its value is another",)


@pytest.mark.parametrize(
    ("outer", "key"), [("type: array_of_maps", "0"), ("type: hash_of_maps, key: 'char[8]'", "zero")]
)
def test_maps_of_maps(outer: str, key: str) -> None:
    inner = "type: hash, key: u32, value: u64, max_entries: "
    with made(f"{{{inner} 5}}") as table, made(f"{{{inner} 9}}") as other:
        fds = {"table": table.fd, "other": other.fd}
        resolver = Resolver(no_program, lambda name: fds[name])
        with made(
            f"{{{outer}, max_entries: 4, inner: {{{inner} 100}},"
            f" entries: [{{key: {key}, value: table}}]}}",
            resolver,
        ) as one:
            content = one.contents[0]
            found = kernel.map_lookup(one.fd, content.key, 4)
            assert found == u32(kernel.map_info(table.fd).id)
            assert one.differing() == ()
            fds["table"] = other.fd
            assert one.differing() == (f"entry {key}: its value is another",)
            one.fill()
            assert one.differing() == ()


def test_an_inner_map_that_does_not_fit() -> None:
    with made("{type: hash, key: u32, value: u32, max_entries: 5}") as table:
        resolver = Resolver(no_program, lambda name: table.fd)
        text = "{type: array_of_maps, max_entries: 4, inner: {type: hash, key: u32, value: u64,"
        with (
            pytest.raises(KeeperError, match="the map differs from the inner map"),
            made(f"{text} max_entries: 9}}, entries: [{{key: 0, value: t}}]}}", resolver),
        ):
            pass


def test_cgroup_array(cgroup: Path) -> None:
    mount = kernel.cgroup2_mount()
    assert mount
    relative = os.path.relpath(cgroup, mount)
    with made(
        f"{{type: cgroup_array, max_entries: 4, entries: [{{key: 0, value: {relative}}},"
        f" {{key: 3, value: {cgroup}}}]}}"
    ) as one:
        assert one.differing() == ()
        mount_fd = os.open(mount, os.O_RDONLY)
        with kernel.holding(mount_fd):
            kernel.map_update(one.fd, u32(3), u32(mount_fd))
        kernel.map_delete(one.fd, u32(0))
        assert one.differing() == ("entry 0: it is not there", "entry 3: its value is another")
        one.fill()
        assert one.differing() == ()
        for place in (0, 3):
            kernel.map_delete(one.fd, u32(place))
        with pytest.raises(KernelError):  # an empty place is no entry
            kernel.map_delete(one.fd, u32(1))
    with (
        pytest.raises(KeeperError, match=r"cannot open cgroup .*no: No such file"),
        made(f"{{type: cgroup_array, max_entries: 1, entries: [{{key: 0, value: {cgroup}/no}}]}}"),
    ):
        pass


def test_cgroups_in_an_array_of_many_slots() -> None:
    """As many as are looked at, in one read of the iterator; of what is above nothing is said."""
    mount = kernel.cgroup2_mount()
    assert mount
    entries = ", ".join(f"{{key: {slot}, value: .}}" for slot in range(SLOTS_MAX + 1))
    with made(f"{{type: cgroup_array, max_entries: 2000, entries: [{entries}]}}") as one:
        assert one.differing() == ()
        ids = cgroup_ids(kernel.map_info(one.fd).id)
        assert ids == dict.fromkeys(range(SLOTS_MAX), os.stat(mount).st_ino)
        for slot in (SLOTS_MAX - 1, SLOTS_MAX):
            kernel.map_delete(one.fd, u32(slot))
        assert one.differing() == (f"entry {SLOTS_MAX - 1}: it is not there",)


def test_looking_at_cgroups_is_soon_loaded() -> None:
    """Each look loads the iterator anew, the daemon's every 30 s."""
    with kernel.open_object(cgroupslots.OBJECT_FILE.read_bytes(), "map_cgroups") as opened:
        opened.load()
        assert 0 < verified_instructions(opened.program_fd("list_cgroups")) < 1000


def test_a_map_that_user_space_cannot_write() -> None:
    _, definition = defined(
        "{type: hash, key_size: 4, value_size: 4, max_entries: 1, flags: [rdonly],"
        " entries: [{key: 1, value: 1}]}"
    )
    spec = own_spec("m", definition)
    with (
        kernel.holding(create_map("m", spec, definition)) as fd,
        pytest.raises(KeeperError, match="its flags forbid user space to write"),
    ):
        fill(fd, spec, definition.contents, NOBODY)


FLOW = (
    "{protocol: 6, port: 0x1bb, v4: 10.0.0.1, label: web, low: 5, high: 5000,"
    " corner: [{x: 1, y: -2}, {x: 3, y: 4}]}"
)


def test_entries_of_a_map_that_an_object_declares(build_object: BuildObject) -> None:
    source = f"version: 1\nmaps:\n  flows: {{entries: [{{key: {FLOW}, value: -9}}]}}\n"
    entry = parse_manifest([("/m.yaml", source.encode())]).maps["flows"]
    with kernel.open_object(build_object("entries").read_bytes(), "x") as opened:
        spec = next(one for one in opened.spec.maps if one.name == "flows")
        found, problems = entries_of.encode(
            Place("maps.flows.entries", entry.mark), spec, entry.entries
        )
        assert problems == ()
        opened.load()
        fill(opened.map_fd("flows"), spec, found, NOBODY)
        stored = list(kernel.map_keys(opened.map_fd("flows"), spec.key_size))
        assert stored == [found[0].key]
        low, high = 5, 5000
        assert stored[0] == struct.pack(
            "=BxH4s12x6sHhhhh", 6, 0x1BB, b"\n\0\0\1", b"web", low | high << 3, 1, -2, 3, 4
        )
        assert kernel.map_lookup(opened.map_fd("flows"), stored[0], 8) == struct.pack("=q", -9)


def test_an_own_map_is_kept_and_its_members_are_compared(world: World) -> None:
    text = "maps: {m: {type: hash, key: u32, value: {MEMBER: u64}, max_entries: 4}}\n"
    world.write(text.replace("MEMBER", "hits"))
    assert world.apply().result is ReloadResult.OK
    first = world.map_id("m")
    assert first is not None
    assert world.apply().done == ()
    world.write(text.replace("MEMBER", "misses"))
    assert "hits (int, 8 bytes) at byte 0, wanted is misses" in refused(world.apply())
    assert world.map_id("m") == first


def test_status_tells_which_entries_are_astray(world: World) -> None:
    entries = "[{key: 0, value: 7}, {key: 1, value: 8}]"
    world.write(
        "maps: {limits: {type: array, key: u32, value: u64, max_entries: 4, enforce: true,"
        f" entries: {entries}}}}}\n"
    )
    with world.keeper() as keeper:
        world.reload(keeper)
        found = kernel.pinned_map(str(world.pins / "limits"))
        assert found
        with kernel.holding(found[0]):
            kernel.map_update(found[0], (1).to_bytes(4, "little"), bytes(8))
        keeper.look()
        assert [status.problem for status in keeper.status.maps] == ["not as in the manifest: 1"]
        assert keeper.status.drift["entries_differ"] == 1
        world.reload(keeper)
        assert [status.problem for status in keeper.status.maps] == [""]
        assert keeper.status.drift["entries_differ"] == 0
