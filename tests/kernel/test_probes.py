"""What the probes say of the running kernel, held against really attaching there."""

import ctypes
import errno
import os
import platform
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.check import check_manifest
from bpfkeeperd.errors import KernelError, ObjectError
from bpfkeeperd.hooks import HOOKS, PLACED_HOOKS, STRUCT_OPS, Hook, HookKind
from bpfkeeperd.state import ReloadResult
from tests.conftest import BuildObject
from tests.machine import Netns, bpf_ids, prog_attach
from tests.scenario import World

ALL_HOOKS = (*HOOKS, *PLACED_HOOKS, STRUCT_OPS)
SOCKMAP = 15
PLACES = {
    "fentry": "vfs_mkdir",
    "fexit": "vfs_mkdir",
    "fmod_ret": "security_sb_statfs",
    "lsm": "sb_statfs",
    "lsm.s": "file_open",
    "lsm_cgroup": "socket_bind",
    "tp_btf": "sched_process_exec",
    "iter": "bpf_map",
    "iter.s": "task",
}
"""Other ones than those that the probes try."""


def hooks(*kinds: HookKind) -> list[Hook]:
    return [hook for hook in ALL_HOOKS if hook.kind in kinds]


def name(hook: Hook) -> str:
    return hook.name


@contextmanager
def loaded(build_object: BuildObject, hook: Hook) -> Iterator[int]:
    """A program of a hook that does nothing; raises when this kernel does not take it."""
    place = PLACES.get(hook.name, "")
    section = f"{hook.name}/{place}" if place else hook.name
    verdict = 1 if hook.kind in (HookKind.CGROUP, HookKind.NETNS, HookKind.NETFILTER) else 0
    path = build_object("verdict", HOOK=f'"{section}"', VERDICT=verdict)
    with kernel.open_object(path.read_bytes(), "probed") as opened:
        opened.load()
        yield opened.program_fd("program")


def check(build_object: BuildObject, hook: Hook, attach: Callable[[int], int]) -> None:
    """Attaches, and lets go; it goes well if and only if the probe says so."""
    answer = kernel.can_attach(hook)
    try:
        with loaded(build_object, hook) as program:
            os.close(attach(program))
    except (KernelError, ObjectError) as error:
        assert answer.can is False, f"{answer}, but: {error}"
        assert answer.reason
    else:
        assert answer.can is True, f"it can be attached, but: {answer}"
        assert not answer.reason


@pytest.mark.parametrize("hook", hooks(HookKind.CGROUP), ids=name)
def test_cgroup(build_object: BuildObject, cgroup: Path, hook: Hook) -> None:
    directory = os.open(cgroup, os.O_RDONLY)
    with kernel.holding(directory):
        check(
            build_object,
            hook,
            lambda program: kernel.link_create(program, directory, hook.attach_type),
        )


@pytest.mark.parametrize("hook", hooks(HookKind.TCX), ids=name)
def test_interface(build_object: BuildObject, netns: Netns, hook: Hook) -> None:
    with netns.inside(netns.here):
        index = kernel.interface_index("veth0")
        check(
            build_object, hook, lambda program: kernel.link_create(program, index, hook.attach_type)
        )


@pytest.mark.parametrize("hook", hooks(HookKind.NETKIT), ids=name)
def test_netkit(build_object: BuildObject, netns: Netns, hook: Hook) -> None:
    command = ["ip", "-n", netns.here, "link", "add", "probed", "type", "netkit"]
    made = subprocess.run(command, capture_output=True).returncode == 0
    with netns.inside(netns.here):
        index = kernel.interface_index("probed" if made else "veth0")
        check(
            build_object, hook, lambda program: kernel.link_create(program, index, hook.attach_type)
        )


@pytest.mark.parametrize("hook", hooks(HookKind.NETNS, HookKind.NETFILTER), ids=name)
def test_network(build_object: BuildObject, netns: Netns, hook: Hook) -> None:
    space = os.open(kernel.netns_path(netns.here), os.O_RDONLY)
    place = struct.pack("=IIiI", 2, 1, 100, 0) if hook.kind is HookKind.NETFILTER else b""
    with kernel.holding(space), netns.inside(netns.here):
        target = 0 if place else space
        check(
            build_object,
            hook,
            lambda program: kernel.link_create(program, target, hook.attach_type, extra=place),
        )


