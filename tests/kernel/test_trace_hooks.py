"""Every hook of tracing, with real events: attached, kept, adopted, swapped, and given up."""

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.keeper import Keeper
from bpfkeeperd.state import ReloadResult
from tests.kernel.test_reload import plan_now
from tests.kernel.tracing import (
    ARGUMENTS,
    FUNCTION,
    KERNEL_RESULT,
    LSEEK,
    NOWHERE,
    PRCTL,
    PROBE_REGISTERS,
    READ,
    REGISTERS,
    RESULT,
    TRACEPOINT,
    Row,
    Tracing,
    has_function,
)
from tests.machine import skip_without_section
from tests.scenario import World

ENOSYS = 38
VICTIM = "binary: VICTIM"
ROWS = (
    Row("tracepoint/syscalls/sys_enter_prctl", TRACEPOINT, swaps=1000),
    Row("tp", TRACEPOINT, "[{tracepoint: syscalls/sys_enter_prctl}]"),
    Row("raw_tp/sys_enter", REGISTERS, swaps=300),
    Row("raw_tracepoint", REGISTERS, "[{tracepoint: sys_enter}]"),
    Row("raw_tp.w/bpf_test_finish", NOWHERE),
    Row("tp_btf/sys_enter", REGISTERS, swaps=200),
    Row("tp_btf", REGISTERS, "[{tracepoint: sys_enter}]"),
    Row(f"fentry/{PRCTL}", REGISTERS, swaps=200),
    Row("fentry", REGISTERS, f"[{{function: {PRCTL}}}]"),
    Row(f"fexit/{PRCTL}", REGISTERS),
    Row("fmod_ret/security_task_prctl", ARGUMENTS),
    Row(f"fentry.s/{PRCTL}", REGISTERS, needs="within_error_injection_list"),
    Row("lsm/task_prctl", ARGUMENTS, verdict=-ENOSYS, swaps=200),
    Row("lsm.s", ARGUMENTS, "[{function: task_prctl}]", verdict=-ENOSYS),
    Row(f"kprobe/{PRCTL}", PROBE_REGISTERS, swaps=100),
    Row("kprobe", PROBE_REGISTERS, f"[{{function: {PRCTL}}}]"),
    Row("ksyscall/prctl", PROBE_REGISTERS),
    Row(f"kretprobe/{LSEEK}", KERNEL_RESULT, swaps=30),
    Row("kretprobe", KERNEL_RESULT, f"[{{function: {LSEEK}}}]"),
    Row("kretsyscall/lseek", KERNEL_RESULT),
    Row("kprobe.multi/*_sys_prctl", PROBE_REGISTERS, swaps=100),
    Row("kretprobe.multi/*_sys_lseek", KERNEL_RESULT, swaps=30),
    Row("uprobe/VICTIM:victim_touch", FUNCTION, swaps=30),
    Row("uprobe", FUNCTION, f"[{{{VICTIM}, symbol: victim_touch}}]"),
    Row("uprobe", FUNCTION, f"[{{{VICTIM}, offset: OFFSET}}]"),
    Row("uprobe.s/VICTIM:victim_touch", FUNCTION),
    Row("uretprobe/VICTIM:victim_touch", RESULT, swaps=20),
    Row("uretprobe.s", RESULT, f"[{{{VICTIM}, symbol: victim_touch}}]"),
    Row("uprobe.multi/VICTIM:victim_*", FUNCTION, swaps=50),
    Row("uprobe.multi.s", FUNCTION, f"[{{{VICTIM}, symbol: victim_*}}]"),
    Row("uretprobe.multi/VICTIM:victim_t*", RESULT),
    Row("perf_event", NOWHERE, "[{perf_event: cpu-clock, frequency: 999}]", counted=False),
    Row("perf_event", NOWHERE, "[{perf_event: cpu-clock, period: 1000000}]", counted=False),
    Row("iter/bpf_map", READ),
    Row("iter/task", READ),
    Row("iter.s/task", READ),
)


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("victim") / "victim"
    source = Path(__file__).with_name("victim.c")
    subprocess.run(["gcc", "-O1", "-Wall", "-Werror", "-o", path, source], check=True)
    return path


