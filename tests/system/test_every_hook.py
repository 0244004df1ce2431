"""Every hook that this kernel has, in one daemon: served after attach, after its death by SIGKILL,
after adoption, after a swap, and given up again, each time by real events."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.hooks import KINDS, STRUCT_OPS, Hook, SwapWay, hook_of_section
from tests.bench.gap import quiet_pair
from tests.conftest import BuildObject, child_cgroup, make_places, mounted_bpffs
from tests.kernel.exactness import GETPGID
from tests.kernel.test_net_hooks import tc
from tests.kernel.test_trace_hooks import tracefs, victim
from tests.machine import bpf_ids, detach_link, inside_cgroup
from tests.scenario import World, garbage
from tests.system.everyhook import GROUPS, ROWS, Row, Scene, counts
from tests.system.process import METRICS, WAIT_SECONDS, DaemonProcess, cli

__all__ = ["tracefs", "victim"]

ATTACHED, KILLED, ADOPTED = "attached", "killed", "adopted"
UNPINNED, DETACHED = "unpinned", "detached"
SWAPPED, SWAPPED_AND_KILLED = "swapped", "swapped and killed"
GARBAGE, STARTED_ON_GARBAGE, HEALED = "garbage", "started on garbage", "healed"
EMPTIED = "emptied"
ATTACHED_ANEW, STOPPED, UNLOADED = "attached anew", "stopped", "unloaded"
SERVED_BY = {
    ATTACHED: 1,
    KILLED: 1,
    ADOPTED: 1,
    UNPINNED: 1,
    DETACHED: 1,
    SWAPPED: 2,
    GARBAGE: 2,
    SWAPPED_AND_KILLED: 2,
    STARTED_ON_GARBAGE: 2,
    HEALED: 2,
    EMPTIED: None,
    ATTACHED_ANEW: 3,
    STOPPED: 3,
    UNLOADED: None,
}
"""What happens, and which version serves then; None for none."""
ON_GARBAGE = (GARBAGE, SWAPPED_AND_KILLED, STARTED_ON_GARBAGE)
WITHOUT_DAEMON = (KILLED, SWAPPED_AND_KILLED, STOPPED, UNLOADED)
SECONDS = 2.0
"""In which a program is gone that was swapped out or taken down."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was to be seen at one time."""

    served: dict[Row, tuple[int, ...]]
    """Events that each version saw of those that were made."""
    attachments: tuple[dict[str, Any], ...]
    """As ``status`` has them."""
    maps: dict[str, int]
    """But those that go along with their object."""
    metrics: dict[str, float]
    plan: str
    left: tuple[str, ...]
    """Pins in the keeper's own directory."""


@dataclass(slots=True)
class Story:
    scene: Scene
    rows: tuple[Row, ...]
    looks: dict[str, Look] = field(default_factory=dict)
    ids: set[tuple[str, int]] = field(default_factory=set)
    """Kinds and IDs of links and programs that were there at any time."""
    unloaded: str = ""
    pinned: int = 0
    """How many links are pinned when all is attached."""


def hook(row: Row) -> Hook:
    found = STRUCT_OPS if row.hook == "struct_ops" else hook_of_section(row.hook)
    assert found, row
    return found


def overlaps(row: Row) -> bool:
    return KINDS[hook(row).kind].swap is SwapWay.OVERLAP and not row.exact


def why_not_here(name: str) -> str:
    """Why the running kernel does not have all hooks of an object."""
    for row in ROWS:
        # A kernel without TCX gets filters.
        if row.object == name and "tcx" not in row.hook and (reason := kernel.lacks(hook(row))):
            return f"this kernel cannot attach {row.hook}: {reason}"
    return ""


def own_calls() -> dict[str, object]:
    """What tells the programs of tests/bpf/hooks.bpf.c which calls are this process's."""
    pids = os.stat("/proc/self/ns/pid")
    places = {"PIDS_DEVICE": pids.st_dev, "PIDS_INODE": pids.st_ino}
    return {"PID": os.getpid(), "SYSCALL": GETPGID, **places}


