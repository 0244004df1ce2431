"""A reload of several objects is one transaction: a swap that fails undoes all of it."""

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.state import ReloadResult
from bpfkeeperd.steps import Step
from tests.kernel.test_reload import plan_now
from tests.kernel.test_rollback import Injected
from tests.machine import bpf_ids, inside_cgroup, send_datagrams
from tests.scenario import World, refused

ATTACH = "attach: [{cgroup: CGROUP}]"
OBJECTS = ("one", "two", "three", "four")
MANIFEST = f"""
maps: {{ones: {{on_mismatch: recreate}}}}
objects:
  one: {{file: one.bpf.o, pin_maps: [ones], programs: {{count: {{{ATTACH}}}}}}}
  two:
    file: two.bpf.o
    pin_maps: [twos]
    programs: {{count: {{attach: [{{cgroup: CGROUP}}, {{cgroup: CGROUP/child}}]}}}}
  three: {{file: three.bpf.o, programs: {{enter: {{{ATTACH}}}}}}}
  four: {{file: four.bpf.o, pin_maps: {{.bss: zeroed}}, programs: {{count: {{{ATTACH}}}}}}}
"""
SWAPS = 5


def begin(world: World) -> None:
    (world.cgroup / "child").mkdir()
    world.put("one", MAP="ones")
    world.put("two", MAP="twos")
    world.put("three", "stages", VERSION=1, STATIC=1)
    world.put("four", "globals")
    world.write(MANIFEST)


def change(world: World) -> None:
    """A map is recreated, another kept, a program array and global data are renewed."""
    world.put("one", MAP="ones", STEP=2, ENTRIES=32)
    world.put("two", MAP="twos", STEP=2)
    world.put("three", "stages", VERSION=2, STATIC=1)
    world.put("four", "globals", MORE=1)


class AtSwap:
    """Does something at the n-th swap of a reload, and knows how many there were."""

    def __init__(self, number: int) -> None:
        self.number, self.seen = number, 0

    def __call__(self, step: Step, subject: object) -> None:
        if step is Step.SWAP:
            self.seen += 1
            if self.seen == self.number:
                self.disturb(subject)

    def disturb(self, subject: object) -> None:
        raise Injected(f"do swap of {subject}", 12)


class Outsider(AtSwap):
    """Somebody else puts a program of his own into the link just before."""

    def __init__(self, number: int, world: World, program: int) -> None:
        super().__init__(number)
        self.world, self.program, self.path = world, program, ""

    def disturb(self, subject: object) -> None:
        name = str(subject).partition("/")[0]
        for path in self.world.link_ids():
            if path.startswith(f"{name}/") and path.endswith("child") == str(subject).endswith(
                "child"
            ):
                self.path = path
        fd = kernel.pinned(f"{self.world.layout.links}/{self.path}", kernel.PinKind.LINK)
        assert fd
        with kernel.holding(fd):
            kernel.link_update(fd, self.program)


def before_text(number: int) -> str:
    """What is said of the swaps before the one that failed."""
    match number:
        case 1:
            return ""
        case 2:
            return "the 1 swapped before was swapped back; "
        case _:
            return f"the {number - 1} swapped before were swapped back; "


@pytest.mark.parametrize("number", range(1, SWAPS + 1))
def test_a_swap_that_fails_undoes_the_whole_reload(world: World, number: int) -> None:
    begin(world)
    with world.keeper() as keeper, inside_cgroup(world.cgroup):
        assert world.reload(keeper).result is ReloadResult.OK
        send_datagrams(3)
        before = world.everything()
        change(world)
        keeper._on_step = AtSwap(number)
        outcome = world.reload(keeper)
        text = refused(outcome)
        assert f"swap {number} of {SWAPS} failed: cannot do swap of " in text
        end = "nothing of this reload remains: what ran before goes on running"
        assert text.endswith(f"{before_text(number)}{end}"), text
        assert outcome.rolled_back and outcome.done == ()
        assert outcome.summary.startswith("rolled back in ")
        assert world.everything() == before
        keeper._on_step = AtSwap(0)
        assert world.reload(keeper).result is ReloadResult.OK
        assert keeper._on_step.seen == SWAPS
        assert plan_now(world) == ()


