"""Programs attached to maps of sockets: swapped under the sockets that are in them."""

import errno
import os
from contextlib import ExitStack

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.directories import pins_below, remove_tree
from bpfkeeperd.errors import KernelError
from bpfkeeperd.hooks import HOOKS
from bpfkeeperd.maptypes import SOCKMAP
from bpfkeeperd.state import ReloadResult
from bpfkeeperd.stubcode import stub_instructions
from tests.kernel.exactness import connection, messages, put_socket, seen, total
from tests.kernel.test_reload import plan_now
from tests.scenario import World, refused

SK_MSG: dict[str, object] = {
    "HOOK": '"sk_msg"',
    "CONTEXT": "struct sk_msg_md",
    "SIZE": "ctx->size",
    "VERDICT": 1,
}
SK_SKB: dict[str, object] = {"CONTEXT": "struct __sk_buff", "SIZE": "ctx->len"}
VERDICT = SK_SKB | {"HOOK": '"sk_skb/stream_verdict"', "VERDICT": 1}
PARSER = SK_SKB | {"HOOK": '"sk_skb/stream_parser"', "VERDICT": "ctx->len"}
PLAIN = SK_SKB | {"HOOK": '"sk_skb/verdict"', "VERDICT": 1}
HASH: dict[str, object] = {"TYPE": "BPF_MAP_TYPE_SOCKHASH"}


def put(world: World, name: str, macros: dict[str, object], version: int = 1) -> None:
    """An object that keeps its counts as ``NAME_seen``."""
    world.put(name, "exact", VERSION=version, **macros)


def entry(name: str, target: str, more: str = "") -> str:
    return (
        f"  {name}: {{file: {name}.bpf.o, pin_maps: {{seen: {name}_seen{more}}},\n"
        f"    programs: {{program: {{attach: [{{map: {target}}}]}}}}}}\n"
    )


def stream(world: World) -> dict[str, dict[str, object]]:
    """All kinds: sk_msg at a SOCKHASH of senders, parser and verdict at a SOCKMAP of receivers,
    sk_skb/verdict at one of its own."""
    objects: dict[str, dict[str, object]] = {
        "msg": SK_MSG | HASH | {"SOCKETS": "senders"},
        "parser": PARSER | {"SOCKETS": "receivers"},
        "verdict": VERDICT,
        "plain": PLAIN | {"SOCKETS": "others"},
    }
    world.write(
        "objects:\n"
        + entry("msg", "senders", ", senders: senders")
        + entry("parser", "receivers", ", receivers: receivers")
        + entry("verdict", "receivers")
        + entry("plain", "others", ", others: others")
    )
    return objects


def test_sockets_in_the_map_get_every_version(world: World) -> None:
    objects = stream(world)
    for name, macros in objects.items():
        put(world, name, macros)
    with world.keeper() as keeper, ExitStack() as stack:
        outcome = world.reload(keeper)
        assert outcome.result is ReloadResult.OK, outcome
        assert all(attachment.up for attachment in keeper.status.attachments), keeper.status
        links = world.link_ids()
        one, two = (stack.enter_context(connection()) for _ in range(2))
        put_socket(world, "senders", 1, one[0])
        put_socket(world, "receivers", 1, one[1])
        put_socket(world, "others", 1, two[1])
        with messages(*one) as sent, messages(*two) as plain:
            for swap in range(250):
                for name, macros in objects.items():
                    put(world, name, macros, swap % 2 + 1)
                outcome = world.reload(keeper, force=True)
                assert outcome.result is ReloadResult.OK, outcome
        assert world.link_ids() == links
        assert total(world, "msg_seen") == tuple(sent)
        assert total(world, "parser_seen")[1] == total(world, "verdict_seen")[1] == sent[1]
        assert total(world, "plain_seen")[1] == plain[1]
        for name in objects:
            assert min(events for events, _ in seen(world, f"{name}_seen")[1:3]) > 0
    assert plan_now(world) == ()


def one_map(world: World, text: str = "", target: str = "senders") -> None:
    world.write(text + "objects:\n" + entry("msg", target, ", senders: senders"))


def check_seen(world: World, version: int, name: str = "msg_seen") -> None:
    """What a socket sends that is put into the map is seen by this version, and arrives."""
    before = seen(world, name)
    with connection() as (client, server):
        put_socket(world, "senders", 1, client)
        client.sendall(b"hello")
        assert server.recv(5) == b"hello"
    after = [now[1] - then[1] for now, then in zip(seen(world, name), before, strict=True)]
    assert after == [5 if place == version else 0 for place in range(4)]


MSG = SK_MSG | {"SOCKETS": "senders"}


