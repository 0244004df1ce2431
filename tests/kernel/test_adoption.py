"""What somebody else attached: kept when it is the same, left alone when it is not, and replaced
only when the manifest says so."""

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.keeper import Keeper
from bpfkeeperd.state import AttachmentStatus, LinkInfo, Outcome, ReloadResult
from bpfkeeperd.steps import Step
from tests.kernel.outsideloader import Outsider, outsider
from tests.kernel.test_reload import plan_now
from tests.kernel.test_rollback import FailAt, fail_at_each_step
from tests.machine import Netns, bpf_ids, inside_cgroup, ip, send_datagrams
from tests.scenario import World, refused


@dataclass(frozen=True, slots=True)
class Place:
    """A hook with its target, and how it is served."""

    section: str
    how: str
    """As the plain loader is told."""
    write: str
    """The attachment in the manifest."""
    verdict: int
    updates: bool = True
    """Its link is updated in a swap."""

    def __str__(self) -> str:
        return self.section.split("/")[0] + ("" if self.updates else " (overlaps)")


PLACES = (
    Place("cgroup_skb/egress", "cgroup", "{cgroup: CGROUP}", 1),
    Place("cgroup/connect4", "cgroup", "{cgroup: CGROUP}", 1),
    Place("xdp", "xdp", "{interface: veth0, netns: HERE}", 2),
    Place("tcx/ingress", "tcx", "{interface: veth0, netns: HERE}", -1),
    Place("sk_lookup", "netns", "{netns: HERE}", 1),
    Place("raw_tracepoint/sys_enter", "auto", "{tracepoint: sys_enter}", 0, updates=False),
)
CGROUP, XDP, TCX = PLACES[0], PLACES[2], PLACES[3]


@dataclass(slots=True)
class Scene:
    """A world with a place in it."""

    world: World
    netns: Netns
    place: Place

    def build(self, **macros: object) -> Path:
        """The object, of which a plain loader and the keeper have the same file."""
        place = self.place
        # libbpf 1.1 does not know the section tcx/ingress: its users write tc
        section = "tc" if place.how == "tcx" else place.section
        return self.world.build(
            "counter", HOOK=f'"{section}"', VERDICT=place.verdict, PIN=1, **macros
        )

    def put(self, **macros: object) -> None:
        path = self.world.directory / "one.bpf.o"
        Path(f"{path}.new").write_bytes(self.build(**macros).read_bytes())
        os.replace(f"{path}.new", path)

    def write(self, *, take_over: bool = False, more: str = "") -> None:
        place = self.place.write.replace("HERE", self.netns.here)
        if take_over:
            place = place.replace("}", ", take_over: true}")
        hook = "type: tcx/ingress, " if self.place.how == "tcx" else ""
        self.world.write(
            "objects: {one: {file: one.bpf.o, programs: {count: {"
            + hook
            + f"attach: [{place}{more}]}}}}}}}}\n"
        )

    @contextmanager
    def loader(
        self, *, how: str = "", links: Path | None = None, **macros: object
    ) -> Iterator[Outsider]:
        """A plain loader that attached the object there."""
        how = how or self.place.how
        with self.netns.inside(self.netns.here):
            index = kernel.interface_index("veth0")
            target: object = {
                "cgroup": self.world.cgroup,
                "xdp": index,
                "tcx": index,
                "netns": f"/run/netns/{self.netns.here}",
                "auto": "-",
            }[how.split("-")[0]]
            starting = outsider(self.build(**macros), self.world.pins, how, target, links)
            found = starting.__enter__()
        try:
            yield found
        finally:
            starting.__exit__(None, None, None)

    def traffic(self, count: int) -> None:
        """Events that each program at the place sees once, or at least once."""
        match self.place.how:
            case "cgroup":
                with inside_cgroup(self.world.cgroup):
                    if self.place.section == "cgroup/connect4":
                        self._connect(count)
                    else:
                        send_datagrams(count)
            case "auto":
                for _ in range(count):
                    os.getppid()
            case _:
                self.netns.send(count)

    def _connect(self, count: int) -> None:
        for _ in range(count):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connecting:
                connecting.connect(("127.0.0.1", 9))

    def seen(self, count: int, *, programs: int = 1) -> tuple[int, int]:
        """Events and steps that traffic adds to what the kept map says; the other end of a veth
        pair sees it a moment later."""
        before = self.world.events()
        self.traffic(count)
        deadline = time.monotonic() + 5
        while True:
            after = self.world.events()
            if after[0] - before[0] >= count * programs or time.monotonic() > deadline:
                break
            time.sleep(0.01)
        return after[0] - before[0], after[1] - before[1]

    def check_served(self, *, step: int = 1) -> None:
        events, steps = self.seen(5)
        assert events >= 5, "events were missed"
        assert steps == events * step
        if self.place.how in ("cgroup", "xdp", "tcx"):
            assert events <= 5 + 3, "events were counted twice"  # ARP and the like beside them


