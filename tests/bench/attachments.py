"""A reload of an object that is attached in a thousand places, against a loop over links in C."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Self

from tests.bench.daemon import BenchError, DaemonProcess, resident_bytes
from tests.bench.places import Places
from tests.bench.table import Row, alternate, milliseconds
from tests.machine import ip

INTERFACES = 200
CGROUPS = 800
PAUSE_SECONDS = 0.05


class LinkUpdates:
    """link_updates as a process that waits for work; a context manager that ends it."""

    def __init__(self, mode: str, program: Path, links: Path, objects: list[Path]) -> None:
        self._process = subprocess.Popen(
            [str(program), mode, str(links), *map(str, objects)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def update(self) -> float:
        """Gives every link its other program; seconds."""
        time.sleep(PAUSE_SECONDS)
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline().split()
        if not line or int(line[1]) != INTERFACES + CGROUPS:
            raise BenchError(f"link_updates did not update all links: {line}")
        return float(line[0]) / 1e3

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()


def make_interfaces(stack: ExitStack, netns: str) -> None:
    """A namespace with many veth interfaces ``many0``, ``many1`` ..., all made by one command."""
    ip("netns", "add", netns)
    stack.callback(subprocess.run, ["ip", "netns", "delete", netns], check=False)
    pairs = range(0, INTERFACES, 2)
    lines = [f"link add many{number} type veth peer name many{number + 1}" for number in pairs]
    subprocess.run(
        ["ip", "-n", netns, "-batch", "-"], input="\n".join(lines), text=True, check=True
    )


def measure_attachments(places: Places, rounds: int) -> Iterator[Row]:
    """Every round gives all attachments another program."""
    with ExitStack() as stack:
        netns = f"{places.directory.name}-many"
        make_interfaces(stack, netns)
        versions = []
        for version in (1, 2):
            path = places.directory / f"many{version}.bpf.o"
            path.write_bytes(places.compile_bpf("many", VERSION=version))
            versions.append(path)
        current = places.directory / "many.bpf.o"
        program = places.compile_c("link_updates", "-lbpf")
        sides = []
        for side in ("ours", "plain"):
            cgroups = places.cgroup(f"many-{side}")
            for number in range(CGROUPS):
                (cgroups / str(number)).mkdir()
            current.write_bytes(versions[0].read_bytes())
            at_cgroups = [f"{{cgroup: {cgroups}/{number}}}" for number in range(CGROUPS)]
            at_interfaces = [
                f"{{interface: many{number}, netns: {netns}}}" for number in range(INTERFACES)
            ]
            manifest = (
                f"objects: {{many: {{file: {current}, programs: {{\n"
                f"  egress: {{attach: [{', '.join(at_cgroups)}]}},\n"
                f"  ingress: {{attach: [{', '.join(at_interfaces)}]}}}}}}}}\n"
            )
            sides.append(DaemonProcess(places, f"many-{side}", manifest))
            stack.callback(sides[-1].close)
        links = places.bpffs / "many-plain" / "bpfkeeperd" / "links" / "many"
        sides[1].close()
        held = stack.enter_context(LinkUpdates("held", program, links, versions))
        now, swaps = 0, list[float]()

        def reload() -> float:
            nonlocal now
            now = 1 - now
            time.sleep(PAUSE_SECONDS)
            new = current.with_suffix(".new")
            new.write_bytes(versions[now].read_bytes())
            new.replace(current)
            seconds, outcome = sides[0].reload(1 + INTERFACES + CGROUPS)
            swaps.append(outcome.swapping_seconds)
            return seconds

        ours, loop = alternate(rounds, reload, held.update)
        what = f"{INTERFACES + CGROUPS} attachments ({INTERFACES} interfaces, {CGROUPS} cgroups)"
        yield Row(
            f"reload of {what}",
            milliseconds(ours),
            f"{milliseconds(loop)} link updates in C",
            ours / loop,
            "<= 1.5",
            ours <= 1.5 * loop,
        )
        swapping = median(swaps[1:])
        yield Row(
            "  the swaps alone, as the daemon times them",
            milliseconds(swapping),
            f"{milliseconds(loop)} link updates in C",
            swapping / loop,
            "<= 1.5",
            swapping <= 1.5 * loop,
        )
        whole = stack.enter_context(LinkUpdates("whole", program, links, versions))
        ours, loop = alternate(rounds, reload, whole.update)
        yield Row(
            "  against a program that loads, opens, updates and closes",
            milliseconds(ours),
            f"{milliseconds(loop)} in C",
            ours / loop,
        )
        own = sides[0].reload(0)[1].duration_seconds
        yield Row("  nothing changed", milliseconds(own), "-", None)
        memory = resident_bytes(sides[0].pid)
        yield Row(
            "  memory of the daemon", f"{memory / 1e6:.0f} MB", "-", None, "< 60 MB", memory < 60e6
        )
