"""The package from its installation to its purge."""

import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfkeeperd import __version__
from tests.debian import build_package, fetch_dependencies
from tests.machine import Netns
from tests.package.root import Root, root

TOP = Path(__file__).parents[2]
OBJECTS = "/usr/lib/bpfkeeperd/bpfkeeperd/bpf"
PINS = "sys/fs/bpf/bpfkeeperd-demo"
LATER = "+1"


@pytest.fixture(scope="module")
def package() -> Path:
    return build_package()


@pytest.fixture(scope="module")
def later(package: Path) -> Path:
    return build_package(LATER)


@pytest.fixture
def installed(package: Path, tmp_path: Path) -> Iterator[Root]:
    """A root with the package installed, by dpkg and with the distribution's own packages."""
    with root(tmp_path) as found:
        found.install([*fetch_dependencies(package), package])
        yield found


@pytest.fixture
def demo(installed: Root, cgroup: Path, netns: Netns) -> Root:
    """The root, with the manifest of the demonstration at places of the test's own."""
    text = (TOP / "config/demo/bpfkeeperd.yaml").read_text()
    for old, new in (
        ("../../bpfkeeperd/bpf", OBJECTS),
        ("cgroup: bpfkeeperd-demo", f"cgroup: {cgroup}"),
        ("netns: bpfkeeperd-demo", f"netns: {netns.here}"),
        ("interface: demo0", "interface: veth0"),
        ('"127.0.0.1:9435"', "none"),
    ):
        assert old in text
        text = text.replace(old, new)
    (installed.path / "etc/bpfkeeperd/bpfkeeperd.yaml").write_text(text)
    names = installed.path / "run/netns"
    subprocess.run(["mount", "--rbind", "/run/netns", str(names)], check=True)
    return installed


def test_it_works_with_what_the_distribution_has(installed: Root) -> None:
    assert installed.run("bpfkeeperd", "--version") == f"bpfkeeperd {__version__}\n"
    assert "0 objects, 0 kept maps" in installed.run("bpfkeeperd", "check")
    script = (installed.path / "usr/bin/bpfkeeperd").read_text()
    assert script.startswith("#!/usr/bin/python3 -I\n")
    lines = script.replace("sys.exit(main())", "").splitlines()
    lines += ["import elftools, prometheus_client, systemd.daemon, yaml, bpfkeeperd.kernel"]
    lines += ["print(*(getattr(m, '__file__', None) or '' for m in sys.modules.values()))"]
    files = installed.run("/usr/bin/python3", "-I", "-c", "\n".join(lines)).split()
    assert len(files) > 100
    assert [file for file in files if not file.startswith(("/usr/lib/python3", OBJECTS[:19]))] == []


def test_every_file_is_as_a_distribution_has_it(installed: Root) -> None:
    listed = installed.run("dpkg", "--listfiles", "bpfkeeperd").split()
    for name in listed[1:]:  # the first is /.
        status = (installed.path / name[1:]).lstat()
        assert (status.st_uid, status.st_gid) == (0, 0), name
        executable = stat.S_ISDIR(status.st_mode) or name.startswith("/usr/bin/")
        executable = executable or name.endswith(".rtupdate")
        assert stat.S_IMODE(status.st_mode) == (0o755 if executable else 0o644), name
    assert {
        "/etc/bpfkeeperd/bpfkeeperd.yaml",
        "/etc/bpfkeeperd/conf.d",
        "/usr/bin/bpfkeeperd",
        "/usr/lib/systemd/system/bpfkeeperd.service",
        "/usr/lib/systemd/system/bpfkeeperd-metrics.socket",
        "/usr/share/bpfkeeperd/prometheus/bpfkeeperd-alerts.rules.yml",
        "/usr/share/bpfkeeperd/grafana/bpfkeeperd.json",
        "/usr/share/doc/bpfkeeperd/CHANGELOG.md.gz",
        "/usr/share/doc/bpfkeeperd/README.md.gz",
        "/usr/share/doc/bpfkeeperd/copyright",
        "/usr/share/man/man5/bpfkeeperd.yaml.5.gz",
        "/usr/share/man/man8/bpfkeeperd.8.gz",
        "/usr/share/doc/bpfkeeperd/examples/protocols.yaml",
    } <= set(listed)
    conffiles = installed.run("dpkg-query", "--show", "--showformat=${Conffiles}", "bpfkeeperd")
    assert [line.split()[0] for line in conffiles.split("\n") if line] == [
        "/etc/bpfkeeperd/bpfkeeperd.yaml"
    ]
    assert installed.run("systemctl", "is-enabled", "bpfkeeperd.service") == "enabled\n"
    installed.run("systemctl", "is-enabled", "bpfkeeperd-metrics.socket", code=1)


def test_an_installed_example_finds_its_object(installed: Root) -> None:
    example = "/usr/share/doc/bpfkeeperd/examples/protocols.yaml"
    assert f"{OBJECTS}/protocols.bpf.o" in installed.run("bpfkeeperd", "check", "-c", example)


def test_an_upgrade_stops_nothing(demo: Root, later: Path) -> None:
    """No service manager is there to restart the daemon: the former one goes on."""
    with demo.daemon() as process:
        before = demo.map_ids()
        assert len(before) == 4 and all(before.values())

        said = demo.install([later])

        assert process.poll() is None, said
        assert demo.run("bpfkeeperd", "--version") == f"bpfkeeperd {__version__}{LATER}\n"
        assert demo.map_ids() == before
        assert "applied" in demo.run("bpfkeeperd", "reload", "--wait", "--force")
        assert demo.map_ids() == before
    with demo.daemon():  # of the later version: it takes over what is there
        assert demo.map_ids() == before
    assert "config/demo" not in said and (demo.path / "etc/bpfkeeperd/bpfkeeperd.yaml").exists()


def test_what_stays_pinned_is_told_and_stays(demo: Root) -> None:
    pins = demo.path / PINS
    with demo.daemon():
        ids = demo.map_ids()

    removed = demo.run("dpkg", "--remove", "bpfkeeperd")
    purged = demo.run("dpkg", "--purge", "bpfkeeperd")

    for said in (removed, purged):
        for name in ids:
            assert f"  map       /{PINS}/{name}\n" in said
        links = [path for path in (pins / "bpfkeeperd/links").rglob("*") if path.is_file()]
        assert len(links) == 3
        for link in links:
            assert f"  attached  /{link.relative_to(demo.path)}\n" in said
    assert "bpfkeeperd unload --maps" in removed
    assert all((pins / name).exists() for name in ids)
    gone = ("etc/bpfkeeperd", "var/lib/bpfkeeperd", "usr/lib/bpfkeeperd", "usr/share/bpfkeeperd")
    assert [name for name in gone if (demo.path / name).exists()] == []
    shutil.rmtree(pins)  # as is said: removing the pins is all there is to it


def test_where_nothing_was_pinned_nothing_is_told(installed: Root) -> None:
    assert "stays" not in installed.run("dpkg", "--purge", "bpfkeeperd")
    assert not (installed.path / "var/lib/bpfkeeperd").exists()