@pytest.fixture(scope="module", autouse=True)
def tracefs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """tracefs, where the machine has none mounted."""
    if kernel.tracefs_mount():
        yield
        return
    path = tmp_path_factory.mktemp("tracing")
    subprocess.run(["mount", "-t", "tracefs", "tracefs", path], check=True)
    yield
    subprocess.run(["umount", path], check=True)


@pytest.fixture
def tracing(world: World, victim: Path, row: Row) -> Iterator[Tracing]:
    """The row's program in a world, beside a control if need be; or a skip."""
    skip_without_section(row.section)
    if row.needs and not has_function(row.needs):
        pytest.skip(f"the kernel has no {row.needs}(): nothing may sleep at {row.section}")
    tracing = Tracing(world, row, victim)
    tracing.put()
    tracing.write()
    with tracing.beside_a_control():
        yield tracing


def start(tracing: Tracing, keeper: Keeper) -> None:
    outcome = tracing.world.reload(keeper)
    assert outcome.result is ReloadResult.OK, outcome
    assert all(status.up for status in keeper.status.attachments)


def check_served(tracing: Tracing) -> None:
    """Every event is seen, and once, as soon as what was swapped out is gone."""
    deadline = time.monotonic() + 30
    while True:
        seen = tracing.seen()
        assert 0 not in seen
        if set(seen) == {1} or not tracing.row.counted:
            return
        assert time.monotonic() < deadline, seen


def check_given_up(tracing: Tracing) -> None:
    deadline = time.monotonic() + 30
    while any(tracing.seen()):
        assert time.monotonic() < deadline


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_hook_of_tracing(tracing: Tracing) -> None:
    world = tracing.world
    with world.keeper() as keeper:
        start(tracing, keeper)
        links = world.link_ids()
        assert links
        check_served(tracing)
    check_served(tracing)
    with world.keeper() as keeper:
        assert world.reload(keeper).done == ()
        assert world.link_ids() == links, "not adopted as it was"
        check_served(tracing)
        assert world.reload(keeper, force=True).result is ReloadResult.OK
        swapped = world.link_ids()
        assert swapped.keys() == links.keys()
        assert all(swapped[path][1] != links[path][1] for path in links), "not swapped"
        check_served(tracing)
        assert plan_now(world) == ()
        world.write("objects: {}\n")
        assert world.reload(keeper).result is ReloadResult.OK
        assert world.link_ids() == {}
        check_given_up(tracing)


@pytest.mark.parametrize("row", [row for row in ROWS if row.swaps], ids=str)
def test_swaps_under_load(tracing: Tracing, record_property: Callable[[str, object], None]) -> None:
    """None missed; those seen by both programs are counted.

    With a control at the event, "missed" is what it saw and no swapped program did.
    """
    world = tracing.world
    with world.keeper() as keeper:
        start(tracing, keeper)
        began = time.monotonic()
        with tracing.load(microseconds=100) as end:
            for _ in range(tracing.row.swaps):
                assert world.reload(keeper, force=True).result is ReloadResult.OK
                time.sleep(0.03 if "multi" in tracing.row.section else 0)
            seconds = time.monotonic() - began
            made = end()
        seen = tracing.counts(0, made)
        tracing.made += made
        check_served(tracing)
    missed, doubles = seen.count(0), sum(times > 1 for times in seen)
    record_property("doubles", doubles)
    print(
        f"{tracing.row}: {tracing.row.swaps} swaps in {seconds:.1f} s, {made} events,"
        f" {missed} missed, {doubles} seen twice"
    )
    assert missed == 0
    assert doubles < made, "the former programs went on"
