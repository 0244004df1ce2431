"""Functions of the kernel that programs replace: registered, updated under connections, kept."""

import contextlib
import os
import socket
import struct
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.hooks import STRUCT_OPS
from bpfkeeperd.keeper import Keeper
from bpfkeeperd.state import ReloadResult
from bpfkeeperd.steps import Step
from tests.kernel.test_reload import plan_now
from tests.kernel.test_rollback import fail_at_each_step
from tests.machine import skip_without
from tests.scenario import World, contents, refused

MANIFEST = """
objects:
  one: {file: one.bpf.o, pin_maps: [seen], register: [ops]}
"""


@pytest.fixture(autouse=True)
def needed() -> None:
    skip_without(STRUCT_OPS)


@pytest.fixture
def name() -> str:
    """What TCP_CONGESTION calls it: one name for the whole machine."""
    return f"keep_{uuid.uuid4().hex[:8]}"


def put(world: World, name: str, version: int = 1, **macros: object) -> None:
    world.put("one", "congestion", NAME=f'"{name}"', VERSION=version, **macros)


def reload(world: World, keeper: Keeper, *, force: bool = False) -> None:
    outcome = world.reload(keeper, force=force)
    assert outcome.result is ReloadResult.OK, outcome


def seen(world: World, name: str = "seen") -> list[int]:
    """How often each version was asked."""
    found = contents(world.pins / name)
    return [struct.unpack("=Q", value or bytes(8))[0] for _, value in sorted(found.items())]


