"""The installed service, from its first start on: whatever happens to it, the maps stay the same
and every packet is counted."""

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bpfkeeperd.service import MessageId
from tests.bench.gap import quiet_pair
from tests.conftest import BuildObject, child_cgroup
from tests.machine import Netns, events, map_id, map_value
from tests.systemd import units
from tests.systemd.install import PACKAGES, install, upgrade
from tests.systemd.traffic import Sender, sending
from tests.systemd.units import UNIT, systemctl

PINS = Path("/sys/fs/bpf")
MANIFEST = Path("/etc/bpfkeeperd/bpfkeeperd.yaml")
OBJECTS = Path("/usr/lib/bpf")
MAPS = ("sent", "arrived", "settings", "team/names")
URL = "http://127.0.0.1:9435/metrics"
TEXT = """\
version: 1
maps:
  settings:
    {type: array, key_size: 4, value_size: 8, max_entries: 4, entries: [{key: 0, value: 1500}]}
  team/names: {type: hash, key_size: 4, value_size: 8, max_entries: 4}
objects:
  sender:
    file: /usr/lib/bpf/sender.bpf.o
    pin_maps: [sent]
    programs: {count: {attach: [{cgroup: CGROUP}]}}
  receiver:
    file: /usr/lib/bpf/receiver.bpf.o
    pin_maps: [arrived]
    programs: {count: {attach: [{interface: veth0, netns: HERE}]}}
"""
MARK = b"as it was"[:8]


@dataclass(slots=True)
class Drive:
    """The service, what it serves, and what has to stay the same."""

    build: BuildObject
    pair: Netns
    cgroup: Path
    sender: Sender
    version: int = 0
    """Of the objects."""
    sent_before: int = 0
    """The start."""
    map_ids: dict[str, int] = field(default_factory=dict)
    link_ids: dict[str, int] = field(default_factory=dict)

    def put(self, version: int) -> None:
        """Objects of a version."""
        self.version = version
        OBJECTS.mkdir(exist_ok=True)
        for name, macros in (
            ("sender", {"MAP": "sent"}),
            ("receiver", {"MAP": "arrived", "HOOK": '"xdp"', "VERDICT": 2}),
        ):
            built = self.build("counter", STEP=version, **macros)
            shutil.copy(built, OBJECTS / f"{name}.new")
            os.replace(OBJECTS / f"{name}.new", OBJECTS / f"{name}.bpf.o")

    def write(self, text: str = TEXT) -> None:
        MANIFEST.write_text(
            text.replace("CGROUP", str(self.cgroup)).replace("HERE", self.pair.here)
        )

    def attachments(self) -> dict[str, int]:
        """Programs to the IDs of their links, as `status` has them."""
        done = units.run("bpfkeeperd", "status", "--json")
        found = json.loads(done.stdout)["attachments"]
        assert all(one["up"] for one in found), found
        return {f"{one['object']}/{one['program']}": one["link_id"] for one in found}

    def note(self) -> None:
        """Remembers IDs, and writes what has to stay."""
        self.map_ids = {name: map_id(PINS / name) or 0 for name in MAPS}
        self.link_ids = self.attachments()
        done = units.run(
            *("bpftool", "map", "update", "pinned", str(PINS / "team/names")),
            *("key", "hex", "07", "00", "00", "00", "value", "hex", *(f"{b:02x}" for b in MARK)),
        )
        assert done.returncode == 0, done.stderr

    def check_served(self) -> None:
        """Every packet that was sent was counted at both places."""
        with self.sender.paused() as sent_in_all:
            sent = sent_in_all - self.sent_before
            assert sent > 0
            deadline = time.monotonic() + 5
            while self.counted() != (sent, sent) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert self.counted() == (sent, sent), units.last_messages()

    def counted(self) -> tuple[int, int]:
        return events(PINS / "sent")[0], events(PINS / "arrived")[0]

    def check(self) -> None:
        """All is as it was."""
        assert {name: map_id(PINS / name) for name in MAPS} == self.map_ids, units.last_messages()
        assert map_value(PINS / "settings", bytes(4), 8) == (1500).to_bytes(8, "little")
        assert map_value(PINS / "team/names", b"\7\0\0\0", 8) == MARK
        assert self.attachments() == self.link_ids
        self.check_served()

    def restarted(self, former: int) -> bool:
        return units.is_active() and units.main_pid() not in (0, former)


