"""Reload after reload with everything there is to reload, beside a crowd at the metrics endpoint.

`make test` runs a short one. `make soak` runs RELOADS of them, 10,000 unless it is told otherwise:
half of them load something new, one in ten is broken, and what a daemon could leak is the same
after the first hundred and after the last.
"""

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bpfkeeperd.directories import pins_below
from tests.conftest import BuildObject
from tests.kernel.test_trace_hooks import tracefs
from tests.machine import Netns, skip_without_section
from tests.scenario import World
from tests.system.conftest import Start
from tests.system.crowd import ABUSIVE, SILENT
from tests.system.process import METRICS, ROOT, DaemonProcess, sending

__all__ = ["tracefs"]

RELOADS = int(os.environ.get("BPFKEEPERD_SOAK_RELOADS", "200"))
ROUND = 100
"""Reloads after which a daemon has seen everything once, and comes to what it stays at."""
RSS_GROWTH = 0.1
"""Of the memory after the first round: what malloc and Python keep in pieces comes slowly to rest
(3.5 MB of 46 after 10,000 reloads, 4.1 after 26,000)."""
LATE_GROWTH = 0.03
"""In the second half of them: caches with a bound are full after some 7,000; 300 bytes for each of
5,000 reloads would be more."""
SETTLE_SECONDS = 20.0
SCRAPE_SECONDS = 0.1

MANIFEST = """
maps:
  {tag}_other: {{on_mismatch: recreate}}
objects:
  skb: {{file: skb.bpf.o, pin_maps: [{tag}_skb],
    programs: {{count: {{attach: [{{cgroup: CGROUP}}]}}}}}}
  other: {{file: other.bpf.o, pin_maps: [{tag}_other],
    programs: {{count: {{attach: [{{cgroup: CGROUP}}]}}}}}}
  xdp: {{file: xdp.bpf.o, pin_maps: [{tag}_xdp],
    programs: {{count: {{attach: [{{interface: veth0, netns: {here}}}]}}}}}}
  clsact: {{file: clsact.bpf.o, pin_maps: [{tag}_clsact],
    programs: {{count: {{attach: [{{interface: veth0, netns: {here}}}]}}}}}}
  trace: {{file: trace.bpf.o, pin_maps: [{tag}_trace],
    programs: {{count: {{attach: auto}}}}}}
  stub: {{file: stub.bpf.o, pin_maps: [{tag}_stub],
    programs: {{count: {{attach: auto, swap: exact}}}}}}
  stages: {{file: stages.bpf.o, pin_maps: [{tag}_jumps],
    programs: {{enter: {{attach: [{{cgroup: CGROUP}}]}}}}}}
{metrics}
"""
_RARE = '"tracepoint/syscalls/sys_enter_acct"'
HOOKS = {
    "skb": {},
    "other": {},
    "xdp": {"HOOK": '"xdp"', "VERDICT": 2},
    "clsact": {"HOOK": '"clsact/ingress"', "VERDICT": 0},
    "trace": {"HOOK": _RARE, "VERDICT": 0},
    "stub": {"HOOK": _RARE, "VERDICT": 0},
}
"""Objects of tests/bpf/counter.bpf.c, and what they are compiled with."""


class Files:
    """The objects of the manifest in their versions, and what is put in their places."""

    def __init__(self, world: World, tag: str) -> None:
        self._world = world
        self._versions = {name: self._build(world.build, name, tag) for name in HOOKS}
        jumps = {"STATIC": 1, "ARRAY": f"{tag}_jumps"}
        self._versions["stages"] = [
            world.build("stages", VERSION=version, **jumps) for version in (1, 2)
        ]
        self._refused = world.build("counter", MAP=f"{tag}_skb", REFUSED=1)
        self._at = dict.fromkeys(self._versions, 0)
        self.names = list(self._versions)
        for name in self.names:
            self.exchange(name)

    @staticmethod
    def _build(build: BuildObject, name: str, tag: str) -> list[Path]:
        entries = {"other": (16, 32)}.get(name, (16, 16))
        return [
            build("counter", MAP=f"{tag}_{name}", STEP=step, ENTRIES=count, **HOOKS[name])
            for step, count in enumerate(entries, start=1)
        ]

    def exchange(self, name: str) -> None:
        """Puts the other version in place."""
        self._at[name] += 1
        self.mend(name)

    def mend(self, name: str) -> None:
        """Puts the version in place that should be there."""
        self._put(name, self._versions[name][self._at[name] % 2].read_bytes())

    def spoil(self, name: str, data: bytes | None = None) -> None:
        """Puts something else in place: what the verifier refuses, if nothing is given."""
        self._put(name, self._refused.read_bytes() if data is None else data)

    def _put(self, name: str, data: bytes) -> None:
        staged = self._world.directory / f"{name}.new"
        staged.write_bytes(data)
        staged.rename(self._world.directory / f"{name}.bpf.o")


@dataclass(frozen=True, slots=True)
class Sample:
    """All that a daemon could leak."""

    descriptors: int
    """Those of the metrics' clients left out."""
    threads: int
    programs: int
    links: int
    maps: int
    pins: int


