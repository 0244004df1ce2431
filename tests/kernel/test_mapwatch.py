"""``maps --watch``, turn by turn, on the real kernel: what is shown while things change."""

import fcntl
import gc
import os
import re
import subprocess
import tracemalloc
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bpfkeeperd import commands, kernel
from bpfkeeperd.columns import Screen
from bpfkeeperd.entries import Manifest
from bpfkeeperd.mapcounts import MapCounts
from bpfkeeperd.mapwatch import LOOK_SECONDS, MapWatch
from bpfkeeperd.state import Status
from bpfkeeperd.trust import NOBODY_ELSE
from tests.scenario import World

MANIFEST = """
maps:
  flows: {type: hash, key: u32, value: u64, max_entries: 1000}
  settings: {type: array, key: u32, value: u64, max_entries: 4}
"""


class Watched:
    """A watch, with a clock of the test's own."""

    def __init__(self, world: World, stack: ExitStack) -> None:
        options = Namespace(
            state_dir=world.state_directory, config=str(world.manifest_file), trust=NOBODY_ELSE
        )
        counting = stack.enter_context(MapCounts())
        self.looks = 0
        self.now = 1000.0

        def look(manifest: Manifest) -> Status:
            self.looks += 1
            found, _ = commands._look_at(manifest, options)
            counting.follow(found.maps)
            return found

        self._watch = MapWatch(options.config, look, counting.read)

    def turn(self, seconds: float = 1.0, *, height: int = 24, colour: bool = False) -> list[str]:
        """What is shown after so many seconds, without the headline and the blank line below."""
        self.now += seconds
        self._watch.turn(self.now)
        screen = Screen(80, colour)
        lines = self._watch.lines(screen, height, now=self.now, clock=self.now)
        assert len(lines) <= height
        assert re.search(r"  \d+ maps?  q ends", lines[0])
        return [line for line in lines[1:] if line]


@pytest.fixture
def watched(world: World) -> Iterator[Watched]:
    world.write(MANIFEST)
    world.apply()
    with ExitStack() as stack:
        yield Watched(world, stack)


def fill(path: Path, entries: int) -> None:
    opened = kernel.pinned_map(str(path))
    assert opened
    with kernel.holding(opened[0]) as fd:
        for number in range(entries):
            kernel.map_update(fd, number.to_bytes(4, "little"), bytes(opened[1].value_size))


def replace_pin(path: Path) -> None:
    """Somebody pins another map of the same kind under the name."""
    opened = kernel.pinned_map(str(path))
    assert opened
    os.close(opened[0])
    os.unlink(path)
    name = {1: "hash", 2: "array"}[opened[1].type]
    sizes = ("key", "4", "value", "8", "entries", str(opened[1].max_entries))
    subprocess.run(
        ["bpftool", "map", "create", str(path), "type", name, *sizes, "name", "other"],
        check=True,
    )


def row(lines: list[str], name: str) -> list[str]:
    (line,) = (line for line in lines if line.split()[0] == name)
    return line.split()


def test_counts_are_of_each_turn_and_their_rate_is_told(world: World, watched: Watched) -> None:
    assert row(watched.turn(), "flows")[1:5] == [str(world.map_id("flows")), "hash", "0", "1,000"]
    fill(world.pins / "flows", 500)
    lines = watched.turn(2.0)
    assert row(lines, "flows")[3:5] == ["500", "1,000"]
    assert row(lines, "flows")[6:] == ["50%", "+250/s", "never", "keeper"]
    assert "+" not in " ".join(row(watched.turn(), "flows"))
    assert watched.looks == 1


@pytest.mark.parametrize("name", ["flows", "settings"])
def test_another_map_under_the_name_is_seen_in_the_next_turn(
    world: World, watched: Watched, name: str
) -> None:
    before = row(watched.turn(), name)[1]
    replace_pin(world.pins / name)
    lines = watched.turn(colour=True)
    now = str(world.map_id(name))
    assert before != now
    (line,) = (line for line in lines if line.startswith(name))
    assert f"\x1b[1;36m{now}\x1b[m" in line
    assert watched.looks == 2
    (line,) = (line for line in watched.turn(20, colour=True) if line.startswith(name))
    assert "1;36" not in line


