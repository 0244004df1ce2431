"""Programs on trial, as the daemon and its commands show it."""

import json
import os
import resource
import signal
import time

import pytest

from bpfkeeperd.steps import FAILPOINT_VARIABLE
from tests.scenario import World
from tests.system.conftest import Start
from tests.system.process import NO_METRICS, cli, sending
from tests.system.store import store_of

ERRORS = "still: {map: errors, key: {address: 127.0.0.1, port: 9, zero: 0}}"


def write(world: World, health: str) -> None:
    world.write(
        f"{NO_METRICS}\nobjects:\n  one:\n    file: one.bpf.o\n    pin_maps: [seen, errors]\n"
        f"    programs: {{watch: {{attach: [{{cgroup: CGROUP}}], health: {{{health}}}}}}}\n"
    )


def test_the_commands_tell_the_verdict(world: World, start: Start) -> None:
    """The daemon stays with the former version, whatever it looks at, until it is asked again."""
    world.put("one", "health")
    write(world, f"seconds: 1, moves: runs, {ERRORS}")
    with sending(world.cgroup):
        daemon = start(look_seconds=0.2)
        links = world.link_ids()
        world.put("one", "health", WRONG=1)
        plan = cli(world, "plan")
        assert "judge one/watch: within 1 s its run count must move and errors[" in plan.stdout
        done = daemon.reload()
        assert done.returncode == 1
        assert "FAILED: one/watch: errors[" in done.stdout
        assert done.stdout.splitlines()[-1].startswith("rolled back in ")
        time.sleep(0.6)  # it looks meanwhile
        assert world.link_ids() == links
        status = cli(world, "status")
        assert status.returncode == 1
        assert "rolled back, since one/watch: errors[" in status.stdout
        assert "DOWN" not in status.stdout
        world.put("one", "health", VERSION=2)
        done = daemon.reload()
        assert done.returncode == 0, done.stdout
        assert "one/watch is healthy: its run count moved from " in done.stdout
        assert cli(world, "status").returncode == 0
        assert world.link_ids() != links
    assert daemon.stop() == 0


def test_descriptors_beyond_those_of_select(world: World, start: Start) -> None:
    """A start with a program on trial, and 1,100 descriptors from the service manager."""
    world.put("one", "health")
    write(world, "seconds: 10, moves: runs")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with store_of() as store, sending(world.cgroup):
            for number in range(1100):
                store.put(f"m{number:015}", os.memfd_create("kept"))
            daemon = start(store=store)
            daemon.wait_log("one/watch is healthy")
            assert daemon.stop() == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_apply_tells_it_too(world: World) -> None:
    world.put("one", "health")
    write(world, "seconds: 1, moves: runs")
    done = cli(world, "apply")
    assert done.returncode == 1
    assert "its run count did not move within 1 s" in done.stdout
    assert world.link_ids() == {}
    found = json.loads(cli(world, "apply", "--json").stdout)
    assert found["rolled_back"] is True
    status = cli(world, "status")
    assert "object one: a new version was loaded and rolled back" in status.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_during_a_trial(world: World, start: Start, number: int) -> None:
    """At once, rolled back; the watchdog and who waits for the reload are told meanwhile."""
    world.put("one", "health")
    write(world, "seconds: 1, moves: runs")
    with sending(world.cgroup):
        daemon = start()
    links = world.link_ids()
    world.put("one", "health", VERSION=2)
    write(world, "seconds: 300, moves: {map: seen, key: 1}")
    daemon.signal(signal.SIGHUP)
    while world.link_ids() == links:  # until it is on trial
        assert daemon.alive()
        time.sleep(0.01)
    told = len(daemon.notifications.having("EXTEND_TIMEOUT_USEC"))
    daemon.notifications.wait("EXTEND_TIMEOUT_USEC", told + 2, daemon.alive)
    assert "WATCHDOG" in daemon.notifications.having("EXTEND_TIMEOUT_USEC")[-1]
    status = cli(world, "status")  # nobody is kept waiting
    assert "one/watch" in status.stdout and "up" in status.stdout
    daemon.signal(number)
    assert daemon.wait_exit() == 0
    assert "the keeper was told to stop before the health of one/watch was known" in daemon.log
    assert "the whole reload was rolled back" in daemon.log
    assert world.link_ids() == links
    assert not os.path.exists(world.layout.staging)


def test_killed_during_a_trial(world: World, start: Start) -> None:
    """The next start converges: what was on trial is what the manifest wants."""
    world.put("one", "health")
    write(world, "seconds: 1, moves: runs")
    with sending(world.cgroup):
        assert cli(world, "apply").returncode == 0
        world.put("one", "health", VERSION=2)
        daemon = start(ready=False, variables={FAILPOINT_VARIABLE: "trial"})
        assert daemon.wait_exit_or_ready() == -signal.SIGKILL
        start()
    assert cli(world, "plan", "--exit-code").stdout.splitlines()[-1] == "nothing to do"
    assert not os.path.exists(world.layout.staging)
    assert len(world.program_ids()) == 2


def test_plan_verify(world: World) -> None:
    world.put("one", "health")
    write(world, "seconds: 1, moves: runs")
    done = cli(world, "plan", "--verify")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("object one: verified: 2 programs, ")
    world.put("one", "health", REFUSED=1)
    done = cli(world, "plan", "--verify", "--exit-code")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("REFUSED: object one: the verifier refuses")
    done = cli(world, "plan", "--verify", "--verbose")
    assert "processed " in done.stdout.splitlines()[-1] or "processed " in done.stdout
    (found,) = json.loads(cli(world, "plan", "--verify", "--json").stdout)["verified"]
    assert found["object"] == "one" and "processed" in found["log"] and found["fault"]
    assert "verified" not in json.loads(cli(world, "plan", "--json").stdout)
    assert not (world.pins / "seen").exists()
