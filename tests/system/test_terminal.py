"""What people see at a terminal: tables, colours, and a watch, captured from a real one."""

from pathlib import Path

from bpfkeeperd import kernel
from tests.scenario import World
from tests.system.conftest import Start
from tests.system.process import cli
from tests.system.tmux import terminal

LONG = "connections_by_source_and_destination_address"
MANIFEST = f"""
maps:
  flows: {{type: hash, key: u32, value: u64, max_entries: 1000}}
  recent: {{type: lru_hash, key: u32, value: u64, max_entries: 200000}}
  settings: {{type: array, key: u32, value: u64, max_entries: 4}}
  events: {{type: ringbuf, max_entries: 1048576}}
  jumps: {{type: prog_array, max_entries: 8}}
  {LONG}: {{type: hash, key: u32, value: u64, max_entries: 100}}
  seen: {{type: bloom_filter, value: u32, max_entries: 1000}}
  rooms:
    type: array_of_maps
    max_entries: 4
    inner: inner_room
    entries: [{{key: 2, value: inner_room}}]
  inner_room: {{type: hash, key: u32, value: u64, max_entries: 100}}
objects:
  one:
    file: one.bpf.o
    pin_maps: [counts]
    programs: {{count: {{attach: [{{cgroup: CGROUP}}]}}}}
"""


def fill(path: Path, entries: int) -> None:
    opened = kernel.pinned_map(str(path))
    assert opened
    with kernel.holding(opened[0]) as fd:
        for number in range(entries):
            kernel.map_update(fd, number.to_bytes(4, "little"), bytes(opened[1].value_size))


def prepare(world: World) -> None:
    world.put("one")
    world.write(MANIFEST)


def fill_all(world: World) -> None:
    for name, entries in (("flows", 500), ("recent", 1234), (LONG, 97), ("inner_room", 85)):
        fill(world.pins / name, entries)


def test_look(world: World, start: Start) -> None:
    prepare(world)
    start()
    fill_all(world)
    for columns, lines in ((80, 24), (120, 40), (40, 40), (200, 40)):
        with terminal(world, columns, lines) as window:
            for command in ("k maps", "k status"):
                shown, code = window.run(command)
                print(command, columns, code)
                print("\n".join(shown))
            window.keys("clear; k maps --watch 0.2", "Enter")
            window.wait(lambda lines: any("q ends" in line for line in lines))
            fill(world.pins / "flows", 600)
            import time

            time.sleep(0.3)
            print("\n".join(window.text()))
            window.keys("q")
            window.wait(lambda lines: not any("q ends" in line for line in lines))
    print(cli(world, "maps").stdout)
    print(cli(world, "status").stdout)
    assert 0
