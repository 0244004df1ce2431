"""Whether the running kernel can attach programs of a hook: tried, never told from its version.

Nothing that is in use is touched. A program of two instructions is loaded, and attached to a
descriptor, an interface or a function that does not exist: a kernel that has the kind of link looks
for the place first, and says that it is not there; one that has not says so before. Where the place
is a function, it is one that runs hardly ever, and the program is detached at once.
"""

import errno
import os
from dataclasses import dataclass
from typing import Any

from bpfkeeperd._libbpf import ffi, lib
from bpfkeeperd.errors import ENOTSUPP, PASSING, errno_text
from bpfkeeperd.hooks import (
    PROG_TYPE_KPROBE,
    PROG_TYPE_LSM,
    PROG_TYPE_TRACING,
    Hook,
    HookKind,
)

_NOWHERE = 0x7FFFFFF0
"""No descriptor, and no interface, has this number."""
_NO_SUCH_NAME = "bpfkeeperd_no_such_name"
_SLEEPABLE = 1 << 4
"""BPF_F_SLEEPABLE."""
_STRUCT_OPS_LINK = 1 << 13
"""BPF_F_LINK."""
_TP_BTF = 23
_NOT_ALLOWED = (errno.EPERM, errno.EACCES)

_EVENT_SOURCES = "/sys/bus/event_source/devices"
_TRACEFS = ("/sys/kernel/tracing/events", "/sys/kernel/debug/tracing/events")
_SECURITY_MODULES = "/sys/kernel/security/lsm"
_KERNEL_BTF = "/sys/kernel/btf/vmlinux"

_FUNCTIONS = {
    "fentry": "bpf_fentry_test1",  # runs in BPF_PROG_TEST_RUN only
    "fexit": "bpf_fentry_test1",
    "fmod_ret": "security_quota_on",  # 0, which the probe returns, lets it go on
    "lsm": "quota_on",
    "lsm_cgroup": "quota_on",
    "tp_btf": "sched_switch",  # loaded, not attached
    "iter": "task",  # an iterator over it may sleep, too
}
_SLEEPABLE_LSM = "bpf"
"""Not every LSM hook may sleep. This one is loaded, not attached."""


@dataclass(frozen=True, slots=True)
class Answer:
    can: bool | None
    """None: nobody can tell without attaching."""
    reason: str = ""
    """Why it cannot, or why that cannot be told."""
    refused: bool = False
    """This process may not ask, and so not attach either."""


_YES = Answer(True)
_ANSWERS: dict[Hook, Answer] = {}
"""What is certain. A kernel does not change, but what is mounted or allowed may."""


def can_attach(hook: Hook) -> Answer:
    """Whether this kernel can attach programs of a hook; asked once, unless it cannot be told."""
    answer = _ANSWERS.get(hook)
    if answer is None:
        answer = _ask(hook)
        if answer.can is not None and hook.kind is not HookKind.TRACEPOINT:
            _ANSWERS[hook] = answer
    return answer


def lacks(hook: Hook) -> str:
    """Why this kernel certainly cannot attach programs of a hook; empty: it can, or who knows."""
    answer = can_attach(hook)
    return answer.reason if answer.can is False else ""


def _ask(hook: Hook) -> Answer:
    if hook.kind is HookKind.STRUCT_OPS:
        return _errno_answer(hook, lib.keeper_probe_struct_ops(_STRUCT_OPS_LINK), ENOTSUPP)
    if missing := _missing_file(hook):
        return missing
    program = _load(hook)
    if program < 0:
        return _load_answer(hook, -program)
    try:
        answer = _attached(hook, program)
    finally:
        os.close(program)
    if answer.can and hook.prog_type == PROG_TYPE_LSM:
        return _lsm_answer()
    return answer


