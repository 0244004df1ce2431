"""What people see at a terminal: tables, colours and a watch, captured from a real one."""

import functools
import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.celltext import width_of
from tests.scenario import World
from tests.system.conftest import Start
from tests.system.process import cli
from tests.system.tmux import Terminal, terminal

LONG = "connections_by_source_and_destination_address"
WIDE = "流量统计表"
MANIFEST = f"""
maps:
  flows: {{type: hash, key: u32, value: u64, max_entries: 1000}}
  recent: {{type: lru_hash, key: u32, value: u64, max_entries: 200000}}
  settings: {{type: array, key: u32, value: u64, max_entries: 4}}
  events: {{type: ringbuf, max_entries: 1048576}}
  jumps: {{type: prog_array, max_entries: 8}}
  {LONG}: {{type: hash, key: u32, value: u64, max_entries: 100}}
  {WIDE}: {{type: hash, key: u32, value: u64, max_entries: 100}}
  seen: {{type: bloom_filter, value: u32, max_entries: 1000}}
  rooms: {{type: array_of_maps, max_entries: 4, inner: room, entries: [{{key: 2, value: room}}]}}
  room: {{type: hash, key: u32, value: u64, max_entries: 100}}
objects:
  one:
    file: one.bpf.o
    pin_maps: [counts]
    programs: {{count: {{attach: [{{cgroup: CGROUP}}]}}}}
"""
FLOWS = "type: hash, key: u32, value: u64, max_entries: {}, on_mismatch: recreate"
AT_80 = """\
MAP  ID  TYPE  USED  OF  FILL  LAST CHANGE  PINNED
flows  #  hash  500  1,000  ██░░  50%  never  BY
recent  #  lru_hash  1,234  200K  ▏░░░  <1%  never  BY
settings  #  array  -  4  -  never  BY
events  #  ringbuf  0 B  1 MiB  ░░░░  0%  never  BY
jumps  #  prog_array  0  8  ░░░░  0%  never  BY
conne…  #  hash  97  100  ███▉  97%  never  BY
流量统计表  #  hash  85  100  ███▍  85%  never  BY
seen  #  bloom  ~3  1,000  ▏░░░  <1%  never  BY
rooms  #  array…  1  4  █░░░  25%  never  BY
  [2]  #  hash  0  100  ░░░░  0%
room  #  hash  0  100  ░░░░  0%  never  BY
counts  #  hash  0  16  ░░░░  0%  never  BY"""


def fill(path: Path, entries: int) -> None:
    opened = kernel.pinned_map(str(path))
    assert opened
    with kernel.holding(opened[0]) as fd:
        for number in range(entries):
            key = number.to_bytes(4, "little") if opened[1].key_size else None
            value = bytes(opened[1].value_size) if key else number.to_bytes(4, "little")
            kernel.map_update(fd, key, value)


@pytest.fixture
def served(world: World, start: Start) -> Iterator[World]:
    world.put("one")
    world.write(MANIFEST)
    start()
    full = {"flows": 500, "recent": 1234, LONG: 97, WIDE: 85, "seen": 3}
    for name, entries in full.items():
        fill(world.pins / name, entries)
    yield world


def normal(line: str) -> str:
    """Without what is another with each run: IDs, what is cut as they are longer, and who pins."""
    line = re.sub(r"(?<=\S)  +", "  ", line)
    line = re.sub(r"  \d{3,}  ", "  #  ", line, count=1)
    line = re.sub(r"bloom(_|…)\w+", "bloom", re.sub(r"(conne|array)\w*…\w+", r"\1…", line))
    return re.sub("(keeper|others)$", "BY", line)


def styled(window: Terminal) -> list[str]:
    """The lines with their colours."""
    return [line for line in window.text("-e") if line]


def watching(window: Terminal, options: str = "0.1") -> list[str]:
    window.keys(f"clear; k maps --watch {options}", "Enter")
    return window.wait(lambda lines: "q ends" in lines[0] and any("counts" in one for one in lines))


def usual(window: Terminal) -> None:
    """The terminal is as a shell wants it."""
    window.wait(lambda lines: lines[-1] == "%")
    assert (window.flag("alternate_on"), window.flag("cursor_flag")) == ("0", "1")
    assert window.flag("wrap_flag") == "1"


def test_maps_at_80_columns(served: World) -> None:
    with terminal(served, 80, 24) as window:
        lines, code = window.run("k maps")
        assert code == 0
        assert list(map(normal, lines)) == AT_80.splitlines()
        assert max(map(width_of, lines)) <= 80
        starts = {width_of(line[: line.index("  never")]) for line in lines if "never" in line}
        assert len(starts) == 1, "the wide name moves nothing"


