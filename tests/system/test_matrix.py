"""Every type of map, from an object and from the manifest: kept over reloads and kill -9.

One daemon has all of them at once. An outsider fills them through their pins, and all that can be
seen of them is noted after each thing that happens to the daemon.
"""

import functools
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from errno import errorcode
from pathlib import Path

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.errors import ObjectError
from bpfkeeperd.mapcolumns import Btf
from bpfkeeperd.maptypes import BY_NAME, MAP_TYPES, STRUCT_OPS, Count, MapType
from tests.conftest import BuildObject, child_cgroup, make_places, mounted_bpffs
from tests.kernel.mapmaking import is_in_kernel, legal, refusal
from tests.scenario import World
from tests.system.everymap import ROWS
from tests.system.outsider import OWN_VERSION, Outsider
from tests.system.process import NO_METRICS, DaemonProcess, cli

OBJECT, MANIFEST = "object", "manifest"
EMPTY, FILLED = "empty", "filled"
RELOADED, KILLED, KILLED_AND_CHANGED = "reloaded", "killed", "killed and changed meanwhile"
EVENTS = {RELOADED: FILLED, KILLED: RELOADED, KILLED_AND_CHANGED: KILLED}
"""What happens to the daemon, and what was before that."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was to be seen of a map at one time."""

    id: int
    count: int | None
    """As ``maps`` shows it."""
    sizes: tuple[int, int]
    contents: object
    program: int
    """The ID of the program that the keeper loaded with it; 0 without one."""


@dataclass(slots=True)
class Case:
    """A type, made by an object or by the manifest."""

    type: MapType
    origin: str
    outsider: Outsider
    looks: dict[str, Look] = field(default_factory=dict)
    trouble: BaseException | None = None
    """What was raised while the map was filled or read; a skip, too."""

    @property
    def name(self) -> str:
        return f"{self.origin}_{self.type.name}"


@dataclass(slots=True)
class Story:
    """What became of every case, and what `plan` said each time."""

    cases: dict[str, Case]
    plans: dict[str, str] = field(default_factory=dict)


@functools.cache
def why_not_here(map_type: MapType, build: BuildObject) -> str:
    """Why the running kernel has no such map, as it says itself; empty when it has."""
    if not is_in_kernel(map_type):
        return f"the BTF of this kernel has no map type {map_type.name}"
    if map_type.number == STRUCT_OPS:
        data = build("every", **macros(map_type, OWN_VERSION)).read_bytes()
        try:
            with kernel.open_object(data, "probe") as opened:
                opened.load()
        except ObjectError as error:
            return f"this kernel takes no struct_ops: {error}"
        return ""
    answer = refusal(legal(map_type))
    said = errorcode.get(answer, str(answer))
    return f"this kernel makes no {map_type.name}: {said}" if answer else ""


def macros(map_type: MapType, version: int) -> dict[str, object]:
    """What makes an object with a map of this type of every.bpf.c."""
    if map_type.number == STRUCT_OPS:
        return {"STRUCT_OPS": 1, "VERSION": version}
    row = ROWS[map_type.name]
    return {
        "TYPE": map_type.number,
        "BODY": row.body,
        "HOOK": f'"{row.hook}"',
        "USE": row.use,
        "VERSION": version,
    }


def definition(case: Case, version: int) -> str:
    """A map of the manifest's own. Every second version says the same in other words."""
    row = ROWS[case.type.name]
    sizes = row.sizes
    seen = case.looks.get(EMPTY)  # not there when something went wrong with it
    if version % 2 == 0 and seen and sizes and case.type.btf is not Btf.REQUIRED:
        key_size, value_size = seen.sizes
        sizes = f"key_size: {key_size}, value_size: {value_size}"
    said = filter(None, (f"type: {case.type.name}", sizes, row.rest))
    return ", ".join(said)


def write(world: World, cases: list[Case], version: int) -> None:
    """All objects and the manifest. From the second version on, what differs is made anew."""
    policy = "on_mismatch: recreate" if version > 1 else "on_mismatch: fail"
    maps, objects = [], []
    for case in cases:
        said = policy
        if case.origin == MANIFEST:
            said = f"{definition(case, version)}, {policy}"
        else:
            shutil.copy(case.outsider.build(version), world.directory / f"{case.name}.o.new")
            (world.directory / f"{case.name}.o.new").replace(world.directory / f"{case.name}.o")
            objects.append(
                f"  {case.name}: {{file: {case.name}.o, pin_maps: {{kept: {case.name}}}}}"
            )
        maps.append(f"  {case.name}: {{{said}}}")
    world.write("\n".join((NO_METRICS, "maps:", *maps, "objects:", *objects, "")))


