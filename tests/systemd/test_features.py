"""What the restrictions of the unit could forbid, each once, with the service as it is installed,
and an effect that is seen. Hooks and types of maps are tried by tests of `tests.system`."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bpfkeeperd.capabilities import CAPABILITIES
from bpfkeeperd.service import MessageId
from tests.certificates import client_context, issue, make_authority, served_serial
from tests.conftest import BuildObject, child_cgroup
from tests.kernel.outsideloader import outsider
from tests.machine import events, inside_cgroup, ip, map_id, map_value, send_datagrams
from tests.system.crowd import ABUSIVE, SILENT
from tests.system.process import sending
from tests.systemd import units
from tests.systemd.boot import CHECKOUT
from tests.systemd.install import install
from tests.systemd.units import UNIT, systemctl

CONFIGURATION = Path("/etc/bpfkeeperd")
MANIFEST = CONFIGURATION / "bpfkeeperd.yaml"
PINS = Path("/sys/fs/bpf")
ADDRESS = ("127.0.0.1", 9435)
SOCKET = "bpfkeeperd-metrics.socket"
COUNTER = """\
objects:
  one: {file: /srv/one.bpf.o, pin_maps: [counts], programs: {count: {attach: [TARGET]}}}
"""
ARRAY = "{type: array, key_size: 4, value_size: 4, max_entries: 1"


@pytest.fixture(autouse=True)
def installed() -> Iterator[None]:
    install()
    systemctl("stop", UNIT)
    units.run("systemctl", "reset-failed", UNIT)
    yield
    shutil.rmtree(units.DROP_INS, ignore_errors=True)
    systemctl("daemon-reload")
    systemctl("stop", UNIT, SOCKET)
    done = units.run("bpfkeeperd", "unload", "--maps")
    MANIFEST.write_text("version: 1\n")
    assert done.returncode == 0, done.stderr


@pytest.fixture
def cgroup() -> Iterator[Path]:
    with child_cgroup() as path:
        yield path


def write(text: str, target: object = "") -> None:
    MANIFEST.write_text(f"version: 1\n{text.replace('TARGET', str(target))}")


def put(built: Path, name: str = "one") -> None:
    shutil.copy(built, f"/srv/{name}.new")
    os.replace(f"/srv/{name}.new", f"/srv/{name}.bpf.o")


def command(*words: str) -> str:
    """What `bpfkeeperd` prints; root runs it, outside of the unit."""
    done = units.run("bpfkeeperd", *words)
    assert done.returncode == 0, done.stdout + done.stderr + units.last_messages()
    return done.stdout


def up() -> dict[str, int]:
    """Attachments: targets, and the IDs of links."""
    found = json.loads(units.run("bpfkeeperd", "status", "--json").stdout)["attachments"]
    return {one["target"]: one["link_id"] for one in found if one["up"]}


def metrics() -> dict[str, float]:
    with urllib.request.urlopen("http://127.0.0.1:9435/metrics", timeout=30) as answer:
        return samples(answer.read().decode())


def samples(text: str) -> dict[str, float]:
    split = (line.rpartition(" ") for line in text.splitlines() if line[:1] not in ("#", ""))
    return {name: float(value) for name, _, value in split}


def test_tls_over_a_socket_of_the_service_manager(build_object: BuildObject, cgroup: Path) -> None:
    put(build_object("counter"))
    directory = CONFIGURATION / "tls"
    directory.mkdir(mode=0o700)
    authority = make_authority(directory, "authority")
    server, scraper = issue(authority, "server"), issue(authority, "scraper")
    files = f"certificate: {server.certificate}, key: {server.key}"
    tls = f"metrics: {{tls: {{{files}, client_ca: {authority.certificate}}}}}\n"
    write(tls + COUNTER, f"{{cgroup: {cgroup}}}")
    systemctl("start", SOCKET)
    known = client_context(authority, scraper)
    with urllib.request.urlopen("https://127.0.0.1:9435/metrics", context=known) as answer:
        assert 'map="counts"' in answer.read().decode(), "a scrape starts the service"
    with pytest.raises((urllib.error.URLError, OSError)):
        urllib.request.urlopen("https://127.0.0.1:9435/", context=client_context(authority))
    assert served_serial(ADDRESS, known) == server.serial
    server.replace(renewed := issue(authority, "renewed"))
    units.wait(lambda: served_serial(ADDRESS, known) == renewed.serial, "the renewed certificate")
    shutil.rmtree(directory)


def test_a_file_for_node_exporter() -> None:
    """By the drop-in that README.md gives."""
    readme = (CHECKOUT / "README.md").read_text()
    found = re.search(r"\n +\[Service\]\n( +\S+=.*\n)* +ReadWritePaths=(\S+)\n", readme)
    assert found
    directory = Path(found[2])
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "bpfkeeperd.prom"
    write(f"maps: {{kept: {ARRAY}}}}}\n")
    units.put_drop_in("textfile", textwrap.dedent(found[0]))
    systemctl("start", UNIT)
    units.wait(file.exists, "the file")
    assert samples(file.read_text())['bpfkeeper_map_id{map="kept"}'] == map_id(PINS / "kept")
    first = file.stat().st_ino
    systemctl("reload", UNIT)
    units.wait(lambda: file.stat().st_ino != first, "another file")
    assert file.stat().st_mode & 0o777 == 0o644


def test_maps_of_others_and_runs_of_programs(build_object: BuildObject, cgroup: Path) -> None:
    put(build_object("counter"))
    more = "metrics: {observe: all, program_statistics: true}\n"
    write(more + COUNTER, f"{{cgroup: {cgroup}}}")
    systemctl("start", UNIT)
    others = PINS / "of_others"
    make_map(others)
    try:
        with inside_cgroup(cgroup):
            send_datagrams(7)
        name = f'bpfkeeper_observed_map_id{{name="of_others",type="array",path="{others}"}}'
        units.wait(lambda: metrics().get(name) == map_id(others), "the series of the other's")
        found = metrics()
        assert found['bpfkeeper_program_runs_total{object="one",program="count"}'] == 7
        assert found['bpfkeeper_map_entries{map="counts"}'] == 1
    finally:
        others.unlink()


def make_map(path: Path) -> None:
    """As anybody does."""
    words = ("type", "array", "key", "4", "value", "4", "entries", "1", "name", path.name)
    done = units.run("bpftool", "map", "create", str(path), *words)
    assert done.returncode == 0, done.stderr


def test_health_is_judged_and_a_bad_version_rolled_back(
    build_object: BuildObject, cgroup: Path
) -> None:
    def version_seen() -> int:
        return int.from_bytes((map_value(PINS / "seen", bytes(4), 48) or b"")[:4], "little")

    def reload(**macros: int) -> subprocess.CompletedProcess[str]:
        put(build_object("health", **macros))
        return units.run("systemctl", "reload", UNIT)

    put(build_object("health"))
    judged = "moves: runs, still: {map: errors, key: {address: 127.0.0.1, port: 9, zero: 0}}"
    write(
        "objects:\n  one:\n    file: /srv/one.bpf.o\n    pin_maps: [seen, errors]\n    programs:\n"
        f"      watch: {{attach: [{{cgroup: {cgroup}}}], health: {{seconds: 1, {judged}}}}}\n"
    )
    with sending(cgroup):
        systemctl("start", UNIT)
        links, number = up(), map_id(PINS / "seen")
        since = units.cursor()
        assert reload(WRONG=1).returncode != 0
        assert "rolled back, since one/watch: errors[" in units.run("bpfkeeperd", "status").stdout
        assert units.entries(since, MESSAGE_ID=MessageId.RELOAD_FAILED)
        assert up() == links
        assert reload(VERSION=2).returncode == 0
        units.wait(lambda: version_seen() == 2, "what version 2 writes")
    assert links and (up(), map_id(PINS / "seen")) == (links, number)


def test_interfaces_and_cgroups_that_come_and_go(build_object: BuildObject, cgroup: Path) -> None:
    """Told by rtnetlink and inotify, within less than the 30 s of the timer."""
    put(build_object("counter"))
    put(build_object("counter", MAP="received", HOOK='"xdp"', VERDICT=2), "two")
    two = "  two: {file: /srv/two.bpf.o, programs: {count: {attach: [{interface: 'feat*'}]}}}\n"
    write(COUNTER + two, f"{{cgroup: '{cgroup}/web-*'}}")
    systemctl("start", UNIT)
    assert up() == {}
    (cgroup / "web-1").mkdir()
    ip("link", "add", "feat0", "type", "veth", "peer", "name", "other0")
    began = time.monotonic()
    targets = {f"cgroup:{cgroup}/web-1", "interface:feat0"}
    units.wait(lambda: set(up()) == targets, "both attached")
    with inside_cgroup(cgroup / "web-1"):
        send_datagrams(3)
    assert events(PINS / "counts") == (3, 3)
    ip("link", "delete", "feat0")
    (cgroup / "web-1").rmdir()
    units.wait(lambda: up() == {}, "both gone")
    assert time.monotonic() - began < 25


def test_links_of_others_are_adopted_and_taken_over(
    build_object: BuildObject, cgroup: Path
) -> None:
    """By their IDs, which takes CAP_SYS_ADMIN."""
    links = PINS / "their_links"
    links.mkdir()
    put(built := build_object("counter", PIN=1))
    write(COUNTER.replace("pin_maps: [counts], ", ""), f"{{cgroup: {cgroup}, take_over: true}}")
    try:
        with outsider(built, PINS, "cgroup", cgroup, links) as other:
            other.leave()
            systemctl("start", UNIT)
            assert list(up().values()) == [other.link]
            assert "up, adopted" in command("status")
            systemctl("stop", UNIT)
            command("unload")
            put(build_object("counter", PIN=1, STEP=2))
            systemctl("start", UNIT)
            assert list(up().values()) == [other.link]
            with inside_cgroup(cgroup):
                send_datagrams(2)
            assert events(PINS / "counts") == (2, 4)
    finally:
        systemctl("stop", UNIT)  # it would bring a pin back
        for theirs in (links / "count", PINS / "counts"):
            theirs.unlink(missing_ok=True)
        links.rmdir()


def test_maps_of_the_manifest_of_drop_ins_and_of_other_names() -> None:
    prices = "{type: array, key: u32, value: u64, max_entries: 1, entries: [{key: 0, value: 10}]}"
    drop_in = CONFIGURATION / "conf.d" / "features.yaml"
    drop_in.write_text(f'maps: {{team/more: {ARRAY}, pin: {{mode: "0640"}}}}}}\n')
    text = (
        f"maps:\n  prices_1: {prices}\n  prices_2: {prices}\n"
        "  prices: {type: array_of_maps, inner: prices_1, max_entries: 1, enforce: true,"
        " entries: [{key: 0, value: prices_1}]}\n  FORMER}\n"
    )
    try:
        write(text.replace("FORMER", f"former: {ARRAY}"))
        systemctl("start", UNIT)
        numbers = {name: map_id(PINS / name) for name in ("prices_2", "prices", "former")}
        assert (PINS / "team/more").stat().st_mode & 0o777 == 0o640
        write(
            text.replace("FORMER", f"latter: {ARRAY}, rename_from: former").replace(
                "value: prices_1", "value: prices_2"
            )
        )
        systemctl("reload", UNIT)
        assert map_id(PINS / "latter") == numbers["former"] and not (PINS / "former").exists()
        assert map_id(PINS / "prices") == numbers["prices"]
        (slot,) = json.loads(command("dump", "prices", "--json"))
        assert slot["value"]["map_id"] == numbers["prices_2"]
    finally:
        drop_in.unlink()


@pytest.mark.parametrize("keep_pinned", [True, False])
def test_another_map_pinned_while_the_service_manager_kept_one(keep_pinned: bool) -> None:
    write(f"maps: {{kept: {ARRAY}}}}}\n")
    systemctl("start", UNIT)
    pin, pid, since = PINS / "kept", units.main_pid(), units.cursor()
    kept = map_id(pin)
    os.kill(pid, signal.SIGKILL)
    pin.unlink()
    make_map(pin)
    pinned = map_id(pin)
    assert kept and pinned and kept != pinned
    units.wait(lambda: units.is_active() and units.main_pid() != pid, "a new daemon")
    units.wait_for_entry(since, MESSAGE_ID=MessageId.MAP_CONFLICT)
    assert f"kept map ID {kept}" in units.run("bpfkeeperd", "status").stdout
    assert units.run("systemctl", "reload", UNIT).returncode != 0
    if keep_pinned:
        command("reload", "--wait", "--keep-pinned")
    else:
        pin.unlink()
        units.wait(pin.exists, "the pin of the kept one")
    assert map_id(pin) == (pinned if keep_pinned else kept)
    command("status")
    systemctl("stop", UNIT)
    pin.unlink()  # `unload` leaves it if it is not the keeper's


def test_commands_inside_and_outside_say_the_same(build_object: BuildObject, cgroup: Path) -> None:
    put(build_object("counter"))
    write(COUNTER, f"{{cgroup: {cgroup}}}")
    wanted = ("plan", "status --json", "maps --json", "dump counts --json", "metrics")
    said = Path("/run/bpfkeeperd")
    inside = [f"bpfkeeperd {words} > {said}/{words.split()[0]}" for words in wanted]
    doctor = f"bpfkeeperd doctor --json > {said}/doctor"
    units.put_drop_in(
        "inside", f"[Service]\nExecStartPost=/bin/sh -ec '{'; '.join([*inside, doctor])}'\n"
    )
    systemctl("start", UNIT)
    assert command("plan", "--exit-code") == (said / "plan").read_text()
    for words in wanted[1:4]:
        there = json.loads((said / words.split()[0]).read_text())
        assert json.loads(command(*words.split())) == there
    name = 'bpfkeeper_map_id{map="counts"}'
    for text in (command("metrics"), (said / "metrics").read_text()):
        assert samples(text)[name] == map_id(PINS / "counts")
    verdicts = [
        {one["name"]: one["verdict"] for one in json.loads(text)["checks"]}
        for text in ((said / "doctor").read_text(), command("doctor", "--json"))
    ]
    different = {name for name in verdicts[0] if verdicts[0][name] != verdicts[1][name]}
    left_to_drop_ins = {one.name for one in CAPABILITIES if one.special}
    assert different == left_to_drop_ins and "missing" not in verdicts[0].values(), verdicts


@contextmanager
def crowd() -> Iterator[None]:
    """All of them there meanwhile, and sent away again and again."""
    words = [sys.executable, "-m", "tests.system.crowd", *map(str, ADDRESS)]
    process = subprocess.Popen(
        words, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield
        assert int(process.communicate("\n", timeout=30)[0]) > SILENT + ABUSIVE
    finally:
        process.kill()
        process.communicate()


def test_reloads_beside_many_bad_clients(build_object: BuildObject, cgroup: Path) -> None:
    put(build_object("counter"))
    write(COUNTER, f"{{cgroup: {cgroup}}}")
    systemctl("start", UNIT)
    pid, number, links = units.main_pid(), map_id(PINS / "counts"), up()
    with crowd(), sending(cgroup) as stop:
        for step in range(2, 22):
            put(build_object("counter", STEP=2 + step % 2))
            systemctl("reload", UNIT)
            assert metrics()['bpfkeeper_reloads_total{result="ok"}'] == step
        sent = stop()
    assert events(PINS / "counts")[0] == sent
    assert (units.main_pid(), map_id(PINS / "counts"), up()) == (pid, number, links)
