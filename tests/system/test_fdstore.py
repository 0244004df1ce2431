"""What the service manager keeps while no daemon runs comes back with the next one: same IDs, same
contents, programs that serve throughout."""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.fdstore import NAMES_MAX, StoredKind, store_name
from tests.machine import Netns, inside_cgroup, send_datagrams
from tests.scenario import World
from tests.system.conftest import Start
from tests.system.process import NO_METRICS, DaemonProcess, cli
from tests.system.store import Store, store_of
from tests.system.test_privileges import THREE, root_with

MAPS = 1000


@pytest.fixture
def store() -> Iterator[Store]:
    with store_of() as made:
        yield made


def prepare(world: World) -> None:
    world.put("one")
    world.write_counter("one", extra=NO_METRICS)


def own_maps(world: World, *names: str, extra: str = "") -> None:
    """A manifest of maps alone."""
    lines = ["maps:"]
    kind = "{type: hash, key_size: 4, value_size: 8, max_entries: 4}"
    lines += [f"  {json.dumps(name)}: {kind}" for name in names]
    world.write("\n".join([NO_METRICS, *lines, extra, ""]))


def fd_name(world: World, name: str = "counts") -> str:
    return store_name(StoredKind.MAP, str(world.pins), name)


def counted(world: World, packets: int = 3) -> int:
    before = world.events()[0]
    with inside_cgroup(world.cgroup):
        send_datagrams(packets)
    return world.events()[0] - before


def send(world: World, packets: int = 3) -> None:
    with inside_cgroup(world.cgroup):
        send_datagrams(packets)


def remove_pins(world: World) -> None:
    for path in world.pins.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif not path.name.endswith("debug"):
            path.unlink()


def remount(world: World) -> None:
    """No descriptor holds the former bpffs: all of its pins are gone with it."""
    subprocess.run(["umount", "-l", str(world.pins)], check=True)
    subprocess.run(["mount", "-t", "bpf", "bpf", str(world.pins)], check=True)


def told(daemon: DaemonProcess) -> list[tuple[str, str]]:
    """What the service manager was told of its store: verb and name."""
    return [
        ("FDSTORE" if "FDSTORE" in message else "FDSTOREREMOVE", message["FDNAME"])
        for message in daemon.notifications.having("FDNAME")
    ]


@pytest.mark.parametrize("gone", [remove_pins, remount])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_maps_come_back(
    world: World, start: Start, store: Store, gone: object, number: signal.Signals
) -> None:
    """Link and program served all the while: the packets sent meanwhile are counted, too."""
    assert callable(gone)
    prepare(world)
    daemon = start(store=store)
    assert store.map_ids() == {"counts": [world.map_id()]}
    assert counted(world) == 3
    map_id, ((link_id, _),) = world.map_id(), world.link_ids().values()
    daemon.signal(number)
    daemon.wait_exit()
    gone(world)
    send(world)
    assert world.map_id() is None

    daemon = start(store=store)
    assert (world.map_id(), world.events()[0]) == (map_id, 6)
    assert counted(world) == 3
    assert [found for found, _ in world.link_ids().values()] == [link_id]
    assert told(daemon) == [], "the store has it all"
    daemon.wait_log(f"restore the pin of map counts (ID {map_id}, contents kept)")


def test_an_idle_daemon_says_nothing(world: World, start: Start, store: Store) -> None:
    prepare(world)
    daemon = start(store=store, look_seconds=0.1)
    names = [name for _, name in told(daemon)]
    assert len(names) == 2 and {name[0] for name in names} == {"m", "l"}
    said = len(daemon.notifications.all)
    world.put("one", STEP=2)
    daemon.hup()
    time.sleep(1)  # ten looks
    assert [name for _, name in told(daemon)] == names
    new = daemon.notifications.all[said:]
    assert sum("READY" in message or "RELOADING" in message for message in new) == 2
    assert all("FDNAME" not in message for message in new)