def write(scene: Scene, rows: tuple[Row, ...], version: int) -> None:
    lines = [METRICS, "objects:"]
    for name in dict.fromkeys(row.object for row in rows):
        group = GROUPS[name]
        macros: dict[str, object] = {"VERSION": version, **own_calls()}
        if group.source == "congestion":
            macros |= {"NAME": f'"{scene.congestion}"'}
        scene.world.put(name, group.source, **macros, **{group.macro: 1, "SUFFIX": group.suffix})
        kept = ", ".join([f"seen: {name}_seen", *(f"{own}: {own}" for own in group.keeps)])
        lines.append(f"  {name}:\n    file: {name}.bpf.o\n    pin_maps: {{{kept}}}")
        lines.append("    register: [ops]" if name == "congestion" else "    programs:")
        for row in rows:
            if row.object == name and row.attach:
                more = f"type: {row.type}, " if row.type else ""
                more += "swap: exact, " if row.exact else ""
                lines.append(f"      {row.program}: {{{more}attach: {row.attach}}}")
    text = "\n".join([*lines, ""])
    places = {"HERE": scene.pair.here, "VICTIM": str(scene.victim)}
    for place, where in places.items():
        text = text.replace(place, where)
    scene.world.write(text)


def served(scene: Scene, row: Row, wanted: int | None) -> tuple[int, ...]:
    """Events that each version sees of those that are made now; made again while a program that is
    on its way out still sees them."""
    deadline = time.monotonic() + SECONDS
    while True:
        before = counts(scene, row)
        row.happen(scene)
        after = counts(scene, row)
        arrival = time.monotonic() + SECONDS  # a veth pair hands packets over a moment later
        while wanted is not None and after[wanted] - before[wanted] < max(row.events, 1):
            if time.monotonic() > arrival:
                break
            time.sleep(0.01)
            after = counts(scene, row)
        seen = tuple(now - then for now, then in zip(after, before, strict=True))
        others = [events for version, events in enumerate(seen) if version != wanted]
        if not any(others) or time.monotonic() > deadline:
            return seen


def look(story: Story, when: str, daemon: DaemonProcess | None) -> None:
    """Makes events at all hooks, and notes all that can be seen."""
    scene, world = story.scene, story.scene.world
    with inside_cgroup(world.cgroup):
        events = {row: served(scene, row, SERVED_BY[when]) for row in story.rows}
    status = json.loads(cli(world, "status", "--json").stdout)
    attachments = tuple(status["attachments"])
    own = world.layout.own
    left = [*world.layout_files(""), *world.layout_files("links")] if os.path.isdir(own) else []
    story.looks[when] = Look(
        events,
        attachments,
        {found["name"]: found["id"] for found in status["maps"] if "/" not in found["name"]},
        daemon.metrics() if daemon else {},
        cli(world, "plan").stdout,
        tuple(str(path) for path in left),
    )
    for found in attachments:
        for kind, key in (("prog", "prog_id"), ("link", "link_id")):
            if found[key] and not (kind == "prog" and found["hook"] == "struct_ops"):
                story.ids.add((kind, found[key]))


def garble(story: Story) -> None:
    """Objects that are no objects any more."""
    for name in {row.object for row in story.rows}:
        garbage(story.scene.world.directory / f"{name}.bpf.o")


def unpin(world: World) -> None:
    """All that the keeper has pinned goes but for maps; the daemon may make it again meanwhile."""
    os.rename(world.layout.own, aside := world.pins / "aside")
    shutil.rmtree(aside)


