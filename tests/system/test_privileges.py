"""Life with less than all of root's rights: with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, as root or
as an ordinary user, all works but what the kernel keeps for CAP_SYS_ADMIN, and that is told."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.control import daemon_process
from bpfkeeperd.hooks import HookKind
from tests.bench.gap import quiet_pair
from tests.conftest import BuildObject, make_places, mounted_bpffs
from tests.kernel.test_trace_hooks import tracefs, victim
from tests.machine import Netns, inside_cgroup, send_datagrams, skip_without_section
from tests.scenario import World
from tests.system.everyhook import GROUPS, ROWS, Row, Scene
from tests.system.process import METRICS, NO_METRICS, ROOT, DaemonProcess, cli
from tests.system.test_every_hook import hook, own_calls, unpin, why_not_here
from tests.system.test_every_hook import write as write_hooks

__all__ = ["tracefs", "victim"]

THREE = ("bpf", "perfmon", "net_admin")
NOBODY = 65534
LACKING = "some things do not work, for want of CAP_SYS_ADMIN ("

pytestmark = pytest.mark.skipif(not shutil.which("setpriv"), reason="needs setpriv (util-linux)")


def root_with(*names: str) -> list[str]:
    """Has a program run as root with these capabilities only, for good."""
    bounding = ",".join(("-all", *(f"+{name}" for name in names)))
    return ["setpriv", f"--bounding-set={bounding}", "--inh-caps=-all"]


def user_with(*names: str) -> list[str]:
    """Likewise as an ordinary user."""
    held = ",".join(f"+{name}" for name in names)
    return [
        *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
        *(f"--inh-caps={held}", f"--ambient-caps={held}", f"--bounding-set=-all,{held}"),
    ]


@dataclass(frozen=True, slots=True)
class Place:
    world: World
    prefix: Sequence[str]

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return cli(self.world, *arguments, prefix=self.prefix)

    def daemon(self, look_seconds: float | None = None) -> DaemonProcess:
        return DaemonProcess(self.world, prefix=self.prefix, look_seconds=look_seconds)


@pytest.fixture
def as_root(world: World) -> Place:
    return Place(world, root_with(*THREE))


@pytest.fixture
def as_user(
    cgroup: Path, build_object: BuildObject, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    """Everything that the daemon writes to is this user's; the objects are root's."""
    prefix = user_with(*THREE)
    can_read = [*prefix, sys.executable, "-c", "import bpfkeeperd.kernel"]
    if subprocess.run(can_read, cwd=ROOT, capture_output=True, check=False).returncode:
        pytest.skip("an ordinary user may not read this checkout")
    with tempfile.TemporaryDirectory(prefix="bpfkeeperd-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        make_places(directory, monkeypatch)
        with mounted_bpffs(directory) as pins:
            for path in (pins, directory / "state", directory / "run"):
                os.chown(path, NOBODY, NOBODY)
                path.chmod(0o700)
            yield Place(World(directory, pins, cgroup, build_object), prefix)


@pytest.fixture(params=["as_root", "as_user"])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(request.param)
    return found


def check_served(world: World, step: int) -> None:
    before = world.events()
    with inside_cgroup(world.cgroup):
        send_datagrams(3)
    assert world.events() == (before[0] + 3, before[1] + 3 * step)


def put(place: Place, step: int) -> None:
    place.world.put("one", STEP=step).chmod(0o644)


def effective(pid: int) -> int:
    found = kernel.effective_capabilities(pid)
    assert found is not None
    return found


def test_everyday_life(place: Place) -> None:
    world = place.world
    put(place, 1)
    world.write_counter("one", extra=METRICS)
    with place.daemon() as daemon:
        daemon.wait_ready()
        assert effective(daemon.pid) == 1 << 39 | 1 << 38 | 1 << 12
        check_served(world, 1)
        map_id, ((path, (link_id, _)),) = world.map_id(), world.link_ids().items()
        put(place, 100)
        reloaded = daemon.reload()
        assert reloaded.returncode == 0, reloaded
        check_served(world, 100)
        assert (world.map_id(), world.link_ids()[path][0]) == (map_id, link_id)
        daemon.kill()
    check_served(world, 100)

    with place.daemon(look_seconds=0.3) as daemon:
        assert daemon.wait_ready().endswith("nothing done, 1 map kept")
        os.unlink(world.pins / "counts")
        shutil.rmtree(world.layout.own)
        daemon.wait_log("healed: restore the pin of map counts")
        daemon.wait_log("healed: restore the pin of program one/count")
        world.wait(lambda: bool(world.link_ids()))
        assert (world.map_id(), world.link_ids()[path][0]) == (map_id, link_id)
        check_served(world, 100)
        figures = daemon.metrics()
        assert figures['bpfkeeper_map_entries{map="counts"}'] == 1
        assert figures['bpfkeeper_map_memory_bytes{map="counts"}'] > 0
        (told,) = [line for line in daemon.log.splitlines() if LACKING in line]
        assert daemon.log.count("CAP_SYS_ADMIN") == 1 and "uprobes" in told
        status = place.cli("status")
        assert status.returncode == 0 and "all fine" in status.stdout
        assert f"a daemon keeps {world.pins} without CAP_SYS_ADMIN" in status.stdout
        dumped = place.cli("dump", "counts")
        assert dumped.returncode == 0 and "00:00:00:00" in dumped.stdout
        assert "it takes CAP_SYS_ADMIN" in dumped.stderr
        assert daemon.stop() == 0
    unloaded = place.cli("unload", "--maps")
    assert unloaded.returncode == 0, unloaded
    assert world.map_id() is None and not world.link_ids()


def may_be_attached(row: Row, *, perf_events: bool) -> bool:
    """With three capabilities."""
    kind = hook(row).kind
    if kind in (HookKind.TRACEPOINT, HookKind.KPROBE, HookKind.PERF_EVENT):
        return perf_events
    return kind is not HookKind.UPROBE


def may_open_perf_events(prefix: Sequence[str]) -> bool:
    """Debian's kernels forbid it at kernel.perf_event_paranoid=3, their default."""
    code = "from bpfkeeperd import kernel; print(kernel.may_open_perf_event())"
    command = [*prefix, sys.executable, "-c", code]
    return subprocess.check_output(command, cwd=ROOT, text=True) == "True\n"


