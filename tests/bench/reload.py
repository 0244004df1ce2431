"""Reloads: the daemon against a plain libbpf program that does the same to the same objects."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median
from types import TracebackType
from typing import Self

from tests.bench.daemon import BenchError, DaemonProcess
from tests.bench.places import ObjectSet, Places
from tests.bench.table import Row, alternate, milliseconds

PAUSE_SECONDS = 0.05
"""Before each measurement: the kernel frees programs some time after the last reference, and that
must not fall into the time of the other one."""


class PlainLoader:
    """plain_loader as a process that waits for work; a context manager that ends it."""

    def __init__(self, places: Places, objects: ObjectSet, name: str) -> None:
        program = str(places.compile_c("plain_loader", "-lbpf"))
        self._objects = objects
        root = places.pin_root(name)
        links = root / "links"
        files = [str(objects.current / file) for file in objects.files]
        attach = [program, "attach", str(root), str(links), str(places.cgroup(name)), *files]
        done = subprocess.run(attach, check=True, capture_output=True, text=True)
        self.instructions = int(done.stdout)
        self._version = objects.version
        self._process = subprocess.Popen(
            [program, "reload", str(root), str(links), *objects.files],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def reload(self) -> float:
        """Loads the other version of every object and swaps it in; seconds, as it times it."""
        assert self._process.stdin
        assert self._process.stdout
        self._version = "b" if self._version == "a" else "a"
        self._process.stdin.write(f"{self._objects.directory / self._version}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise BenchError("plain_loader ended before the reload was over")
        return float(line) / 1e3

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()


@dataclass(slots=True)
class Reloads:
    """Both sides of one set of objects."""

    daemon: DaemonProcess
    plain: PlainLoader
    objects: ObjectSet
    own_seconds: list[float] = field(default_factory=list)
    """What the daemon says its reloads took."""

    def changed(self) -> float:
        """Every object changed: each is one load and one swap."""
        self.objects.change()
        return self._reload(2 * len(self.objects.names))

    def unchanged(self) -> float:
        return self._reload(0)

    def _reload(self, expect_done: int) -> float:
        time.sleep(PAUSE_SECONDS)
        seconds, outcome = self.daemon.reload(expect_done)
        self.own_seconds.append(outcome.duration_seconds)
        return seconds

    def plainly(self) -> float:
        time.sleep(PAUSE_SECONDS)
        return self.plain.reload()


def _both_sides(stack: ExitStack, places: Places, objects: ObjectSet) -> Reloads:
    name = objects.directory.name
    cgroups = places.cgroup(f"{name}-ours")
    for number in range(len(objects.names)):
        (cgroups / str(number)).mkdir()
    daemon = DaemonProcess(places, f"{name}-ours", objects.manifest(cgroups))
    stack.enter_context(daemon)
    plain = PlainLoader(places, objects, f"{name}-plain")
    stack.enter_context(plain)
    return Reloads(daemon, plain, objects)


def measure_reloads(places: Places, rounds: int) -> Iterator[Row]:
    """Changed objects, of two sizes and with relocations; and nothing changed."""
    small = ObjectSet.make(places, "small", "count", 100)
    with ExitStack() as stack:
        reloads = _both_sides(stack, places, small)
        yield from _changed(reloads, rounds, "small program", 1.5)
        yield _unchanged(reloads, rounds)
    with ExitStack() as stack:
        flows = ObjectSet.make(places, "flows", "count_flows", 100)
        yield from _changed(_both_sides(stack, places, flows), rounds, "realistic program", 1.5)
    with ExitStack() as stack:
        core = ObjectSet.make(places, "core", "count_senders", 20)
        yield from _changed(_both_sides(stack, places, core), rounds, "CO-RE program", 1.0)


def _changed(reloads: Reloads, rounds: int, what: str, goal: float) -> Iterator[Row]:
    ours, plain = alternate(rounds, reloads.changed, reloads.plainly)
    count = len(reloads.objects.names)
    measure = f"reload of {count} objects, {what} of {reloads.plain.instructions} instructions"
    baseline = f"{milliseconds(plain)} plain libbpf"
    yield Row(
        measure, milliseconds(ours), baseline, ours / plain, f"<= {goal}", ours <= goal * plain
    )
    own = median(reloads.own_seconds[1:])
    yield Row("  the same, as the daemon times it", milliseconds(own), baseline, own / plain)


def _unchanged(reloads: Reloads, rounds: int) -> Row:
    ours, plain = alternate(rounds, reloads.unchanged, reloads.plainly)
    return Row(
        f"reload of {len(reloads.objects.names)} objects, nothing changed",
        milliseconds(ours),
        f"{milliseconds(plain)} plain libbpf, all",
        ours / plain,
        "< 30 ms",
        ours < 0.030,
    )