def detach(scene: Scene) -> dict[str, int]:
    """Of the links those that the kernel lets anybody detach, with their IDs; and filters of tc.
    Not links of netfilter, of which the kernel does not tell that they are dead."""
    for side in ("ingress", "egress"):  # first: `until_healed` waits for a look after the last link
        tc(scene.pair, "filter", "del", "dev", "veth0", side)
    detached = {}
    for path, (link_id, _) in scene.world.link_ids().items():
        if path.startswith("netfilter"):
            continue
        with suppress(AssertionError):
            detach_link(Path(scene.world.layout.links) / path)
            detached[path] = link_id
    assert len(detached) > 30
    return detached


def until_healed(story: Story, daemon: DaemonProcess, detached: dict[str, int]) -> None:
    """Until other links are there for those that are dead, all is up, and nothing drifts."""
    wanted = len(story.looks[ATTACHED].attachments)

    def healed() -> bool:
        links = {path: ids[0] for path, ids in story.scene.world.link_ids().items()}
        if len(links) != story.pinned or links.items() & detached.items():
            return False
        found = daemon.metrics()
        up = [value for name, value in found.items() if "attachment_up{" in name]
        drift = [value for name, value in found.items() if name.startswith("bpfkeeper_drift{")]
        return sum(up) == wanted and not any(drift)

    deadline = time.monotonic() + WAIT_SECONDS
    while not healed():
        assert time.monotonic() < deadline, daemon.log
        time.sleep(0.05)


def happen(story: Story) -> None:
    """The story: each thing that happens, and what was to be seen after it."""
    scene, world = story.scene, story.scene.world
    write(scene, story.rows, 1)
    with DaemonProcess(world) as daemon:
        daemon.wait_ready()
        scene.connect()
        story.pinned = len(world.link_ids())
        look(story, ATTACHED, daemon)
        daemon.kill()
    look(story, KILLED, None)
    with DaemonProcess(world, look_seconds=0.2) as daemon:
        daemon.wait_ready()
        look(story, ADOPTED, daemon)
        unpin(world)
        until_healed(story, daemon, {})
        look(story, UNPINNED, daemon)
        until_healed(story, daemon, detach(scene))
        scene.connect()
        look(story, DETACHED, daemon)
        write(scene, story.rows, 2)
        daemon.hup()
        look(story, SWAPPED, daemon)
        garble(story)
        daemon.hup()
        look(story, GARBAGE, daemon)
        daemon.kill()
    look(story, SWAPPED_AND_KILLED, None)
    with DaemonProcess(world) as daemon:
        daemon.wait_ready()
        look(story, STARTED_ON_GARBAGE, daemon)
        write(scene, story.rows, 2)
        daemon.hup()
        look(story, HEALED, daemon)
        world.write(f"{METRICS}\nobjects: {{}}\n")
        daemon.hup()
        look(story, EMPTIED, daemon)
        write(scene, story.rows, 3)
        daemon.hup()
        scene.connect()
        look(story, ATTACHED_ANEW, daemon)
        assert daemon.stop() == 0
    look(story, STOPPED, None)
    done = cli(world, "unload")
    assert done.returncode == 0, done.stderr
    story.unloaded = done.stdout
    look(story, UNLOADED, None)
    scene.disconnect()


@pytest.fixture(scope="module")
def story(
    build_object: BuildObject, victim: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Story]:
    directory = tmp_path_factory.mktemp("hooks")
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        mounted_bpffs(directory) as pins,
        child_cgroup() as cgroup,
        quiet_pair(f"keeper-hooks-{os.getpid()}") as pair,
        ExitStack() as stack,
    ):
        make_places(directory, monkeypatch)
        scene = Scene(World(directory, pins, cgroup, build_object), pair, victim)
        stack.callback(scene.disconnect)
        here = [name for name in GROUPS if not why_not_here(name)]
        told = Story(scene, tuple(row for row in ROWS if row.object in here))
        happen(told)
        yield told


@pytest.fixture(params=ROWS, ids=str)
def row(request: pytest.FixtureRequest, story: Story) -> Row:
    found: Row = request.param
    if found not in story.rows:
        pytest.skip(why_not_here(found.object))
    return found


