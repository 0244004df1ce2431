"""The command line, as scripts and people use it: what it says, changes, and exits with."""

import json
import os
import re
import resource
import subprocess
import sys

import jsonschema
import pytest
import yaml

from bpfkeeperd import kernel
from bpfkeeperd.state import ReloadResult
from tests.machine import inside_cgroup, send_datagrams
from tests.scenario import World, contents
from tests.system.conftest import Start
from tests.system.process import NO_METRICS, ROOT, cli, environment

MANIFEST = f"""{NO_METRICS}
maps:
  settings: {{type: array, key_size: 4, value_size: 8, max_entries: 4,
             entries: [{{key: 1, value: 1500}}]}}
objects:
  one:
    file: one.bpf.o
    pin_maps: [counts]
    programs: {{count: {{attach: [{{cgroup: CGROUP}}]}}}}
"""


def prepare(world: World) -> None:
    world.put("one")
    world.write(MANIFEST)


def prepare_wrong(world: World) -> None:
    world.write("objects: {one: {fil: one.bpf.o}}\n")


def pins(world: World) -> list[str]:
    """What stands in the pin root besides the kernel's own two files."""
    return sorted(name for name in os.listdir(world.pins) if not name.endswith(".debug"))


def fill(world: World, entries: int) -> None:
    found = kernel.pinned_map(str(world.pins / "counts"))
    assert found
    with kernel.holding(found[0]) as fd:
        for key in range(entries):
            kernel.map_update(fd, key.to_bytes(4, "little"), bytes(16))


def test_check_needs_no_root(world: World) -> None:
    """It asks no kernel: a user without any capability but to find the files can run it."""
    prepare(world)
    done = subprocess.run(
        [
            "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
            "--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search",
            "--bounding-set=-all,+dac_read_search", "--no-new-privs",
            sys.executable, "-m", "bpfkeeperd", "check", "-c", str(world.manifest_file),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:2] == [
        f"{world.manifest_file}: 1 object, 2 kept maps",
        f"object one: {world.directory}/one.bpf.o (license Dual BSD/GPL)",
    ]
    assert "  map counts (hash, key 4 B, value 16 B, max_entries 16), kept as counts" in lines
    assert lines[-1] == "  program count (section cgroup_skb/egress)"


def test_check_finds_what_is_wrong(world: World) -> None:
    prepare(world)
    (world.directory / "one.bpf.o").write_bytes(b"garbage")
    done = cli(world, "check")
    assert done.returncode == 1
    assert re.search(r"object one: \S+one\.bpf\.o: .*no ELF file", done.stdout)
    report = json.loads(cli(world, "check", "--json").stdout)
    assert list(report["faults"]) == ["one"] and report["objects"] == {}
    world.put("one")
    report = json.loads(cli(world, "check", "--json").stdout)
    assert report["objects"]["one"]["kept_maps"] == {"counts": "counts"}
    assert not report["faults"]


@pytest.mark.parametrize(
    "command", [["check"], ["plan"], ["apply"], ["status"], ["maps"], ["unload"]], ids=str
)
def test_wrong_manifest_exits_with_2(world: World, command: list[str]) -> None:
    prepare_wrong(world)
    done = cli(world, *command)
    assert (done.returncode, done.stdout) == (2, "")
    where = re.escape(str(world.manifest_file))
    assert re.match(rf"{where}:3:\d+: .*\n    objects: .*\n +\^", done.stderr), done.stderr
    assert pins(world) == []


def test_reference_that_does_not_exist_exits_with_2(world: World) -> None:
    world.put("one")
    world.write("objects: {one: {file: one.bpf.o, programs: {cuont: {}}}}\n")
    for command in ("check", "plan", "apply", "status"):
        done = cli(world, command)
        assert done.returncode == 2, command
        assert "did you mean count?" in done.stderr + done.stdout


def test_no_manifest_at_all(world: World) -> None:
    done = cli(world, "check")
    assert done.returncode in (1, 2)
    assert str(world.manifest_file) in done.stderr and "No such file" in done.stderr
    assert "Traceback" not in done.stderr


def test_plan_says_all_and_changes_nothing(world: World) -> None:
    prepare(world)
    done = cli(world, "plan")
    assert (done.returncode, done.stderr) == (0, "")
    assert [re.sub(r" \(.*", "", line) for line in done.stdout.splitlines()] == [
        "create map settings",
        "create map counts",
        "load object one, with maps counts",
        f"attach one/count at cgroup_skb/egress of cgroup:{world.cgroup}",
    ]
    assert cli(world, "plan", "--exit-code").returncode == 3
    assert pins(world) == []
    assert os.listdir(world.directory / "state") == []

    assert cli(world, "apply").returncode == 0
    before, state = world.everything(), sorted(os.walk(world.directory / "state"))
    world.put("one", STEP=2)
    done = cli(world, "plan", "--json", "--exit-code")
    assert done.returncode == 3
    planned = json.loads(done.stdout)
    assert planned["refusals"] == [] and sorted(planned["kept"]) == ["counts", "settings"]
    assert [action.split()[0] for action in planned["actions"]] == ["load", "swap"]
    assert world.everything() == before
    assert sorted(os.walk(world.directory / "state")) == state

    world.put("one")
    done = cli(world, "plan", "--exit-code")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "nothing to do")
    assert "load object one" in cli(world, "plan", "--force").stdout
    assert world.everything() == before


