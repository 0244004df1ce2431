"""The service unit, read by systemd's own checker where there is one."""

import configparser
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bpfkeeperd import service
from bpfkeeperd.entries import DEFAULT_METRICS_LISTEN
from bpfkeeperd.fdstore import NAMES_MAX

UNIT = Path(__file__).parents[2] / "systemd" / "bpfkeeperd.service"
SOCKET = UNIT.with_name("bpfkeeperd-metrics.socket")
CATALOG = UNIT.with_name("bpfkeeperd.catalog")


DROP_INS = sorted(UNIT.with_name("drop-ins").glob("*.conf"))
ANALYZE = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
EXPOSURE_MAX, EXPOSURE_MAX_OF_THREE = 2.5, 2.2


def systemd_version() -> int:
    done = subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True)
    return int(done.stdout.split()[1])


def put(directory: Path, *drop_ins: Path) -> Path:
    """The units as they are installed, with drop-ins; the service's file."""
    for unit in (UNIT, SOCKET):
        # The daemon is not installed where tests run; everything else is checked as it is.
        text = unit.read_text().replace("/usr/bin/bpfkeeperd", "/bin/true")
        (directory / unit.name).write_text(text)
    added = directory / f"{UNIT.name}.d"
    added.mkdir()
    for drop_in in drop_ins:
        shutil.copy(drop_in, added)
    return directory / UNIT.name


def analyze(unit: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *words, str(unit)],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{unit.parent}:"},
        capture_output=True,
        text=True,
        check=False,
    )


@ANALYZE
@pytest.mark.parametrize("drop_in", [None, *DROP_INS], ids=lambda one: one.stem if one else "none")
def test_systemd_has_nothing_to_say(drop_in: Path | None, tmp_path: Path) -> None:
    if drop_in and drop_in.stem == "preserve" and systemd_version() < 254:
        pytest.skip("systemd before 254 does not know FileDescriptorStorePreserve=")
    unit = put(tmp_path, *filter(None, [drop_in]))
    for checked in (unit, unit.with_name(SOCKET.name)):
        done = analyze(checked, "verify", "--man=no")
        # Other units of the machine may have something to say, too.
        said = [line for line in done.stderr.splitlines() if UNIT.stem in line]
        assert said == []
        assert done.returncode == 0


def exposure(unit: Path) -> float:
    """As `systemd-analyze security` says; less is better."""
    done = analyze(unit, "security", "--offline=true", "--no-pager")
    return float(re.findall(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)[0])


@ANALYZE
def test_the_service_is_as_little_exposed_as_its_work_allows(tmp_path: Path) -> None:
    (tmp_path / "three").mkdir()
    (tmp_path / "four").mkdir()
    three = UNIT.parent / "drop-ins" / "three-capabilities.conf"
    assert exposure(put(tmp_path / "four")) <= EXPOSURE_MAX
    assert exposure(put(tmp_path / "three", three)) <= EXPOSURE_MAX_OF_THREE


def catalog_entries() -> dict[str, str]:
    parts = re.split(r"(?m)^-- ([0-9a-f]{32})$", CATALOG.read_text())
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.skipif(not shutil.which("journalctl"), reason="needs journalctl")
def test_journalctl_takes_the_catalog(tmp_path: Path) -> None:
    place = tmp_path / "usr/lib/systemd/catalog"
    place.mkdir(parents=True)
    (tmp_path / "var/lib/systemd/catalog").mkdir(parents=True)
    shutil.copy(CATALOG, place)
    asked = ["journalctl", f"--root={tmp_path}"]

    done = subprocess.run([*asked, "--update-catalog"], capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")
    said = subprocess.run([*asked, "--dump-catalog"], capture_output=True, text=True).stdout
    for message, text in catalog_entries().items():
        assert f"-- {message}" in said
        assert text.strip().splitlines()[0] in said


def section(path: Path, name: str) -> configparser.SectionProxy:
    unit = configparser.ConfigParser(strict=False, interpolation=None)  # lists are set twice
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(path)
    return unit[name]


def service_section() -> configparser.SectionProxy:
    return section(UNIT, "Service")


def test_the_service_is_supervised() -> None:
    """What a machine's defaults would leave out, and nobody would see before it is needed."""
    service, unit = service_section(), section(UNIT, "Unit")
    assert service["Type"] == "notify" and service["Restart"] == "on-failure"
    assert service["WatchdogSec"] == "3min"
    words = service["ExecReload"].split()
    assert words[1] == "reload" and "--wait" in words, "or else systemctl reload cannot fail"
    limit = unit["StartLimitBurst"], unit["StartLimitIntervalSec"]
    assert limit == ("10", "2min")


def test_the_service_manager_keeps_all_that_it_is_sent() -> None:
    assert int(service_section()["FileDescriptorStoreMax"]) >= NAMES_MAX


def test_no_setting_is_there_that_takes_bpffs_or_interfaces_away() -> None:
    breaking = {"ProtectKernelTunables", "PrivateUsers", "ProcSubset", "PrivateNetwork"}
    assert breaking & set(service_section()) == set()


def test_other_network_namespaces_can_be_entered() -> None:
    assert service_section().get("RestrictNamespaces", "net") == "net"


def test_more_than_a_thousand_maps_can_be_held_open() -> None:
    assert int(service_section().get("LimitNOFILE", "1024")) > 100_000


def test_the_socket_is_what_the_daemon_would_listen_on_itself() -> None:
    socket = section(SOCKET, "Socket")
    assert socket["ListenStream"] == DEFAULT_METRICS_LISTEN
    assert socket["FileDescriptorName"] in service.METRICS_SOCKET_NAMES
    assert socket["Service"] == UNIT.name
    assert socket.get("Accept", "no") == "no", "the daemon takes connections itself"
    assert socket.get("FlushPending", "no") == "no", "who came while it was away is answered"