def test_the_hook_is_served(story: Story, row: Row) -> None:
    """Each event once, by the version that is to."""
    for when, version in SERVED_BY.items():
        seen = story.looks[when].served[row]
        wanted = [row.events if number == version else 0 for number in range(4)]
        if row.events == 0 and version is not None:
            assert seen[version] > 0, when
            wanted[version] = seen[version]
        assert list(seen) == wanted, when


def test_the_attachment_is_the_same(story: Story, row: Row) -> None:
    """One for each CPU of a perf event; link and program are looked at one by one."""
    ids: dict[str, list[tuple[int, int]]] = {}
    for when, look in story.looks.items():
        found = [one for one in look.attachments if one["program"] == row.program]
        assert {one["up"] for one in found} == ({when != UNLOADED} if when != EMPTIED else set())
        ids[when] = [(one["link_id"], one["prog_id"]) for one in found]
    assert ids[ATTACHED] == ids[KILLED] == ids[ADOPTED], "not adopted as it was"
    assert ids[UNPINNED] == ids[ADOPTED], "not restored"
    assert [one[1] for one in ids[DETACHED]] == [one[1] for one in ids[ADOPTED]]
    for when in (*ON_GARBAGE, HEALED):
        assert ids[when] == ids[SWAPPED], when
    assert ids[ATTACHED_ANEW] == ids[STOPPED]
    for before, after in zip(ids[DETACHED], ids[SWAPPED], strict=True):
        assert (after[1] != before[1]) is (row.hook != "struct_ops"), "not swapped"
        assert (after[0] == before[0]) is not overlaps(row)
    assert {one for ids in ids[UNLOADED] for one in ids} == {None}


@pytest.mark.parametrize(
    "when",
    [
        ATTACHED,
        KILLED,
        ADOPTED,
        UNPINNED,
        DETACHED,
        SWAPPED,
        HEALED,
        EMPTIED,
        ATTACHED_ANEW,
        STOPPED,
    ],
)
def test_maps_are_the_same_and_nothing_is_to_do(story: Story, when: str) -> None:
    look, first = story.looks[when], story.looks[ATTACHED]
    assert look.plan.splitlines()[-1] == "nothing to do", look.plan
    assert look.maps == ({} if when == EMPTIED else first.maps)


@pytest.mark.parametrize(
    "when",
    [
        ATTACHED,
        ADOPTED,
        UNPINNED,
        DETACHED,
        SWAPPED,
        GARBAGE,
        STARTED_ON_GARBAGE,
        HEALED,
        EMPTIED,
        ATTACHED_ANEW,
    ],
)
def test_metrics_tell_what_status_tells(story: Story, when: str) -> None:
    look = story.looks[when]
    shown = {name: up for name, up in look.metrics.items() if "attachment_up{" in name}
    assert shown == {
        f'bpfkeeper_attachment_up{{object="{found["object"]}",program="{found["program"]}",'
        f'target="{found["target"]}"}}': 1.0
        for found in look.attachments
    }
    assert (len(shown) >= len(story.rows)) is (when != EMPTIED)


@pytest.mark.parametrize("when", [EMPTIED, UNLOADED])
def test_nothing_is_left(story: Story, when: str) -> None:
    assert story.looks[when].left == ()


def test_unload_names_every_attachment(story: Story) -> None:
    for row in story.rows:
        assert f"detached {row.object}/{row.program} from " in story.unloaded
    assert "unloaded all programs" in story.unloaded


def test_links_and_programs_are_gone(story: Story) -> None:
    """Of all versions, not only from the pin root."""
    deadline = time.monotonic() + 10
    while left := [(kind, number) for kind, number in story.ids if number in bpf_ids(kind)]:
        assert time.monotonic() < deadline, f"still in the kernel: {left}"
        time.sleep(0.1)
