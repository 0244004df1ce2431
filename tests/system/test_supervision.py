"""What the service manager is told while the daemon works, hangs, dies, or is out of something."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

from bpfkeeperd.notify import LOAD_SECONDS
from bpfkeeperd.steps import FAILPOINT_VARIABLE
from tests.scenario import World
from tests.system.conftest import Start
from tests.system.process import METRICS, NO_METRICS, ROOT, DaemonProcess, cli, environment

WATCHDOG_USEC = 60_000_000


def prepare(world: World, extra: str = NO_METRICS) -> None:
    world.put("one")
    world.write_counter("one", extra=extra)


def said(daemon: DaemonProcess, count: int, *variables: str) -> list[list[str]]:
    """The first messages that set one of these, each with what it sets."""
    found = [message for message in daemon.notifications.all if set(variables) & set(message)]
    return [sorted(message) for message in found[:count]]


def test_the_watchdog_is_widened_while_objects_are_loaded(world: World, start: Start) -> None:
    """And no longer: a hang is found as soon as the unit has it."""
    prepare(world)
    daemon = start(variables={"WATCHDOG_USEC": str(WATCHDOG_USEC)})
    daemon.notifications.wait("WATCHDOG_USEC", 2, daemon.alive)
    wider = ["EXTEND_TIMEOUT_USEC", "WATCHDOG", "WATCHDOG_USEC"]
    narrow = ["WATCHDOG", "WATCHDOG_USEC"]
    assert said(daemon, 3, "READY", "WATCHDOG_USEC") == [wider, ["READY", "STATUS"], narrow]
    usec = [message["WATCHDOG_USEC"] for message in daemon.notifications.having("WATCHDOG_USEC")]
    assert usec == [str(LOAD_SECONDS * 1_000_000), str(WATCHDOG_USEC)]
    daemon.hup()  # nothing is loaded
    assert len(daemon.notifications.having("WATCHDOG_USEC")) == 2
    world.put("one", STEP=2)
    daemon.hup()
    daemon.notifications.wait("WATCHDOG_USEC", 4, daemon.alive)
    usec = [message["WATCHDOG_USEC"] for message in daemon.notifications.having("WATCHDOG_USEC")]
    assert usec[2:] == [str(LOAD_SECONDS * 1_000_000), str(WATCHDOG_USEC)]


def test_an_expired_watchdog_leaves_a_traceback(world: World, start: Start) -> None:
    prepare(world)
    daemon = start()
    daemon.signal(signal.SIGABRT)
    assert daemon.wait_exit() == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in daemon.log
    assert re.search(r'/daemon\.py", line \d+ in run\n', daemon.log)
    before = world.everything()
    start()
    assert world.everything() == before


def test_the_status_after_a_failure(world: World, start: Start) -> None:
    prepare(world)
    daemon = start()
    world.put("one", REFUSED=1)
    assert daemon.reload("--quiet").returncode == 1
    status = daemon.notifications.having("READY")[-1]["STATUS"]
    assert "1 problem: object one: " in status
    assert "; keeping 1 map, 1 attachment of the manifest of " in status
    world.manifest_file.write_text(f"\x1b[31m{'x' * 4000}\n- ]: \x07\n")
    assert daemon.reload("--quiet").returncode == 1
    status = daemon.notifications.having("READY")[-1]["STATUS"]
    assert status.startswith("reload rejected: ") and status.isprintable() and len(status) <= 400
    assert "; still keeping 1 map, 1 attachment" in status
    prepare(world)
    assert daemon.reload("--quiet").returncode == 0
    assert daemon.notifications.having("READY")[-1]["STATUS"].startswith("applied in ")


def test_a_daemon_that_dies_while_somebody_waits(world: World, start: Start) -> None:
    prepare(world)
    daemon = start(variables={FAILPOINT_VARIABLE: "swap:1"})
    world.put("one", STEP=2)
    done = daemon.reload("--quiet")
    assert done.returncode == 1
    assert "the daemon ended before the reload was over: what came of it is in its" in done.stderr
    assert daemon.wait_exit() == -signal.SIGKILL


def test_a_daemon_that_is_stopped_while_somebody_waits(world: World, start: Start) -> None:
    """It does what it was asked before, or hangs up; it is never waited for in vain."""
    prepare(world)
    daemon = start()
    daemon.signal(signal.SIGSTOP)
    command = [sys.executable, "-m", "bpfkeeperd", "reload", "-c", str(world.manifest_file)]
    with subprocess.Popen(
        [*command, "--wait"], cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True
    ) as waiting:
        time.sleep(0.5)
        daemon.signal(signal.SIGTERM)
        daemon.signal(signal.SIGCONT)
        assert daemon.wait_exit() == 0
        _, error = waiting.communicate(timeout=30)
    assert waiting.returncode == 1 and "the daemon ended before the reload was over" in error


_CRASHES = """
import os, sys
from bpfkeeperd import daemon, httpserver
from bpfkeeperd.__main__ import main
daemon.LOOK_SECONDS = 0.2
turn = httpserver.MetricsServer._turn
def crash(server):
    if os.path.exists({path!r}):
        os.unlink({path!r})
        raise RuntimeError("a fault of its own")
    return turn(server)
httpserver.MetricsServer._turn = crash
sys.exit(main())
"""


def test_a_metrics_server_that_crashes_is_started_again(world: World, start: Start) -> None:
    prepare(world, METRICS)
    crash = world.directory / "crash"
    daemon = start(code=_CRASHES.format(path=str(crash)))
    assert daemon.metrics()['bpfkeeper_reloads_total{result="ok"}'] == 1
    crash.touch()
    with suppress(OSError):
        urllib.request.urlopen(daemon.metrics_url, timeout=1).close()
    daemon.wait_log("the metrics server ended by a fault of its own: it is started again")
    daemon.wait_log("metrics are served at ", 2)
    assert daemon.metrics()['bpfkeeper_reloads_total{result="ok"}'] == 1
    assert cli(world, "status").returncode == 0


def test_without_a_descriptor_the_service_manager_still_hears(world: World, start: Start) -> None:
    """No reload can be done then, and that is what it hears."""
    prepare(world)
    daemon = start()
    limit = len(os.listdir(f"/proc/{daemon.pid}/fd"))
    subprocess.run(["prlimit", f"--nofile={limit}:", "--pid", str(daemon.pid)], check=True)
    status = daemon.hup()
    assert "Too many open files" in status, status
    subprocess.run(["prlimit", "--nofile=4096:", "--pid", str(daemon.pid)], check=True)
    assert daemon.hup().startswith("applied in ")
    assert Path(f"/proc/{daemon.pid}").exists()