@contextmanager
def connection(name: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection whose sender uses the congestion control of this name."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        with server:
            yield client, server


def transfer(ends: tuple[socket.socket, socket.socket], messages: int = 20) -> None:
    for _ in range(messages):
        ends[0].sendall(b"x" * 1000)
        assert len(ends[1].recv(1000, socket.MSG_WAITALL)) == 1000


def versions(world: World, name: str) -> set[int]:
    """Which versions are asked by a connection that begins now."""
    before = seen(world)
    with connection(name) as ends:
        transfer(ends)
    after = seen(world)
    return {version for version in range(4) if after[version] > before[version]}


@pytest.mark.parametrize("section", [".struct_ops", ".struct_ops.link"])
def test_registered_and_kept(world: World, name: str, section: str) -> None:
    """Served after it is attached, after the keeper's end, after a swap, after the next start."""
    world.write(MANIFEST)
    put(world, name, SECTION=f'"{section}"')
    with world.keeper() as keeper:
        reload(world, keeper)
        (status,) = keeper.status.attachments
        assert status.up and (status.hook, status.target) == ("struct_ops", "the kernel")
        assert list(world.link_ids()) == ["one/ops/struct_ops"]
        assert versions(world, name) == {1}
    assert versions(world, name) == {1}
    assert plan_now(world) == ()
    links = world.link_ids()
    put(world, name, 2, SECTION=f'"{section}"')
    with world.keeper() as keeper:
        reload(world, keeper)
        assert all(attachment.up for attachment in keeper.status.attachments)
        assert versions(world, name) == {2}
        assert world.reload(keeper).done == ()
    assert world.link_ids() == links
    assert versions(world, name) == {2}
    assert plan_now(world) == ()
    world.write("objects: {}\n")
    assert world.apply().result is ReloadResult.OK
    assert world.link_ids() == {}
    deadline = time.monotonic() + 10  # the kernel takes its time to let go
    with contextlib.suppress(FileNotFoundError):
        while time.monotonic() < deadline:
            with connection(name):
                time.sleep(0.01)
        pytest.fail("it is still registered")


SWAPS = 200


def test_no_connection_is_missed_while_it_is_swapped(world: World, name: str) -> None:
    """Each begins by being told to one of the versions."""
    world.write(MANIFEST.replace("[seen]", "[seen, begun]"))
    put(world, name)
    stop, failed, made = threading.Event(), list[OSError](), [0]

    def connect() -> None:
        while not stop.is_set():
            try:
                with connection(name) as ends:
                    transfer(ends, 2)
                made[0] += 1
            except OSError as error:
                failed.append(error)

    with world.keeper() as keeper:
        reload(world, keeper)
        links = world.link_ids()
        thread = threading.Thread(target=connect)
        thread.start()
        try:
            with connection(name) as ends:
                made[0] += 1
                for swap in range(SWAPS):
                    put(world, name, swap % 2 + 1)
                    reload(world, keeper, force=True)
                    transfer(ends, 1)
        finally:
            stop.set()
            thread.join()
        assert world.link_ids() == links
    assert not failed and made[0] > 10
    assert min(seen(world)[1:3]) > 0
    # The listener of a connection, and what it accepts, have the control of the machine.
    assert sum(seen(world, "begun")) == made[0]


def test_a_version_that_the_kernel_does_not_take(world: World, name: str) -> None:
    """Another name is another congestion control: the one that is registered stays."""
    world.write(MANIFEST)
    put(world, name)
    with world.keeper() as keeper:
        reload(world, keeper)
        before = world.everything()
        put(world, f"{name}x", 2)
        text = refused(world.reload(keeper))
        assert "the kernel takes another version under the same name only" in text
        assert "what ran before goes on running" in text
        assert world.everything() == before
        assert versions(world, name) == {1}
        put(world, name, 2)
        reload(world, keeper)
        assert versions(world, name) == {2}


def test_every_step_is_rolled_back(world: World, name: str) -> None:
    world.write(MANIFEST)
    put(world, name)
    with world.keeper() as keeper:
        reload(world, keeper)
        for version, force in ((2, False), (2, True)):
            put(world, name, version)
            failed = fail_at_each_step(world, keeper, force=force, elsewhere=world.link_targets)
            assert {Step.STAGE_PROGRAMS, Step.SWAP, Step.COMMIT_MAP, Step.COMMIT_PROGRAMS} <= failed
            assert versions(world, name) == {version}
            assert plan_now(world) == ()


def test_registered_by_another(world: World, name: str) -> None:
    world.write(MANIFEST.replace("one:", "two:"))
    put(world, name)
    assert world.apply().result is ReloadResult.OK
    world.write(
        MANIFEST.replace(
            "\n  one", "\n  two: {file: one.bpf.o, pin_maps: [seen], register: [ops]}\n  one"
        )
    )
    with world.keeper() as keeper:
        text = refused(world.reload(keeper))
        assert "something is registered under its name already" in text
    assert versions(world, name) == {1}


def test_no_such_map(world: World, name: str) -> None:
    put(world, name)
    for wrong, remedy in (("opps", "did you mean ops?"), ("seen", "there is ops")):
        world.write(MANIFEST.replace("[ops]", f"[{wrong}]"))
        with world.keeper() as keeper:
            outcome = world.reload(keeper)
        assert outcome.result is ReloadResult.REJECTED
        message = outcome.failures[0].message
        assert f"object one has no struct_ops map {wrong}" in message and remedy in message


def test_a_link_that_somebody_else_moved(world: World, name: str) -> None:
    """The keeper's own map is registered again, through the same link."""
    world.write(MANIFEST)
    put(world, name)
    with world.keeper() as keeper:
        reload(world, keeper)
        links = world.link_ids()
        link = kernel.pinned(f"{world.layout.links}/one/ops/struct_ops", kernel.PinKind.LINK)
        assert link is not None
        data = world.build("congestion", NAME=f'"{name}"', VERSION=3).read_bytes()
        with kernel.holding(link), kernel.open_object(data, "other") as other:
            other.set_map_flags("ops", 0x2000)
            other.load()
            other.fill_struct_ops("ops")
            kernel.link_update(link, other.map_fd("ops"))
        keeper.look()
        assert keeper.status.drift["attachment_replaced"] == 1
        assert [attachment.up for attachment in keeper.status.attachments] == [False]
        reload(world, keeper)
        assert world.link_ids() == links
        assert versions(world, name) == {1}
        os.unlink(f"{world.layout.links}/one/ops/struct_ops")
        put(world, name, 2)
        reload(world, keeper)
        assert world.link_ids() == links
        assert versions(world, name) == {2}
    assert plan_now(world) == ()
