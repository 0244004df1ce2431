"""The kernel's rules of map creation, checked before the kernel says EINVAL. Pure."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import assert_never

from bpfkeeperd.compare import Machine, canonical
from bpfkeeperd.mapcolumns import (
    Btf,
    Inner,
    KeyBtf,
    Limit,
    Multiple,
    OneOf,
    Pages,
    Part,
    Range,
    Size,
    size_text,
)
from bpfkeeperd.mapflags import (
    NO_COMMON_LRU,
    NO_PREALLOC,
    NUMA_NODE,
    RDONLY,
    RDONLY_PROG,
    STACK_BUILD_ID,
    WRONLY,
    WRONLY_PROG,
    flag_names,
    flags_in,
)
from bpfkeeperd.mapmemory import memory_text, up_front_bytes
from bpfkeeperd.maptypes import BY_NUMBER, STRUCT_OPS, MapType, a_type, type_name
from bpfkeeperd.state import MapSpec

_BUILD_ID_FRAME, _FRAME = 32, 8
_C_TYPES = {1: "__u8", 2: "__u16", 4: "__u32", 8: "__u64"}
_INTEGER = "0:32:int:"
"""The layout of a 4-byte integer."""
_OPPOSED = (
    RDONLY | WRONLY,
    RDONLY_PROG | WRONLY_PROG,
    NO_COMMON_LRU | NUMA_NODE,
)
"""Flags that exclude each other."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One rule that a definition breaks."""

    field: str
    """As in ``key_size`` or ``inner.flags``."""
    message: str
    """Begins with the field and its value, then tells the rule."""
    remedy: str


@functools.lru_cache(maxsize=4096)
def violations(
    spec: MapSpec, machine: Machine, *, declared_in_object: bool
) -> tuple[Violation, ...]:
    """Every rule that keeps the kernel from creating a map as it is defined.

    What is put right without a word (see `compare.canonical`) is none of it. Nothing is known of a
    type that is not in the table, so nothing is said of it.
    """
    known = BY_NUMBER.get(spec.type)
    if known is None:
        return ()
    definition = _Definition(spec, known, machine, declared_in_object)
    found = [
        *_of_type(definition),
        *_of_part(definition, "key", spec.key_size, known.key),
        *_of_part(definition, "value", canonical(spec, machine).value_size, known.value),
        *_of_max_entries(definition),
        *_of_flags(definition),
        *_of_numa_node(definition),
        *_of_map_extra(definition),
        *_of_btf(definition),
        *_of_inner(definition),
    ]
    fields = {violation.field for violation in found}
    if not fields & {"key_size", "value_size"}:
        found += _of_both(definition)
    if not fields & {"key_size", "value_size", "max_entries"}:
        found += _of_memory(definition)
    return tuple(found)


def fault_text(name: str, spec: MapSpec, violation: Violation) -> str:
    """``array a: key_size is 1, an ARRAY's key is a 4-byte index: declare __type(key, __u32)``."""
    return f"{type_name(spec.type)} {name}: {violation.message}: {violation.remedy}"


@dataclass(frozen=True, slots=True)
class _Definition:
    """What is examined, and in whose words the remedy is."""

    spec: MapSpec
    type: MapType
    machine: Machine
    in_object: bool

    @property
    def a_map(self) -> str:
        """``an ARRAY``."""
        return a_type(self.type.name)

    def remedy(self, in_object: str, in_manifest: str) -> str:
        return in_object if self.in_object else in_manifest

    def number(self, bound: int | Limit) -> int:
        return self.machine.limit(bound) if isinstance(bound, Limit) else bound

    def text(self, size: Size, noun: str) -> str:
        return size_text(size, noun, lambda bound: str(self.number(bound)))

    def fault(self, size: Size, number: int) -> str | None:
        """None for a number that will do; else what the kernel answers, if that is telling."""
        match size:
            case OneOf(numbers):
                return None if number in numbers else ""
            case Range(low, high, answer):
                if high is not None and number > self.number(high):
                    return f" ({answer})" if answer != "EINVAL" else ""
                return None if number >= low else ""
            case Multiple(of, low, high):
                fits = number % self.number(of) == 0 and number >= low
                return None if fits and (high is None or number <= self.number(high)) else ""
            case Pages():
                pages, rest = divmod(number, self.machine.page_size)
                return None if not rest and pages and not pages & (pages - 1) else ""
            case _:
                assert_never(size)