@pytest.mark.parametrize("hook", hooks(HookKind.SOCKMAP), ids=name)
def test_sockmap(build_object: BuildObject, hook: Hook) -> None:
    """By a link, or as kernels before 6.10 do: the map then lets the program go with itself."""
    sockets = kernel.map_create(SOCKMAP, "sockets", 4, 4, 1)

    def attach(program: int) -> int:
        try:
            return kernel.link_create(program, sockets, hook.attach_type)
        except KernelError:
            if error := prog_attach(program, sockets, hook.attach_type):
                raise KernelError("attach", error) from None
            return os.dup(sockets)

    with kernel.holding(sockets):
        check(build_object, hook, attach)


FUNCTIONS = [hook for hook in hooks(HookKind.TRACING) if hook.name in PLACES]
SECURITY_MODULES = Path("/sys/kernel/security/lsm")


@pytest.mark.parametrize("hook", FUNCTIONS, ids=name)
def test_function(build_object: BuildObject, hook: Hook) -> None:
    """A kernel with BPF for LSM that does not run it lets programs attach all the same."""
    if hook.name.startswith("lsm") and not kernel.lacks(hook) and not SECURITY_MODULES.exists():
        assert kernel.can_attach(hook).can is None
        return
    if hook.name.startswith("lsm") and SECURITY_MODULES.exists():
        modules = SECURITY_MODULES.read_text().strip().split(",")
        if "bpf" not in modules:
            assert "lsm=" in kernel.lacks(hook) or "such programs" in kernel.lacks(hook)
            return
    check(build_object, hook, lambda program: kernel.raw_tracepoint_open(None, program))


@pytest.mark.parametrize("hook", ["fentry", "fexit", "fmod_ret"])
def test_function_that_sleeps(hook: str) -> None:
    """A kernel that has no programs at functions has none that sleep; else who knows where."""
    found = {known.name: known for known in PLACED_HOOKS}
    plain, sleeping = kernel.can_attach(found[hook]), kernel.can_attach(found[f"{hook}.s"])
    assert sleeping.can is (None if plain.can else False)


@pytest.mark.parametrize("hook", hooks(HookKind.RAW_TRACEPOINT), ids=name)
def test_raw_tracepoint(build_object: BuildObject, hook: Hook) -> None:
    writable = "nbd_send_request" if hook.name.endswith(".w") else "sched_process_exec"
    place = None if hook.name == "tp_btf" else writable
    if hook.name.endswith(".w") and not Path("/sys/module/nbd").exists():
        place = "sched_process_exec"  # none of it is written
    check(build_object, hook, lambda program: kernel.raw_tracepoint_open(place, program))


@pytest.mark.parametrize("hook", hooks(HookKind.ITERATOR), ids=name)
def test_iterator(build_object: BuildObject, hook: Hook) -> None:
    check(build_object, hook, lambda program: kernel.link_create(program, 0, hook.attach_type))


def perf_event(kind: int, config: int, config1: int = 0, config2: int = 0) -> int:
    """perf_event_open(2) on the first CPU, disabled."""
    attributes = struct.pack("=IIQQQQQIIQQ", kind, 112, config, 1, 0, 0, 1, 0, 0, config1, config2)
    buffer = ctypes.create_string_buffer(attributes, 112)
    libc = ctypes.CDLL(None, use_errno=True)
    number = {"x86_64": 298, "aarch64": 241}[platform.machine()]
    fd: int = libc.syscall(number, buffer, -1, 0, -1, 8)
    if fd < 0:
        raise KernelError("open a perf event", ctypes.get_errno())
    return fd


def probe_type(kind: HookKind) -> int:
    try:
        return int(Path(f"/sys/bus/event_source/devices/{kind}/type").read_text())
    except FileNotFoundError:
        raise KernelError("open a perf event", errno.ENOENT) from None


def event_of(hook: Hook) -> int:
    match hook.kind:
        case HookKind.PERF_EVENT:
            return perf_event(1, 0)
        case HookKind.TRACEPOINT:
            events = Path("/sys/kernel/tracing/events")
            return perf_event(2, int((events / "sched/sched_process_exec/id").read_text()))
        case HookKind.KPROBE:
            name = ctypes.create_string_buffer(b"vfs_mkdir")
            return perf_event(probe_type(hook.kind), 0, ctypes.addressof(name))
        case _:
            path = ctypes.create_string_buffer(b"/bin/sh")
            return perf_event(probe_type(hook.kind), 0, ctypes.addressof(path), 0x5000)