@pytest.fixture(scope="module")
def drive(build_object: BuildObject, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drive]:
    install()
    systemctl("stop", UNIT)
    with quiet_pair("keeper-service") as pair, child_cgroup() as cgroup, ExitStack() as stack:
        stack.callback(take_down)
        sender = stack.enter_context(sending(pair, cgroup))
        driven = Drive(build_object, pair, cgroup, sender)
        driven.put(1)
        driven.write()
        with sender.paused() as driven.sent_before:
            start(driven)
        yield driven


def start(driven: Drive) -> None:
    """For the first time; whoever is told that it is up finds everything."""
    listing = units.put_drop_in(
        "listing", f"[Service]\nExecStartPost=/bin/sh -c 'find {PINS} > /run/bpfkeeperd/pins'\n"
    )
    since = units.cursor()
    systemctl("start", UNIT)
    there = Path("/run/bpfkeeperd/pins").read_text().splitlines()
    assert {str(PINS / name) for name in MAPS} <= set(there), "ready before all was pinned"
    assert sum("/bpfkeeperd/links/" in path for path in there) >= 2
    driven.note()
    assert units.entries(since, MESSAGE_ID=MessageId.RELOAD_OK), units.last_messages()
    units.remove_drop_in(listing)


def take_down() -> None:
    systemctl("stop", UNIT)
    done = units.run("bpfkeeperd", "unload", "--maps")
    assert done.returncode == 0, done.stderr
    MANIFEST.write_text("version: 1\n")


@pytest.fixture(autouse=True)
def as_before(drive: Drive) -> None:
    """No test is blamed for what those before it left."""
    drive.write()
    drive.put(drive.version)
    units.run("systemctl", "reset-failed", UNIT)
    systemctl("start", UNIT)


def kill(number: int) -> int:
    """Sends the daemon a signal; its process ID."""
    pid = units.main_pid()
    assert pid > 1
    os.kill(pid, number)
    return pid


def test_the_service_is_restricted_as_its_unit_says(drive: Drive) -> None:
    status = Path(f"/proc/{units.main_pid()}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Seccomp"] == "2" and fields["NoNewPrivs"] == "1"
    capabilities = {12, 21, 38, 39}  # NET_ADMIN, SYS_ADMIN, PERFMON, BPF
    assert int(fields["CapEff"], 16) == sum(1 << number for number in capabilities)
    drive.check()


def test_reload_applies_and_says_so(drive: Drive) -> None:
    since = units.cursor()
    drive.put(2)
    systemctl("reload", UNIT)
    found = units.entries(since, MESSAGE_ID=MessageId.RELOAD_OK)
    assert [entry["BPFKEEPERD_RESULT"] for entry in found] == ["ok"]
    drive.check()
    steps = events(PINS / "sent")[1]
    units.wait(lambda: events(PINS / "sent")[1] > steps, "the new version counts")


def test_sighup_reloads(drive: Drive) -> None:
    since = units.cursor()
    drive.put(3)
    systemctl("kill", "--kill-who=main", "--signal=HUP", UNIT)
    units.wait_for_entry(since, MESSAGE_ID=MessageId.RELOAD_OK)
    drive.check()


def test_a_reload_that_is_rejected_fails_and_keeps(drive: Drive) -> None:
    since, pid = units.cursor(), units.main_pid()
    drive.write(TEXT.replace("pin_maps", "pin_mops"))
    done = units.run("systemctl", "reload", UNIT)
    assert done.returncode != 0
    assert units.is_active() and units.main_pid() == pid
    assert "rejected" in units.show("StatusText") and "keeping 4 maps" in units.show("StatusText")
    (found,) = units.entries(since, MESSAGE_ID=MessageId.RELOAD_REJECTED)
    assert found["BPFKEEPERD_RESULT"] == "rejected"
    drive.check_served()
    drive.write()
    drive.check()
    systemctl("reload", UNIT)
    assert "rejected" not in units.show("StatusText")
    drive.check()