def test_what_left_the_manifest_leaves_the_store(world: World, start: Start, store: Store) -> None:
    own_maps(world, "stays", "goes", "comes_back")
    daemon = start(store=store)
    assert sorted(store.map_ids()) == ["comes_back", "goes", "stays"]
    own_maps(world, "stays", "comes_back")
    daemon.hup()
    assert sorted(store.map_ids()) == ["comes_back", "stays"]
    daemon.stop()
    own_maps(world, "stays")
    daemon = start(store=store)
    assert sorted(store.map_ids()) == ["stays"]
    assert told(daemon) == [("FDSTOREREMOVE", fd_name(world, "comes_back"))]


def test_a_new_map_takes_the_place_of_the_former(world: World, start: Start, store: Store) -> None:
    """The former is removed first: both would be passed on under one name."""
    prepare(world)
    daemon = start(store=store)
    former = world.map_id()
    world.put("one", ENTRIES=32)
    world.write_counter("one", extra=f"{NO_METRICS}\nmaps: {{counts: {{on_mismatch: recreate}}}}")
    daemon.hup()
    assert former != world.map_id()
    assert store.map_ids() == {"counts": [world.map_id()]}
    name = fd_name(world)
    assert [verb for verb, of in told(daemon) if of == name] == [
        *("FDSTORE", "FDSTOREREMOVE", "FDSTORE")
    ]


def test_long_names_and_directories(world: World, start: Start, store: Store) -> None:
    """All names are short, and none is another's."""
    names = ["a/b/c/d", "a-b/c/d", "n" * 255, f"{'n' * 254}m", "ü:ö", "x" * 200]
    own_maps(world, *names)
    daemon = start(store=store)
    ids = {name: world.map_id(name) for name in names}
    assert len(set(store.names)) == len(names) and {len(name) for name in store.names} == {16}
    daemon.kill()
    remount(world)
    start(store=store)
    assert {name: world.map_id(name) for name in names} == ids


def test_another_pin_root_is_another_name(world: World, start: Start, store: Store) -> None:
    """What was kept for one pin root is nobody's in another."""
    own_maps(world, "counts")
    start(store=store).kill()
    former = world.map_id()
    world.pins.joinpath("counts").unlink()
    other = world.pins / "below"
    text = world.manifest_file.read_text()
    world.manifest_file.write_text(text.replace(str(world.pins), str(other)))
    daemon = start(store=store)
    found = kernel.pinned_map(str(other / "counts"))
    assert found
    os.close(found[0])
    assert found[1].id != former and store.map_ids() == {"counts": [found[1].id]}
    daemon.wait_log(f"kept map ID {former} (counts), which the manifest does not name")


def test_garbage_is_let_go_of(world: World, start: Start, store: Store) -> None:
    """A pipe, a program, and a map under names that are, and are not, those of maps."""
    prepare(world)
    start(store=store).kill()
    map_id = world.map_id()
    reader, writer = os.pipe()
    pins = kernel.scan(world.layout.objects, 3, kernel.PinKind.PROGRAM)
    program_path = next(f"{world.layout.objects}/{'/'.join(pin.path)}" for pin in pins)
    program = kernel.pinned(program_path, kernel.PinKind.PROGRAM)
    stray = kernel.map_create(1, "stray", 4, 4, 4)
    assert program is not None
    name = fd_name(world)
    kept = kernel.pinned(str(world.pins / "counts"), kernel.PinKind.MAP)
    assert kept is not None
    store.obey({"FDSTOREREMOVE": "1", "FDNAME": name}, ())  # the map itself comes last
    for fd in (reader, os.dup(program), kept):
        store.put(name, fd)
    store.put("x", writer)
    store.put("y", program)
    store.put("m234567890123456", stray)
    daemon = start(store=store)
    assert world.map_id() == map_id and store.map_ids() == {"counts": [map_id]}
    assert len(store.names) == 2
    for what in ("something that is no map", "a program", "map ID"):
        daemon.wait_log(f"the service manager kept {what}")
    daemon.wait_log(f"the service manager kept a program, as {name!r}")  # and did not take it
    opened = daemon.open_files()
    assert not [path for path in opened if path == f"pipe:[{os.getpid()}]"]
    assert counted(world) == 3


