"""Targets of tracing: which there are, which are not there, and which become others."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.state import ReloadResult
from tests.kernel.test_reload import plan_now
from tests.kernel.test_trace_hooks import tracefs, victim
from tests.kernel.tracing import FUNCTION, MAGIC, NOWHERE, TRACEPOINT, Row, Tracing
from tests.machine import skip_without_section
from tests.scenario import World, refused

__all__ = ["tracefs", "victim"]


def traced(world: World, row: Row, victim: Path) -> Tracing:
    skip_without_section(row.section)
    tracing = Tracing(world, row, victim)
    tracing.put()
    tracing.write()
    return tracing


@pytest.mark.parametrize("section", ["uprobe", "uretprobe", "uprobe.multi"])
def test_a_binary_that_is_replaced(world: World, victim: Path, section: str) -> None:
    """As by an upgrade: the former file is running somewhere, the new one is where it was."""
    tool = world.directory / "tool"
    shutil.copy(victim, tool)
    attach = "[{binary: VICTIM, symbol: victim_touch}]"
    tracing = traced(world, Row(section, FUNCTION, attach), tool)
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        assert tracing.seen() == [1, 1, 1]
        (path,) = world.link_ids()
        link = kernel.pinned(f"{world.layout.links}/{path}", kernel.PinKind.LINK)
        assert link is not None
        with kernel.holding(link):
            if not kernel.link_info(link).detail:
                pytest.skip("the kernel does not tell where a probe is")
        shutil.copy(victim, world.directory / "new")
        os.replace(world.directory / "new", tool)
        keeper.look()
        assert keeper.status.drift["attachment_missing"] == 1
        assert not keeper.status.attachments[0].up
        assert tracing.seen() == [0, 0, 0]
        outcome = world.reload(keeper)
        assert outcome.result is ReloadResult.OK
        assert "the binary is another file now" in outcome.done[0]
        assert tracing.seen() == [1, 1, 1]
        assert plan_now(world) == ()
        tool.unlink()
        assert f"cannot look at {tool}: No such file" in refused(world.reload(keeper))


def test_a_probe_of_one_process(world: World, victim: Path) -> None:
    command = [str(victim), str(MAGIC), "1000", "100000", "1000"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        attach = f"[{{binary: VICTIM, symbol: victim_touch, pid: {process.pid}}}]"
        tracing = traced(world, Row("uprobe", FUNCTION, attach), victim)
        with world.keeper() as keeper:
            assert world.reload(keeper).result is ReloadResult.OK
            assert tracing.seen(2) == [0, 0], "another process was seen"
            process.communicate()
            assert any(tracing.counts(1000, 3000))
            text = refused(world.reload(keeper))
            assert f"there is no process {process.pid}" in text
            assert len(world.link_ids()) == 1


def test_a_perf_event_is_counted_on_every_cpu(world: World, victim: Path) -> None:
    row = Row("perf_event", NOWHERE, "[{perf_event: cpu-clock, frequency: 99}]")
    traced(world, row, victim)
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        names = {status.target for status in keeper.status.attachments}
    cpus = kernel.online_cpus()
    assert names == {f"perf_event:cpu-clock:99Hz@cpu{cpu}" for cpu in cpus}
    assert len(world.link_ids()) == len(cpus)


@pytest.mark.parametrize(
    ("section", "attach", "text"),
    [
        ("tp", "{tracepoint: sched/sched_swich}", "there is no tracepoint sched/sched_swich: see"),
        ("raw_tp", "{tracepoint: no_such}", "the kernel has no such tracepoint"),
        ("uprobe", "{binary: /nowhere, symbol: main}", "look at /nowhere: No such file"),
        ("uprobe", "{binary: VICTIM, symbol: victim_tuch}", "did you mean victim_touch?"),
        ("uprobe", "{binary: /etc/passwd, symbol: main}", "/etc/passwd: this is no ELF file"),
        ("uprobe.multi", "{binary: VICTIM, symbol: x*}", "no function matches x*"),
        ("uprobe", "{binary: VICTIM, symbol: main, pid: 4194304}", "no process 4194304"),
        ("perf_event", "{perf_event: cpu-clock, period: 9, cpu: 4000}", "CPU 4000 is not online"),
    ],
)
def test_a_target_that_is_not_there(
    world: World, victim: Path, section: str, attach: str, text: str
) -> None:
    traced(world, Row(section, TRACEPOINT, f"[{attach}]"), victim)
    with world.keeper() as keeper:
        assert text in refused(world.reload(keeper))
        assert world.link_ids() == {}
