"""Why the kernel refused to create a map although its definition broke no rule. Pure."""

import errno

from bpfkeeperd.compare import Machine
from bpfkeeperd.errors import ENOTSUPP, errno_text
from bpfkeeperd.mapflags import ZERO_SEED, flag_names, flags_in
from bpfkeeperd.mapmemory import memory_text, up_front_bytes
from bpfkeeperd.maprules import violations
from bpfkeeperd.maptypes import BY_NUMBER, MapType, a_type, type_name
from bpfkeeperd.state import MapSpec


def likely(spec: MapSpec, number: int, machine: Machine) -> str:
    """What was asked of the kernel, and the likely reason for its answer: the end of an error."""
    known = BY_NUMBER.get(spec.type)
    asked = (
        f"asked for was {a_type(type_name(spec.type))} of key_size {spec.key_size}, value_size"
        f" {spec.value_size}, max_entries {spec.max_entries}, flags {flag_names(spec.flags)}"
    )
    if known is None:
        return f"{asked}, and nothing is known of that type here"
    broken = violations(spec, machine, declared_in_object=True)
    if broken:
        return f"{asked}; {'; '.join(violation.message for violation in broken)}"
    return f"{asked}; {_reason(spec, known, number, machine)}"


def _reason(spec: MapSpec, known: MapType, number: int, machine: Machine) -> str:
    newer = [f"the flag {flag.name} since {flag.since}" for flag in flags_in(spec.flags)]
    age = " and ".join([f"{known.name} since Linux {known.since}", *newer])
    match number:
        case errno.EPERM if spec.flags & ZERO_SEED:
            return "the flag zero_seed takes CAP_SYS_ADMIN"
        case errno.EPERM:
            return (
                "it takes CAP_BPF, and CAP_NET_ADMIN for maps of sockets and interfaces; kernels"
                f" up to 6.4 may say EPERM for what is EINVAL (there is {age})"
            )
        case errno.ENOMEM:
            needed = memory_text(up_front_bytes(spec, machine))
            return f"it takes {needed} at once, and that was not free, or not to this cgroup"
        case errno.E2BIG:
            return "sizes or max_entries are beyond what this kernel takes: make them smaller"
        case n if n == ENOTSUPP and spec.inner:
            return "this kernel does not take the inner map's type inside of another map"
        case n if n == ENOTSUPP:
            return f"{a_type(known.name)} may not take BTF on this kernel"
        case errno.EINVAL | errno.EOPNOTSUPP:
            return f"the kernel may be too old: there is {age}"
        case errno.EAGAIN | errno.EINTR:
            return "it did not work this time: reload again"
        case _:
            return f"the kernel's answer is {errno_text(number)}"
