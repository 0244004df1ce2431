"""The daemon's life: start, reloads, stop, and the next start (A5, E)."""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from bpfkeeperd.control import control_path
from bpfkeeperd.daemon import REQUEST_SECONDS
from bpfkeeperd.steps import FAILPOINT_VARIABLE
from tests.machine import inside_cgroup, send_datagrams
from tests.scenario import World
from tests.system.conftest import Start
from tests.system.process import METRICS, NO_METRICS, DaemonProcess, cli


def prepare(world: World, extra: str = NO_METRICS) -> None:
    """One object, attached to the world's cgroup."""
    world.put("one", STEP=1)
    world.write_counter("one", extra=extra)


def check_served(world: World, packets: int = 3, step: int = 1) -> None:
    before = world.events()
    with inside_cgroup(world.cgroup):
        send_datagrams(packets)
    assert world.events() == (before[0] + packets, before[1] + packets * step)


def test_ready_means_pinned_and_attached(world: World, start: Start) -> None:
    prepare(world)
    daemon = start(ready=False)
    status = daemon.wait_ready()
    check_served(world)
    assert world.map_id() and len(world.link_ids()) == 1
    assert re.fullmatch(r"applied in \d+ ms: 3 actions, 0 maps kept", status)
    (first, *_) = daemon.notifications.having("READY")
    assert set(first) == {"READY", "STATUS"}
    daemon.wait_log("attach one/count at cgroup_skb/egress")


def test_ready_is_not_said_before_the_first_load(world: World, start: Start) -> None:
    """A daemon that dies just before its last step has said nothing yet."""
    prepare(world)
    daemon = start(ready=False, variables={FAILPOINT_VARIABLE: "write_state"})
    assert daemon.wait_exit() == -signal.SIGKILL
    assert daemon.notifications.having("READY") == []


def test_sighup_loads_a_changed_object_on_the_same_map(world: World, start: Start) -> None:
    prepare(world)
    daemon = start()
    check_served(world)
    map_id, ((path, (link_id, program_id)),) = world.map_id(), world.link_ids().items()

    world.put("one", STEP=100)
    before = time.monotonic_ns() // 1000
    status = daemon.hup()

    assert status.startswith("applied in ") and status.endswith(": 2 actions, 1 map kept")
    check_served(world, step=100)
    assert world.map_id() == map_id
    assert world.link_ids()[path][0] == link_id
    assert world.link_ids()[path][1] != program_id
    (reloading,) = daemon.notifications.having("RELOADING")
    assert before <= int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    told = [
        message for message in daemon.notifications.all if {"READY", "RELOADING"} & set(message)
    ]
    assert ["RELOADING" in message for message in told] == [False, True, False]


def test_a_thousand_sighups_collapse(world: World, start: Start) -> None:
    prepare(world)
    daemon = start()
    world.build("counter", STEP=7)  # so that it is at hand
    before = world.link_ids()
    for number in range(1000):
        if number == 999:
            world.put("one", STEP=7)  # only the last one can find it
        daemon.signal(signal.SIGHUP)
    world.wait(lambda: world.link_ids() != before)
    told = daemon.notifications.having
    world.wait(lambda: len(told("READY")) == 1 + len(told("RELOADING")))
    assert 1 <= len(told("RELOADING")) < 200
    check_served(world, step=7)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_leaves_everything_and_the_next_start_adopts_it(
    world: World, start: Start, number: signal.Signals
) -> None:
    prepare(world)
    daemon = start()
    check_served(world)
    before = world.everything()

    daemon.signal(number)
    assert daemon.wait_exit() == 0
    (stopping,) = daemon.notifications.having("STOPPING")
    assert "programs stay attached, maps stay pinned" in stopping["STATUS"]
    assert world.everything() == before
    assert not os.path.lexists(socket_path(world))
    check_served(world)

    before = world.everything()
    daemon = start()
    assert "nothing done, 1 map kept" in daemon.notifications.having("READY")[0]["STATUS"]
    assert world.everything() == before, "loaded or attached anew"
    check_served(world)


def test_stop_in_the_middle_of_reloads(world: World, start: Start) -> None:
    prepare(world)
    daemon = start()
    world.put("one", STEP=2)
    for _ in range(100):
        daemon.signal(signal.SIGHUP)
    assert daemon.stop() == 0
    assert world.map_id()
    before = world.events()[0]
    with inside_cgroup(world.cgroup):
        send_datagrams(3)
    assert world.events()[0] == before + 3
    assert not os.path.isdir(world.layout.staging)


