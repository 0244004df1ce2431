"""Hooks of the network stack: served after attach, without a keeper, after a swap, after adoption,
and given up again; every packet is one that a test sent."""

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.hooks import KINDS, SwapWay, hook_of_section
from bpfkeeperd.keeper import Keeper
from bpfkeeperd.state import AttachmentStatus, ReloadResult
from tests.bench.gap import quiet_pair
from tests.kernel.test_reload import plan_now
from tests.machine import Netns, bpf_ids, detach_link, ip, skip_without_section
from tests.scenario import World, refused

PORT = 7801


@pytest.fixture
def quiet(request: pytest.FixtureRequest) -> Iterator[Netns]:
    """A pair of namespaces where nothing is sent but by the test."""
    with quiet_pair(f"keeper-net-{abs(hash(request.node.nodeid)) % 10**8}") as pair:
        yield pair


def tc(pair: Netns, *arguments: str) -> str:
    command = ["tc", "-n", pair.here, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def rename(pair: Netns, name: str, new: str) -> None:
    """Kernels before 6.2 refuse it of an interface that is up."""
    ip("-n", pair.here, "link", "set", name, "down")
    ip("-n", pair.here, "link", "set", name, "name", new)


def datagrams(pair: Netns, count: int) -> None:
    pair.send(count)


def backwards(pair: Netns, count: int) -> None:
    pair.send(count, backwards=True)


def connections(pair: Netns, count: int) -> None:
    """TCP connections from there to a listener here: each is looked up once, by its SYN."""
    with ExitStack() as stack:
        with pair.inside(pair.here):
            listener = stack.enter_context(socket.create_server((pair.here_address, PORT)))
        for _ in range(count):
            with pair.inside(pair.there):
                client = socket.create_connection((pair.here_address, PORT))
            with closing(client), closing(listener.accept()[0]):
                pass


def spread(pair: Netns, count: int) -> None:
    """Datagrams that are spread over CPUs when they arrive (RPS): the kernel dissects each."""
    path = "/sys/class/net/veth0/queues/rx-0/rps_cpus"
    command = ["ip", "netns", "exec", pair.here, "sh", "-c", f"echo 1 > {path}"]
    subprocess.run(command, check=True)
    with pair.inside(pair.here), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind((pair.here_address, 9))  # else each is answered, which is dissected as well
        pair.send(count)


@dataclass(frozen=True, slots=True)
class Row:
    """A hook, and what makes it happen."""

    section: str
    target: str
    happen: Callable[[Netns, int], None]
    verdict: int = 1
    type: str = ""
    exact: bool = True
    """It happens once for each packet or connection."""

    def __str__(self) -> str:
        return f"{self.type or self.section}{'-generic' if 'generic' in self.target else ''}"

    @property
    def overlaps(self) -> bool:
        hook = hook_of_section(self.type or self.section)
        assert hook
        return KINDS[hook.kind].swap is SwapWay.OVERLAP


VETH = "{interface: veth0, netns: HERE}"
ROWS = (
    Row("xdp", "{interface: veth0, netns: HERE, mode: native}", datagrams, 2),
    Row("xdp", "{interface: veth0, netns: HERE, mode: generic}", datagrams, 2),
    Row("tcx/ingress", VETH, datagrams, -1),
    Row("tcx/egress", VETH, backwards, -1),
    Row("clsact/ingress", VETH, datagrams, -1),
    Row("clsact/egress", "{interface: veth0, netns: HERE, priority: 7}", backwards, -1),
    Row("tc", VETH, datagrams, -1, type="clsact/ingress"),
    Row("tcx/ingress", VETH, datagrams, -1, type="clsact/ingress"),
    Row("sk_lookup", "{netns: HERE}", connections),
    Row("sk_lookup", "{netns: /run/netns/HERE}", connections),
    Row("flow_dissector", "{netns: HERE}", spread, 0, exact=False),
    Row("netfilter", "{netfilter: ipv4/local_in, priority: 10, netns: HERE}", datagrams),
    Row("netfilter", "{netfilter: ipv4/local_out, priority: -5, netns: HERE}", backwards),
    Row(
        "netfilter",
        "{netfilter: ipv4/prerouting, priority: -399, defrag: true, netns: HERE}",
        datagrams,
    ),
)


def write(world: World, pair: Netns, row: Row, *more: str) -> None:
    kind = f"type: {row.type}, " if row.type else ""
    program = f"{{{kind}attach: [{row.target.replace('HERE', pair.here)}]}}"
    world.write(
        "objects:\n  one: {file: one.bpf.o, pin_maps: [counts],"
        f" programs: {{count: {program}}}}}\n" + "\n".join(more)
    )


def counted(world: World, happen: Callable[[], None]) -> tuple[int, int]:
    """Events and steps that a traffic makes."""
    before = world.events()
    happen()
    after = world.events()
    return after[0] - before[0], after[1] - before[1]


def wait_gone(world: World, link_id: int | None) -> None:
    world.wait(lambda: link_id not in bpf_ids("link"))


def attached(keeper: Keeper) -> AttachmentStatus:
    (status,) = keeper.status.attachments
    return status


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_lifecycle(world: World, quiet: Netns, row: Row) -> None:
    def traffic() -> None:
        row.happen(quiet, 5)

    def check_served(step: int, why: str = "") -> None:
        """By one version, for each packet."""
        events, steps = counted(world, traffic)
        assert steps == events * step, f"not by the new program alone: {events}, {steps}"
        assert events == 5 or (events > 5 and not row.exact), why

    if "tcx" not in row.section:  # that falls back
        skip_without_section(row.type or row.section)
    world.put("one", HOOK=f'"{row.section}"', VERDICT=row.verdict)
    write(world, quiet, row)
    with world.keeper() as keeper:
        outcome = world.reload(keeper)
        if "defrag" in row.target and any("nf_defrag" in one.message for one in outcome.failures):
            pytest.skip(outcome.failures[0].message)
        assert outcome.result is ReloadResult.OK, outcome
        first = attached(keeper)
        assert first.up
        check_served(1)
        keeper.look()
        assert attached(keeper) == first
    check_served(1, "not served without the keeper")
    with world.keeper() as keeper:
        assert world.reload(keeper).done == (), "not adopted as it was"
        assert attached(keeper) == first
        for step in (1000, 1, 1000):
            world.put("one", HOOK=f'"{row.section}"', VERDICT=row.verdict, STEP=step)
            before = attached(keeper).link_id
            assert world.reload(keeper).result is ReloadResult.OK
            if row.overlaps:  # the kernel takes a link down some time after its last pin went
                wait_gone(world, before)
            check_served(step)
            assert plan_now(world) == ()
        after = attached(keeper)
        assert after.up and after.prog_id != first.prog_id
        assert (after.link_id == first.link_id) is not row.overlaps
        world.write("objects: {one: {file: one.bpf.o, pin_maps: [counts]}}\n")
        assert world.reload(keeper).result is ReloadResult.OK
        assert counted(world, traffic) == (0, 0), "still attached"
    assert world.link_ids() == {} and not world.layout_files("attached")
    assert plan_now(world) == ()


CLSACT = Row("clsact/ingress", VETH, datagrams, -1)


def test_filters_of_two_programs_do_not_meet(world: World, quiet: Netns) -> None:
    for name in ("one", "two"):
        world.put(name, HOOK='"clsact/ingress"', VERDICT=-1, STEP=1 if name == "one" else 100)
    target = VETH.replace("HERE", quiet.here)
    world.write(
        "objects:\n"
        + "".join(
            f"  {name}: {{file: {name}.bpf.o, pin_maps: [counts],"
            f" programs: {{count: {{attach: [{target}]}}}}}}\n"
            for name in ("one", "two")
        )
    )
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        assert counted(world, lambda: quiet.send(3)) == (6, 303)
        world.put("two", HOOK='"clsact/ingress"', VERDICT=-1, STEP=1000)
        assert world.reload(keeper).result is ReloadResult.OK
        assert counted(world, lambda: quiet.send(3)) == (6, 3003)
    assert plan_now(world) == ()


def test_a_qdisc_and_filters_of_others_stay(world: World, quiet: Netns) -> None:
    tc(quiet, "qdisc", "add", "dev", "veth0", "clsact")
    other = world.build("counter", HOOK='"tc"', VERDICT=-1, MAP="foreign")
    where = ("dev", "veth0", "ingress")
    tc(quiet, "filter", "add", *where, "prio", "1", "bpf", "da", "obj", str(other), "sec", "tc")
    before = tc(quiet, "filter", "show", *where)
    world.put("one", HOOK='"clsact/ingress"', VERDICT=-1)
    write(world, quiet, CLSACT)
    with world.keeper() as keeper:
        outcome = world.reload(keeper)
        assert outcome.result is ReloadResult.OK and outcome.notes == ()
        assert counted(world, lambda: quiet.send(3)) == (3, 3)
        world.write("objects: {one: {file: one.bpf.o, pin_maps: [counts]}}\n")
        assert world.reload(keeper).result is ReloadResult.OK
    assert tc(quiet, "filter", "show", *where) == before
    assert "clsact" in tc(quiet, "qdisc", "show", "dev", "veth0")


def test_new_qdisc_is_told_of_and_stays(world: World, quiet: Netns) -> None:
    world.put("one", HOOK='"clsact/ingress"', VERDICT=-1)
    write(world, quiet, CLSACT)
    with world.keeper() as keeper:
        (note,) = world.reload(keeper).notes
        assert "has a clsact qdisc now" in note
        world.write("objects: {}\n")
        assert world.reload(keeper).result is ReloadResult.OK
    assert "clsact" in tc(quiet, "qdisc", "show", "dev", "veth0")


def test_filter_that_somebody_removed_or_replaced(world: World, quiet: Netns) -> None:
    world.put("one", HOOK='"clsact/ingress"', VERDICT=-1)
    write(world, quiet, CLSACT)
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        tc(quiet, "filter", "del", "dev", "veth0", "ingress")
        keeper.look()
        assert keeper.status.drift["attachment_missing"] == 1 and not attached(keeper).up
        assert world.reload(keeper).result is ReloadResult.OK
        assert counted(world, lambda: quiet.send(3)) == (3, 3)
        handle = tc(quiet, "filter", "show", "dev", "veth0", "ingress").split("handle ")[1].split()
        other = world.build("counter", HOOK='"tc"', VERDICT=-1, MAP="foreign")
        tc(
            quiet,
            *("filter", "replace", "dev", "veth0", "ingress", "prio", "49152"),
            *("handle", handle[0], "bpf", "da", "obj", str(other), "sec", "tc"),
        )
        keeper.look()
        assert keeper.status.drift["attachment_replaced"] == 1 and not attached(keeper).up
        assert world.reload(keeper).result is ReloadResult.OK
        assert counted(world, lambda: quiet.send(3)) == (3, 3)
    assert plan_now(world) == ()


def test_filter_that_runs_a_program_of_somebody_else_is_left(world: World, quiet: Netns) -> None:
    world.put("one", HOOK='"clsact/ingress"', VERDICT=-1)
    write(world, quiet, CLSACT)
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        handle = tc(quiet, "filter", "show", "dev", "veth0", "ingress").split("handle ")[1].split()
        other = world.build("counter", HOOK='"tc"', VERDICT=-1, MAP="foreign")
        tc(
            quiet,
            *("filter", "replace", "dev", "veth0", "ingress", "prio", "49152"),
            *("handle", handle[0], "bpf", "da", "obj", str(other), "sec", "tc"),
        )
        world.write("objects: {}\n")
        outcome = world.reload(keeper)
        assert any("runs somebody else's program: it stays" in note for note in outcome.notes)
    assert handle[0] in tc(quiet, "filter", "show", "dev", "veth0", "ingress")
    assert not world.layout_files("attached")


@pytest.mark.parametrize("section", ["clsact/ingress", "tcx/ingress"])
def test_lost_record_is_made_anew(
    world: World, quiet: Netns, monkeypatch: pytest.MonkeyPatch, section: str
) -> None:
    """Also of a filter that stands for TCX, as on every kernel before 6.6."""
    monkeypatch.setattr(kernel, "has_tcx", lambda: False)
    world.put("one", HOOK=f'"{section}"', VERDICT=-1)
    write(world, quiet, Row(section, VETH, datagrams, -1))
    assert world.apply().result is ReloadResult.OK
    (path,) = world.layout_files("attached")
    before = tc(quiet, "filter", "show", "dev", "veth0", "ingress")
    path.unlink()
    with world.keeper() as keeper:
        outcome = world.reload(keeper)
        assert outcome.done and all("restore the pin" in line for line in outcome.done)
    assert world.layout_files("attached") == [path]
    assert tc(quiet, "filter", "show", "dev", "veth0", "ingress") == before
    assert plan_now(world) == ()


def test_renamed_interface_keeps_its_filter_in_reach(world: World, quiet: Netns) -> None:
    """The record has the interface's index: what left the manifest is found under a new name."""
    world.put("one", HOOK='"clsact/ingress"', VERDICT=-1)
    write(world, quiet, CLSACT)
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        before = attached(keeper).prog_id
        rename(quiet, "veth0", "other0")
        write(world, quiet, Row("clsact/ingress", VETH.replace("veth0", "other0"), datagrams, -1))
        assert world.reload(keeper).result is ReloadResult.OK
        assert attached(keeper).prog_id == before and len(world.layout_files("attached")) == 1
        assert len(tc(quiet, "filter", "show", "dev", "other0", "ingress").split("handle ")) == 2
        rename(quiet, "other0", "last0")
        world.write("objects: {}\n")
        assert world.reload(keeper).result is ReloadResult.OK
    assert tc(quiet, "filter", "show", "dev", "last0", "ingress") == ""


def test_filter_that_changes_sides(world: World, quiet: Netns) -> None:
    """One program, one target, now egress: the ingress filter goes."""
    world.put("one", HOOK='"tc"', VERDICT=-1)
    write(world, quiet, Row("tc", VETH, datagrams, -1, type="clsact/ingress"))
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        write(world, quiet, Row("tc", VETH, datagrams, -1, type="clsact/egress"))
        assert world.reload(keeper).result is ReloadResult.OK
        assert counted(world, lambda: backwards(quiet, 3)) == (3, 3)
        assert tc(quiet, "filter", "show", "dev", "veth0", "ingress") == ""
    assert plan_now(world) == ()


def test_interface_of_a_filter_goes_and_comes_back(world: World, quiet: Netns) -> None:
    world.put("one", HOOK='"clsact/ingress"', VERDICT=-1)
    write(world, quiet, CLSACT)
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        quiet.remove()
        assert "cannot open network namespace" in refused(world.reload(keeper))
        quiet.make()
        assert world.reload(keeper).result is ReloadResult.OK
        check_soon_served(world, quiet)
        assert attached(keeper).up
        quiet.remove()
        world.write("objects: {}\n")
        assert world.reload(keeper).result is ReloadResult.OK
    assert not world.layout_files("attached")


def check_soon_served(world: World, pair: Netns) -> None:
    """Of a pair that is new: packets wait until addresses are resolved."""
    before = world.events()[0]
    pair.send(3)
    world.wait(lambda: world.events()[0] >= before + 3)


NETFILTER = Row("netfilter", "{netfilter: ipv4/local_in, priority: 10, netns: HERE}", datagrams)


def test_a_netfilter_link_does_not_keep_a_namespace_alive(world: World, quiet: Netns) -> None:
    """The kernel lets it; and the link says nothing of a namespace that has the name anew."""
    skip_without_section("netfilter")
    skip_without_section("tcx/ingress")
    world.put("one", HOOK='"netfilter"')
    world.put("two", HOOK='"tcx/ingress"', VERDICT=-1, MAP="others")
    two = f"{{interface: lo, netns: {quiet.here}}}"  # veth0 goes with its peer
    more = (
        "  two: {file: two.bpf.o, pin_maps: [others],"
        f" programs: {{count: {{attach: [{two}]}}}}}}\n"
    )
    write(world, quiet, NETFILTER, more)
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        quiet.remove()
        keeper.look()
        assert [status.up for status in keeper.status.attachments] == [False, False]
        assert 0 not in [pin.target_id for pin in world.link_pins("two")], "kept alive so far"
        assert "cannot look at network namespace" in refused(world.reload(keeper))
        assert not world.link_pins("one")
        world.wait(lambda: [pin.target_id for pin in world.link_pins("two")] == [0])
        quiet.make()
        assert world.reload(keeper).result is ReloadResult.OK
        check_soon_served(world, quiet)
        quiet.remove()
        quiet.make()  # both at once: the same name, the same inode or not
        assert world.reload(keeper).result is ReloadResult.OK
        check_soon_served(world, quiet)
        world.wait(lambda: 0 not in [pin.target_id for pin in world.link_pins("two")])
    assert plan_now(world) == ()


def test_a_namespace_without_its_name_is_not_the_one_with_it(world: World, quiet: Netns) -> None:
    """A process keeps the former namespace alive, where an interface has the same index."""
    world.put("one", HOOK='"tcx/ingress"', VERDICT=-1)
    write(world, quiet, Row("tcx/ingress", VETH, datagrams, -1))
    with world.keeper() as keeper, ExitStack() as stack:
        assert world.reload(keeper).result is ReloadResult.OK
        stays = open(kernel.netns_path(quiet.here))  # noqa: SIM115
        stack.callback(stays.close)
        quiet.remove()
        quiet.make()
        assert world.reload(keeper).result is ReloadResult.OK
        check_soon_served(world, quiet)
    assert plan_now(world) == ()


def test_priority_that_is_taken(world: World, quiet: Netns) -> None:
    skip_without_section("netfilter")
    world.put("one", HOOK='"netfilter"')
    write(world, quiet, NETFILTER)
    with ExitStack() as stack:
        data = world.build("counter", HOOK='"netfilter"', MAP="foreign").read_bytes()
        other = stack.enter_context(kernel.open_object(data, "other"))
        other.load()
        with kernel.inside_netns(kernel.netns_path(quiet.here)):
            extra = bytes.fromhex("02000000 01000000 0a000000 00000000")
            link = kernel.link_create(other.program_fd("count"), 0, 45, 0, extra)
        with kernel.holding(link), world.keeper() as keeper:
            text = refused(world.reload(keeper))
            assert "another BPF program has priority 10, and takes it alone" in text
    with suppress(FileNotFoundError):
        assert world.apply().result is ReloadResult.OK


def test_without_tcx_a_filter_of_tc_serves(world: World, quiet: Netns) -> None:
    """Everything else of it is `test_lifecycle`'s."""
    if kernel.has_tcx():
        pytest.skip("this kernel has TCX")
    world.put("one", HOOK='"tcx/ingress"', VERDICT=-1)
    write(world, quiet, Row("tcx/ingress", VETH[:-1] + ', before: "*"}', datagrams, -1))
    with world.keeper() as keeper:
        notes = world.reload(keeper).notes
        assert any("this kernel lacks TCX, and filters have no order" in note for note in notes)
        assert counted(world, lambda: quiet.send(3)) == (3, 3) and attached(keeper).up
        assert "direct-action" in tc(quiet, "filter", "show", "dev", "veth0", "ingress")
        world.write("objects: {}\n")
        assert world.reload(keeper).result is ReloadResult.OK
    assert tc(quiet, "filter", "show", "dev", "veth0", "ingress") == ""


@pytest.mark.parametrize("side", ["primary", "peer"])
def test_netkit(world: World, quiet: Netns, side: str) -> None:
    """A pair of netkit devices, of which the primary one is here and its peer there."""
    skip_without_section(f"netkit/{side}")
    for name in (quiet.here, quiet.there):
        with quiet.inside(name):
            Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
    ip("-n", quiet.here, "link", "add", "first0", "type", "netkit")
    with quiet.inside(quiet.here):
        (peer,) = {name for _, name in socket.if_nameindex()} - {"lo", "veth0", "first0"}
    ip("-n", quiet.here, "link", "set", peer, "netns", quiet.there, "name", "second0")
    places = ((quiet.here, "first0", "10.78.0.1"), (quiet.there, "second0", "10.78.0.2"))
    for netns, name, address in places:
        ip("-n", netns, "address", "add", f"{address}/24", "dev", name)
        ip("-n", netns, "link", "set", name, "up")
    source, address = (quiet.here, "10.78.0.2") if side == "primary" else (quiet.there, "10.78.0.1")

    def traffic() -> None:
        with quiet.inside(source), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(5):
                sender.sendto(b"x", (address, 9))

    world.put("one", HOOK=f'"netkit/{side}"', VERDICT=-1)
    row = Row(f"netkit/{side}", "{interface: first0, netns: HERE}", datagrams, -1)
    write(world, quiet, row)
    with world.keeper() as keeper:
        outcome = world.reload(keeper)
        assert outcome.result is ReloadResult.OK, outcome
        first = attached(keeper)
        assert counted(world, traffic) == (5, 5)
    with world.keeper() as keeper:
        assert world.reload(keeper).done == ()
        world.put("one", HOOK=f'"netkit/{side}"', VERDICT=-1, STEP=1000)
        assert world.reload(keeper).result is ReloadResult.OK
        assert counted(world, traffic) == (5, 5000)
        assert attached(keeper).link_id == first.link_id
        world.write("objects: {one: {file: one.bpf.o, pin_maps: [counts]}}\n")
        assert world.reload(keeper).result is ReloadResult.OK
        assert counted(world, traffic) == (0, 0)


def test_second_flow_dissector(world: World, quiet: Netns) -> None:
    """Of one namespace under two names, which only the kernel tells to be the same."""
    for name in ("one", "two"):
        world.put(name, HOOK='"flow_dissector"', VERDICT=0)
    world.write(
        "objects:\n"
        + "".join(
            f"  {name}: {{file: {name}.bpf.o, pin_maps: [counts],"
            f" programs: {{count: {{attach: [{{netns: {netns}}}]}}}}}}\n"
            for name, netns in (("one", quiet.here), ("two", f"/run/netns/{quiet.here}"))
        )
    )
    with world.keeper() as keeper:
        assert "takes one flow dissector" in refused(world.reload(keeper))


def test_unload_takes_filters_down(world: World, quiet: Netns) -> None:
    world.put("one", HOOK='"clsact/ingress"', VERDICT=-1)
    write(world, quiet, CLSACT)
    assert world.apply().result is ReloadResult.OK
    assert any("detached one/count" in line for line in world.unload())
    assert tc(quiet, "filter", "show", "dev", "veth0", "ingress") == ""
    assert not (world.pins / "bpfkeeperd").exists()


def test_a_netfilter_link_that_somebody_detached(world: World, quiet: Netns) -> None:
    """The kernel does not tell, so nothing is noticed: a forced reload attaches again."""
    skip_without_section("netfilter")
    world.put("one", HOOK='"netfilter"')
    row = Row("netfilter", "{netfilter: ipv4/local_in, priority: 10, netns: HERE}", datagrams)
    write(world, quiet, row)
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        (path,) = world.link_ids()
        detach_link(Path(world.layout.links) / path)
        assert counted(world, lambda: quiet.send(3)) == (0, 0)
        assert world.reload(keeper, force=True).result is ReloadResult.OK
        assert counted(world, lambda: quiet.send(3)) == (3, 3)


def test_a_netfilter_priority_is_free_at_once(world: World, quiet: Netns) -> None:
    """Reload upon reload: the kernel takes a link down some time after its pin goes."""
    skip_without_section("netfilter")
    world.put("one", HOOK='"netfilter"')
    write(world, quiet, NETFILTER)
    with world.keeper() as keeper:
        for _ in range(5):
            write(world, quiet, NETFILTER)
            for _ in range(4):
                outcome = world.reload(keeper, force=True)
                assert outcome.result is ReloadResult.OK, outcome
            assert len(world.link_pins("one")) == 1
            before = world.events()[0]
            quiet.send(3)
            assert world.events()[0] == before + 3
            world.write("objects: {one: {file: one.bpf.o, pin_maps: [counts]}}\n")
            assert world.reload(keeper).result is ReloadResult.OK
            assert not world.link_pins("one")
