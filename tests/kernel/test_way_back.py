"""Entries of kept maps that were written, and come back when the change is undone."""

import subprocess

from bpfkeeperd import kernel
from bpfkeeperd.enactmaps import way_back
from bpfkeeperd.transaction import Transaction
from tests.conftest import BuildObject
from tests.kernel.test_contents import Made, defined, made, programs, u32
from tests.machine import Netns


def by_id(number: int, outer: bool) -> int | None:
    return (kernel.map_by_id if outer else kernel.program_by_id)(number)


def there_and_back(one: Made, text: str) -> dict[bytes, bytes | None]:
    """What is in a map after it was filled otherwise and that was undone; it differed between."""
    before = one.read()
    contents = defined(text)[1].contents
    transaction = Transaction()
    ways = [way_back(transaction, one.fd, content, by_id) for content in contents]
    Made(one.fd, one.spec, contents, one.resolver).fill()
    assert one.read() != before
    for way in reversed(ways):
        way()
    transaction.close()
    return one.read()


def test_interfaces_of_another_namespace(netns: Netns) -> None:
    form = "{{type: devmap, value_size: 4, max_entries: 2, entries: [{{key: 1, value: {}}}]}}"
    index = 1 << 20  # which nobody has in this process's own namespace
    link = ["link", "add", "far0", "index", str(index), "type", "veth", "peer", "name", "far1"]
    subprocess.run(["ip", "-n", netns.here, *link], check=True)
    first, other = (
        form.format(f"{{interface: {name}, netns: {netns.here}}}") for name in ("far0", "lo")
    )
    with made(first) as one:
        assert there_and_back(one, other) == {u32(0): None, u32(1): u32(index)}


def test_programs_in_device_and_cpu_maps(build_object: BuildObject) -> None:
    port = "{{type: devmap_hash, value_size: 8, max_entries: 4, entries: [{{key: 1, value: {}}}]}}"
    cpu = "{{type: cpumap, value_size: 8, max_entries: 4, entries: [{{key: 0, value: {}}}]}}"
    with programs(build_object) as resolver:
        for form, full, bare in (
            (port, "{interface: lo, program: o/at_port}", "lo"),
            (cpu, "{qsize: 64, program: o/at_cpu}", "32"),
        ):
            for first, other in ((full, bare), (bare, full)):
                with made(form.format(first), resolver) as one:
                    before = one.read()
                    assert there_and_back(one, form.format(other)) == before


def test_a_prefix_that_was_not_there() -> None:
    form = (
        "{{type: lpm_trie, key_size: 8, value: u32, max_entries: 4, flags: [no_prealloc],"
        " entries: [{{key: {}, value: 1}}]}}"
    )
    with made(form.format("10.0.0.0/8")) as one:
        before = one.read()
        assert there_and_back(one, form.format("10.1.0.0/16")) == before