@pytest.mark.parametrize("number", (1, 3, SWAPS))
def test_somebody_else_changes_a_link_meanwhile(world: World, number: int) -> None:
    """His program stays where he put it; all else is as it was."""
    begin(world)
    foreign = world.build("counter", MAP="guests").read_bytes()
    with kernel.open_object(foreign, "guest") as guest, world.keeper() as keeper:
        guest.load()
        assert world.reload(keeper).result is ReloadResult.OK
        before, links = world.everything(), world.link_ids()
        change(world)
        outsider = Outsider(number, world, guest.program_fd("count"))
        keeper._on_step = outsider
        text = refused(world.reload(keeper))
        assert f"swap {number} of {SWAPS} failed: cannot swap the program of " in text
        assert "somebody else changed its program meanwhile" in text
        assert outsider.path in links
        after = world.everything()
        key = f"links/{outsider.path}"
        assert after.pop(key) != before.pop(key)
        assert after == before
        keeper._on_step = AtSwap(0)
        assert world.reload(keeper).result is ReloadResult.OK
        assert plan_now(world) == ()


@pytest.mark.parametrize("step", (Step.LOAD_OBJECT, Step.PIN_PROGRAMS, Step.STAGE_MAP))
def test_another_failure_stops_its_own_change_alone(world: World, step: Step) -> None:
    """The other objects go ahead: one bad object never stops the others."""
    begin(world)
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        before = world.everything()
        change(world)
        done: list[object] = []

        def fail(now: Step, subject: object) -> None:
            if now is step and not done:
                done.append(subject)
                raise Injected(f"do {now} of {subject}", 12)

        keeper._on_step = fail
        outcome = world.reload(keeper)
        assert len(outcome.failures) == 1 and not outcome.rolled_back
        assert sum(line.startswith("load object ") for line in outcome.done) == 3
        after = world.everything()
        same = {name for name in OBJECTS if _links(after, name) == _links(before, name)}
        assert len(same) == 1


def _links(seen: dict[str, object], name: str) -> list[object]:
    return [value for key, value in seen.items() if key.startswith(f"links/{name}/")]


def test_a_failure_before_the_swap_that_fails(world: World) -> None:
    """The swaps of a change that was undone by itself do not count as swapped."""
    begin(world)
    child = world.cgroup / "child"
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        before = world.everything()
        change(world)
        at = AtSwap(SWAPS)

        def fail(step: Step, subject: object) -> None:
            at(step, subject)
            if step is Step.COMMIT_MAP and at.seen < SWAPS:
                raise Injected(f"do {step} of {subject}", 12)

        keeper._on_step = fail
        outcome = world.reload(keeper)
        undone = sum("rolled back: what ran before" in one.message for one in outcome.failures)
        assert undone >= 1 and outcome.rolled_back
        assert f"the {SWAPS - 1 - undone} swapped before" in outcome.failures[-1].message
        assert world.everything() == before
    assert child.is_dir()


def test_what_is_replaced_stays_until_nothing_can_fail(world: World) -> None:
    """Detaching, unloading: only after the last swap of all objects."""
    begin(world)
    steps: list[Step] = []
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        change(world)
        keeper._on_step = lambda step, subject: steps.append(step)
        assert world.reload(keeper).result is ReloadResult.OK
    last_swap = max(place for place, step in enumerate(steps) if step is Step.SWAP)
    assert steps.index(Step.REMOVE_PROGRAMS) > last_swap


def test_restores_stay_when_the_rest_is_undone(world: World) -> None:
    begin(world)
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        twos = world.map_id("twos")
        (world.pins / "twos").unlink()
        change(world)
        keeper._on_step = AtSwap(2)
        outcome = world.reload(keeper)
        assert outcome.rolled_back
        assert outcome.done == (f"restore the pin of map twos (ID {twos}, contents kept)",)
        assert world.map_id("twos") == twos


def test_an_interruption_undoes_it_too(world: World) -> None:
    """Ctrl-C in the middle of `apply`."""
    begin(world)
    assert world.apply().result is ReloadResult.OK
    before = world.everything()
    change(world)

    def interrupt(step: Step, subject: object) -> None:
        if step is Step.COMMIT_MAP:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), world.keeper(interrupt) as keeper:
        world.reload(keeper)
    assert world.everything() == before
    assert world.apply().result is ReloadResult.OK
    assert plan_now(world) == ()


CHILDREN = ("c0", "c1", "c2", "c3")


