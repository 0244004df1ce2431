"""What a keeper says of maps, programs and attachments, also while it changes them."""

import re
import threading
from collections.abc import Collection
from pathlib import Path

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.held import Held
from bpfkeeperd.keeper import Keeper
from bpfkeeperd.layout import Layout
from bpfkeeperd.observed import Observed
from bpfkeeperd.state import Status
from tests.kernel.test_churn import RECREATED, begin, gone, good, status_of
from tests.kernel.test_stub import EXACT, put
from tests.scenario import World, garbage, refused


def read_all_the_while(keeper: Keeper, stop: threading.Event, found: list[str]) -> None:
    """What a scrape does: opens every map that the status names."""
    looked = 0
    while not stop.is_set():
        status = keeper.status
        for entry in status.maps:
            looked += 1
            if entry.id and gone(entry.id) and keeper.status is status:
                found.append(f"{entry.name}: {entry.id}")
    assert looked


def test_the_status_names_no_map_that_is_gone(world: World) -> None:
    begin(world)
    found: list[str] = []
    stop = threading.Event()
    with world.keeper() as keeper:
        good(world, keeper)
        reader = threading.Thread(target=read_all_the_while, args=(keeper, stop, found))
        reader.start()
        ids = set()
        for number in range(200):
            world.put("one", ENTRIES=(32, 16)[number % 2])
            ids.add(world.map_id())
            good(world, keeper)
        stop.set()
        reader.join()
        assert len(ids) == 200 and status_of(keeper).changes == {RECREATED: 200}
    assert not found


def test_the_status_is_out_before_the_former_map_is_let_go(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(world)
    seen: list[tuple[Status, bool]] = []
    with world.keeper() as keeper:
        good(world, keeper)
        old = world.map_id()
        assert old
        follow = Held.follow

        def watched(
            held: Held, observed: Observed, layout: Layout, *names: Collection[str]
        ) -> None:
            seen.append((keeper.status, gone(old)))
            follow(held, observed, layout, *names)

        monkeypatch.setattr(Held, "follow", watched)
        world.put("one", ENTRIES=32)
        good(world, keeper)
        ((status, was_gone),) = seen
        assert status.maps[0].id == world.map_id() and not was_gone
        world.wait(lambda: gone(old))


def program_pins(world: World, name: str) -> dict[str, int]:
    """Program pins of an object by path."""
    pins = kernel.scan(world.layout.objects, 3, kernel.PinKind.PROGRAM)
    return {
        f"{world.layout.objects}/{'/'.join(pin.path)}": pin.id
        for pin in pins
        if pin.path[0] == name
    }


def test_programs_of_the_status(world: World) -> None:
    begin(world)
    with world.keeper() as keeper:
        good(world, keeper)

        def check() -> str:
            (program,) = keeper.status.programs
            (attachment,) = keeper.status.attachments
            assert {program.path: program.id} == program_pins(world, "one")
            assert (program.object, program.program, program.runs_path) == ("one", "count", "")
            assert attachment.prog_id == program.id
            assert (attachment.digest, attachment.tag) == (program.digest, program.tag)
            assert re.fullmatch("[0-9a-f]{16}", program.tag)
            assert f"/{program.digest}/" in program.path
            return program.digest

        first = check()
        world.put("one", STEP=2)
        good(world, keeper)
        second = check()
        assert first != second
        world.put("one", REFUSED=1)
        refused(world.reload(keeper))
        assert check() == second, "held back at an older version"
        garbage(world.directory / "one.bpf.o")
        refused(world.reload(keeper))
        assert check() == second
    with world.keeper() as keeper:
        refused(world.reload(keeper))
        (program,) = keeper.status.programs
        assert program.digest == second, "of an object that was never read"


def test_an_attachment_that_runs_a_program_of_somebody_else(world: World) -> None:
    begin(world)
    with world.keeper() as keeper:
        good(world, keeper)
        found = kernel.open_object(world.build("counter", STEP=7).read_bytes(), "other")
        with found as other:
            other.load()
            (path,) = (Path(world.layout.links) / path for path in world.link_ids())
            link = kernel.pinned(str(path), kernel.PinKind.LINK)
            assert link is not None
            with kernel.holding(link):
                kernel.link_update(link, other.program_fd("count"), None)
            keeper.look()
            (attachment,) = keeper.status.attachments
            assert not attachment.up and attachment.prog_id
            assert (attachment.digest, attachment.tag) == ("", "")
            (program,) = keeper.status.programs
            assert program.id != attachment.prog_id


def test_a_program_behind_a_stub(world: World) -> None:
    put(world)
    world.write(EXACT.replace("SWAP", "exact").replace("PROGRAM", "program"))
    with world.keeper() as keeper:
        good(world, keeper)
        (program,) = keeper.status.programs
        assert program.runs_path == f"{world.layout.stubs}/one/program/stub"
        fd = kernel.pinned(program.runs_path, kernel.PinKind.PROGRAM)
        assert fd is not None
        with kernel.holding(fd):
            assert kernel.program_info(fd).id != program.id
        (attachment,) = keeper.status.attachments
        assert (attachment.prog_id, attachment.tag) == (program.id, program.tag)