def test_a_map_that_is_recreated_in_the_same_reload(world: World) -> None:
    one_map(world, "maps: {senders: {on_mismatch: recreate}}\n")
    put(world, "msg", MSG)
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        links, map_id = world.link_ids(), world.map_id("senders")
        put(world, "msg", MSG | {"ENTRIES": 16}, 2)
        outcome = world.reload(keeper)
        assert outcome.result is ReloadResult.OK, outcome
        assert world.map_id("senders") != map_id
        assert world.link_ids().keys() == links.keys() and (not links or world.link_ids() != links)
        assert all(attachment.up for attachment in keeper.status.attachments), keeper.status
        assert plan_now(world) == ()
        check_seen(world, 2)
        put(world, "msg", MSG | {"ENTRIES": 16}, 1)
        assert world.reload(keeper).result is ReloadResult.OK
        check_seen(world, 1)


def test_a_map_of_the_manifest_s_own_and_a_program_of_another_object(world: World) -> None:
    world.write(
        "maps: {senders: {type: sockmap, key: u32, value: u64, max_entries: 4,"
        " on_mismatch: recreate}}\n"
        "objects:\n" + entry("msg", "senders")
    )
    put(world, "msg", SK_MSG)
    assert world.apply().result is ReloadResult.OK
    check_seen(world, 1)
    text = world.manifest_file.read_text()
    world.manifest_file.write_text(text.replace("max_entries: 4", "max_entries: 8"))
    assert world.apply().result is ReloadResult.OK
    assert plan_now(world) == ()
    check_seen(world, 1)
    world.manifest_file.write_text(text.replace("max_entries: 4", "max_entries: 9"))
    (world.directory / "msg.bpf.o").write_bytes(b"garbage")
    with world.keeper() as keeper:
        assert "object msg, which uses it, is held back" in refused(world.reload(keeper))
    check_seen(world, 1)


def test_the_program_under_another_name(world: World) -> None:
    one_map(world)
    put(world, "msg", MSG)
    with world.keeper() as keeper, connection() as (client, server):
        world.reload(keeper)
        put_socket(world, "senders", 1, client)
        text = world.manifest_file.read_text()
        world.manifest_file.write_text(text.replace("{program:", "{latter:"))
        put(world, "msg", MSG | {"PROGRAM": "latter"}, 2)
        assert world.reload(keeper).result is ReloadResult.OK
        client.sendall(b"hello")
        assert server.recv(5) == b"hello"
        assert seen(world, "msg_seen")[2] == (1, 5)
    assert plan_now(world) == ()


def test_the_next_keeper_goes_on_and_the_last_lets_go(world: World) -> None:
    one_map(world)
    put(world, "msg", MSG)
    with connection() as (client, server):
        assert world.apply().result is ReloadResult.OK
        put_socket(world, "senders", 1, client)
        links = world.link_ids()
        for version in (1, 2):
            put(world, "msg", MSG, version)
            assert world.apply().result is ReloadResult.OK
            client.sendall(b"hello")
            assert server.recv(5) == b"hello"
            assert seen(world, "msg_seen")[version] == (1, 5)
        assert world.link_ids() == links
    world.write("objects: {}\n")
    assert world.apply().result is ReloadResult.OK
    assert world.link_ids() == {}


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("sender", "no map sender is kept: did you mean senders?"),
        ("msg_seen", "msg_seen is of type array: it takes a sockmap or a sockhash"),
    ],
)
def test_another_map(world: World, target: str, text: str) -> None:
    one_map(world, target=target)
    put(world, "msg", MSG)
    with world.keeper() as keeper:
        outcome = world.reload(keeper)
    assert outcome.result is ReloadResult.REJECTED and text in outcome.failures[0].message


@pytest.fixture
def with_links() -> None:
    """Skips what needs links to maps, which came with Linux 6.10."""
    with kernel.holding(kernel.map_create(SOCKMAP, "probe", 4, 4, 1)) as map_fd:
        hook = next(hook for hook in HOOKS if hook.name == "sk_msg")
        code = stub_instructions(hook, 0)[-16:]  # r0 = SK_PASS, exit
        with kernel.holding(kernel.prog_load(hook.prog_type, "probe", code, 7)) as program:
            try:
                os.close(kernel.link_create(program, map_fd, 7))
            except KernelError as error:
                pytest.skip(f"this kernel makes no links to maps: {error}")


@pytest.mark.usefixtures("with_links")
def test_another_program_at_the_map(world: World) -> None:
    """It is not displaced, and the rest goes ahead."""
    one_map(world)
    put(world, "msg", MSG)
    world.put("other", "exact", **MSG)
    with world.keeper() as keeper, ExitStack() as stack:
        world.reload(keeper)
        opened = stack.enter_context(
            kernel.open_object((world.directory / "other.bpf.o").read_bytes(), "other")
        )
        opened.load()
        world.write("objects: {}\n")
        world.reload(keeper)
        found = kernel.pinned_map(str(world.pins / "senders"))
        assert found
        stack.callback(os.close, found[0])
        link = kernel.link_create(opened.program_fd("program"), found[0], 7)
        one_map(world)
        try:
            assert "sockets that are in the map would go on with its program" in refused(
                world.reload(keeper)
            )
            assert world.link_ids() == {}
        finally:
            os.close(link)
        assert world.reload(keeper).result is ReloadResult.OK