def test_plan_that_is_refused(world: World) -> None:
    prepare(world)
    cli(world, "apply")
    world.put("one", ENTRIES=32)
    done = cli(world, "plan", "--exit-code")
    assert done.returncode == 1
    assert "NOT DONE: map counts: the pinned map" in done.stdout
    assert "max_entries is 16, wanted is 32" in done.stdout
    assert "nothing to do" not in done.stdout
    world.write(MANIFEST.replace("\nmaps:", "\nmaps:\n  counts: {on_mismatch: recreate}"))
    assert "ALL ITS CONTENTS ARE LOST" in cli(world, "plan").stdout


def test_apply(world: World) -> None:
    prepare(world)
    done = cli(world, "apply")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].endswith(": 4 actions, 0 maps kept")
    with inside_cgroup(world.cgroup):
        send_datagrams(2)
    assert world.events() == (2, 2)
    done = cli(world, "apply", "--json")
    assert done.returncode == 0
    outcome = json.loads(done.stdout)
    assert (outcome["result"], outcome["done"], outcome["kept_maps"]) == ("ok", [], 2)
    world.put("one", REFUSED=1)
    done = cli(world, "apply", "--verbose")
    assert done.returncode == 1
    assert "FAILED: object one: the verifier refuses program count" in done.stdout
    assert re.search(r"processed \d+ insns", done.stdout)


def test_apply_beside_a_daemon(world: World, start: Start) -> None:
    prepare(world)
    start()
    done = cli(world, "apply")
    assert done.returncode == 1
    assert "another keeper holds the pin root" in done.stderr
    assert "use `bpfkeeperd reload`" in done.stderr


def test_status(world: World, start: Start) -> None:
    prepare(world)
    done = cli(world, "status")
    assert done.returncode == 1, "nothing is up"
    daemon = start()
    before = world.everything()
    done = cli(world, "status")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(rf"^counts +{world.map_id()} +hash ", done.stdout, re.MULTILINE)
    assert re.search(r"^up +one/count +cgroup_skb/egress +cgroup:\S+", done.stdout, re.MULTILINE)
    head = f"a daemon keeps {world.pins}: 2 maps, 1 attachment\nall fine\n"
    assert done.stdout.startswith(head) and "drift" not in done.stdout
    assert world.everything() == before
    daemon.stop()

    ((link_id, _),) = world.link_ids().values()
    subprocess.run(["bpftool", "link", "detach", "id", str(link_id)], check=True)
    done = cli(world, "status")
    assert done.returncode == 1
    assert done.stdout.startswith(f"no daemon keeps {world.pins}: 2 maps, 1 attachment\n1 attach")
    assert re.search(r"^DOWN +one/count .*\n  ! \S", done.stdout, re.MULTILINE)
    assert "\ndrift from the manifest: attachment_missing 1\n" in done.stdout
    status = json.loads(cli(world, "status", "--json").stdout)
    assert [attachment["up"] for attachment in status["attachments"]] == [False]
    assert {found["name"]: found["id"] for found in status["maps"]} == {
        "counts": world.map_id(),
        "settings": world.map_id("settings"),
    }


def test_maps(world: World) -> None:
    prepare(world)
    cli(world, "apply")
    fill(world, entries=4)
    done = cli(world, "maps")
    assert (done.returncode, done.stderr) == (0, "")
    head, *rows = done.stdout.splitlines()
    assert head.split()[:6] == ["MAP", "ID", "TYPE", "USED", "OF", "FILL"]
    table = {row.split()[0]: row.split()[1:] for row in rows}
    assert table["counts"][:4] == [str(world.map_id()), "hash", "4", "16"]
    assert table["counts"][5:8] == ["25%", "0", "never"]
    assert table["settings"][1] == "array" and table["settings"][3] == "4"
    listed = json.loads(cli(world, "maps", "--json").stdout)
    (counts,) = (found for found in listed if found["name"] == "counts")
    assert (counts["id"], counts["entries"], counts["max_entries"]) == (world.map_id(), 4, 16)
    assert (counts["type"], counts["fill_ratio"]) == ("hash", 0.25)
    assert (counts["last_change"], counts["other_pins"], counts["changes"]) == (None, [], {})
    assert json.loads(cli(world, "status", "--json").stdout)["maps"] == listed