def test_a_socket_of_no_name_stays_open(world: World, start: Start, store: Store) -> None:
    """Sockets are not the store's: they are nobody's to close."""
    own_maps(world, "counts")
    with socket.socket(socket.AF_UNIX) as other:
        daemon = start(store=store, sockets=[("other", other)])
        assert told(daemon) == [("FDSTORE", fd_name(world))]
        daemon.stop()


DIES_AFTER_REMOVING = """
import os, signal, sys
from bpfkeeperd import fdstore
remove = fdstore.FdStore._remove
fdstore.FdStore._remove = lambda *both: (remove(*both), os.kill(os.getpid(), signal.SIGKILL))
from bpfkeeperd.__main__ import main
sys.exit(main())
"""


def stored_under_another_name(world: World, start: Start, store: Store) -> int:
    """A daemon is dead, and its manifest has another name for its map; the map's ID."""
    own_maps(world, "former")
    start(store=store).kill()
    map_id = world.map_id("former")
    assert map_id
    text = world.manifest_file.read_text()
    world.manifest_file.write_text(text.replace('"former": {', '"latter": {rename_from: former, '))
    return map_id


@pytest.mark.skipif(not shutil.which("setpriv"), reason="needs setpriv (util-linux)")
def test_another_name_without_cap_sys_admin(world: World, start: Start, store: Store) -> None:
    """The stored descriptor is all there is: nobody may ask for a map by its ID."""
    map_id = stored_under_another_name(world, start, store)
    remount(world)
    start(store=store, prefix=root_with(*THREE))
    assert world.map_id("latter") == map_id and store.map_ids() == {"former": [map_id]}


def test_another_name_without_memory(world: World, start: Start, store: Store) -> None:
    """With the state file lost, the manifest alone says under which name the map was kept."""
    map_id = stored_under_another_name(world, start, store)
    remount(world)
    shutil.rmtree(world.state_directory)
    start(store=store)
    assert world.map_id("latter") == map_id and store.map_ids() == {"former": [map_id]}


def test_another_name_is_stored_before_the_former_goes(
    world: World, start: Start, store: Store
) -> None:
    """Killed right after, and its pin gone: the map is in the store all the while."""
    map_id = stored_under_another_name(world, start, store)
    daemon = start(store=store, ready=False, code=DIES_AFTER_REMOVING)
    assert daemon.wait_exit() == -signal.SIGKILL
    remount(world)
    start(store=store)
    assert world.map_id("latter") == map_id and len(store.names) == 1


@pytest.mark.parametrize(("policy", "same"), [("fail", True), ("recreate", False)])
def test_another_definition_goes_by_the_policy(
    world: World, start: Start, store: Store, policy: str, same: bool
) -> None:
    """A kept map without a pin that is not as the manifest wants it."""
    prepare(world)
    start(store=store).kill()
    kept = world.map_id()
    remount(world)
    world.put("one", ENTRIES=32)
    world.write_counter("one", extra=f"{NO_METRICS}\nmaps: {{counts: {{on_mismatch: {policy}}}}}")
    daemon = start(store=store)
    assert (world.map_id() == kept) is same
    assert store.map_ids() == {"counts": [world.map_id()]}
    daemon.wait_log(f"the pinned map (ID {kept}) differs" if same else "applied in ")


@pytest.mark.parametrize("remembered", [True, False])
def test_an_object_that_cannot_be_read_keeps_its_own(
    world: World, start: Start, store: Store, remembered: bool
) -> None:
    """Nobody knows which maps it has that it pins by itself."""
    path = world.put("one", PIN=1)
    good = path.read_bytes()
    world.write(f"{NO_METRICS}\nobjects: {{one: {{file: one.bpf.o, programs: {{count: {{}}}}}}}}\n")
    start(store=store).kill()
    map_id = world.map_id()
    remount(world)
    if not remembered:
        shutil.rmtree(world.state_directory)
    path.write_bytes(b"no object")
    daemon = start(store=store)
    assert world.map_id() is None and store.map_ids() == {"counts": [map_id]}
    path.write_bytes(good)
    assert daemon.reload().returncode == 0
    assert world.map_id() == map_id and store.map_ids() == {"counts": [map_id]}