def pings(daemon: DaemonProcess) -> int:
    """WATCHDOG=1 by itself, not along with a request for patience."""
    return sum(message == {"WATCHDOG": "1"} for message in daemon.notifications.all)


def test_watchdog_is_fed(world: World, start: Start) -> None:
    prepare(world)
    daemon = start(variables={"WATCHDOG_USEC": "400000"})
    began = time.monotonic()
    world.wait(lambda: pings(daemon) >= 6)  # each 200 ms, and one for each thing that was done
    seconds = time.monotonic() - began
    assert seconds < 5
    assert pings(daemon) <= 5 + seconds * 5


@pytest.mark.parametrize("variables", [{}, {"WATCHDOG_USEC": "200000", "WATCHDOG_PID": "1"}])
def test_no_watchdog_no_pings(world: World, start: Start, variables: dict[str, str]) -> None:
    prepare(world)
    daemon = start(variables=variables)
    time.sleep(0.5)
    assert pings(daemon) == 0


def _refused(world: World) -> None:
    world.put("one", REFUSED=1)


def _mismatch(world: World) -> None:
    world.put("one", ENTRIES=32)


def _missing(world: World) -> None:
    (world.directory / "one.bpf.o").unlink()


def _garbage(world: World) -> None:
    (world.directory / "one.bpf.o").write_bytes(b"#!/bin/sh\n")


def _half_written(world: World) -> None:
    path = world.directory / "one.bpf.o"
    path.write_bytes(path.read_bytes()[:700])


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (
            _refused,
            (
                "FAILED: object one: the verifier refuses program count: ",
                "R0 invalid mem access 'map_value_or_null'",
            ),
        ),
        (
            _mismatch,
            (
                "NOT DONE: object one: held back by map counts",
                "NOT DONE: map counts: the pinned map (ID ",
                "max_entries is 16, wanted is 32",
            ),
        ),
        (_missing, ("NOT DONE: object one: ", "one.bpf.o", "No such file or directory")),
        (_garbage, ("NOT DONE: object one: ", "one.bpf.o", "this is no ELF file")),
        (_half_written, ("NOT DONE: object one: ", "it is cut short or half written")),
    ],
)
def test_reload_that_fails_says_so_everywhere_and_heals(
    world: World, start: Start, spoil: Callable[[World], None], told: tuple[str, ...]
) -> None:
    prepare(world, METRICS)
    daemon = start()
    assert daemon.metrics()['bpfkeeper_reloads_total{result="ok"}'] == 1
    before = world.everything()

    spoil(world)
    done = daemon.reload()

    assert done.returncode == 1 and not done.stderr
    for text in told:
        assert text in done.stdout
        daemon.wait_log(text.removeprefix("FAILED: ").removeprefix("NOT DONE: "))
    assert "applied in part" in done.stdout.splitlines()[-1]
    assert "applied in part" in daemon.notifications.having("READY")[-1]["STATUS"]
    assert daemon.metrics()['bpfkeeper_reloads_total{result="failed"}'] == 1
    assert world.everything() == before
    check_served(world)

    world.put("one", STEP=5)
    done = daemon.reload()
    assert done.returncode == 0 and "swap the program of one/count" in done.stdout
    assert daemon.metrics()['bpfkeeper_reloads_total{result="ok"}'] == 2
    check_served(world, step=5)