def _of_type(definition: _Definition) -> Iterator[Violation]:
    if definition.type.number == STRUCT_OPS and not definition.in_object:
        yield Violation(
            "type",
            "type is struct_ops, which only an object can declare",
            'declare it in an object, in SEC(".struct_ops"), and not here',
        )


def _of_part(definition: _Definition, what: str, size: int, part: Part) -> Iterator[Violation]:
    allowed = part.size
    if isinstance(allowed, Multiple) and definition.spec.flags & STACK_BUILD_ID:
        scale = _BUILD_ID_FRAME // _FRAME
        high = definition.number(allowed.high or 0) * scale
        allowed = Multiple(_BUILD_ID_FRAME, _BUILD_ID_FRAME, high)
    answer = definition.fault(allowed, size)
    if answer is None:
        return
    if allowed == OneOf((0,)):
        rule = f"{definition.a_map} has no {what}"
    else:
        rule = f"{definition.a_map}'s {what} is {_part_text(definition, part, allowed)}{answer}"
        rule += "" if allowed is part.size else " with stack_build_id"
    remedy = _part_remedy(definition, what, size, allowed)
    yield Violation(f"{what}_size", f"{what}_size is {size}, {rule}", remedy)


def _part_text(definition: _Definition, part: Part, allowed: Size) -> str:
    match allowed:
        case OneOf((number,)) if part.means and "," not in part.means:
            return f"{'an' if number == 8 else 'a'} {number}-byte {part.means}"
    text = definition.text(allowed, "byte")
    return f"{text} ({part.means})" if part.means else text


