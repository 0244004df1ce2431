"""A map type told in full: what it is for, what creation wants, how it is treated. Pure."""

from bpfkeeperd.columns import table
from bpfkeeperd.errors import KeeperError
from bpfkeeperd.mapcolumns import (
    Btf,
    Copy,
    Inner,
    KeyBtf,
    Limit,
    OneOf,
    Part,
    Share,
    Size,
    size_text,
)
from bpfkeeperd.mapflags import (
    INNER_MAP,
    NO_PREALLOC,
    OF_DESCRIPTOR,
    RDONLY_PROG,
    WRONLY_PROG,
    flags_in,
)
from bpfkeeperd.maptypes import BLOOM_FILTER, BY_NAME, MAP_TYPES, Count, MapType
from bpfkeeperd.suggest import did_you_mean

_ACCESS = OF_DESCRIPTOR | RDONLY_PROG | WRONLY_PROG
_COUNTED = {
    Count.ENTRIES: "entries in use, of max_entries",
    Count.BYTES: "bytes not yet consumed, of max_entries",
    Count.ESTIMATE: "entries, estimated from the bits that are set",
    Count.NONE: "no: every slot exists, or the notion does not apply",
}


def map_type_text(name: str) -> str:
    """Everything about one map type, for people.

    Raises:
        KeeperError: there is no such type.
    """
    known = BY_NAME.get(name.lower().removeprefix("bpf_map_type_"))
    if known is None:
        raise KeeperError(f"there is no map type {name}: {did_you_mean(name, BY_NAME)}")
    rows = [
        ("since", f"Linux {known.since}"),
        ("key", _part_text(known.key, "key_size")),
        ("value", _part_text(known.value, "value_size") + (", for each CPU" * known.per_cpu)),
        ("max_entries", _entries_text(known)),
        ("map_extra", _extra_text(known)),
        ("memory", _memory_text(known)),
        ("BTF", _btf_text(known)),
        ("counted", _COUNTED[known.count]),
        ("shared by", str(known.share)),
        ("filled by", known.filled_by),
        ("copied", _copy_text(known)),
        ("inner map", _inner_text(known)),
        *(("note", note) for note in known.notes),
    ]
    lines = [f"{known.name} ({known.number}): {known.purpose}"]
    lines += [f"  {label:<12} {text}" for label, text in rows if text]
    flags = list(flags_in(known.flags))
    lines.append(f"  {'flags':<12} {'' if flags else 'none'}".rstrip())
    for flag in flags:
        needed = ", required" if flag.bit & known.required else ""
        lines.append(f"    {flag.name:<16} {flag.means} (since {flag.since}{needed})")
    return "\n".join(lines)


def _bound(bound: int | Limit) -> str:
    """A bound for any machine; round numbers as powers of two."""
    if isinstance(bound, int) and bound >= 1 << 20:
        power = bound.bit_length() - 1 if bound & (bound - 1) == 0 else bound.bit_length()
        return f"2^{power}" + (f" - {(1 << power) - bound}" if bound != 1 << power else "")
    return str(bound)


def _part_text(part: Part, field: str) -> str:
    if part.size == OneOf((0,)):
        return f"none: {field} is 0"
    text = size_text(part.size, "byte", _bound)
    return f"{text}: {part.means}" if part.means else text


def _entries_text(known: MapType) -> str:
    if known.max_entries == OneOf((0,)):
        return "0"
    return size_text(known.max_entries, "", _bound)


def _extra_text(known: MapType) -> str:
    return (
        f"{size_text(known.extra.size, '', _bound)}: {known.extra.means}"
        if known.extra.means
        else ""
    )


def _btf_text(known: MapType) -> str:
    if known.btf is Btf.TAKEN and known.key_btf is KeyBtf.ANY:
        return "taken"
    if known.btf is Btf.REFUSED:
        return "refused (EINVAL or ENOTSUPP); libbpf creates it without"
    return f"{known.btf}; the key has to be {known.key_btf}"


def _copy_text(known: MapType) -> str:
    return "its contents cannot be copied" if known.copy is Copy.NO else str(known.copy)


def _inner_text(known: MapType) -> str:
    if known.inner is Inner.SAME_SIZE and known.flags & INNER_MAP:
        return f"{known.inner}, unless it has the flag inner_map"
    if known.inner is Inner.NESTED:
        return f"{known.inner}: maps hold maps one level deep"
    return str(known.inner)


def _memory_text(known: MapType) -> str:
    memory = known.memory
    if known.number == BLOOM_FILTER:
        return "at creation 7/5 bits an entry and hash function, to the next power of two"
    if known.count is Count.BYTES:
        return "at creation max_entries bytes"
    parts = [f"{memory.fixed} bytes" if memory.fixed else ""]
    parts += ["key" if memory.key else "", "value" if memory.value else ""]
    text = " + ".join(part for part in parts if part)
    text += " an entry" if text else ""
    if memory.bucket:
        text += f"{', and ' if text else ''}{memory.bucket} bytes a bucket"
        text += ", buckets alone with no_prealloc" if known.flags & NO_PREALLOC else ""
    return f"at creation {text}" if text else ""


def map_types_text() -> str:
    """All map types, one line each."""
    head = ("TYPE", "SINCE", "WHAT IT IS")
    return table(head, [(known.name, known.since, known.purpose) for known in MAP_TYPES])


def reference_table() -> str:
    """The table of all map types in README.md."""
    head = ("type", "since", "key", "value", "max_entries", "flags", "counted", "notes")
    rows = [head, *(_reference_row(known) for known in MAP_TYPES)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "|---" * len(head) + "|")
    return "\n".join(lines)


def _reference_row(known: MapType) -> tuple[str, ...]:
    return (
        f"`{known.name}`",
        known.since,
        _reference_size(known.key.size),
        _reference_size(known.value.size),
        _reference_size(known.max_entries),
        _reference_flags(known),
        str(known.count),
        "; ".join(_remarks(known)) or "-",
    )


def _reference_size(size: Size) -> str:
    return size_text(size, "", _bound).replace("at least", "from")


def _reference_flags(known: MapType) -> str:
    left, names = known.flags, []
    for name, group in (("access", _ACCESS), ("fd access", OF_DESCRIPTOR)):
        if left & group == group:
            names.append(name)
            left &= ~group
    names += [
        f"**{flag.name}**" if flag.bit & known.required else flag.name for flag in flags_in(left)
    ]
    return ", ".join(names) or "none"


def _remarks(known: MapType) -> list[str]:
    remarks = []
    if known.btf is Btf.REQUIRED:
        remarks.append("BTF required")
    if known.share in (Share.ALIKE, Share.ONE):
        remarks.append(f"used by {known.share}")
    if known.inner in (Inner.NESTED, Inner.UNSUPPORTED):
        remarks.append("no inner map")
    if known.extra.means:
        remarks.append(f"map_extra: {known.extra.means}")
    return [*remarks, *known.notes]