def all_done(daemon: DaemonProcess, count: int) -> None:
    """Waits for so many reloads, which went well.

    Notifications do not reach another network namespace than that of their abstract socket.
    """
    daemon.wait_log(": applied in ", count)
    assert not problems(daemon)


def problems(daemon: DaemonProcess) -> list[str]:
    """What it could not do, besides what it says at its start."""
    lines = [line for line in daemon.log.splitlines() if "cannot" in line]
    return [line for line in lines if LACKING not in line]


def program_ids(links: dict[str, tuple[int, int]]) -> set[int]:
    """Without those behind a stub, whose link runs that; links of struct_ops have none."""
    return {
        program_id
        for path, (_, program_id) in links.items()
        if program_id and not path.startswith("sockets") and "_exact" not in path
    }


def test_every_hook_but_uprobes(world: World, tracefs: Path, victim: Path) -> None:
    """Attached, swapped, adopted after SIGKILL, and their pins restored."""
    with quiet_pair(f"keeper-three-{os.getpid()}") as pair:
        scene = Scene(world, pair, victim)
        perf_events = may_open_perf_events(root_with(*THREE))
        rows = tuple(
            row
            for row in ROWS
            if not why_not_here(row.object) and may_be_attached(row, perf_events=perf_events)
        )
        prefix = ["nsenter", f"--net=/run/netns/{pair.here}", *root_with(*THREE)]

        def write(version: int) -> None:
            write_hooks(scene, rows, version)
            text = world.manifest_file.read_text()
            world.manifest_file.write_text(text.replace(f", netns: {pair.here}", ""))

        write(1)
        with DaemonProcess(world, prefix=prefix) as daemon:
            all_done(daemon, 1)
            links = world.link_ids()
            assert len(links) > 20
            write(2)
            done = daemon.reload()
            assert done.returncode == 0, done
            all_done(daemon, 2)
            swapped = world.link_ids()
            assert links.keys() == swapped.keys()
            assert not program_ids(links) & program_ids(swapped)
            daemon.kill()
        with DaemonProcess(world, prefix=prefix, look_seconds=0.3) as daemon:
            daemon.wait_log(": applied in ")
            assert "nothing done" in daemon.log, daemon.log
            unpin(world)
            world.wait(lambda: world.link_ids() == swapped)
            world.wait(lambda: cli(world, "status", prefix=prefix).returncode == 0)
            assert not problems(daemon)
        gone = cli(world, "unload", prefix=prefix)
        assert gone.returncode == 0, gone