def test_unload_detaches_and_keeps_the_maps(world: World, start: Start) -> None:
    prepare(world)
    daemon = start()
    with inside_cgroup(world.cgroup):
        send_datagrams(3)
        before = world.everything()
        done = cli(world, "unload")
        assert done.returncode == 1
        assert "a daemon keeps this pin root: stop it first" in done.stderr
        assert world.everything() == before
        daemon.stop()

        map_id = world.map_id()
        done = cli(world, "unload")
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert f"detached one/count from cgroup:{world.cgroup}" in lines
        assert "unloaded all programs" in lines
        (left,) = (line for line in lines if "stay pinned" in line)
        assert "counts" in left and "settings" in left
        send_datagrams(3)
    assert world.events() == (3, 3), "still attached"
    assert pins(world) == ["counts", "settings"]

    assert cli(world, "apply").returncode == 0
    assert world.map_id() == map_id and world.events() == (3, 3)


def test_unload_removes_only_maps_that_were_made_here(world: World) -> None:
    """I5: a pin of the same manifest, and of the same definition, that somebody else made stays."""
    with kernel.holding(kernel.map_create(1, "counts", 4, 16, 16)) as fd:
        kernel.pin(fd, str(world.pins / "counts"))
        kernel.pin(fd, str(world.pins / "unrelated"))
    prepare(world)
    assert cli(world, "apply").returncode == 0
    made, foreign = world.map_id("settings"), world.map_id()
    with inside_cgroup(world.cgroup):
        send_datagrams(1)

    done = cli(world, "unload", "--maps")

    assert done.returncode == 0
    assert f"unpinned map settings (ID {made}): its contents are gone" in done.stdout
    assert "map counts" not in done.stdout
    assert pins(world) == ["counts", "unrelated"]
    assert (world.map_id(), world.events()) == (foreign, (1, 1))


def test_unload_spares_a_pin_that_was_exchanged(world: World) -> None:
    prepare(world)
    assert cli(world, "apply").returncode == 0
    (world.pins / "settings").unlink()
    with kernel.holding(kernel.map_create(2, "theirs", 4, 8, 4)) as fd:
        kernel.pin(fd, str(world.pins / "settings"))
    theirs = world.map_id("settings")
    assert cli(world, "unload", "--maps").returncode == 0
    assert pins(world) == ["settings"] and world.map_id("settings") == theirs


def test_unload_of_nothing(world: World) -> None:
    prepare(world)
    done = cli(world, "unload", "--maps")
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing was loaded" in done.stdout or "nothing is loaded" in done.stdout


def test_schema_is_one_and_fits_the_manifests(world: World) -> None:
    prepare(world)
    done = subprocess.run(
        [sys.executable, "-m", "bpfkeeperd", "schema"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    schema = json.loads(done.stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(world.manifest_file.read_text()), schema)
    prepare_wrong(world)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(world.manifest_file.read_text()), schema)


COMMANDS = ("run", "check", "plan", "apply", "reload", "status", "maps", "unload", "schema")


def test_help(world: World) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bpfkeeperd", "--help"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for command in COMMANDS:
        assert re.search(rf"^    {command} +\S", done.stdout, re.MULTILINE), command
    for command in COMMANDS:
        done = cli(world, command, "--help")
        assert done.returncode == 0 and done.stdout.startswith("usage: bpfkeeperd "), command


def test_unknown_command(world: World) -> None:
    done = cli(world, "relaod")
    assert done.returncode == 2 and "invalid choice: 'relaod'" in done.stderr


@pytest.mark.parametrize(
    "command",
    [["schema"], ["maps"], ["plan", "--json"], ["status"], ["check"], ["plan", "--help"]],
    ids=str,
)
def test_reader_that_goes_away(world: World, command: list[str]) -> None:
    prepare(world)
    name, *options = command
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "bpfkeeperd", name, "-c", str(world.manifest_file), *options],
            cwd=ROOT,
            env=environment(),
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_reads_see_no_reload_half_done(world: World) -> None:
    """I7, and what is there is left as it is by whatever only looks."""
    prepare(world)
    assert world.apply().result is ReloadResult.OK
    fill(world, entries=3)
    before = world.everything(), contents(world.pins / "counts")
    for command in (["check"], ["plan"], ["status"], ["maps"], ["plan", "--force"], ["schema"]):
        assert cli(world, *command).returncode == 0, command
    assert (world.everything(), contents(world.pins / "counts")) == before


def test_more_maps_than_descriptors_at_first(world: World) -> None:
    """The usual soft limit is soon reached; the hard one is the administrator's."""
    names = [f"map{number}" for number in range(200)]
    definition = "{type: array, key_size: 4, value_size: 8, max_entries: 1}"
    world.write("maps:\n" + "".join(f"  {name}: {definition}\n" for name in names))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
    try:
        done = cli(world, "apply")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (done.returncode, done.stderr) == (0, "")
    assert set(pins(world)) == {*names, "bpfkeeperd"}