def begin_with_many(world: World) -> None:
    """One object at several cgroups."""
    for child in CHILDREN:
        (world.cgroup / child).mkdir()
    world.put("one", MAP="ones")
    targets = ", ".join(f"{{cgroup: CGROUP/{child}}}" for child in CHILDREN)
    world.write(
        "maps: {ones: {on_mismatch: recreate}}\nobjects: {one: {file: one.bpf.o, pin_maps: [ones],"
        f" programs: {{count: {{attach: [{targets}]}}}}}}}}\n"
    )


def link_of(world: World, child: str) -> str:
    (path,) = (path for path in world.link_ids() if path.endswith(f"-{child}"))
    return path


def let_die(world: World, child: str) -> None:
    """Its cgroup goes, and a moment later the link in it is dead."""
    (world.cgroup / child).rmdir()
    world.wait(lambda: 0 in world.link_targets())


def test_a_link_that_dies_during_the_reload(world: World) -> None:
    """There is nothing to swap, which is no reason to undo the rest."""
    begin_with_many(world)
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        before = world.link_ids()
        world.put("one", MAP="ones", STEP=2)

        def disturb(step: Step, subject: object) -> None:
            if step is Step.SWAP and str(subject).endswith("c3"):
                let_die(world, "c1")

        keeper._on_step = disturb
        outcome = world.reload(keeper)
        assert outcome.result is ReloadResult.OK, outcome
        assert any("c1: its target went away" in note for note in outcome.notes), outcome
        after = world.link_ids()
        swapped = {path for path in after if after[path] != before[path]}
        assert swapped == {link_of(world, child) for child in ("c0", "c2", "c3")}
        assert sum(keeper.status.drift.values()) == 1, keeper.status.drift
        (world.cgroup / "c1").mkdir()
        keeper._on_step = AtSwap(0)
        keeper.heal(1.0)
        assert plan_now(world) == ()


@pytest.mark.parametrize("how", ("dies", "is changed"))
def test_a_link_that_cannot_be_swapped_back(world: World, how: str) -> None:
    """The others can, and are."""
    begin_with_many(world)
    foreign = world.build("counter", MAP="guests").read_bytes()
    with kernel.open_object(foreign, "guest") as guest, world.keeper() as keeper:
        guest.load()
        assert world.reload(keeper).result is ReloadResult.OK
        before = world.link_ids()
        world.put("one", MAP="ones", STEP=2, ENTRIES=32)

        def disturb(step: Step, subject: object) -> None:
            if step is not Step.COMMIT_MAP:
                return
            if how == "dies":
                let_die(world, "c1")
            else:
                path = f"{world.layout.links}/{link_of(world, 'c1')}"
                fd = kernel.pinned(path, kernel.PinKind.LINK)
                assert fd
                with kernel.holding(fd):
                    kernel.link_update(fd, guest.program_fd("count"))
            raise Injected("take the name", 12)

        keeper._on_step = disturb
        text = refused(world.reload(keeper))
        assert ("could not be undone" in text) == (how == "is changed"), text
        after = world.link_ids()
        others = [link_of(world, child) for child in ("c0", "c2", "c3")]
        assert [after[path] for path in others] == [before[path] for path in others]


@pytest.mark.parametrize(
    "sections",
    [
        ("cgroup/connect4", "cgroup/connect6"),
        ("cgroup/bind4", "cgroup/sendmsg4"),
        ("cgroup_skb/egress", "cgroup_skb/ingress"),
    ],
)
def test_a_program_of_another_attach_type(world: World, sections: tuple[str, str]) -> None:
    """The kernel would take it into the link, where it would run at the wrong hook: it gets a link
    of its own, and the former one goes."""
    former, latter = sections
    world.put("one", HOOK=f'"{former}"')
    program = f"programs: {{count: {{{ATTACH}}}}}"
    world.write(f"objects: {{one: {{file: one.bpf.o, pin_maps: [counts], {program}}}}}\n")
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        (before,) = world.link_pins("one")
        world.put("one", HOOK=f'"{latter}"')
        assert world.reload(keeper).result is ReloadResult.OK
        (after,) = world.link_pins("one")
        assert after.id != before.id and after.attach_type != before.attach_type
        world.wait(lambda: before.id not in bpf_ids("link"))
        assert plan_now(world) == ()