DEGRADED = """
objects:
  one:
    file: one.bpf.o
    pin_maps: [counts]
    programs: {count: {attach: [{cgroup: CGROUP}]}}
"""


def put_group(world: World, name: str) -> None:
    """An object of the table of hooks."""
    group = GROUPS[name]
    macros: dict[str, object] = {"VERSION": 1, "SUFFIX": group.suffix, **own_calls()}
    world.put(name, group.source, **macros, **{group.macro: 1})


def write_degraded(world: World, name: str, program: str) -> None:
    """A manifest of a program that can be attached, and one that cannot."""
    more = f"  {name}: {{file: {name}.bpf.o, programs: {{{program}}}}}"
    world.write(f"{NO_METRICS}\n{DEGRADED}{more}\n")


def test_what_is_elsewhere_is_told(as_root: Place, netns: Netns) -> None:
    """An interface in another network namespace; what can be attached is."""
    world = as_root.world
    put(as_root, 1)
    put_group(world, "interfaces")
    target = f"{{interface: veth0, netns: {netns.here}}}"
    write_degraded(world, "interfaces", f"native: {{attach: [{target}]}}")
    with as_root.daemon() as daemon:
        daemon.wait_ready()
        check_served(world, 1)
        daemon.wait_log(
            f"cannot enter network namespace /run/netns/{netns.here}: Operation not permitted"
            " (EPERM): it takes CAP_SYS_ADMIN"
        )


def test_uprobes_are_told(as_root: Place, victim: Path) -> None:
    world = as_root.world
    if kernel.may_open_perf_event("uprobe") is None:
        pytest.skip("this kernel has no uprobes")
    put(as_root, 1)
    put_group(world, "traces")
    target = f"{{binary: {victim}, symbol: victim_touch}}"
    write_degraded(world, "traces", f"entry: {{attach: [{target}]}}")
    with as_root.daemon() as daemon:
        daemon.wait_ready()
        check_served(world, 1)
        daemon.wait_log("uprobes take CAP_SYS_ADMIN; uprobe.multi takes CAP_PERFMON")


def test_runs_that_cannot_be_counted_are_told_once(as_root: Place) -> None:
    put(as_root, 1)
    as_root.world.write(f"metrics: {{listen: none, program_statistics: true}}\n{DEGRADED}")
    with as_root.daemon(look_seconds=0.1) as daemon:
        daemon.wait_ready()
        text = "runs of programs are not counted: cannot have the kernel count runs of programs"
        daemon.wait_log(f"{text}: Operation not permitted (EPERM): it takes CAP_SYS_ADMIN")
        time.sleep(0.5)
        assert daemon.log.count(text) == 1


def test_without_perfmon_maps_are_counted_from_time_to_time(world: World) -> None:
    place = Place(world, root_with("bpf", "net_admin"))
    put(place, 1)
    world.write_counter("one", extra=METRICS)
    with place.daemon() as daemon:
        daemon.wait_ready()
        check_served(world, 1)
        daemon.wait_log("map fullness is counted from time to time")
        world.wait(lambda: 'bpfkeeper_map_count_age_seconds{map="counts"}' in daemon.metrics())
        assert "CAP_PERFMON (" in daemon.log