@pytest.mark.parametrize(
    ("hidden", "setting"),
    [("/home", "ProtectHome="), ("/root", "ProtectHome="), ("/tmp", "PrivateTmp=")],
)
def test_what_the_unit_hides_is_told(drive: Drive, hidden: str, setting: str) -> None:
    path = Path(hidden) / "receiver.bpf.o"
    shutil.copy(OBJECTS / "receiver.bpf.o", path)
    drive.write(TEXT.replace("/usr/lib/bpf/receiver.bpf.o", str(path)))
    done = units.run("bpfkeeperd", "reload", "--wait")
    assert done.returncode == 1
    assert f"{setting} of its unit hides {hidden} from the service" in done.stdout, done.stdout
    path.unlink()
    drive.write()
    systemctl("reload", UNIT)
    drive.check()


def test_a_reload_that_fails_in_part_fails_and_keeps(drive: Drive) -> None:
    since = units.cursor()
    (OBJECTS / "receiver.bpf.o").write_bytes(b"not an object")
    done = units.run("systemctl", "reload", UNIT)
    assert done.returncode != 0
    assert units.is_active()
    assert units.entries(since, MESSAGE_ID=MessageId.RELOAD_FAILED)
    drive.check()
    drive.put(3)
    systemctl("reload", UNIT)
    drive.check()


def test_a_daemon_that_hangs_is_replaced(drive: Drive) -> None:
    quick = units.put_drop_in("watchdog", "[Service]\nWatchdogSec=3s\nTimeoutAbortSec=1s\n")
    systemctl("restart", UNIT)
    pid = units.main_pid()
    time.sleep(5)
    assert units.main_pid() == pid, "it does not say that it is alive"
    assert kill(signal.SIGSTOP) == pid
    units.wait(lambda: drive.restarted(pid), "a new daemon")
    assert "watchdog" in units.run("journalctl", "-u", UNIT, "-n", "30").stdout
    units.remove_drop_in(quick)
    systemctl("restart", UNIT)
    drive.check()


def test_killed_it_comes_back(drive: Drive) -> None:
    pid = kill(signal.SIGKILL)
    units.wait(lambda: drive.restarted(pid), "a new daemon")
    drive.check()


def test_restart(drive: Drive) -> None:
    pid = units.main_pid()
    systemctl("restart", UNIT)
    assert units.main_pid() != pid
    drive.check()


def test_stop_and_start(drive: Drive) -> None:
    systemctl("stop", UNIT)
    time.sleep(0.5)
    drive.check_served()
    assert not units.is_active()
    systemctl("start", UNIT)
    drive.check()


def unpin_everything() -> None:
    for found in PINS.iterdir():
        if found.name.endswith(".debug"):
            continue
        if found.is_dir():
            shutil.rmtree(found)
        else:
            found.unlink()


def wait_for_pins(drive: Drive) -> None:
    def back() -> bool:
        return all(map_id(PINS / name) == number for name, number in drive.map_ids.items())

    units.wait(back, "pins")


def test_pins_removed_while_it_runs_come_back(drive: Drive) -> None:
    since = units.cursor()
    unpin_everything()
    wait_for_pins(drive)
    units.wait(lambda: len(drive.attachments()) == 2, "attachments")
    assert units.wait_for_entry(since, MESSAGE_ID=MessageId.HEALED)["BPFKEEPERD_SUBJECT"]
    drive.check()


def test_pins_removed_when_it_was_killed_come_back(drive: Drive) -> None:
    """From what the service manager kept."""
    pid = kill(signal.SIGKILL)
    unpin_everything()
    assert not any(os.path.exists(PINS / name) for name in MAPS)
    units.wait(lambda: drive.restarted(pid), "a new daemon")
    drive.check()