def test_verbose_reload_shows_the_whole_verifier_log(world: World, start: Start) -> None:
    prepare(world)
    daemon = start()
    world.put("one", REFUSED=1)
    short, long = daemon.reload(), daemon.reload("--verbose")
    assert "processed " not in short.stdout
    assert re.search(r"processed \d+ insns", long.stdout)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("objects: {one: {fil: one.bpf.o}}\n", "did you mean"),
        ("objects: {one: {file: one.bpf.o, programs: {cuont: {}}}}\n", "did you mean count?"),
        ("objects: {one: {file: ", "bpfkeeperd.yaml:4:23: "),
    ],
)
def test_rejected_manifest_leaves_the_running_one(
    world: World, start: Start, text: str, told: str
) -> None:
    prepare(world, METRICS)
    daemon = start()
    before = world.everything()

    world.write(f"{NO_METRICS}\n{text}")
    done = daemon.reload()

    assert done.returncode == 1
    assert re.search(r"FAILED: \S+/bpfkeeperd\.yaml:\d+:\d+: ", done.stdout)
    assert told in done.stdout
    daemon.wait_log(told)
    assert daemon.alive() and world.everything() == before
    status = daemon.notifications.having("READY")[-1]["STATUS"]
    assert re.fullmatch(
        r"reload rejected: \S+/bpfkeeperd\.yaml:\d+:\d+: .+; still keeping 1 map, 1 attachment of"
        r" the manifest of \d{4}-\d\d-\d\d \d\d:\d\d",
        status,
    )
    assert daemon.metrics()['bpfkeeper_reloads_total{result="rejected"}'] == 1
    check_served(world)

    world.write_counter("one", extra=METRICS)
    assert daemon.reload().returncode == 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "cannot read manifest"),
        ("version: 1\npin_root: PINS/below\n", "it cannot change while the keeper runs"),
    ],
)
def test_a_manifest_that_cannot_take_the_former_ones_place_is_rejected(
    world: World, start: Start, text: str | None, told: str
) -> None:
    prepare(world)
    daemon = start()
    before, good = world.everything(), world.manifest_file.read_text()
    world.manifest_file.unlink()
    if text is not None:
        world.manifest_file.write_text(text.replace("PINS", str(world.pins)))
    done = daemon.reload()
    assert done.returncode == 1 and told in done.stdout
    assert "rejected" in daemon.notifications.having("READY")[-1]["STATUS"]
    assert daemon.alive() and world.everything() == before
    world.manifest_file.write_text(good)
    assert daemon.reload().returncode == 0


def test_reload_with_nothing_to_do(world: World, start: Start) -> None:
    prepare(world)
    daemon = start()
    before = world.everything()
    done = daemon.reload()
    assert done.returncode == 0
    assert "nothing done, 1 map kept" in done.stdout
    assert world.everything() == before
    forced = daemon.reload("--force")
    assert forced.returncode == 0 and "swap the program of one/count" in forced.stdout
    assert world.everything() != before


def test_reload_without_a_daemon(world: World) -> None:
    prepare(world)
    done = cli(world, "reload", "--wait")
    assert done.returncode == 1
    assert "no daemon runs for this manifest: start it, or use `bpfkeeperd apply`" in done.stderr


def test_reload_after_a_daemon_was_killed(world: World, start: Start) -> None:
    """Its socket is left behind: nobody listens there, and the next daemon takes the place."""
    prepare(world)
    start().kill()
    assert os.path.lexists(socket_path(world))
    assert "no daemon runs for this manifest" in cli(world, "reload", "--wait").stderr
    assert start().reload().returncode == 0


def test_quiet_reload_tells_by_its_exit_code_alone(world: World, start: Start) -> None:
    """As the unit's ExecReload: the daemon has written the journal already."""
    prepare(world)
    daemon = start()
    for macro, code in (("STEP", 0), ("REFUSED", 1)):
        world.put("one", "counter", **{macro: 2})
        done = daemon.reload("--quiet")
        assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_second_daemon_on_the_same_pin_root(world: World, start: Start) -> None:
    prepare(world)
    first = start()
    second = start(ready=False)
    assert second.wait_exit() == 1
    assert f"another keeper holds the pin root {world.pins}" in second.log
    assert not second.notifications.having("READY")
    assert first.reload().returncode == 0, "the second one took the first one's socket"
    check_served(world)


@pytest.mark.parametrize(
    ("manifest", "mistake"),
    [
        ("objects: {one: {fil: one.bpf.o}}\n", "fil"),
        ("objects:\n  one: {file: one.bpf.o, programs: {cuont: {}}}\n", "cuont"),
    ],
)
def test_wrong_manifest_at_start(world: World, start: Start, manifest: str, mistake: str) -> None:
    world.put("one")
    world.write(manifest)
    daemon = start(ready=False)
    assert daemon.wait_exit() == 78
    assert re.search(rf"{re.escape(str(world.manifest_file))}:[34]:\d+: .*{mistake}", daemon.log)
    assert "did you mean" in daemon.log and "Traceback" not in daemon.log
    assert not daemon.notifications.having("READY")


def test_no_bpffs_at_start(world: World, start: Start) -> None:
    prepare(world)
    subprocess.run(["umount", str(world.pins)], check=True)
    daemon = start(ready=False)
    assert daemon.wait_exit() == 1
    assert f"mount -t bpf bpf {world.pins}" in daemon.log and "Traceback" not in daemon.log


def socket_path(world: World) -> str:
    return control_path(str(world.directory / "run"), str(world.manifest_file))