@pytest.mark.usefixtures("with_links")
def test_an_attachment_that_a_plain_loader_made(world: World) -> None:
    """It is pinned where the keeper's own would be, and without a stub: it gets one."""
    one_map(world)
    put(world, "msg", MSG)
    with world.keeper() as keeper:
        world.reload(keeper)
        ((path, _),) = world.link_ids().items()
        link = kernel.pinned(f"{world.layout.links}/{path}", kernel.PinKind.LINK)
        assert link is not None
        (program,) = (kernel.program_by_id(number) for number in world.program_ids())
        assert program is not None
        with kernel.holding(link), kernel.holding(program):
            kernel.link_update(link, program)
        remove_tree(world.layout.stubs)
    with world.keeper() as keeper:
        outcome = world.reload(keeper)
        assert outcome.result is ReloadResult.OK, outcome
        assert "was not behind its stub: sockets that are in the map go on" in (
            "\n".join(outcome.notes)
        )
        check_seen(world, 1)
        put(world, "msg", MSG, 2)
        world.reload(keeper)
        check_seen(world, 2)
    assert plan_now(world) == ()


@pytest.fixture
def without_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels before 6.10 answer EINVAL to a link to a map; all else is as it is."""

    def create(*arguments: object) -> tuple[int, str]:
        raise KernelError("attach a program", errno.EINVAL)

    monkeypatch.setattr("bpfkeeperd.linkparts.create_link", create)


def records(world: World) -> list[str]:
    return pins_below(world.layout.attached, 3)


@pytest.mark.usefixtures("without_links")
def test_without_links(world: World) -> None:
    """Attached, kept, swapped under a socket, taken over, and detached: with a record of it."""
    one_map(world)
    put(world, "msg", MSG)
    with connection() as (client, server):
        with world.keeper() as keeper:
            assert world.reload(keeper).result is ReloadResult.OK
            assert all(attachment.up for attachment in keeper.status.attachments), keeper.status
            assert world.reload(keeper).done == ()
        assert world.link_ids() == {} and records(world) == ["msg/program/map:senders"]
        assert plan_now(world) == ()
        put_socket(world, "senders", 1, client)
        for swap, program in enumerate(("program", "program", "latter")):
            text = world.manifest_file.read_text()
            world.manifest_file.write_text(text.replace("{program:", f"{{{program}:"))
            put(world, "msg", MSG | {"PROGRAM": program}, swap + 1)
            assert world.apply().result is ReloadResult.OK
            client.sendall(b"hello")
            assert server.recv(5) == b"hello"
            assert seen(world, "msg_seen")[swap + 1] == (1, 5)
            assert plan_now(world) == ()
        assert records(world) == ["msg/latter/map:senders"]
    world.write("maps: {senders: {type: sockmap, key: u32, value: u64, max_entries: 8}}\n")
    assert world.apply().result is ReloadResult.OK
    assert records(world) == [] and not attached_to_senders(world)


def attached_to_senders(world: World) -> int:
    found = kernel.pinned_map(str(world.pins / "senders"))
    assert found
    with kernel.holding(found[0]):
        programs = kernel.attached_programs(found[0], 7).programs
        return programs[0][0] if programs else 0


@pytest.mark.usefixtures("without_links")
def test_without_links_a_map_is_recreated_or_taken(world: World) -> None:
    one_map(world, "maps: {senders: {on_mismatch: recreate}}\n")
    put(world, "msg", MSG)
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        put(world, "msg", MSG | {"ENTRIES": 16}, 2)
        assert world.reload(keeper).result is ReloadResult.OK
        check_seen(world, 2)
        assert world.reload(keeper).done == ()
        attached = attached_to_senders(world)
        found = kernel.pinned_map(str(world.pins / "senders"))
        stub = kernel.program_by_id(attached)
        assert found and stub is not None
        with kernel.holding(found[0]) as map_fd, kernel.holding(stub):
            kernel.program_detach(stub, map_fd, 7)
            keeper.look()
            assert keeper.status.drift["attachment_missing"] == 1
            assert world.reload(keeper).result is ReloadResult.OK
            assert attached_to_senders(world) == attached
            (program,) = (kernel.program_by_id(number) for number in world.program_ids())
            assert program is not None
            with kernel.holding(program):
                kernel.program_attach(program, map_fd, 7)
            other = attached_to_senders(world)
            assert "another program is attached to the map" in refused(world.reload(keeper))
            assert attached_to_senders(world) == other
