"""An event stream: its reader goes on reading while the program that writes it is replaced."""

import os
import struct
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.examples.attaching import attach_tracepoint
from tests.examples.conftest import Example, MakeExample
from tests.examples.readers import PerfBuffers, Ring

READERS: dict[str, type[Ring] | type[PerfBuffers]] = {"ring": Ring, "buffers": PerfBuffers}
RELOADS = 10


@dataclass(slots=True)
class Seen:
    """Programs that were started: of each process, the file and the versions that told of it."""

    files: dict[int, str] = field(default_factory=dict)
    versions: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))

    def read(self, reader: Ring | PerfBuffers) -> None:
        for event in reader.read():
            _, pid, uid, version, _, file = struct.unpack("=QIII16s92s", event[:128])
            assert uid == 0
            self.files[pid] = file.split(b"\0")[0].decode()
            self.versions[pid].append(version)


@pytest.fixture
def tracepoint_id(tmp_path: Path) -> Iterator[int]:
    """The kernel's number of the tracepoint, from a tracefs of the test's own."""
    tracefs = tmp_path / "tracefs"
    tracefs.mkdir()
    subprocess.run(["mount", "-t", "tracefs", "tracefs", str(tracefs)], check=True)
    try:
        number = int((tracefs / "events/sched/sched_process_exec/id").read_text())
    finally:
        subprocess.run(["umount", str(tracefs)], check=True)
    yield number


def run_true() -> int:
    """Starts a program; its process ID."""
    with subprocess.Popen(["/bin/true"]) as process:
        return process.pid


@pytest.mark.parametrize(
    ("program", "map_name"), [("exec_to_ring", "ring"), ("exec_to_perf", "buffers")]
)
def test_a_reader_goes_on_reading_over_reloads(
    example: MakeExample, tracepoint_id: int, program: str, map_name: str
) -> None:
    """What the pinned program's owner does: attaches the new version, then lets the former go."""
    execs = example("execs")
    expected: dict[int, list[int]] = {}
    seen = Seen()
    with execs.keeper() as keeper, READERS[map_name](execs.map_path(map_name)) as reader:
        ids = execs.map_ids()
        assert ids.keys() == {"ring", "buffers", "lost"}
        attached = attach_tracepoint(tracepoint_id, execs.pinned_program("execs", program))
        try:
            for version in range(2, RELOADS + 2):
                execs.put("execs", VERSION=version)
                execs.reload(keeper)
                expected[run_true()] = [version - 1]  # the former program is attached still
                new = attach_tracepoint(tracepoint_id, execs.pinned_program("execs", program))
                expected[run_true()] = [version - 1, version]
                os.close(attached)
                attached = new
                expected[run_true()] = [version]
                seen.read(reader)
        finally:
            os.close(attached)
        seen.read(reader)
        assert execs.map_ids() == ids
        assert execs.contents("lost") == {bytes(4): bytes(8)}
    assert {pid: seen.versions[pid] for pid in expected} == expected
    assert {seen.files[pid] for pid in expected} == {"/bin/true"}


def count_lost(execs: Example, tracepoint_id: int) -> int:
    """Starts three programs, of which nobody reads; events lost so far."""
    program = execs.pinned_program("execs", "exec_to_perf")
    attached = attach_tracepoint(tracepoint_id, program)
    try:
        for _ in range(3):
            run_true()
    finally:
        os.close(attached)
    (value,) = execs.contents("lost").values()
    return int.from_bytes(value, sys.byteorder)


def test_events_without_room_are_counted(example: MakeExample, tracepoint_id: int) -> None:
    """Nobody has put a buffer into the map; the count goes on over a reload."""
    execs = example("execs")
    with execs.keeper() as keeper:
        ids = execs.map_ids()
        before = count_lost(execs, tracepoint_id)
        assert before >= 3  # the machine starts others too
        execs.put("execs", VERSION=2)
        execs.reload(keeper)
        assert execs.map_ids() == ids
        assert count_lost(execs, tracepoint_id) >= before + 3
