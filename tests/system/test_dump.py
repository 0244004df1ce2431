"""`bpfkeeperd dump`, as people and scripts use it."""

import json
import os
import re
import signal
import subprocess
import sys
from array import array

import pytest

from bpfkeeperd import kernel
from tests.machine import fill_map
from tests.scenario import World
from tests.system.process import ROOT, cli, environment

ENTRIES = 1_000_000
MEMORY_MAX_BYTES = 60_000_000


@pytest.fixture
def kept(world: World) -> World:
    """A map of the manifest's own, and one of an object."""
    world.put("one")
    world.write(
        "maps: {settings: {type: array, key_size: 4, value_size: 8, max_entries: 4}}\n"
        "objects: {one: {file: one.bpf.o, pin_maps: {counts: one_counts}}}\n"
    )
    assert cli(world, "apply").returncode == 0
    found = kernel.pinned_map(str(world.pins / "one_counts"))
    assert found
    with kernel.holding(found[0]) as fd:
        kernel.map_update(fd, (7).to_bytes(4, "little"), (3).to_bytes(16, "little"))
    return world


SHOWN = "KEY  VALUE\n7    events=3 steps=0\n"


def test_a_map_by_any_of_its_names(kept: World) -> None:
    number = kept.map_id("one_counts")
    for name in ("one_counts", f"{kept.pins}/one_counts", f"id:{number}"):
        done = cli(kept, "dump", name)
        assert (done.returncode, done.stdout, done.stderr) == (0, SHOWN, ""), name
    assert json.loads(cli(kept, "dump", "one_counts", "--json").stdout) == [
        {"key": 7, "value": {"events": 3, "steps": 0}}
    ]
    assert cli(kept, "dump", "settings", "--limit", "2").stdout.count("\n") == 3


def test_no_manifest_is_needed_for_a_path(kept: World) -> None:
    kept.manifest_file.unlink()
    assert cli(kept, "dump", f"{kept.pins}/one_counts").stdout == SHOWN
    assert cli(kept, "dump", "one_counts").returncode != 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("one_count", "no map is pinned as {pins}/one_count: did you mean one_counts?"),
        ("zzz", "no map is pinned as {pins}/zzz: there is one_counts, settings"),
        ("../bpffs/settings", "no map is pinned as {pins}/../bpffs/settings: did you mean"),
        ("", "no map is pinned as {pins}/: there is one_counts, settings"),
        ("bpfkeeperd", "no map is pinned as {pins}/bpfkeeperd: there is one_counts, settings"),
        ("/nowhere", "cannot dump /nowhere: nothing is pinned there"),
        ("/etc/passwd", "cannot dump /etc/passwd: it is not on a bpffs"),
        ("/etc", "cannot dump /etc: it is a directory"),
        ("id:0", "cannot dump id:0: there is no map with this ID"),
        ("id:x", "cannot dump id:x: no map has such an ID: write id:NUMBER"),
        ("id:99999999999", "cannot dump id:99999999999: no map has such an ID: write id:NUMBER"),
    ],
)
def test_what_is_not_there(kept: World, name: str, message: str) -> None:
    done = cli(kept, "dump", name)
    assert (done.returncode, done.stdout) == (1, "")
    assert message.format(pins=kept.pins) in done.stderr
    assert "Traceback" not in done.stderr


def test_limit_is_a_number(kept: World) -> None:
    for limit in ("-1", "x", "1.5"):
        done = cli(kept, "dump", "settings", f"--limit={limit}")
        assert done.returncode == 2 and f"not a number of entries: '{limit}'" in done.stderr


def test_what_cannot_be_read(kept: World) -> None:
    fd = kernel.map_create(22, "line", 0, 4, 4)
    with kernel.holding(fd):
        kernel.pin(fd, str(kept.pins / "line"))
    for options in ([], ["--json"]):
        done = cli(kept, "dump", "line", *options)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            "bpfkeeperd: cannot dump map line (queue): its values cannot be read without taking"
            " them out\n"
        )


def test_a_reader_without_rights(kept: World) -> None:
    """Who may read the pin may dump the map; only its BTF takes more."""
    pin = kept.pins / "one_counts"
    os.chmod(pin, 0o444)
    done = subprocess.run(
        [
            "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
            "--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search",
            "--bounding-set=-all,+dac_read_search", "--no-new-privs",
            sys.executable, "-m", "bpfkeeperd", "dump", str(pin),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    key, value = "07:00:00:00", ":".join(["03", *["00"] * 15])
    assert done.stdout == f"KEY          VALUE\n{key}  {value}\n"
    assert done.returncode == 0
    assert "bytes are shown, because the map's BTF cannot be read" in done.stderr


def test_a_reader_who_goes_away(world: World) -> None:
    fd = kernel.map_create(2, "large", 4, 8, 1_000_000)
    with kernel.holding(fd):
        kernel.pin(fd, str(world.pins / "large"))
    command = [sys.executable, "-m", "bpfkeeperd", "dump", str(world.pins / "large")]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline() == b"KEY    VALUE\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(20) == 1


def test_interrupted_while_nobody_reads(world: World) -> None:
    fd = kernel.map_create(2, "large", 4, 8, 1_000_000)
    with kernel.holding(fd):
        kernel.pin(fd, str(world.pins / "large"))
    command = [sys.executable, "-m", "bpfkeeperd", "dump", str(world.pins / "large")]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout and process.stderr
        assert process.stdout.read(1) == b"K"  # it writes, and soon has to wait
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == -signal.SIGINT
        assert process.stderr.read() == b""


_TELL_MEMORY = (
    "import sys; from bpfkeeperd.__main__ import main; code = main();"
    " sys.stderr.write(open('/proc/self/status').read()); sys.exit(code)"
)


@pytest.mark.parametrize("options", [["--json"], []], ids=["json", "table"])
def test_memory_does_not_grow_with_the_map(world: World, options: list[str]) -> None:
    path = str(world.pins / "flows")
    with kernel.open_object(world.build("contents", ENTRIES=ENTRIES).read_bytes(), "x") as opened:
        opened.load()
        keys = array("Q", bytes(16 * ENTRIES))
        keys[0::2] = array("Q", range(ENTRIES))
        fill_map(opened.map_fd("flows"), keys.tobytes(), bytes(32 * ENTRIES), ENTRIES)
        kernel.pin(opened.map_fd("flows"), path)
    with subprocess.Popen(
        [sys.executable, "-c", _TELL_MEMORY, "dump", path, *options],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout and process.stderr
        lines = sum(1 for _ in process.stdout)
        status = process.stderr.read().decode()
    assert process.returncode == 0
    assert lines == ENTRIES + (2 if options else 1)
    peak = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) << 10
    assert peak < MEMORY_MAX_BYTES