PERF_KINDS = (HookKind.PERF_EVENT, HookKind.TRACEPOINT, HookKind.KPROBE, HookKind.UPROBE)


@pytest.mark.parametrize("hook", hooks(*PERF_KINDS), ids=name)
def test_perf_event(build_object: BuildObject, stack: ExitStack, hook: Hook) -> None:
    if hook.kind is HookKind.TRACEPOINT and not Path("/sys/kernel/tracing/events").exists():
        assert kernel.can_attach(hook).can is None
        return

    def attach(program: int) -> int:
        event = stack.enter_context(kernel.holding(event_of(hook)))
        return kernel.link_create(program, event, hook.attach_type)

    check(build_object, hook, attach)


@pytest.mark.parametrize("hook", hooks(HookKind.KPROBE_MULTI, HookKind.UPROBE_MULTI), ids=name)
def test_multi(build_object: BuildObject, hook: Hook) -> None:
    name, number = ctypes.create_string_buffer(b"vfs_mkdir"), ctypes.c_uint64(0x5000)
    names = (ctypes.c_void_p * 1)(ctypes.addressof(name))
    path = ctypes.create_string_buffer(b"/bin/sh")
    if hook.kind is HookKind.KPROBE_MULTI:
        place = struct.pack("=IIQQQ", 0, 1, ctypes.addressof(names), 0, 0)
    else:
        addresses = ctypes.addressof(path), ctypes.addressof(number)
        place = struct.pack("=QQQQI", *addresses, 0, 0, 1)
    check(
        build_object,
        hook,
        lambda program: kernel.link_create(program, 0, hook.attach_type, extra=place),
    )


@pytest.mark.parametrize("hook", hooks(HookKind.XDP, HookKind.CLSACT), ids=name)
def test_nobody_can_tell(hook: Hook) -> None:
    assert kernel.can_attach(hook).can is None
    assert kernel.lacks(hook) == ""


def test_nothing_stays() -> None:
    """Asking again, and about everything, leaves no program, link or map (nor a descriptor)."""
    before = {kind: bpf_ids(kind) for kind in ("link", "map")}
    for hook in ALL_HOOKS:
        kernel.can_attach(hook)
    assert not bpf_ids("link") - before["link"] and not bpf_ids("map") - before["map"]


def test_without_privileges_nothing_is_known() -> None:
    """Nor is it remembered: the same process knows more with them."""
    script = (
        "import os; from bpfkeeperd import kernel;"
        "from bpfkeeperd.hooks import TCX_INGRESS as hook;"
        "os.seteuid(65534); first = kernel.can_attach(hook); lacks = kernel.lacks(hook);"
        "os.seteuid(0); print(first.can, bool(lacks), kernel.can_attach(hook).can is None)"
    )
    command = [os.path.abspath(".venv/bin/python"), "-c", script]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.split() == ["None", "False", "False"]


def test_an_object_that_needs_what_is_not_there(world: World, netns: Netns) -> None:
    """It is refused with the reason; the other goes ahead."""
    lacking = [hook for hook in ALL_HOOKS if kernel.lacks(hook) and hook.name in TARGETS]
    if not lacking:
        pytest.skip(f"this kernel has all of {', '.join(TARGETS)}")
    hook = lacking[0]
    world.put("one")
    world.put("two", "verdict", HOOK=f'"{hook.name}"', VERDICT=0)
    target = TARGETS[hook.name].replace("NETNS", netns.here)
    world.write(
        "objects:\n  one: {file: one.bpf.o, programs: {count: {attach: [{cgroup: CGROUP}]}}}\n"
        f"  two: {{file: two.bpf.o, programs: {{program: {{attach: [{target}]}}}}}}\n"
    )
    checked = check_manifest(str(world.manifest_file))
    assert kernel.lacks(hook) in checked.faults["two"] and list(checked.faults) == ["two"]
    with world.keeper() as keeper:
        outcome = world.reload(keeper)
        assert outcome.result is ReloadResult.FAILED
        (refusal,) = outcome.refusals
        assert f"program program: this kernel cannot attach {hook.name}: " in refusal
        assert kernel.lacks(hook) in refusal
        assert len(world.link_ids()) == 1


TARGETS = {
    "netkit/primary": "{interface: veth0, netns: NETNS}",
    "kprobe.multi": "{function: vfs_mkdir}",
}