def test_the_service_manager_keeps_descriptors_when_it_is_replaced(drive: Drive) -> None:
    systemctl("daemon-reexec")
    assert int(units.show("NFileDescriptorStore")) >= len(MAPS)
    pid = kill(signal.SIGKILL)
    unpin_everything()
    units.wait(lambda: drive.restarted(pid), "a new daemon")
    drive.check()


def test_bpffs_unmounted_while_it_runs_and_mounted_anew(drive: Drive) -> None:
    subprocess.run(["umount", "--lazy", str(PINS)], check=True)
    time.sleep(0.5)
    subprocess.run(["mount", "-t", "bpf", "-o", "mode=700", "bpf", str(PINS)], check=True)
    wait_for_pins(drive)
    units.wait(lambda: len(drive.attachments()) == 2, "attachments")
    drive.check()


def test_bpffs_unmounted_over_a_restart(drive: Drive) -> None:
    subprocess.run(["umount", "--lazy", str(PINS)], check=True)
    systemctl("restart", UNIT)
    assert os.path.ismount(PINS)
    assert os.stat(PINS).st_mode & 0o777 == 0o700
    drive.check()


def test_bpffs_unmounted_when_it_was_killed(drive: Drive) -> None:
    pid = kill(signal.SIGKILL)
    subprocess.run(["umount", "--lazy", str(PINS)], check=True)
    units.wait(lambda: drive.restarted(pid), "a new daemon")
    drive.check()


def test_a_start_with_a_bad_manifest_is_not_tried_again(drive: Drive) -> None:
    drive.write("version: 1\nobjekts: {}\n")
    since = units.cursor()
    done = units.run("systemctl", "restart", UNIT)
    assert done.returncode != 0
    units.wait(lambda: units.show("ActiveState") == "failed", "its end")
    time.sleep(2)
    found = units.properties("ActiveState", "ExecMainStatus", "NRestarts")
    assert found == {"ActiveState": "failed", "ExecMainStatus": "78", "NRestarts": "0"}
    assert len(units.entries(since, MESSAGE_ID=MessageId.RELOAD_REJECTED)) == 1
    drive.check_served()
    drive.write()
    systemctl("start", UNIT)
    drive.check()


def test_too_many_failures_end_it_and_nothing_else(drive: Drive) -> None:
    systemctl("reset-failed", UNIT)
    kills = 0
    while units.show("ActiveState") != "failed":
        assert (kills := kills + 1) < 20, "no limit"
        pid = kill(signal.SIGKILL)

        def settled(former: int = pid) -> bool:
            return units.show("ActiveState") == "failed" or drive.restarted(former)

        units.wait(settled, "what comes after")
    # At most StartLimitBurst=10 starts in the time; some were those of tests before.
    assert units.show("Result") in ("start-limit-hit", "signal")
    drive.check_served()
    systemctl("reset-failed", UNIT)
    systemctl("start", UNIT)
    drive.check()


def scrape() -> str:
    with urllib.request.urlopen(URL, timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def test_metrics_over_a_socket_of_the_service_manager(drive: Drive) -> None:
    assert "bpfkeeper_map_id" in scrape()
    systemctl("stop", UNIT)
    systemctl("start", "bpfkeeperd-metrics.socket")
    assert not units.is_active()
    assert 'map="arrived"' in scrape(), "a scrape starts the service"
    units.wait(units.is_active, "the end of the start")
    systemctl("--no-block", "restart", UNIT)
    for _ in range(20):
        assert 'map="arrived"' in scrape(), "no scrape is refused"
    drive.check()
    systemctl("stop", "bpfkeeperd-metrics.socket", UNIT)
    systemctl("start", UNIT)
    drive.check()


def test_an_upgrade_of_the_package_restarts_and_keeps(drive: Drive) -> None:
    assert list((PACKAGES / "later").glob("*.deb"))
    pid = units.main_pid()
    before = units.run("bpfkeeperd", "--version").stdout
    upgrade()
    assert units.run("bpfkeeperd", "--version").stdout == before.strip() + "+1\n"
    assert units.is_active() and units.main_pid() != pid
    drive.check()