def sample(world: World, daemon: DaemonProcess, tag: str) -> Sample:
    """How it is now: programs and links on the whole machine that use a map of the test's."""

    def listed(kind: str) -> list[dict[str, Any]]:
        command = ["bpftool", "-j", kind, "list"]
        return list(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))

    maps = {found["id"] for found in listed("map") if found.get("name", "").startswith(tag)}
    programs = {found["id"] for found in listed("prog") if maps & set(found.get("map_ids", []))}
    links = [found for found in listed("link") if found.get("prog_id") in programs]
    files = [name for name in daemon.open_files() if not name.startswith("socket:")]
    pins = pins_below(str(world.pins), 8)
    return Sample(len(files), daemon.threads(), len(programs), len(links), len(maps), len(pins))


def settled(world: World, daemon: DaemonProcess, tag: str, wanted: Sample | None) -> Sample:
    """A sample when the kernel has freed what it frees by and by: as wanted, or of now."""
    deadline = time.monotonic() + SETTLE_SECONDS
    last = None
    while True:
        now = sample(world, daemon, tag)
        if now == (wanted or last) or time.monotonic() > deadline:
            return now
        last = now
        time.sleep(0.5)


class Scrapes(threading.Thread):
    """Scrapes all the while; keeps what went wrong."""

    def __init__(self, daemon: DaemonProcess) -> None:
        super().__init__()
        self._daemon, self._over = daemon, threading.Event()
        self.done, self.wrong, self.slowest = 0, list[str](), 0.0

    def run(self) -> None:
        while not self._over.wait(SCRAPE_SECONDS):
            started = time.monotonic()
            try:
                metrics = self._daemon.metrics()
                errors = [
                    name
                    for name, value in metrics.items()
                    if name.startswith("bpfkeeper_scrape_errors_total") and value
                ]
                self.wrong += errors
            except (OSError, ValueError) as error:
                self.wrong.append(repr(error))
            self.done += 1
            self.slowest = max(self.slowest, time.monotonic() - started)

    def stop(self) -> None:
        self._over.set()
        self.join()


@contextmanager
def crowd(daemon: DaemonProcess) -> Iterator[list[int]]:
    """The clients of `tests.system.crowd`; afterwards the list has how often they came."""
    host, port = daemon.metrics_url.removeprefix("http://").removesuffix("/metrics").split(":")
    command = [sys.executable, "-m", "tests.system.crowd", host, port]
    came = list[int]()
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield came
            came.append(int(process.communicate()[0]))
        finally:
            if process.poll() is None:
                process.kill()


def one_reload(world: World, daemon: DaemonProcess, files: Files, number: int) -> None:
    """One in ten is broken, in one of three ways; half of them have a changed object."""
    name = files.names[number // 2 % len(files.names)]
    if number % 10 == 9:
        manifest = world.manifest_file.read_text()
        match number // 10 % 3:
            case 0:
                files.spoil("skb")
                assert "in part" in daemon.hup()
            case 1:
                files.spoil("xdp", b"no object")
                assert "in part" in daemon.hup()
            case _:
                world.manifest_file.write_text(manifest + "mapz: {}\n")
                assert "rejected" in daemon.hup()
        files.mend("skb")
        files.mend("xdp")
        world.manifest_file.write_text(manifest)
        return
    if number % 2 == 0:
        files.exchange(name)
    said = daemon.hup()
    assert said.startswith("applied in ") and "part" not in said, said


def test_reload_after_reload(world: World, start: Start, netns: Netns, tracefs: None) -> None:
    for section in ("clsact/ingress", "tracepoint/syscalls/sys_enter_acct"):
        skip_without_section(section)
    tag = f"s{uuid.uuid4().hex[:5]}"
    files = Files(world, tag)
    world.write(MANIFEST.format(tag=tag, here=netns.here, metrics=METRICS))
    daemon = start()
    kept = {name: world.map_id(f"{tag}_{name}") for name in ("skb", "xdp", "clsact", "trace")}
    assert all(kept.values())
    with sending(world.cgroup) as sent, crowd(daemon) as came:
        scrapes = Scrapes(daemon)
        scrapes.start()
        try:
            for number in range(RELOADS):
                one_reload(world, daemon, files, number)
                if number + 1 == ROUND:
                    first = settled(world, daemon, tag, None)
                    first_rss = daemon.rss_bytes()
                if number + 1 == RELOADS // 2:
                    half_rss = daemon.rss_bytes()
                if (number + 1) % 1000 == 0:
                    print(number + 1, daemon.rss_bytes() >> 10, "KiB", scrapes.done, flush=True)
            last = settled(world, daemon, tag, first)
            last_rss = daemon.rss_bytes()
        finally:
            scrapes.stop()
        total = sent()
    assert asdict(last) == asdict(first)
    assert last_rss < first_rss * (1 + RSS_GROWTH), f"{first_rss} became {last_rss} bytes"
    assert last_rss < half_rss * (1 + LATE_GROWTH), f"{half_rss} became {last_rss} bytes"
    assert {name: world.map_id(f"{tag}_{name}") for name in kept} == kept
    assert world.events(f"{tag}_skb")[0] == total, "packets were missed, or seen twice"
    assert not scrapes.wrong, f"{len(scrapes.wrong)} of {scrapes.done}: {scrapes.wrong[:5]}"
    assert scrapes.done > RELOADS / 100
    assert came[0] > SILENT + ABUSIVE
    print(f"{RELOADS} reloads, {scrapes.done} scrapes, the slowest {scrapes.slowest:.2f} s,")
    print(f"{came[0]} clients nobody wants; {first_rss >> 10} KiB became {last_rss >> 10}")