def _load(hook: Hook) -> int:
    function = _FUNCTIONS.get(hook.name.removesuffix(".s"))
    if hook.prog_type == PROG_TYPE_LSM and hook.sleepable:
        function = _SLEEPABLE_LSM
    # Where a program may sleep differs from kernel to kernel; without kernel support for error
    # injection fentry.s and its like have no place at all.
    sleeps = hook.sleepable and not (hook.kind is HookKind.TRACING and function != _SLEEPABLE_LSM)
    returned = 1 if hook.kind in (HookKind.CGROUP, HookKind.NETNS, HookKind.NETFILTER) else 0
    result: int = lib.keeper_probe_load(
        hook.prog_type,
        hook.expected_attach_type,
        _SLEEPABLE if sleeps else 0,
        ffi.NULL if function is None else function.encode(),
        returned,
    )
    return result


def _attached(hook: Hook, program: int) -> Answer:
    match hook.kind:
        case HookKind.CGROUP | HookKind.NETNS:
            return _link(hook, program, errno.EBADF)
        case HookKind.KPROBE | HookKind.UPROBE | HookKind.TRACEPOINT | HookKind.PERF_EVENT:
            return _link(hook, program, errno.EBADF)
        case HookKind.TCX | HookKind.NETKIT:
            return _link(hook, program, errno.ENODEV)
        case HookKind.NETFILTER:  # family 0 is none
            return _link(hook, program, errno.EAFNOSUPPORT, target=0)
        case HookKind.SOCKMAP:
            answer = _link(hook, program, errno.EBADF)
            if answer.can:
                return answer
            result = lib.keeper_probe_attach(program, _NOWHERE, hook.attach_type)
            return _errno_answer(hook, result, errno.EBADF)
        case HookKind.KPROBE_MULTI:
            return _kprobe_multi(hook, program)
        case HookKind.UPROBE_MULTI:
            return _uprobe_multi(hook, program)
        case HookKind.ITERATOR:
            return _link(hook, program, 0, target=0)
        case HookKind.RAW_TRACEPOINT:
            return _raw_tracepoint(hook, program)
        case HookKind.TRACING if hook.prog_type == PROG_TYPE_LSM and hook.sleepable:
            return _YES  # it is loaded, for a function that must not be attached to
        case HookKind.TRACING:
            answer = _errno_answer(hook, lib.bpf_raw_tracepoint_open(ffi.NULL, program), 0)
            if answer.can and hook.sleepable and hook.prog_type == PROG_TYPE_TRACING:
                return Answer(None, "only the verifier tells where a program may sleep")
            return answer
        case HookKind.XDP | HookKind.CLSACT | HookKind.STRUCT_OPS:
            # A missing interface and a missing kind of link are both EINVAL to XDP; a filter's
            # kind is a module that is loaded when the first is attached.
            return Answer(None, "only attaching tells")


def _link(
    hook: Hook, program: int, expected: int, *, target: int = _NOWHERE, extra: bytes = b""
) -> Answer:
    result = lib.keeper_link_create(program, target, hook.attach_type, 0, extra, len(extra))
    return _errno_answer(hook, result, expected)


def _kprobe_multi(hook: Hook, program: int) -> Answer:
    name = ffi.new("char[]", _NO_SUCH_NAME.encode())
    names = ffi.new("char *[1]", [name])
    extra = _u32(0) + _u32(1) + _address(names) + bytes(16)  # flags, count, names
    result = lib.keeper_link_create(program, 0, hook.attach_type, 0, extra, len(extra))
    if result == -errno.ENOENT:
        return _YES
    return _errno_answer(hook, result, errno.ESRCH)


def _uprobe_multi(hook: Hook, program: int) -> Answer:
    path = ffi.new("char[]", f"/{_NO_SUCH_NAME}/file".encode())
    offsets = ffi.new("unsigned long[1]")
    extra = _address(path) + _address(offsets) + bytes(16) + _u32(1)  # and the count
    return _link(hook, program, errno.ENOENT, target=0, extra=extra)


def _raw_tracepoint(hook: Hook, program: int) -> Answer:
    if hook.prog_type == PROG_TYPE_TRACING:
        return _YES  # loading it found the tracepoint, and attaching would be to one that is busy
    name = ffi.new("char[]", _NO_SUCH_NAME.encode())
    return _errno_answer(hook, lib.bpf_raw_tracepoint_open(name, program), errno.ENOENT)