def test_without_net_admin_programs_are_traced(world: World) -> None:
    """What is of the network is not asked for by what has nothing to do with it."""
    skip_without_section("raw_tp/sys_enter")
    place = Place(world, root_with("bpf", "perfmon"))
    world.put("one", HOOK='"raw_tp/sys_enter"', VERDICT=0)
    programs = "programs: {count: {attach: auto}}"
    world.write(
        f"{NO_METRICS}\nobjects: {{one: {{file: one.bpf.o, pin_maps: [counts], {programs}}}}}"
    )
    with place.daemon() as daemon:
        assert "problem" not in daemon.wait_ready()
        os.getppid()
        assert world.events()[0] > 0


def test_without_the_kernels_btf(world: World) -> None:
    hide = 'mount -t tmpfs none /sys/kernel/btf && exec "$@"'
    place = Place(world, ["unshare", "-m", "sh", "-c", hide, "sh"])
    put(place, 1)
    world.write_counter("one", extra=METRICS)
    with place.daemon() as daemon:
        daemon.wait_ready()
        check_served(world, 1)
        daemon.wait_log("map fullness is counted from time to time")
        put(place, 100)
        assert daemon.reload().returncode == 0
        check_served(world, 100)
    row = rows(place.cli("doctor", "--json"))["kernel BTF"]
    assert row["verdict"] == "limited" and "No such file" in row["found"]


def test_without_any_capability_the_start_says_what_it_takes(world: World) -> None:
    place = Place(world, root_with())
    put(place, 1)
    world.write_counter("one", extra=NO_METRICS)
    with place.daemon() as daemon:
        daemon.wait_log("CAP_BPF (nothing can be loaded)")
        daemon.wait_log("Operation not permitted (EPERM)")
    judged = place.cli("doctor", "--json")
    assert judged.returncode == 1 and not json.loads(judged.stdout)["fit"]
    assert rows(judged)["CAP_BPF"]["verdict"] == "missing"


def rows(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str]]:
    return {row["name"]: row for row in json.loads(done.stdout)["checks"]}


def test_doctor(place: Place) -> None:
    """With three capabilities the daemon can do its work, and does; what it lacks is told."""
    world = place.world
    put(place, 1)
    world.write_counter("one", extra=NO_METRICS)
    before = world.everything(), sorted(world.directory.rglob("*"))
    judged = place.cli("doctor", "--json")
    assert (world.everything(), sorted(world.directory.rglob("*"))) == before
    assert judged.returncode == 0, judged
    found = rows(judged)
    for name in ("manifest", "CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN", "pin root", "daemon"):
        assert found[name]["verdict"] == "ok", found[name]
    assert found["CAP_SYS_ADMIN"]["verdict"] == "limited"
    assert "uprobes" in found["CAP_SYS_ADMIN"]["without"]
    with place.daemon() as daemon:
        daemon.wait_ready()
        told = rows(place.cli("doctor", "--json"))["daemon"]
        assert told["found"].startswith(f"process {daemon.pid}, ")
        assert "CAP_SYS_ADMIN" in told["without"] and "notifies systemd" in told["found"]


def test_doctor_for_people(as_root: Place) -> None:
    put(as_root, 1)
    as_root.world.write_counter("one", extra=NO_METRICS)
    done = as_root.cli("doctor")
    assert done.returncode == 0 and "the daemon can do its work here" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80 + len(str(as_root.world.directory))


