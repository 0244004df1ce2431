"""What the shipped drop-ins give and take, each with the service as it is installed."""

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfkeeperd import kernel
from tests.conftest import BuildObject
from tests.machine import map_id
from tests.systemd import units
from tests.systemd.install import install
from tests.systemd.units import SHIPPED_DROP_INS, UNIT, systemctl

MANIFEST = Path("/etc/bpfkeeperd/bpfkeeperd.yaml")
PINS = Path("/sys/fs/bpf")
NAMES = {12: "NET_ADMIN", 21: "SYS_ADMIN", 38: "PERFMON", 39: "BPF"}
MORE = {0: "CHOWN", 1: "DAC_OVERRIDE", 3: "FOWNER", 19: "SYS_PTRACE", 34: "SYSLOG"}


@pytest.fixture(autouse=True)
def installed() -> Iterator[None]:
    install()
    yield
    shutil.rmtree(units.DROP_INS, ignore_errors=True)
    systemctl("daemon-reload")
    units.run("systemctl", "reset-failed", UNIT)
    MANIFEST.write_text("version: 1\n")
    systemctl("restart", UNIT)
    subprocess.run(["bpfkeeperd", "reload", "--wait"], check=True, capture_output=True)
    systemctl("stop", UNIT)
    done = units.run("bpfkeeperd", "unload", "--maps")
    assert done.returncode == 0, done.stderr


def start_with(*names: str) -> None:
    for name in names:
        units.put_drop_in(name, (SHIPPED_DROP_INS / f"{name}.conf").read_text())
    systemctl("restart", UNIT)


def capabilities() -> set[str]:
    lines = Path(f"/proc/{units.main_pid()}/status").read_text().splitlines()
    (text,) = [line.split()[1] for line in lines if line.startswith("CapEff:")]
    return {name for number, name in (NAMES | MORE).items() if int(text, 16) >> number & 1}


@pytest.mark.parametrize(
    ("drop_in", "more"),
    [
        ("pin-owners", {"CHOWN", "FOWNER", "DAC_OVERRIDE"}),
        ("other-processes", {"SYS_PTRACE"}),
        ("exact-map-ids", {"SYSLOG"}),
    ],
)
def test_a_drop_in_gives_its_capabilities(drop_in: str, more: set[str]) -> None:
    start_with(drop_in)
    assert capabilities() == set(NAMES.values()) | more


def test_three_capabilities_keep_maps_and_count(build_object: BuildObject) -> None:
    mount = kernel.cgroup2_mount()
    assert mount
    cgroup = Path(mount) / "bpfkeeperd-three"
    cgroup.mkdir(exist_ok=True)
    shutil.copy(build_object("counter"), "/srv/three.bpf.o")
    MANIFEST.write_text(
        "version: 1\nobjects:\n  three:\n    file: /srv/three.bpf.o\n    pin_maps: [counts]\n"
        f"    programs: {{count: {{attach: [{{cgroup: {cgroup}}}]}}}}\n"
    )
    start_with("three-capabilities")
    assert capabilities() == set(NAMES.values()) - {"SYS_ADMIN"}
    number = map_id(PINS / "counts")
    assert number
    shutil.copy(build_object("counter", STEP=2), "/srv/three.bpf.o")
    systemctl("reload", UNIT)
    systemctl("restart", UNIT)
    assert map_id(PINS / "counts") == number
    assert "up" in units.run("bpfkeeperd", "status").stdout


def test_owners_of_pins() -> None:
    MANIFEST.write_text(
        "version: 1\nmaps:\n  owned: {type: array, key_size: 4, value_size: 8, max_entries: 1,"
        ' pin: {owner: nobody, mode: "0640"}}\n'
    )
    start_with("pin-owners")
    status = (PINS / "owned").stat()
    assert (status.st_uid, status.st_mode & 0o777) == (65534, 0o640)
    number = map_id(PINS / "owned")
    systemctl("restart", UNIT)
    assert map_id(PINS / "owned") == number


def test_the_exact_number_of_map_ids() -> None:
    systemctl("restart", UNIT)
    units.wait(lambda: "bpfkeeper_kernel_map_ids_exact 0" in metrics(), "the highest ID")
    start_with("exact-map-ids")
    units.wait(lambda: "bpfkeeper_kernel_map_ids_exact 1" in metrics(), "the allocator")


def metrics() -> str:
    with urllib.request.urlopen("http://127.0.0.1:9435/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def test_early_is_ordered_before_the_network() -> None:
    start_with("early")
    assert units.show("DefaultDependencies") == "no"
    found = units.properties("Before", "After", "Wants", "Conflicts")
    assert "network-pre.target" in found["Before"].split()
    assert "local-fs.target" in found["After"].split()
    late = {"network.target", "basic.target", "sysinit.target", "multi-user.target"}
    assert not late & set(found["After"].split())
    done = units.run("systemd-analyze", "verify", "--man=no", UNIT)
    assert "cycle" not in done.stderr


def test_a_process_that_the_service_does_not_see_is_probed(build_object: BuildObject) -> None:
    """Without a drop-in: ProtectProc= hides process 1, which has more capabilities."""
    shutil.copy(build_object("counter", HOOK='"uprobe"'), "/srv/probe.bpf.o")
    libc = next(Path("/usr/lib").glob("*-linux-gnu/libc.so.6"))
    MANIFEST.write_text(
        "version: 1\nobjects:\n  probe:\n    file: /srv/probe.bpf.o\n    programs:\n"
        f"      count: {{attach: [{{binary: {libc}, symbol: getpid, pid: 1}}]}}\n"
    )
    systemctl("restart", UNIT)
    done = units.run("bpfkeeperd", "status", "--json")
    (found,) = json.loads(done.stdout)["attachments"]
    assert found["up"], units.last_messages()