def _u32(number: int) -> bytes:
    return bytes(ffi.buffer(ffi.new("uint32_t *", number)))


def _address(data: Any) -> bytes:
    return bytes(ffi.buffer(ffi.new("uint64_t *", int(ffi.cast("uintptr_t", data)))))


def _errno_answer(hook: Hook, result: int, expected: int) -> Answer:
    """What an attempt says: ``expected`` is the errno of a kernel that can; 0: it goes well."""
    if result >= 0:
        if result > 0:
            os.close(result)
        return _YES if expected == 0 else Answer(None, "an attempt that must fail went well")
    if -result == expected:
        return _YES
    if -result in _NOT_ALLOWED:
        return _not_allowed(-result)
    if -result in PASSING:
        return _did_not_work(-result)
    return Answer(False, f"it does not know such attachments ({errno_text(-result)}){_since(hook)}")


def _load_answer(hook: Hook, error: int) -> Answer:
    if error == errno.ESRCH:
        if not os.path.exists(_KERNEL_BTF):
            return Answer(False, f"it was built without BTF of its own: {_KERNEL_BTF} is missing")
        return Answer(None, "the function to try it with is not there")
    if error in PASSING:
        return _did_not_work(error)
    if error not in _NOT_ALLOWED:
        return Answer(False, f"it does not know such programs ({errno_text(error)}){_since(hook)}")
    # With the same privileges a program for a tracepoint must be loadable too: if it is, the
    # refusal is no matter of privileges.
    at_function = hook.prog_type in (PROG_TYPE_TRACING, PROG_TYPE_LSM)
    if not at_function or hook.expected_attach_type == _TP_BTF:
        return _not_allowed(error)
    other = lib.keeper_probe_load(PROG_TYPE_TRACING, _TP_BTF, 0, _FUNCTIONS["tp_btf"].encode(), 0)
    if other < 0:
        return _not_allowed(error)
    os.close(other)
    text = (
        f"it refuses programs at functions ({errno_text(error)}), though not those at tracepoints"
    )
    return Answer(False, text)


def _not_allowed(error: int) -> Answer:
    return Answer(
        None,
        f"asking is not allowed ({errno_text(error)}): it takes CAP_BPF, PERFMON and NET_ADMIN",
        refused=True,
    )


def _did_not_work(error: int) -> Answer:
    return Answer(None, f"asking did not work this time ({errno_text(error)})")


def _lsm_answer() -> Answer:
    """Programs attach whether or not BPF is an active security module, and are never run if not."""
    try:
        with open(_SECURITY_MODULES, encoding="ascii") as file:
            modules = file.read().strip()
    except OSError as error:
        return Answer(None, f"cannot read {_SECURITY_MODULES}: {error.strerror}")
    if "bpf" in modules.split(","):
        return _YES
    text = f"bpf is not among its security modules: boot it with lsm={modules},bpf"
    return Answer(False, text)


def _missing_file(hook: Hook) -> Answer | None:
    """What sysfs and tracefs say of probes and tracepoints; None: nothing is missing."""
    if hook.prog_type == PROG_TYPE_KPROBE and hook.kind in (HookKind.KPROBE, HookKind.UPROBE):
        if not os.path.isdir(_EVENT_SOURCES):
            return Answer(None, f"{_EVENT_SOURCES} is not there: mount sysfs")
        if not os.path.exists(f"{_EVENT_SOURCES}/{hook.kind}"):
            option = f"CONFIG_{hook.kind.upper()}_EVENTS"
            return Answer(False, f"it was built without {hook.kind}s ({option})")
    if hook.kind is HookKind.TRACEPOINT and not any(map(os.path.isdir, _TRACEFS)):
        return Answer(None, "tracefs is not mounted at /sys/kernel/tracing")
    return None


def _since(hook: Hook) -> str:
    if hook.kind in (HookKind.CGROUP, HookKind.SOCKMAP, HookKind.TRACING):
        return ""  # hooks of such a kind came one after the other
    return f": Linux has {hook.kind} since {hook.rules.since}, unless it is built without"