def test_doctor_as_an_ordinary_user_knows_less_and_says_nothing_wrong(as_user: Place) -> None:
    put(as_user, 1)
    as_user.world.write_counter("one", extra=NO_METRICS)
    place = Place(as_user.world, [word for word in as_user.prefix if "caps" not in word])
    judged = place.cli("doctor", "--json")
    assert judged.returncode == 1, judged
    found = rows(judged)
    for name in ("hooks", "map types", "counting"):
        assert found[name]["verdict"] in ("unknown", "missing"), found[name]
    assert found["CAP_BPF"]["verdict"] == "missing"
    assert found["pin root"]["verdict"] == "ok", "it is this user's"


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("{interface: veth0, netns: elsewhere}", "CAP_SYS_ADMIN"),
        ("{cgroup: CGROUP, take_over: true}", "CAP_SYS_ADMIN"),
    ],
)
def test_doctor_knows_what_a_manifest_needs(as_root: Place, target: str, name: str) -> None:
    world = as_root.world
    put(as_root, 1)
    of_type = "type: xdp, " if "veth0" in target else ""
    program = f"{{{of_type}attach: [{target}]}}"
    world.write(f"objects: {{one: {{file: one.bpf.o, programs: {{count: {program}}}}}}}\n")
    judged = as_root.cli("doctor", "--json")
    assert rows(judged)[name]["verdict"] == "missing" and judged.returncode == 1
    assert "one/count" in rows(judged)[name]["without"]


def test_doctor_finds_a_bpffs_that_is_read_only(as_root: Place) -> None:
    put(as_root, 1)
    as_root.world.write_counter("one", extra=NO_METRICS)
    pins = as_root.world.pins
    subprocess.run(["mount", "-o", "remount,bind,ro", str(pins)], check=True)
    try:
        judged = as_root.cli("doctor", "--json")
    finally:
        subprocess.run(["mount", "-o", "remount,bind,rw", str(pins)], check=True)
    assert judged.returncode == 1
    assert "is read-only here" in rows(judged)["pin root"]["remedy"]


def test_nobody_listens_where_no_daemon_is(world: World) -> None:
    assert daemon_process(f"{world.directory}/run/nobody.sock") is None


def test_a_pin_of_others_is_not_given_away_unasked(as_root: Place) -> None:
    """Who could open the former map could not open the new one: it is not made; that is told."""
    world = as_root.world

    def write(max_entries: int) -> None:
        form = f"{{type: hash, key: u32, value: u64, max_entries: {max_entries}"
        world.write(f"maps: {{table: {form}, on_mismatch: recreate}}}}\n")

    write(2)
    assert as_root.cli("apply").returncode == 0
    os.chown(world.pins / "table", 0, NOBODY)
    before = world.map_id("table")
    write(3)
    done = as_root.cli("apply")
    assert done.returncode == 1 and "it takes CAP_CHOWN or CAP_FOWNER" in done.stdout
    assert world.map_id("table") == before
    assert cli(world, "apply").returncode == 0
    assert world.map_id("table") != before


def test_a_state_directory_that_cannot_be_written_is_no_end(as_root: Place) -> None:
    put(as_root, 1)
    as_root.world.write_counter("one", extra=NO_METRICS)
    os.chown(as_root.world.state_directory, NOBODY, NOBODY)
    os.chmod(as_root.world.state_directory, 0o700)
    assert rows(as_root.cli("doctor", "--json"))["state directory"]["verdict"] == "limited"
    with as_root.daemon() as daemon:
        daemon.wait_ready()
        check_served(as_root.world, 1)
        daemon.wait_log("cannot write the state file")


def test_a_run_directory_that_cannot_be_written_is_the_end(as_root: Place) -> None:
    put(as_root, 1)
    as_root.world.write_counter("one", extra=NO_METRICS)
    os.chown(as_root.world.directory / "run", NOBODY, NOBODY)
    os.chmod(as_root.world.directory / "run", 0o700)
    judged = as_root.cli("doctor", "--json")
    assert judged.returncode == 1 and rows(judged)["run directory"]["verdict"] == "missing"
    with as_root.daemon() as daemon:
        assert daemon.wait_exit() == 1
        assert "cannot listen on" in daemon.log