@contextmanager
def client(world: World, *messages: bytes) -> Iterator[socket.socket]:
    """A client of the control socket that says something, or nothing."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connected:
        directory = os.open(world.directory / "run", os.O_PATH)
        try:
            name = os.path.basename(socket_path(world))
            connected.connect(f"/proc/self/fd/{directory}/{name}")
        finally:
            os.close(directory)
        for message in messages:
            connected.send(message)
        yield connected


def test_control_socket_is_for_its_user_alone(world: World, start: Start) -> None:
    prepare(world)
    start()
    status = os.stat(socket_path(world))
    assert stat.S_ISSOCK(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o600


def test_clients_that_say_nothing_or_nonsense(world: World, start: Start) -> None:
    prepare(world)
    daemon = start()
    nonsense = (
        b"\0\xff\xfe", b"{", b"[]", b"null", b'"reload"', b"{}", b'{"command": "stop"}',
        b'{"command": ["reload"], "wait": true}', b"[" * 4000, b"x" * 100_000,
    )  # fmt: skip
    with ExitStack() as stack:
        for _ in range(30):
            stack.enter_context(client(world))
        for message in nonsense:
            told = stack.enter_context(client(world, message))
            told.settimeout(5)
            assert told.recv(100) == b"", f"an answer to {message[:40]!r}"
        with client(world, b'{"command": "reload", "wait": true}'):
            pass  # and goes away before the answer
        began = time.monotonic()
        assert daemon.reload().returncode == 0
        assert time.monotonic() - began < REQUEST_SECONDS, "it waited for who says nothing"
    assert "Traceback" not in daemon.log
    check_served(world)


def test_silent_clients_are_sent_away(world: World, start: Start) -> None:
    prepare(world)
    daemon = start()
    before = daemon.descriptors()
    with ExitStack() as stack:
        silent = [stack.enter_context(client(world)) for _ in range(20)]
        silent[-1].settimeout(12)
        assert silent[-1].recv(100) == b""
        deadline = time.monotonic() + 10
        while daemon.descriptors() > before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert daemon.descriptors() <= before


def test_idle_daemon_costs_next_to_nothing(world: World, start: Start) -> None:
    prepare(world, METRICS)
    daemon = start()
    daemon.metrics()
    daemon.wait_idle()
    ticks, wakeups = daemon.cpu_ticks(), daemon.wakeups()
    time.sleep(3)
    assert daemon.cpu_ticks() - ticks <= 1
    assert daemon.wakeups() == wakeups
    assert daemon.rss_bytes() < 45 << 20


def kernel_objects(world: World, map_id: int) -> dict[str, int]:
    """How many programs use the map, and how many links those have, on the whole machine."""

    def listed(kind: str) -> list[dict[str, Any]]:
        command = ["bpftool", "-j", kind, "list"]
        return list(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))

    programs = {program["id"] for program in listed("prog") if map_id in program.get("map_ids", [])}
    links = [link for link in listed("link") if link.get("prog_id") in programs]
    maps = [found for found in listed("map") if found.get("name") == "leakless"]
    return {"programs": len(programs), "links": len(links), "maps": len(maps)}


def settled(world: World, daemon: DaemonProcess) -> dict[str, int]:
    """Everything a daemon could leak, when the kernel has freed what it can."""
    map_id = world.map_id("leakless")
    assert map_id
    deadline = time.monotonic() + 5
    while True:
        counts = kernel_objects(world, map_id)
        if counts == {"programs": 1, "links": 1, "maps": 1} or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    return {**counts, "descriptors": daemon.descriptors(), "threads": daemon.threads()}


def test_reloads_leak_nothing(world: World, start: Start) -> None:
    variants = [world.build("counter", MAP="leakless", STEP=step) for step in (1, 2)]
    extra = f"maps: {{leakless: {{on_mismatch: fail}}}}\n{METRICS}"
    target = world.directory / "one.bpf.o"

    def exchange(number: int) -> None:
        staged = Path(f"{target}.new")
        staged.write_bytes(variants[number % 2].read_bytes())
        staged.rename(target)

    exchange(0)
    world.write(
        "objects:\n  one: {file: one.bpf.o, pin_maps: [leakless],\n"
        f"        programs: {{count: {{attach: [{{cgroup: CGROUP}}]}}}}}}\n{extra}\n"
    )
    daemon = start()
    daemon.wait_idle()
    for number in range(1, 201):
        exchange(number)
        assert ": 2 actions, 1 map kept" in daemon.hup()
        if number == 20:
            early, early_rss = settled(world, daemon), daemon.rss_bytes()
    assert settled(world, daemon) == early
    assert (early["programs"], early["links"], early["maps"]) == (1, 1, 1)
    assert daemon.rss_bytes() - early_rss < 2 << 20
