"""The service unit, read by systemd's own checker where there is one."""

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

from bpfkeeperd import service
from bpfkeeperd.entries import DEFAULT_METRICS_LISTEN

UNIT = Path(__file__).parents[2] / "systemd" / "bpfkeeperd.service"
SOCKET = UNIT.with_name("bpfkeeperd-metrics.socket")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_has_nothing_to_say_about_the_unit(tmp_path: Path) -> None:
    copies = [tmp_path / unit.name for unit in (UNIT, SOCKET)]
    for copy, unit in zip(copies, (UNIT, SOCKET), strict=True):
        # The daemon is not installed where tests run; everything else is checked as it is.
        copy.write_text(unit.read_text().replace("/usr/bin/bpfkeeperd", "/bin/true"))

    done = subprocess.run(
        ["systemd-analyze", "verify", *map(str, copies)],
        capture_output=True,
        text=True,
        check=False,
    )

    # Other units of the machine may have something to say, too.
    assert [line for line in done.stderr.splitlines() if UNIT.stem in line] == []
    assert done.returncode == 0


def section(path: Path, name: str) -> configparser.SectionProxy:
    unit = configparser.ConfigParser(strict=True, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(path)
    return unit[name]


def service_section() -> configparser.SectionProxy:
    return section(UNIT, "Service")


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