def test_a_pin_that_goes(world: World, watched: Watched) -> None:
    watched.turn()
    os.unlink(world.pins / "flows")
    lines = watched.turn()
    assert row(lines, "flows")[1] == "-" and "  ! not pinned" in lines


def test_all_is_looked_at_every_few_seconds(watched: Watched) -> None:
    for _ in range(10):
        watched.turn(LOOK_SECONDS / 5)
    assert watched.looks == 2


def test_a_manifest_that_changes(world: World, watched: Watched) -> None:
    watched.turn()
    world.write(
        MANIFEST.replace("maps:", "maps:\n  late: {type: array, value: u32, max_entries: 7}")
    )
    lines = watched.turn()
    assert row(lines, "late")[1] == "-"
    world.write(MANIFEST.replace("settings", "others"))
    assert not any("settings" in line for line in watched.turn())


def test_a_wrong_manifest_is_told_and_the_watch_goes_on(world: World, watched: Watched) -> None:
    watched.turn()
    good = world.manifest_file.read_text()
    world.manifest_file.write_text("version: 1\nmaps: {flows: {type: hsah}}\n\x1b[31m")
    fill(world.pins / "flows", 5)
    for _ in range(2):
        lines = watched.turn()
        assert lines[0].startswith(str(world.manifest_file)[:40])
        assert row(lines, "flows")[3] == "5"
        assert all(line.isprintable() for line in lines)
    world.manifest_file.unlink()
    assert "cannot read manifest" in watched.turn()[0]
    world.manifest_file.write_text(good)
    assert watched.turn()[0].startswith("MAP ")


def test_no_manifest_at_first(world: World, watched: Watched) -> None:
    good = world.manifest_file.read_text()
    world.manifest_file.unlink()
    (*message,) = watched.turn()
    assert "cannot read manifest" in message[0]
    world.manifest_file.write_text(good)
    assert watched.turn()[0].startswith("MAP ")


def test_a_reload_that_is_under_way_is_not_waited_for(world: World, watched: Watched) -> None:
    own = world.layout.own
    os.makedirs(own, exist_ok=True)
    fd = os.open(own, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert watched.turn() == ["a reload is under way: nothing was seen yet"]
        fcntl.flock(fd, fcntl.LOCK_UN)
        assert row(watched.turn(), "flows")[3] == "0"
        fcntl.flock(fd, fcntl.LOCK_EX)
        fill(world.pins / "flows", 5)
        lines = watched.turn(12)
        assert lines[0] == "a reload is under way: IDs and pins are of 12s ago"
        assert row(lines, "flows")[3] == "5", "the counts are of now all the same"
    finally:
        os.close(fd)
    assert watched.turn()[0].startswith("MAP ")


def test_a_look_leaves_the_pin_root_to_others(world: World, watched: Watched) -> None:
    watched.turn()
    fd = os.open(world.layout.own, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(fd)


def test_more_maps_than_lines(world: World, watched: Watched) -> None:
    names = [f"map{number:02}" for number in range(30)]
    lines = "".join(f"  {name}: {{type: array, value: u32, max_entries: 1}}\n" for name in names)
    world.write(f"maps:\n{lines}")
    world.apply()
    shown = watched.turn(height=10)
    assert [line.split()[0] for line in shown] == ["MAP", *names[:6], "and"]
    assert shown[-1] == "and 24 more"
    assert len(watched.turn(height=33)) == 31, "just enough room"
    for height in range(1, 10):
        watched.turn(height=height)


def test_a_watch_of_hours(watched: Watched) -> None:
    """Neither descriptors nor memory."""
    for _ in range(20):
        watched.turn(LOOK_SECONDS)
    descriptors = os.listdir("/proc/self/fd")
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(20):
            watched.turn(LOOK_SECONDS)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(160):
            watched.turn(LOOK_SECONDS)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert os.listdir("/proc/self/fd") == descriptors
    assert watched.looks == 200
    assert after - before < 64 << 10, f"{after - before} bytes more"