def look(world: World, story: Story, when: str) -> None:
    """Notes all that can be seen of all maps."""
    rows = {row["name"]: row for row in json.loads(cli(world, "maps", "--json").stdout)}
    story.plans[when] = cli(world, "plan").stdout
    programs = {
        pin.path[0]: pin.id
        for pin in kernel.scan(world.layout.objects, 3, kernel.PinKind.PROGRAM)
        if len(pin.path) == 3
    }
    for case in story.cases.values():
        row = rows[case.name]

        def note(fd: int, case: Case = case, row: dict[str, int] = row) -> None:
            case.looks[when] = Look(
                row["id"],
                row["entries"],
                (row["key_size"], row["value_size"]),
                read(case, fd),
                programs.get(case.name, 0),
            )

        with_map(world, case, note)


def read(case: Case, fd: int) -> object:
    if case.type.number == STRUCT_OPS:
        return None
    return ROWS[case.type.name].read(case.outsider, fd)


def fill(world: World, story: Story) -> None:
    for case in story.cases.values():
        if case.type.number == STRUCT_OPS:
            continue

        def put(fd: int, case: Case = case) -> None:
            ROWS[case.type.name].fill(case.outsider, fd)

        with_map(world, case, put)


def with_map(world: World, case: Case, act: Callable[[int], None]) -> None:
    """Does something with a kept map; what is raised is told by the case's own test."""
    if case.trouble:
        return
    try:
        found = kernel.pinned_map(str(world.pins / case.name))
        assert found, "nothing is pinned"
        with kernel.holding(found[0]):
            act(found[0])
    except (Exception, pytest.skip.Exception) as trouble:
        case.trouble = trouble


def happen(world: World, story: Story) -> None:
    """The story: each event, and what was to be seen after it."""
    cases = list(story.cases.values())
    write(world, cases, 1)
    with DaemonProcess(world) as daemon:
        daemon.wait_ready()
        look(world, story, EMPTY)
        fill(world, story)
        look(world, story, FILLED)
        write(world, cases, 2)
        daemon.hup()
        look(world, story, RELOADED)
        daemon.kill()
    with DaemonProcess(world) as daemon:
        daemon.wait_ready()
        look(world, story, KILLED)
        daemon.kill()
    write(world, cases, 3)
    with DaemonProcess(world) as daemon:
        daemon.wait_ready()
        look(world, story, KILLED_AND_CHANGED)
        assert daemon.stop() == 0


@pytest.fixture(scope="module")
def story(build_object: BuildObject, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    directory = tmp_path_factory.mktemp("matrix")
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        mounted_bpffs(directory) as pins,
        child_cgroup() as cgroup,
        ExitStack() as stack,
    ):
        make_places(directory, monkeypatch)

        def outsider(map_type: MapType) -> Outsider:
            def build(version: int) -> Path:
                return build_object("every", **macros(map_type, version))

            return Outsider(stack, build, cgroup)

        cases = [
            Case(map_type, origin, outsider(map_type))
            for map_type, origin in PAIRS
            if not why_not_here(map_type, build_object)
        ]
        told = Story({case.name: case for case in cases})
        happen(World(directory, pins, cgroup, build_object), told)
        yield told


PAIRS = [
    (map_type, origin)
    for origin in (OBJECT, MANIFEST)
    for map_type in MAP_TYPES
    if origin == OBJECT or map_type.number != STRUCT_OPS
]


@pytest.fixture(params=PAIRS, ids=lambda pair: f"{pair[1]}-{pair[0].name}")
def case(request: pytest.FixtureRequest, story: Story, build_object: BuildObject) -> Case:
    map_type, origin = request.param
    why = why_not_here(map_type, build_object)
    if why:
        pytest.skip(why)
    found = story.cases[f"{origin}_{map_type.name}"]
    if found.trouble:
        raise found.trouble
    return found


def test_every_type_has_a_row() -> None:
    assert ROWS.keys() == BY_NAME.keys() - {"struct_ops"}
    for name, row in ROWS.items():
        assert (row.count is None) == (BY_NAME[name].count is Count.NONE), name


def test_it_was_filled(case: Case) -> None:
    """Else the rest would prove nothing."""
    empty, filled = case.looks[EMPTY], case.looks[FILLED]
    assert filled.id == empty.id
    if case.type.number == STRUCT_OPS:
        return
    expected = ROWS[case.type.name].count
    assert (empty.count, filled.count) == (None if expected is None else 0, expected)
    assert filled.contents != empty.contents


@pytest.mark.parametrize("event", EVENTS)
def test_it_is_kept(case: Case, event: str) -> None:
    filled, before, after = (case.looks[when] for when in (FILLED, EVENTS[event], event))
    changed = event != KILLED
    if case.origin == OBJECT:
        assert (after.program != before.program) == changed, "an object is loaded when it changed"
    if case.type.number == STRUCT_OPS:  # a table of its object's own programs
        assert (after.id != before.id) == changed
        return
    assert after.id == filled.id
    assert (after.count, after.contents) == (filled.count, filled.contents)


@pytest.mark.parametrize("when", [EMPTY, FILLED, *EVENTS])
def test_nothing_is_left_to_do(story: Story, when: str) -> None:
    assert story.plans[when].splitlines()[-1] == "nothing to do", story.plans[when]
