"""Readers of a kept map learn when its name has another ID, and go on with that map."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.errors import KeeperError
from bpfkeeperd.service import MessageId
from bpfkeeperd.state import ReloadResult
from bpfkeeperd.steps import Step
from tests.machine import inside_cgroup, send_datagrams
from tests.scenario import World, refused
from tests.system.conftest import Start
from tests.system.process import NO_METRICS, ROOT, WAIT_SECONDS, cli, environment, sending

HASH, RINGBUF = 1, 27
Definition = tuple[int, int, int, int]
"""Type, sizes of key and value, max_entries."""
RECREATE = f"{NO_METRICS}\ndefaults: {{on_mismatch: recreate}}"
STREAM = f"""{RECREATE}
objects:
  one: {{file: one.bpf.o, pin_maps: [ring], programs: {{tell: {{attach: [{{cgroup: CGROUP}}]}}}}}}
"""


class Reader:
    """config/examples/follow.c, run on a pin; a context manager that ends it."""

    def __init__(self, command: list[str], directory: Path) -> None:
        self._output = directory / "reader"
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(command, stdout=output)

    @property
    def map_ids(self) -> list[int]:
        """Of the maps that it had, one after the other."""
        return [int(number) for number in re.findall(r"(?m)^map (\d+):", self._output.read_text())]

    @property
    def events(self) -> list[int]:
        """What the events of a ring said."""
        words = re.findall(r"(?m)^event ([0-9a-f]{16})$", self._output.read_text())
        return [int.from_bytes(bytes.fromhex(word), sys.byteorder) for word in words]

    def wait_for(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not what():
            assert time.monotonic() < deadline, self._output.read_text()
            assert self.process.poll() is None, self._output.read_text()
            time.sleep(0.01)

    def wait_event(self, version: int) -> None:
        self.wait_for(lambda: version in self.events)

    def wait_map(self, map_id: int | None) -> None:
        self.wait_for(lambda: self.map_ids[-1:] == [map_id])


class Follow(Protocol):
    """Starts a reader; in a mount namespace of its own, where nothing that others mount wakes it,
    unless it is to see what the test mounts."""

    def __call__(
        self, name: str, *, mounts: bool = False
    ) -> contextlib.AbstractContextManager[Reader]: ...


ALONE = ("unshare", "-m")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("follow") / "follow"
    source = ROOT / "config/examples/follow.c"
    flags = ["-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["cc", *flags, str(source), "-o", str(path), "-lbpf"], check=True)
    return path


@pytest.fixture
def follow(world: World, program: Path) -> Follow:
    @contextlib.contextmanager
    def start(name: str, *, mounts: bool = False) -> Iterator[Reader]:
        command = [*(() if mounts else ALONE), str(program), str(world.pins / name)]
        reader = Reader(command, world.directory)
        try:
            yield reader
        finally:
            reader.process.kill()
            reader.process.wait()

    return start


def pin_by_hand(world: World, name: str, definition: Definition = (HASH, 4, 16, 16)) -> int:
    """Another map takes the name; its ID."""
    fd = kernel.map_create(definition[0], "by_hand", *definition[1:])
    with kernel.holding(fd):
        kernel.pin(fd, str(world.pins / "by_hand"))
        os.rename(world.pins / "by_hand", world.pins / name)
        return kernel.map_info(fd).id


def prepare(world: World, **macros: object) -> None:
    world.put("one", "counter", **macros)
    world.write_counter("one", extra=RECREATE)


def reloaded(world: World, start: Start) -> Callable[[], None]:
    """A daemon, and what reloads it."""
    daemon = start()

    def reload() -> None:
        done = daemon.reload()
        assert done.returncode == 0, done.stdout

    return reload


def test_no_event_is_lost_when_the_ring_is_recreated(
    world: World, start: Start, follow: Follow
) -> None:
    """What the former programs wrote is read out of the former ring, the rest from the new one."""
    world.put("one", "stream")
    world.write(STREAM)
    with follow("ring") as reader:
        reload = reloaded(world, start)
        with sending(world.cgroup) as stop:
            for version in range(2, 8):
                reader.wait_event(version - 1)
                reader.process.send_signal(signal.SIGSTOP)
                world.put("one", "stream", SIZE=4096 << (version + 4), VERSION=version)
                time.sleep(0.02)  # events come that the reader has not read
                reload()
                reader.process.send_signal(signal.SIGCONT)
                reader.wait_map(world.map_id("ring"))
            sent = stop()
        reader.wait_for(lambda: len(reader.events) >= sent)
        assert len(reader.events) == sent
        assert set(reader.events) == set(range(1, 8))
        assert reader.events == sorted(reader.events)
        assert len(set(reader.map_ids)) == len(reader.map_ids) == 7


def test_a_reload_that_keeps_the_map_is_not_told(
    world: World, start: Start, follow: Follow
) -> None:
    prepare(world)
    reload = reloaded(world, start)
    with follow("counts") as reader:
        reader.wait_map(world.map_id())
        kept = world.map_id()
        world.put("one", STEP=2)
        reload()
        world.put("one", ENTRIES=32)
        reload()
        reader.wait_map(world.map_id())
        assert reader.map_ids == [kept, world.map_id()]


def test_a_change_that_is_undone_is_followed_there_and_back(world: World, follow: Follow) -> None:
    """The second of two maps cannot take its name, so the first gives its own back."""
    manifest = (
        f"{RECREATE}\nobjects: {{one: {{file: one.bpf.o, pin_maps: [counts, second],"
        " programs: {count: {attach: [{cgroup: CGROUP}]}}}}\n"
    )
    world.put("one", "counter", SECOND_MAP=16)
    world.write(manifest)
    names: list[str] = []

    def fail_at_the_second(step: Step, subject: object) -> None:
        if step is Step.COMMIT_MAP:
            names.append(str(subject))
            if len(names) == 2:
                reader.wait_for(lambda: len(reader.map_ids) == 2)
                raise KeeperError("on purpose")

    assert world.apply().result is ReloadResult.OK
    with world.keeper(fail_at_the_second) as keeper:
        world.put("one", "counter", SECOND_MAP=32, ENTRIES=32)
        before = world.map_id("counts")
        with follow("counts") as reader:
            reader.wait_map(before)
            assert "on purpose" in refused(world.reload(keeper))
            assert names[0] == "counts"
            reader.wait_map(before)
            assert len(reader.map_ids) == 3


def test_a_reload_that_is_refused_leaves_the_reader_at_the_map(
    world: World, start: Start, follow: Follow
) -> None:
    world.put("one", "stream")
    world.write(STREAM)
    daemon = start()
    with follow("ring") as reader, inside_cgroup(world.cgroup):
        before = world.map_id("ring")
        reader.wait_map(before)
        world.put("one", "stream", SIZE=8192, REFUSED=1)
        assert daemon.reload().returncode == 1
        send_datagrams(3)
        reader.wait_for(lambda: reader.events == [1, 1, 1])
        assert reader.map_ids == [before] == [world.map_id("ring")]


def test_renewed_global_data(world: World, start: Start, follow: Follow) -> None:
    manifest = (
        f"{NO_METRICS}\nobjects: {{one: {{file: one.bpf.o, pin_maps: {{.bss: fw_state}}}}}}\n"
    )
    world.put("one", "globals")
    world.write(manifest)
    reload = reloaded(world, start)
    with follow("fw_state") as reader:
        reader.wait_map(before := world.map_id("fw_state"))
        world.put("one", "globals", MORE=1)
        reload()
        assert world.map_id("fw_state") != before
        reader.wait_map(world.map_id("fw_state"))


def test_renewed_program_array_in_a_directory(world: World, start: Start, follow: Follow) -> None:
    """The reader waits before there is even the directory."""
    manifest = (
        f"{NO_METRICS}\nobjects: {{one: {{file: one.bpf.o, pin_maps: {{jumps: a/b/jumps}}}}}}\n"
    )
    world.put("one", "stages", STATIC=1)
    world.write(manifest)
    with follow("a/b/jumps") as reader:
        reload = reloaded(world, start)
        reader.wait_map(before := world.map_id("a/b/jumps"))
        world.put("one", "stages", STATIC=1, VERSION=2)
        reload()
        assert world.map_id("a/b/jumps") != before
        reader.wait_map(world.map_id("a/b/jumps"))


def test_a_map_that_somebody_else_pins(world: World, start: Start, follow: Follow) -> None:
    prepare(world)
    daemon = start(look_seconds=0.05)
    with follow("counts") as reader:
        reader.wait_map(before := world.map_id())
        other = pin_by_hand(world, "counts")
        reader.wait_map(other)
        daemon.wait_log(f"map counts has a new ID: {before} became {other} (replaced)")


def test_a_ring_that_somebody_else_pins(world: World, start: Start, follow: Follow) -> None:
    """Until a reload moves the programs to it they write to the former one, which is read too."""
    world.put("one", "stream", SIZE=4096)
    world.write(STREAM)
    daemon = start()
    with follow("ring") as reader, inside_cgroup(world.cgroup):
        reader.wait_map(world.map_id("ring"))
        reader.wait_map(pin_by_hand(world, "ring", (RINGBUF, 0, 0, 4096)))
        send_datagrams(2)
        reader.wait_for(lambda: reader.events == [1, 1])
        world.put("one", "stream", SIZE=4096, VERSION=2)
        assert daemon.reload().returncode == 0
        send_datagrams(1)
        reader.wait_for(lambda: reader.events == [1, 1, 2])
        assert len(reader.map_ids) == 2


def test_a_daemon_that_is_killed_and_started(world: World, start: Start, follow: Follow) -> None:
    """Nothing depends on the daemon; a map that changes without one is followed as well."""
    prepare(world)
    daemon = start()
    with follow("counts") as reader:
        reader.wait_map(before := world.map_id())
        daemon.kill()
        prepare(world, ENTRIES=32)
        assert cli(world, "apply").returncode == 0
        reader.wait_map(between := world.map_id())
        prepare(world, ENTRIES=64)
        start()
        reader.wait_map(world.map_id())
        assert reader.map_ids == [before, between, world.map_id()]


def test_a_map_that_leaves_the_manifest_and_comes_back(
    world: World, start: Start, follow: Follow
) -> None:
    """It stays pinned, and the reader at it; when its pin goes, the reader holds what it has."""
    prepare(world)
    daemon = start()
    with follow("counts") as reader:
        reader.wait_map(before := world.map_id())
        world.write(NO_METRICS)
        assert daemon.reload().returncode == 0
        assert world.map_id() == before
        assert daemon.stop() == 0
        assert cli(world, "unload", "--maps").returncode == 0
        assert world.map_id() is None
        prepare(world)
        start()
        reader.wait_map(after := world.map_id())
        assert reader.map_ids == [before, after]


def test_a_renamed_map_and_a_restored_pin_are_the_same_map(
    world: World, start: Start, follow: Follow
) -> None:
    maps = "maps: {counts: {type: hash, key_size: 4, value_size: 8, max_entries: 4}}"
    world.write(f"{NO_METRICS}\n{maps}\n")
    daemon = start()
    before = world.map_id()
    with follow("renamed") as reader:
        renamed = maps.replace("counts:", "renamed:").replace("4}", "4, rename_from: counts}")
        world.write(f"{NO_METRICS}\n{renamed}\n")
        assert daemon.reload().returncode == 0
        reader.wait_map(before)
        (world.pins / "renamed").unlink()
        assert daemon.reload().returncode == 0
        assert world.map_id("renamed") == before
        other = pin_by_hand(world, "renamed")
        reader.wait_map(other)
        assert reader.map_ids == [before, other]


def test_a_bpffs_that_is_mounted_anew(world: World, start: Start, follow: Follow) -> None:
    """Something keeps the former bpffs from going, so that nothing happens in its directory."""
    prepare(world)
    daemon = start()
    former = os.open(world.pins, os.O_RDONLY)
    with kernel.holding(former), follow("counts", mounts=True) as reader:
        reader.wait_map(before := world.map_id())
        subprocess.run(["umount", "-l", str(world.pins)], check=True)
        subprocess.run(["mount", "-t", "bpf", "bpf", str(world.pins)], check=True)
        assert daemon.reload().returncode == 0
        assert world.map_id() == before
        other = pin_by_hand(world, "counts")
        reader.wait_map(other)
        assert reader.map_ids == [before, other]


def test_wait_prints_the_next_id(world: World, start: Start) -> None:
    prepare(world)
    daemon = start()
    before = world.map_id()
    done = cli(world, "wait", "counts", "--timeout", "0.1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "bpfkeeperd: map counts has no other ID after 0.1 s\n"
    absent = cli(world, "wait", "cuonts", "--timeout", "0.1")
    assert f"waiting: no map is pinned as {world.pins}/cuonts yet\n" in absent.stderr
    command = [sys.executable, "-m", "bpfkeeperd", "wait", "counts", "--id", str(before)]
    waiting = subprocess.Popen(
        [*command, "--timeout", str(WAIT_SECONDS), "-c", str(world.manifest_file)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    with waiting:
        world.put("one", ENTRIES=32)
        assert daemon.reload().returncode == 0
        assert waiting.communicate(timeout=WAIT_SECONDS)[0] == f"{world.map_id()}\n"
    assert waiting.returncode == 0
    at_once = cli(world, "wait", str(world.pins / "counts"), "--id", str(before), "--timeout", "0")
    assert at_once.stdout == f"{world.map_id()}\n"
    for wrong in (["counts", "--id", "x"], ["a.b"], ["bpfkeeperd/x"]):
        assert cli(world, "wait", *wrong).returncode != 0


def test_the_python_of_the_manual(world: World) -> None:
    """The block of README.md, as it stands there, with a reader around it."""
    section = (ROOT / "README.md").read_text().split("## Following a map")[1]
    found = re.search(r"```python\n(.*?)```", section, re.S)
    assert found
    code = found[1] + (
        "\nimport sys\nfrom bpfkeeperd.kernel import pinned_map\n"
        "for _ in changes(sys.argv[1]):\n"
        "    opened = pinned_map(sys.argv[1])\n"
        "    if opened:\n"
        "        os.close(opened[0])\n"
        "        print(f'map {opened[1].id}:', flush=True)\n"
    )
    prepare(world)
    assert cli(world, "apply").returncode == 0
    command = [*ALONE, sys.executable, "-c", code, str(world.pins / "counts")]
    reader = Reader(command, world.directory)
    try:
        reader.wait_map(world.map_id())
        prepare(world, ENTRIES=32)
        assert cli(world, "apply").returncode == 0
        reader.wait_map(world.map_id())
    finally:
        reader.process.kill()
        reader.process.wait()


_TO_A_JOURNAL = """
import json, os, socket, sys
from bpfkeeperd import service
from bpfkeeperd.churn import IdChange
from bpfkeeperd.journal import log_changes
from bpfkeeperd.state import MapIdChange
os.makedirs("/run/systemd/journal")
journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
journal.bind("/run/systemd/journal/socket")
status = os.fstat(2)
os.environ["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
service.set_up_log()
log_changes((IdChange("a/counts", 7, 12, MapIdChange.RENEWED),))
print(json.dumps(dict(line.split("=", 1) for line in journal.recv(1 << 16).decode().splitlines())))
"""


def test_the_journal_gets_the_ids() -> None:
    """In journald's own protocol, in a mount namespace where this process is journald."""
    script = 'mount -t tmpfs tmpfs /run && exec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, sys.executable, _TO_A_JOURNAL],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    entry = json.loads(done.stdout)
    assert entry["MESSAGE_ID"] == MessageId.MAP_ID_CHANGED
    assert entry["MESSAGE"] == "map a/counts has a new ID: 7 became 12 (renewed)"
    assert entry["SYSLOG_IDENTIFIER"] == "bpfkeeperd"
    own = {name: value for name, value in entry.items() if name.startswith("BPFKEEPERD_")}
    assert own == {
        "BPFKEEPERD_MAP": "a/counts",
        "BPFKEEPERD_OLD_ID": "7",
        "BPFKEEPERD_NEW_ID": "12",
        "BPFKEEPERD_REASON": "renewed",
    }