def test_maps_at_120_and_40_columns(served: World) -> None:
    with terminal(served, 120, 40) as window:
        lines, _ = window.run("k maps")
        assert LONG in "\n".join(lines) and "bloom_filter" in "\n".join(lines)
        assert lines[0].split()[-2:] == ["PINNED", "BY"]
        window.resize(40, 40)
        lines, _ = window.run("k maps")
        assert max(map(width_of, lines)) <= 40
        assert [normal(line) for line in lines[:2]] == [
            "MAP  ID  USED  OF  FILL",
            "flows  #  500  1,000  50%",
        ]
        lines, _ = window.run("k status")
        assert max(map(width_of, lines)) <= 40


def test_status(served: World) -> None:
    with terminal(served, 120, 40) as window:
        lines, code = window.run("k status")
        assert code == 0
        assert lines[0] == f"a daemon keeps {served.pins}: 11 maps, 1 attachment"
        assert lines[1:3] == ["all fine", ""]
        assert lines[3].split() == ["STATE", "ATTACHMENT", "HOOK", "TARGET", "DIGEST"]
        assert re.match(r"up     one/count   cgroup_skb/egress  cgroup:/sys/", lines[4])
        assert lines[5] == "" and lines[6].startswith("MAP ") and len(lines) == 19
        ((link_id, _),) = served.link_ids().values()
        served.manifest_file.write_text(f"{served.manifest_file.read_text()}\nheal: false\n")
        assert cli(served, "reload", "--wait").returncode == 0
        subprocess.run(["bpftool", "link", "detach", "id", str(link_id)], check=True)
        lines, code = window.run("k status")
        assert code == 1 and lines[1] == "1 attachment DOWN"
        assert lines[4].startswith("DOWN   one/count ") and lines[5].startswith("  ! ")
        assert "drift from the manifest: attachment_missing 1" in lines
        assert any(
            re.match(r"(\x1b\[[\d;]*m)*\x1b\[31m.*DOWN\x1b\[0m", line) for line in styled(window)
        )


def test_colours(served: World) -> None:
    with terminal(served, 80, 24) as window:
        window.run("k maps")
        rows = {re.sub(r"\x1b\[[\d;]*m", "", line).split()[0]: line for line in styled(window)}
        (long,) = (name for name in rows if name.startswith("conne"))
        assert "\x1b[32m██░░" in rows["flows"] and "\x1b[31m███▉" in rows[long]
        assert "\x1b[33m███▍" in rows[WIDE]
        assert not re.search(r"\x1b\[3[0-7]m", rows["recent"] + rows["settings"])
        for variable in ("NO_COLOR=1", "TERM=dumb"):
            window.run(f"{variable} k maps")
            assert not any("\x1b" in line for line in styled(window)), variable
        lines, _ = window.run("NO_COLOR=1 LC_ALL=C k maps")
        assert all(line.isascii() for line in lines) and "##..  50%" in lines[1]
        assert any(re.match(r"\\u6d\w*\.\.\w*8868 ", line) for line in lines)


def test_a_file_gets_it_all(served: World) -> None:
    for command in ("maps", "status"):
        text = cli(served, command).stdout
        assert f"\n{LONG} " in text and "\x1b" not in text
        assert re.search(r"^MAP .* POLICY +KEY +VALUE$", text, re.MULTILINE)
        assert re.search(r"^recent .* 1,234 +200,000 ", text, re.MULTILINE)


def test_json(served: World) -> None:
    rows = {row["name"]: row for row in json.loads(cli(served, "maps", "--json").stdout)}
    assert [rows["flows"][key] for key in ("entries", "fill_ratio", "last_change")] == [
        500, 0.5, None,
    ]  # fmt: skip
    assert rows["flows"]["counted_by"] and rows["settings"]["counted_by"] == ""
    (inner,) = rows["rooms"]["inner"]
    assert (inner["id"], inner["entries"]) == (rows["room"]["id"], 0)


def test_a_count_that_is_not_of_now(world: World) -> None:
    world.write(
        "maps: {slots: {type: array, key: u32, value: u64, max_entries: 4, count: nonzero,"
        " entries: [{key: 1, value: 7}]}}\n"
    )
    assert cli(world, "apply").returncode == 0
    ((row),) = json.loads(cli(world, "maps", "--json").stdout)
    assert (row["entries"], row["fill_ratio"], row["counted_by"]) == (1, 0.25, "nonzero")
    assert 0 <= row["count_age_seconds"] < 60
    with terminal(world, 80, 24) as window:
        lines, _ = window.run("k maps")
        assert normal(lines[0]) == "MAP  ID  TYPE  USED  OF  FILL  AGE  LAST CHANGE  PINNED BY"
        assert re.search(r" 1  4  █▌░░░░  25%  \d+s  never  BY$", normal(lines[1]))