@pytest.fixture(params=PLACES, ids=str)
def scene(world: World, netns: Netns, request: pytest.FixtureRequest) -> Scene:
    return Scene(world, netns, request.param)


SceneAt = Callable[[Place], Scene]


@pytest.fixture
def scene_at(world: World, netns: Netns) -> SceneAt:
    return lambda place: Scene(world, netns, place)


def links_in(cgroup: Path) -> set[int]:
    """The links at a cgroup, pinned or not."""
    return {link.id for link in kernel.all_links() or () if link.target_id == cgroup.stat().st_ino}


def the_attachment(keeper: Keeper) -> AttachmentStatus:
    (status,) = keeper.status.attachments
    return status


def notes(outcome: Outcome) -> str:
    assert outcome.result is ReloadResult.OK, outcome
    return "\n".join(outcome.notes)


@pytest.mark.parametrize("pinned", [True, False], ids=["pinned", "held by its process"])
def test_what_a_plain_loader_attached_is_adopted(scene: Scene, pinned: bool) -> None:
    """Program, link and map stay what they are, and the next reload swaps without a miss."""
    world = scene.world
    links = world.pins / "their_links" if pinned else None
    if links:
        links.mkdir()
    with scene.loader(links=links) as other:
        map_id = world.map_id()
        scene.check_served()
        scene.put()
        scene.write()
        with world.keeper() as keeper:
            outcome = world.reload(keeper)
            assert f"adopted link ID {other.link}" in notes(outcome)
            assert list(world.link_ids().values()) == [(other.link, other.program)]
            assert world.program_ids() == {other.program}
            assert world.map_id() == map_id
            assert plan_now(world) == ()
            assert world.reload(keeper).done == ()
            stored = {number for number, _ in keeper.kept().values()}
            assert stored == {map_id}, "the link is theirs to end"
            status = the_attachment(keeper)
            assert (status.up, status.adopted, status.problem) == (True, True, "")
            scene.check_served()
            if links:
                other.leave()
                (links / "count").unlink()
                links.rmdir()
                scene.check_served()
            elif not scene.place.updates:
                other.leave()  # else theirs would go on beside ours, as long as it is held
            scene.put(STEP=2)
            assert world.reload(keeper).result is ReloadResult.OK
            ((link, program),) = world.link_ids().values()
            assert (link == other.link) is scene.place.updates and program != other.program
            assert world.map_id() == map_id
            scene.check_served(step=2)
    with world.keeper() as keeper:
        assert world.reload(keeper).done == ()
        assert the_attachment(keeper).adopted is scene.place.updates
        scene.check_served(step=2)


def test_another_program_is_left_alone(scene: Scene) -> None:
    """Where one can run it stands in the way; elsewhere it goes on beside ours, as is told."""
    world = scene.world
    with scene.loader(STEP=10) as other:
        scene.put()
        scene.write()
        sole = scene.place is XDP
        with world.keeper() as keeper:
            outcome = world.reload(keeper)
            status = the_attachment(keeper)
            if sole:
                for text in (refused(outcome), refused(world.reload(keeper))):
                    assert f"program ID {other.program} (count, tag " in text
                    assert f"(link ID {other.link}), and nothing is changed: take_over" in text
                assert not the_attachment(keeper).up and world.link_ids() == {}
                assert keeper.status.drift["foreign"] == 1
                scene.check_served(step=10)
                return
            said = f"link ID {other.link} of somebody else (program count ID {other.program})"
            assert said in notes(outcome)
            assert status.up and not status.adopted and said in status.problem
            assert keeper.status.drift["foreign"] == 1
            events, steps = scene.seen(5, programs=2)
            assert events >= 10 and steps > events
            assert said in notes(world.reload(keeper)), "it is there still"
            assert plan_now(world) == ()
            other.leave()
            keeper.look()
            assert the_attachment(keeper).problem == ""
            assert keeper.status.drift["foreign"] == 0
            scene.check_served()