def _part_remedy(definition: _Definition, what: str, size: int, allowed: Size) -> str:
    match allowed:
        case OneOf((0,)):
            return f"leave out {what} and {what}_size"
        case OneOf(numbers):
            return _declare_size(definition, what, numbers[0])
        case Multiple(of, low, high):
            unit = definition.number(of)
            most = definition.number(high) if high is not None else size + unit
            fitting = min(max(-(-size // unit) * unit, low), most // unit * unit)
            return _declare_size(definition, what, fitting)
        case Range(low, high) if high is not None and size > low:
            return f"make the {what} {definition.number(high)} bytes or less"
        case Range(low):
            wide = f" of {low} bytes or more" if low > 1 else ""
            return definition.remedy(
                f"declare __type({what}, TYPE){wide}", f"write {what}: TYPE{wide}"
            )
        case Pages():
            return _declare(definition, f"{what}_size", definition.machine.page_size)
        case _:
            assert_never(allowed)


def _declare_size(definition: _Definition, what: str, size: int) -> str:
    c_type = _C_TYPES.get(size)
    if c_type is None:
        return _declare(definition, f"{what}_size", size)
    name = c_type.removeprefix("__")
    in_manifest = f"write {what}_size: {size} (or {what}: {name})"
    if definition.type.btf is Btf.REQUIRED:
        in_manifest = f"write {what}: {name}"
    return definition.remedy(f"declare __type({what}, {c_type})", in_manifest)


def _declare(definition: _Definition, field: str, value: object) -> str:
    return definition.remedy(f"declare __uint({field}, {value})", f"write {field}: {value}")


def _of_both(definition: _Definition) -> Iterator[Violation]:
    """The bound on key and value together, when each for itself is right."""
    spec, together = definition.spec, definition.type.together
    if together is None or spec.key_size + spec.value_size <= definition.number(together):
        return
    larger, other = ("key", "value") if spec.key_size > spec.value_size else ("value", "key")
    sizes = {"key": spec.key_size, "value": spec.value_size}
    most = definition.number(together)
    yield Violation(
        f"{larger}_size",
        f"{larger}_size is {sizes[larger]}, key and value of {definition.a_map} are at most {most}"
        " bytes together (E2BIG)",
        f"make the {larger} {max(most - sizes[other], 1)} bytes or less",
    )


def _of_max_entries(definition: _Definition) -> Iterator[Violation]:
    allowed, declared = definition.type.max_entries, definition.spec.max_entries
    made = canonical(definition.spec, definition.machine).max_entries
    answer = definition.fault(allowed, made)
    if answer is None and made < 1 << 32:
        return
    text = f"{definition.a_map} has {definition.text(allowed, '')}"
    remedy = _declare(definition, "max_entries", "NUMBER")
    match allowed:
        case OneOf((0,)):
            text = f"{definition.a_map} has none"
            remedy = definition.remedy("leave out max_entries", "write max_entries: 0")
        case OneOf((number,)):
            remedy = _declare(definition, "max_entries", number)
        case Range(low, high) if high is not None and made > low:
            most = definition.number(high)
            remedy = f"{_declare(definition, 'max_entries', most)} or less"
        case Pages():
            text = f"{definition.a_map}'s is {definition.text(allowed, '')}"
            bound = 1 << 31 if made else definition.machine.page_size
            more_or_less = "or less" if made else "or more"
            remedy = f"{_declare(definition, 'max_entries', bound)} {more_or_less}"
    message = f"max_entries is {declared}, {text}{answer or ''}"
    yield Violation("max_entries", message, remedy)


def _of_flags(definition: _Definition) -> Iterator[Violation]:
    flags, known = definition.spec.flags, definition.type
    foreign = flags & ~known.flags
    if foreign:
        names = flag_names(foreign)
        answer = " (ENOTSUPP)" if foreign & NO_PREALLOC and known.flags & NO_COMMON_LRU else ""
        yield Violation(
            "flags",
            f"flags has {names}{answer}, {definition.a_map} takes {flag_names(known.flags)}",
            definition.remedy(
                f"leave {_macros(foreign)} out of map_flags", f"remove {names} from flags"
            ),
        )
    missing = known.required & ~flags
    if missing:
        yield Violation(
            "flags",
            f"flags lacks {flag_names(missing)}, which {definition.a_map} needs",
            _add_flag(definition, missing),
        )
    for opposed in _OPPOSED:
        if flags & known.flags & opposed == opposed:
            one, other = (flag.name for flag in flags_in(opposed))
            yield Violation(
                "flags",
                f"flags has {one} and {other}, which exclude each other",
                f"leave one of them out of {definition.remedy('map_flags', 'flags')}",
            )


def _macros(flags: int) -> str:
    """As C spells them; a bit without a name as its number."""
    names = flag_names(flags).split(", ")
    return " | ".join(name if name[0] == "0" else f"BPF_F_{name.upper()}" for name in names)


def _add_flag(definition: _Definition, missing: int) -> str:
    if definition.spec.flags:
        return definition.remedy(
            f"add {_macros(missing)} to map_flags", f"add {flag_names(missing)} to flags"
        )
    return definition.remedy(
        f"declare __uint(map_flags, {_macros(missing)})", f"write flags: [{flag_names(missing)}]"
    )


def _of_numa_node(definition: _Definition) -> Iterator[Violation]:
    spec, online = definition.spec, definition.machine.numa_nodes
    if not definition.type.flags & NUMA_NODE:
        return  # said of the flag already; the node alone does nothing
    # Without the flag the kernel ignores the node, and takes the map.
    if spec.flags & NUMA_NODE and online is not None and spec.numa_node not in online:
        nodes = ", ".join(str(node) for node in sorted(online))
        yield Violation(
            "numa_node",
            f"numa_node is {spec.numa_node}, this machine has {nodes}",
            _declare(definition, "numa_node", min(online, default=0)),
        )


def _of_map_extra(definition: _Definition) -> Iterator[Violation]:
    extra, part = definition.spec.map_extra, definition.type.extra
    shown = (
        f"map_extra is {extra:#x}" if isinstance(part.size, Multiple) else f"map_extra is {extra}"
    )
    if definition.fault(part.size, extra) is not None:
        if part.size == OneOf((0,)):
            rule, remedy = f"{definition.a_map} has none", "leave out map_extra"
        else:
            rule = f"{definition.a_map}'s is {definition.text(part.size, '')} ({part.means})"
            remedy = f"{_declare(definition, 'map_extra', 0)}, or leave it out"
        yield Violation("map_extra", f"{shown}, {rule}", remedy)
    elif extra and isinstance(part.size, Multiple):
        last = extra + definition.spec.max_entries * definition.machine.page_size - 1
        if extra >> 32 != last >> 32:
            yield Violation(
                "map_extra",
                f"{shown}, from there {definition.spec.max_entries} pages cross a border of 4 GiB"
                " (ERANGE)",
                f"{_declare(definition, 'map_extra', f'{(extra >> 32) + 1 << 32:#x}')}, or leave"
                " it out",
            )


def _of_btf(definition: _Definition) -> Iterator[Violation]:
    spec, known = definition.spec, definition.type
    if known.btf is not Btf.REQUIRED:
        return
    if spec.key_layout is None or spec.value_layout is None:
        yield Violation(
            "btf",
            f"btf of key and value is missing, {definition.a_map} needs it",
            definition.remedy(
                "declare __type(key, int) and __type(value, TYPE), and compile with -g",
                "write key: s32 and value: TYPE, not their sizes",
            ),
        )
    elif known.key_btf is KeyBtf.INT and spec.key_size == 4 and spec.key_layout.strip() != _INTEGER:
        yield Violation(
            "btf",
            f"btf of the key is no integer, {definition.a_map}'s key is {known.key_btf}",
            definition.remedy("declare __type(key, int)", "write key: s32"),
        )


def _of_inner(definition: _Definition) -> Iterator[Violation]:
    inner = definition.spec.inner
    if definition.type.outer and inner is None:
        yield Violation(
            "inner",
            f"inner is missing, {definition.a_map} needs the definition of the maps it holds",
            definition.remedy(
                "declare __array(values, struct { ... })",
                "write inner: {type: TYPE, key: TYPE, value: TYPE, max_entries: NUMBER}",
            ),
        )
    if inner is None:
        return
    if not definition.type.outer:
        yield Violation(
            "inner",
            f"inner is given, but {definition.a_map} holds no maps",
            "leave it out, or make the type array_of_maps or hash_of_maps",
        )
        return
    known = BY_NUMBER.get(inner.type)
    if known and known.inner in (Inner.NESTED, Inner.UNSUPPORTED):
        nested = known.inner is Inner.NESTED
        yield Violation(
            "inner.type",
            f"inner.type is {known.name}, which cannot be an inner map"
            f" ({'EINVAL' if nested else 'ENOTSUPP'})",
            "maps hold maps one level deep" if nested else "choose another type for the inner map",
        )
        return
    for fault in violations(inner, definition.machine, declared_in_object=definition.in_object):
        yield Violation(f"inner.{fault.field}", f"inner.{fault.message}", fault.remedy)


def _of_memory(definition: _Definition) -> Iterator[Violation]:
    memory = definition.machine.memory_bytes
    needed = up_front_bytes(definition.spec, definition.machine)
    if memory is None or needed <= memory // 2:  # more, and the kernel kills processes for it
        return
    as_used = definition.type.flags & ~definition.spec.flags & NO_PREALLOC
    remedy = f", or {_add_flag(definition, NO_PREALLOC)}" if as_used else ""
    yield Violation(
        "max_entries",
        f"max_entries is {definition.spec.max_entries}, {definition.a_map} of that size takes"
        f" {memory_text(needed)} at once, more than half of this machine's {memory_text(memory)}",
        f"make it smaller{remedy}",
    )
