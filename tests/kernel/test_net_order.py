"""The order of programs at a TCX hook, as a packet meets them."""

import struct
from collections.abc import Iterator

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.state import ReloadResult
from tests.bench.gap import quiet_pair
from tests.kernel.test_reload import plan_now
from tests.machine import Netns, map_value, skip_without_section
from tests.scenario import World

WHO = {"one": 1, "two": 2, "three": 3}


@pytest.fixture
def quiet(request: pytest.FixtureRequest) -> Iterator[Netns]:
    skip_without_section("tcx/ingress")
    with quiet_pair(f"keeper-order-{abs(hash(request.node.nodeid)) % 10**8}") as pair:
        yield pair


def put(world: World, version: int = 1) -> None:
    for name, number in WHO.items():
        world.put(name, "order", WHO=number, PROGRAM=name, VERSION=version)


def write(world: World, pair: Netns, **asked: str) -> None:
    """Objects with what they ask of the order."""
    lines = []
    for name, order in asked.items():
        target = f"{{interface: veth0, netns: {pair.here}{', ' if order else ''}{order}}}"
        programs = f"{{{name}: {{attach: [{target}]}}}}"
        lines.append(f"  {name}: {{file: {name}.bpf.o, pin_maps: [met], programs: {programs}}}")
    world.write("objects:\n" + "\n".join(lines) + "\n")


def met(world: World, pair: Netns) -> list[str]:
    """Who sees a packet, in order."""
    pair.send(1)
    value = map_value(world.pins / "met", bytes(4), 8)
    assert value
    (trace,) = struct.unpack("=Q", value)
    names = {number: name for name, number in (WHO | {"other": 9}).items()}
    digits = []
    while trace:
        digits.append(names[trace % 16])
        trace //= 16
    return digits[::-1]


@pytest.mark.parametrize(
    ("asked", "order"),
    [
        ({"one": "", "two": "before: one/one"}, ["two", "one"]),
        ({"one": "after: two/two", "two": ""}, ["two", "one"]),
        ({"one": 'after: "*"', "two": "", "three": 'before: "*"'}, ["three", "two", "one"]),
        (
            {"one": "after: two/two", "two": "after: three/three", "three": ""},
            ["three", "two", "one"],
        ),
    ],
)
def test_order(world: World, quiet: Netns, asked: dict[str, str], order: list[str]) -> None:
    """In one reload, whichever object the verifier is done with first; and as they come."""
    put(world)
    write(world, quiet, **asked)
    with world.keeper() as keeper:
        outcome = world.reload(keeper)
        assert outcome.result is ReloadResult.OK and outcome.notes == ()
        assert met(world, quiet) == order
        put(world, version=2)
        assert world.reload(keeper).result is ReloadResult.OK
        assert met(world, quiet) == order, "a swap changed the order"
        for first in asked:
            write(world, quiet, **{first: asked[first]})
            world.reload(keeper)
            write(world, quiet, **asked)
            assert world.reload(keeper).result is ReloadResult.OK
            assert met(world, quiet) == order, f"{first} first"
        assert keeper.status.drift["attachment_misplaced"] == 0
    assert plan_now(world) == ()


def test_another_program_by_its_name(world: World, quiet: Netns) -> None:
    put(world)
    path = world.put("foreign", "order", WHO=9, PROGRAM="other", VERSION=1)
    with kernel.open_object(path.read_bytes(), "foreign") as foreign:
        write(world, quiet, one="", two="")
        with world.keeper() as keeper:
            assert world.reload(keeper).result is ReloadResult.OK
        found = kernel.pinned_map(str(world.pins / "met"))
        assert found
        with kernel.holding(found[0]):
            foreign.reuse_map("met", found[0])
        foreign.load()
        with kernel.inside_netns(kernel.netns_path(quiet.here)):
            index = kernel.interface_index("veth0")
            link = kernel.link_create(foreign.program_fd("other"), index, 46)
        with kernel.holding(link), world.keeper() as keeper:
            assert met(world, quiet) == ["one", "two", "other"]
            write(world, quiet, one="", two="", three="before: other")
            assert world.reload(keeper).result is ReloadResult.OK
            assert met(world, quiet) == ["one", "two", "three", "other"]
            write(world, quiet, one="", two='after: "*"', three="before: other")
            assert world.reload(keeper).done == ()
            two = keeper.status.attachments[1]
            assert two.up and "it runs before three/three, against the order" in two.problem
            assert keeper.status.drift["attachment_misplaced"] == 1
            write(world, quiet, one="", three="before: other")
            assert world.reload(keeper).result is ReloadResult.OK
            write(world, quiet, one="", two='after: "*"', three="before: other")
            assert world.reload(keeper).result is ReloadResult.OK
            assert met(world, quiet) == ["one", "three", "other", "two"]
            assert keeper.status.drift["attachment_misplaced"] == 0


def test_one_that_is_not_there(world: World, quiet: Netns) -> None:
    put(world)
    write(world, quiet, one="", two="before: nobody")
    with world.keeper() as keeper:
        outcome = world.reload(keeper)
        assert outcome.result is ReloadResult.OK
        (note,) = outcome.notes
        assert note.endswith("is attached at the end: nobody is not there")
    assert met(world, quiet) == ["one", "two"]