def test_take_over(scene: Scene) -> None:
    world = scene.world
    with scene.loader(STEP=10) as other:
        scene.put()
        scene.write(take_over=True)
        with world.keeper() as keeper:
            outcome = world.reload(keeper)
            if not scene.place.updates:
                assert "attached there too" in notes(outcome)
                return
            assert outcome.result is ReloadResult.OK
            assert any(f"TAKES OVER link ID {other.link}" in line for line in outcome.done)
            ((link, program),) = world.link_ids().values()
            assert link == other.link and program != other.program
            scene.check_served()
            assert plan_now(world) == ()
            other.leave()
            scene.check_served()
            assert world.reload(keeper).done == ()


@pytest.mark.parametrize(
    ("place", "how"),
    [
        (CGROUP, "cgroup-bare"),
        (CGROUP, "cgroup-sole"),
        (XDP, "xdp-bare"),
        (XDP, "xdp-generic-bare"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_take_over_of_what_has_no_link(scene_at: SceneAt, place: Place, how: str) -> None:
    scene = scene_at(place)
    world = scene.world
    with scene.loader(how=how, STEP=10) as other:
        other.leave()
        scene.put()
        scene.write()
        with world.keeper() as keeper:
            outcome = world.reload(keeper)
            if how == "cgroup-bare":
                assert "attached without a link, is attached there too" in notes(outcome)
            else:
                assert "(without a link), and nothing is changed" in refused(outcome)
                scene.check_served(step=10)
            scene.write(take_over=True)
            outcome = world.reload(keeper)
            assert outcome.result is ReloadResult.OK, outcome
            assert any("DETACH" in line for line in outcome.done)
            scene.check_served()
            assert plan_now(world) == ()
            assert world.reload(keeper).done == ()


def test_a_program_of_another_name_goes_on_beside_ours(scene_at: SceneAt) -> None:
    """At a place that takes several, only what is called as ours is taken over."""
    scene = scene_at(TCX)
    world = scene.world
    with scene.loader(PROGRAM="firewall", STEP=10) as other:
        scene.put()
        scene.write(take_over=True)
        with world.keeper() as keeper:
            assert notes(world.reload(keeper)) == ""
            assert the_attachment(keeper).problem == ""
            events, steps = scene.seen(5, programs=2)
            assert events >= 10 and steps > events
            assert other.link in bpf_ids("link")


def test_what_tells_two_programs_of_the_same_instructions_apart(scene_at: SceneAt) -> None:
    """Another kept map, or another size of one that is not kept: the tag says nothing of them."""
    scene = scene_at(CGROUP)
    world = scene.world
    elsewhere = world.pins / "elsewhere"
    elsewhere.mkdir()
    other_world = World(world.directory, elsewhere, world.cgroup, world.build)
    with Scene(other_world, scene.netns, CGROUP).loader() as other:
        scene.put()
        scene.write()
        with world.keeper() as keeper:
            assert "attached there too" in notes(world.reload(keeper))
            assert (other.link, other.program) not in world.link_ids().values()
            scene.check_served()
    (elsewhere / "counts").unlink()
    elsewhere.rmdir()


@pytest.mark.parametrize("constant", [7, 8], ids=["same constants", "other constants"])
def test_constants_are_compared(world: World, netns: Netns, constant: int) -> None:
    """Global data that is not kept goes along with the program, constants must be the same."""
    theirs = world.build("constants", FIRST=7)
    ours = world.build("constants", FIRST=constant)
    with outsider(theirs, world.pins, "cgroup", world.cgroup) as other:
        (world.directory / "one.bpf.o").write_bytes(ours.read_bytes())
        world.write(
            "objects: {one: {file: one.bpf.o,"
            " programs: {first: {attach: [{cgroup: CGROUP}]},"
            " second: {attach: [{cgroup: CGROUP}]}}}}\n"
        )
        with world.keeper() as keeper:
            said = notes(world.reload(keeper))
            there = set(world.link_ids().values())
            assert (there == {pair[::-1] for pair in other.attached}) is (constant == 7), said


def test_programs_that_share_a_map_are_adopted_together(world: World) -> None:
    """Of two that share global data which is not kept, one is attached by somebody else."""
    theirs = world.build("constants", FIRST=7)
    with outsider(theirs, world.pins, "cgroup", world.cgroup) as other:
        subprocess.run(["bpftool", "link", "detach", "id", str(other.attached[1][1])], check=True)
        (world.directory / "one.bpf.o").write_bytes(theirs.read_bytes())
        world.write(
            "objects: {one: {file: one.bpf.o,"
            " programs: {first: {attach: [{cgroup: CGROUP}]},"
            " second: {attach: [{cgroup: CGROUP}]}}}}\n"
        )
        with world.keeper() as keeper:
            said = notes(world.reload(keeper))
            assert "it shares a map that is not kept with another program of the object" in said
            assert not {link for link, _ in world.link_ids().values()} & {other.link}


def test_only_some_programs_of_an_object_are_attached(world: World) -> None:
    """Those that are not have nothing to adopt, and are ours."""
    theirs = world.build("constants", FIRST=7, KEPT=1)
    with outsider(theirs, world.pins, "cgroup", world.cgroup) as other:
        (world.directory / "one.bpf.o").write_bytes(theirs.read_bytes())
        world.write(
            "objects: {one: {file: one.bpf.o, programs: {first: {attach: [{cgroup: CGROUP}]}}}}\n"
        )
        with world.keeper() as keeper:
            assert f"adopted link ID {other.link}" in notes(world.reload(keeper))
            ids = world.program_ids()
            assert other.program in ids and len(ids) == 2 and other.attached[1][0] not in ids
            assert plan_now(world) == ()


def test_same_index_in_another_namespace(scene_at: SceneAt, netns: Netns) -> None:
    """Indexes repeat: what somebody else runs at the interface of that index elsewhere is not
    taken for what runs here."""
    scene = scene_at(XDP)
    world = scene.world
    there = Scene(world, Netns(netns.there.removesuffix("-b")), XDP)
    there.netns.here, there.netns.there = netns.there, netns.here
    with there.loader() as other:
        scene.put()
        scene.write()
        with world.keeper() as keeper:
            assert notes(world.reload(keeper)) == ""
            ((link, _),) = world.link_ids().values()
            assert link != other.link
            assert the_attachment(keeper).up


def test_adopted_for_a_program_that_is_pinned_already(scene_at: SceneAt) -> None:
    """Nobody uses ours: theirs takes its place."""
    scene = scene_at(CGROUP)
    world = scene.world
    scene.put()
    world.write("objects: {one: {file: one.bpf.o}}\n")
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        (own,) = world.program_ids()
        with scene.loader() as other:
            scene.write()
            (line,) = plan_now(world)
            assert str(line).startswith(f"adopt link ID {other.link} of somebody else")
            assert world.reload(keeper).result is ReloadResult.OK
            assert world.program_ids() == {other.program} != {own}
            assert list(world.link_ids().values()) == [(other.link, other.program)]
            assert plan_now(world) == ()
            scene.check_served()


def test_adoption_for_a_pinned_program_is_rolled_back(scene_at: SceneAt) -> None:
    """Its pin is exchanged for theirs, and back."""
    scene = scene_at(CGROUP)
    world = scene.world
    (world.cgroup / "child").mkdir()
    scene.put()
    world.write("objects: {one: {file: one.bpf.o}}\n")
    with world.keeper() as keeper, scene.loader():
        assert world.reload(keeper).result is ReloadResult.OK
        scene.write(more=", {cgroup: CGROUP/child}")
        failed = fail_at_each_step(world, keeper, force=False)
        assert failed >= {Step.ADOPT, Step.ATTACH}
        assert plan_now(world) == ()
        scene.check_served()


def test_ours_is_in_use_elsewhere(scene_at: SceneAt) -> None:
    """One program is kept under one name: theirs, of the same instructions, is another one then."""
    scene = scene_at(CGROUP)
    world = scene.world
    (world.cgroup / "child").mkdir()
    scene.put()
    world.write(
        "objects: {one: {file: one.bpf.o, programs: {count: {attach: [{cgroup: CGROUP/child}]}}}}\n"
    )
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        (own,) = world.program_ids()
        with scene.loader() as other:
            scene.write(more=", {cgroup: CGROUP/child}")
            assert "attached there too" in notes(world.reload(keeper))
            assert world.program_ids() == {own}
            assert other.link not in {link for link, _ in world.link_ids().values()}
            assert plan_now(world) == ()


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_xdp_in_another_mode(scene_at: SceneAt, mode: str) -> None:
    """An interface has one mode at a time, and a link keeps its mode."""
    scene = scene_at(XDP)
    world = scene.world
    with scene.loader() as other:  # natively: veth can
        scene.put()
        scene.write()
        text = world.manifest_file.read_text()
        world.manifest_file.write_text(text.replace("veth0,", f"veth0, mode: {mode},"))
        with world.keeper() as keeper:
            outcome = world.reload(keeper)
            if mode == "native":
                assert f"adopted link ID {other.link}" in notes(outcome)
            else:
                assert "runs there in native mode, and an interface has one" in refused(outcome)


@dataclass(frozen=True, slots=True)
class Undo:
    """A way to take something over, of which every step fails once."""

    place: Place
    how: str
    more: str
    same: bool = False

    def __str__(self) -> str:
        return f"{self.how}{' adopted' if self.same else ''}"


@pytest.mark.parametrize(
    "case",
    [
        Undo(CGROUP, "cgroup", ", {cgroup: CGROUP/child}", same=True),
        Undo(CGROUP, "cgroup", ", {cgroup: CGROUP/child}"),
        Undo(CGROUP, "cgroup-bare", ", {cgroup: CGROUP/child}"),
        Undo(CGROUP, "cgroup-sole", ", {cgroup: CGROUP/child}"),
        Undo(XDP, "xdp", ", {interface: veth0, netns: THERE}"),
        Undo(XDP, "xdp-bare", ", {interface: veth0, netns: THERE}"),
        Undo(XDP, "xdp-generic-bare", ", {interface: veth0, netns: THERE}"),
    ],
    ids=str,
)
def test_every_step_is_rolled_back(scene_at: SceneAt, case: Undo) -> None:
    """Theirs runs again, as it did, whatever fails; and ours is nowhere."""
    scene = scene_at(case.place)
    world, theirs = scene.world, 1 if case.same else 10
    (world.cgroup / "child").mkdir()
    with scene.loader(how=case.how, STEP=theirs) as other:
        scene.put()
        more = case.more.replace("THERE", scene.netns.there)
        scene.write(take_over=not case.same, more=more)
        links = links_in(world.cgroup)
        with world.keeper() as keeper:
            failed, at = set[Step](), 0
            while True:
                at += 1
                fail = FailAt(at)
                keeper._on_step = fail
                outcome = world.reload(keeper)
                if outcome.result is ReloadResult.OK:
                    break
                assert len(fail.steps) >= at, outcome
                failed.add(fail.steps[at - 1])
                assert "cannot do " in outcome.failures[0].message, outcome
                assert "could not be undone" not in outcome.failures[0].message, outcome
                assert world.link_ids() == {} and links_in(world.cgroup) == links
                scene.check_served(step=theirs)
            step = Step.ADOPT if case.same else Step.TAKE_OVER
            assert {step, Step.ATTACH} <= failed
            assert plan_now(world) == ()
            if case.place is CGROUP:
                scene.check_served()
            assert other.process.poll() is None


def test_a_layout_of_a_former_version(scene_at: SceneAt) -> None:
    """Digests and targets that were spelled in another way: links are swapped and renamed."""
    scene = scene_at(CGROUP)
    world = scene.world
    scene.put()
    scene.write()
    assert world.apply().result is ReloadResult.OK
    ((path, (link, _)),) = world.link_ids().items()
    (digest,) = Path(world.layout.object("one")).iterdir()
    digest.rename(digest.with_name("sha256_of_before"))
    target = Path(world.layout.links) / path
    target.rename(target.with_name("web_slice"))
    map_id = world.map_id()
    outcome = world.apply()
    assert outcome.result is ReloadResult.OK
    assert not [line for line in outcome.done if line.startswith(("attach", "detach"))]
    ((now, (same_link, _)),) = world.link_ids().items()
    assert (now, same_link, world.map_id()) == (path, link, map_id)
    assert plan_now(world) == ()
    scene.check_served()


def test_without_anything_to_attach_nobody_looks(
    scene_at: SceneAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = scene_at(CGROUP)
    world = scene.world
    scene.put()
    scene.write()
    looks = []
    listed = kernel.all_links

    def list_them() -> list[LinkInfo] | None:
        looks.append(1)
        return listed()

    monkeypatch.setattr(kernel, "all_links", list_them)
    with world.keeper() as keeper:
        world.reload(keeper)
        assert looks
        looks.clear()
        scene.put(STEP=2)
        assert world.reload(keeper).result is ReloadResult.OK
        keeper.look()
        assert looks == []


def test_interface_by_iproute2(scene_at: SceneAt) -> None:
    """As people do it: bpftool and ip load the very file, without a link."""
    scene = scene_at(XDP)
    world, netns = scene.world, scene.netns
    program = world.pins / "theirs"
    file = world.build("counter", HOOK='"xdp"', VERDICT=2)  # bpftool pins by name below /sys/fs/bpf
    command = ["bpftool", "prog", "load", str(file), str(program), "type", "xdp"]
    subprocess.run([*command, "pinmaps", str(world.pins)], check=True)
    ip("-n", netns.here, "link", "set", "veth0", "xdpdrv", "pinned", str(program))
    scene.put()
    scene.write(take_over=True)
    with world.keeper() as keeper:
        map_id = world.map_id()
        assert world.reload(keeper).result is ReloadResult.OK
        assert world.map_id() == map_id
        scene.check_served()
    program.unlink()