def test_a_watch_shows_what_changes_and_q_ends_it(served: World) -> None:
    with terminal(served, 80, 24) as window:
        before = window.run("stty -a")[0]
        lines = watching(window)
        assert (window.flag("alternate_on"), window.flag("cursor_flag")) == ("1", "0")
        assert re.match(r"\d\d:\d\d:\d\d  \S+  11 maps  q ends$", lines[0])
        assert lines[2].split() == [
            *("MAP", "ID", "TYPE", "USED", "OF", "FILL", "RATE", "LAST", "CHANGE"),
        ]  # fmt: skip
        fill(served.pins / "flows", 600)
        window.wait(lambda lines: re.search(r"flows .* 600 +1,000 +██▍░ +60%", lines[3]))
        number = 0
        while not any("/s" in line for line in window.text()):
            number += 1
            assert number < 2000
            fill(served.pins / "recent", 1234 + number)
        window.keys("q")
        usual(window)
        assert window.run("stty -a")[0] == before


def test_a_watch_during_reloads(served: World) -> None:
    """Nobody waits for the other, and a new ID is shown with its reason."""
    with terminal(served, 100, 24) as window:
        watching(window)
        before = served.map_id("flows")
        for entries in (1001, 1002, 1003):
            text = re.sub(r"flows: .*", f"flows: {{{FLOWS.format(entries)}}}", MANIFEST)
            served.write(text)
            assert cli(served, "reload", "--wait", "--force").returncode == 0
        now = served.map_id("flows")
        assert now != before
        shown = rf"flows +{now} +hash .* 1,003 .* \d+s (ago )?recreated( x3)?"
        window.wait(lambda lines: re.match(shown, lines[3]))
        window.keys("q")
        usual(window)


def test_a_watch_follows_the_size(served: World) -> None:
    with terminal(served, 80, 24) as window:
        watching(window, "60")
        for columns, height in ((120, 40), (40, 10), (20, 3), (3, 1), (200, 20), (80, 24)):
            window.resize(columns, height)
            window.wait(functools.partial(fits, columns, height))
        window.keys("q")
        usual(window)


def fits(columns: int, height: int, lines: list[str]) -> bool:
    """All is shown, or how much is not."""
    assert len(lines) <= height and max(map(width_of, lines)) <= columns
    if height >= 16:
        return len(lines) == 15 and lines[2].startswith("MAP ") and lines[-1].startswith("counts ")
    return height < 4 or bool(re.match(r"and \d+ more$", lines[-1]))


@pytest.mark.parametrize("end", ["C-c", "SIGTERM", "SIGHUP"])
def test_a_watch_that_is_ended_gives_the_terminal_back(served: World, end: str) -> None:
    with terminal(served, 80, 24) as window:
        before = window.run("stty -a")[0]
        window.keys('clear; k maps --watch 60; echo "code=$?"', "Enter")
        window.wait(lambda lines: "q ends" in lines[0])
        if end == "C-c":
            window.keys(end)
        else:
            pid = watch_pid(window)
            subprocess.run(["kill", f"-{end.removeprefix('SIG')}", str(pid)], check=True)
        code = {"C-c": 0, "SIGTERM": 128 + signal.SIGTERM, "SIGHUP": 128 + signal.SIGHUP}[end]
        lines = window.wait(lambda lines: any(line.startswith("code=") for line in lines))
        assert f"code={code}" in lines and "Traceback" not in "\n".join(lines)
        usual(window)
        assert window.run("stty -a")[0] == before


def test_a_watch_ends_with_its_terminal(served: World) -> None:
    with terminal(served, 80, 24) as window:
        watching(window)
        process = Path(f"/proc/{watch_pid(window)}")
        assert (process / "fd").exists()
    served.wait(lambda: not process.exists() or " Z " in (process / "stat").read_text())


def watch_pid(window: Terminal) -> int:
    shell = window.flag("pane_pid")
    (pid,) = subprocess.run(
        ["pgrep", "-P", shell], capture_output=True, text=True, check=True
    ).stdout.split()
    return int(pid)


def test_a_watch_can_be_stopped_and_goes_on(served: World) -> None:
    with terminal(served, 80, 24) as window:
        watching(window)
        window.keys("C-z")
        window.wait(lambda lines: any("Stopped" in line for line in lines))
        assert (window.flag("alternate_on"), window.flag("cursor_flag")) == ("0", "1")
        window.keys("fg", "Enter")
        window.wait(lambda lines: "q ends" in lines[0])
        assert (window.flag("alternate_on"), window.flag("cursor_flag")) == ("1", "0")
        window.keys("q")
        usual(window)


def test_a_watch_wants_a_terminal(served: World) -> None:
    done = cli(served, "maps", "--watch")
    assert (done.returncode, done.stdout) == (1, "")
    assert "standard output is no terminal: use `maps --json` in a loop" in done.stderr
    assert cli(served, "maps", "--watch", "--json").returncode == 2
    assert cli(served, "maps", "--watch", "0").returncode == 2
    with terminal(served, 80, 24) as window:
        lines, code = window.run("TERM=dumb k maps --watch")
        assert code == 1 and "cannot be painted on" in "".join(lines)