def test_a_thousand_maps(world: World, start: Start, store: Store) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        names = [f"map{number}" for number in range(MAPS)]
        own_maps(world, *names)
        daemon = start(store=store)
        assert len(store.names) == MAPS
        ids = {name: world.map_id(name) for name in names}
        daemon.kill()
        remount(world)
        daemon = start(store=store)
        assert {name: world.map_id(name) for name in names} == ids
        assert told(daemon) == []
    finally:
        store.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_store_that_is_full(world: World, start: Start) -> None:
    own_maps(world, "one", "two", "three")
    with store_of(room=2) as store:
        daemon = start(store=store, variables={"FDSTORE": "2"})
        assert len(store.names) == 2 and store.refused == 0
        daemon.wait_log("the service manager keeps no descriptor of 1 maps and links")


def test_all_names_fit_into_one_variable() -> None:
    """The kernel would start no process with a longer one."""
    name = store_name(StoredKind.LINK, "/sys/fs/bpf", "a")
    for count, fits in ((NAMES_MAX, True), (NAMES_MAX + 1000, False)):
        names = ":".join([name] * count)
        environment = {**os.environ, "LISTEN_FDNAMES": names}
        if fits:
            subprocess.run(["/bin/true"], env=environment, check=True)
        else:
            with pytest.raises(OSError, match="Argument list too long"):
                subprocess.run(["/bin/true"], env=environment, check=True)


def test_links_at_interfaces_serve_throughout(
    world: World, start: Start, store: Store, netns: Netns
) -> None:
    """XDP: the program runs on while no daemon and no pin is there."""
    world.put("one", HOOK='"xdp"', VERDICT=2)
    attach = f"{{interface: veth0, netns: {netns.here}}}"
    world.write(
        f"{NO_METRICS}\nobjects: {{one: {{file: one.bpf.o, pin_maps: [counts],"
        f" programs: {{count: {{attach: [{attach}]}}}}}}}}\n"
    )
    start(store=store).kill()
    ((link_id, _),) = world.link_ids().values()
    assert store.link_ids() == [link_id]
    remount(world)
    netns.send(5)
    start(store=store)
    assert [found for found, _ in world.link_ids().values()] == [link_id]
    assert world.events()[0] >= 5


def test_a_link_that_is_not_wanted_ends(world: World, start: Start, store: Store) -> None:
    """Whether a daemon takes it down or finds it in the store when it starts."""
    prepare(world)
    daemon = start(store=store)
    assert len(store.link_ids()) == 1
    unattached = (
        f"{NO_METRICS}\nobjects: {{one: {{file: one.bpf.o, pin_maps: [counts],"
        " programs: {count: {}}}}\n"
    )
    world.write(unattached)
    daemon.hup()
    assert store.link_ids() == [] and counted(world) == 0
    world.write_counter("one", extra=NO_METRICS)
    daemon.hup()
    assert len(store.link_ids()) == 1 and counted(world) == 3
    daemon.kill()
    remount(world)
    world.write(unattached)
    start(store=store)
    assert store.link_ids() == [] and counted(world) == 0


def test_unload_detaches_what_the_store_holds(world: World, start: Start, store: Store) -> None:
    prepare(world)
    start(store=store).kill()
    assert counted(world) == 3 and len(store.link_ids()) == 1
    assert cli(world, "unload").returncode == 0
    assert counted(world) == 0


def test_links_of_others_are_not_stored(world: World, start: Start, store: Store) -> None:
    """Nor those that end with their last holder only: a raw tracepoint's."""
    world.put("one", HOOK='"raw_tp/sys_exit"', VERDICT=0)
    world.write(
        f"{NO_METRICS}\nobjects: {{one: {{file: one.bpf.o, pin_maps: [counts],"
        " programs: {count: {attach: auto}}}}\n"
    )
    start(store=store)
    assert len(world.link_ids()) == 1 and store.link_ids() == []


def test_without_a_service_manager_nothing_is_said(world: World, start: Start) -> None:
    prepare(world)
    daemon = start(ready=False, variables={"NOTIFY_SOCKET": ""})
    daemon.wait_log("applied in ")
    assert daemon.reload().returncode == 0
    assert daemon.stop() == 0 and daemon.notifications.all == []
