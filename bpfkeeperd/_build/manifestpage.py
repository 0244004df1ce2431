"""The page bpfkeeperd.yaml(5): every field of the table, and prose around them."""

from collections.abc import Iterator
from typing import assert_never

import roff

from bpfkeeperd import __version__
from bpfkeeperd.fieldkinds import (
    Boolean,
    Either,
    Field,
    Integer,
    Kind,
    ListOf,
    MapOf,
    Raw,
    Struct,
    Text,
    Word,
)
from bpfkeeperd.fields import MANIFEST

DESCRIPTION = (
    "The manifest of bpfkeeperd(8): which eBPF maps are kept, and the programs around them. It is"
    " one YAML file, `/etc/bpfkeeperd/bpfkeeperd.yaml` if the command line names no other, and the"
    " drop-ins `conf.d/*.yaml` beside it. A drop-in has `version`, `maps` and `objects` only, and no"
    " name that another file has.",
    "A mistake is told with its place, and nothing is changed by a manifest that has one:"
    " `bpfkeeperd check` looks for them. Anchors, aliases, tags and merge keys are refused, and so is"
    " a name that is there twice. `bpfkeeperd schema` prints a JSON Schema for editors.",
    "A relative path starts at the directory of the YAML file. One manifest has a pin root to"
    " itself: programs there that it does not name are taken down, maps stay.",
)

TYPES = (
    "`u8` `u16` `u32` `u64`, `s8` to `s64`, `be16` `be32` `be64` (network order), `bool`, `ipv4`,"
    " `ipv6`, `char[N]` (text), `TYPE[N]`, or a struct `{NAME: TYPE, ...}`, nested at will, placed"
    " and padded as in C. Within braces `\"char[16]\"` is put in quotes.",
)

ENTRIES = (
    "An entry is written in the terms of the types. Numbers, decimal or `0x...`, are in the"
    " machine's byte order but for `be16` and so on; text is filled up with zero bytes; an array is"
    " a list, a struct `{MEMBER: ...}` with every member, and `{hex: 00 01}` raw bytes, all of them."
    " An IPv4, MAC or IPv6 address fits any field of 4, 6 or 16 bytes but `char[N]`, and is in"
    " network order. A key of an `lpm_trie` is a prefix, `10.0.0.0/8`.",
    "Values of a `prog_array` are `OBJECT/PROGRAM`, of maps of maps names of kept maps, of a"
    " `devmap` interfaces, of a `cgroup_array` cgroups, of a `cpumap` queue sizes. A per-CPU map gets"
    " the value on every CPU. Maps that sockets, readers or programs fill take none.",
)

EXAMPLE = """\
version: 1
pin_root: /sys/fs/bpf/example

maps:
  limits:
    type: hash
    key: {address: ipv4, port: be16}
    value: u64
    max_entries: 100
    entries: [{key: {address: 10.0.0.1, port: 443}, value: 1500}]

objects:
  filter:
    file: /usr/lib/bpf/filter.bpf.o
    pin_maps: [counts]
    programs:
      count:
        attach:
          - {interface: eth0}
          - {interface: "veth*"}
        health: {seconds: 10, moves: {map: counts, key: 0}}
      connect:
        attach: [{cgroup: system.slice/nginx.service}]
"""

KIND_MAX = 60
"""Characters of a field's kind that fit beside its name."""

SEE_ALSO = "bpfkeeperd(8), bpf(2), bpf-helpers(7), cgroups(7), network_namespaces(7)"


def page() -> str:
    """The whole page."""
    structs = list(_structs(MANIFEST, ""))
    first: dict[tuple[str, str], str] = {}
    for path, kind in structs:
        for field in kind.fields:
            first.setdefault((field.name, field.doc), path)
    parts = [
        roff.section("name"),
        r"bpfkeeperd.yaml \- which eBPF maps are kept, and the programs around them",
        roff.section("synopsis"),
        roff.bold("/etc/bpfkeeperd/bpfkeeperd.yaml"),
        ".br",
        roff.bold("/etc/bpfkeeperd/conf.d/*.yaml"),
        roff.section("description"),
        *map(roff.paragraph, DESCRIPTION),
        roff.section("fields"),
        *(part for path, kind in structs for part in _struct(path, kind, first)),
        roff.section("types of keys and values"),
        *map(roff.paragraph, TYPES),
        roff.section("entries"),
        *map(roff.paragraph, ENTRIES),
        roff.section("examples"),
        roff.paragraph(
            "A map that the keeper creates, with an entry; an object with two programs, of which one"
            " has to show after a reload that it counts:"
        ),
        roff.example(EXAMPLE),
        roff.section("see also"),
        roff.text(SEE_ALSO),
    ]
    return roff.page("bpfkeeperd.yaml", 5, __version__, parts)


def _structs(kind: Kind, path: str) -> Iterator[tuple[str, Struct]]:
    """Every mapping with fields of its own, the outer before the inner, by its path."""
    match kind:
        case Struct(fields=fields):
            yield path, kind
            for field in fields:
                yield from _structs(field.kind, f"{path}.{field.name}".lstrip("."))
        case ListOf(item=item):
            yield from _structs(item, f"{path}[]")
        case MapOf(value=value):
            yield from _structs(value, f"{path}.NAME")
        case Either(kinds=kinds):
            for one in kinds:
                yield from _structs(one, path)
        case Text() | Integer() | Boolean() | Word() | Raw():
            pass
        case _:
            assert_never(kind)


def _struct(path: str, kind: Struct, first: dict[tuple[str, str], str]) -> Iterator[str]:
    """What is the same in an earlier one is not said again."""
    yield roff.subsection(path or "The main file")
    if path:
        yield roff.paragraph(f"Such as `{kind.example}`.")
    if kind.one_of:
        alone = f"; or {_quoted(kind.alone)} alone" if kind.alone else ""
        yield roff.paragraph(f"Exactly one of {_quoted(kind.one_of)}{alone}.")
    again: dict[str, list[Field]] = {}
    for field in kind.fields:
        where = first[field.name, field.doc]
        if where == path:
            yield _field(field)
        else:
            again.setdefault(where, []).append(field)
    for where, fields in again.items():
        names = ", ".join(
            f"`{field.name}`{' (required)' if field.required else ''}" for field in fields
        )
        yield roff.paragraph(f"As in `{where}`: {names}.")


def _field(field: Field) -> str:
    kind, words = _in_words(field.kind), field.doc
    if len(kind) > KIND_MAX:
        kind, words = _in_words(field.kind, listed=False), f"{words} {_choices(field.kind)}"
    notes = [kind]
    if field.required:
        notes.append("required")
    if field.default is not None:
        boolean = isinstance(field.kind, Boolean)
        notes.append(f"default `{str(bool(field.default)).lower() if boolean else field.default}`")
    if field.needs:
        words += f" Only with {_quoted(field.needs, 'and')}."
    if field.beside:
        words += f" Only with {_quoted(field.beside)}."
    tag = f"{roff.bold(field.name)} ({roff.text('; '.join(notes))})"
    return roff.item(tag, words)


def _in_words(kind: Kind, *, listed: bool = True) -> str:
    match kind:
        case Text():
            return "text"
        case Integer(low=low, high=high):
            return f"`{low}`" if low == high else f"{low} to {high}"
        case Boolean():
            return "`true` or `false`"
        case Word(choices=choices):
            return _quoted(tuple(map(str, choices))) if listed else "a word"
        case ListOf(item=Struct()):
            return "list of mappings, see below"
        case ListOf(item=item):
            return f"list of {_in_words(item)}" if listed else "list of words"
        case MapOf(value=value):
            return f"names, each with {_in_words(value)}"
        case Struct():
            return "a mapping, see below"
        case Either(kinds=kinds):
            return ", or ".join(_in_words(one, listed=listed) for one in kinds)
        case Raw(schema=schema):
            return "a type, see below" if schema else "see ENTRIES"
        case _:
            assert_never(kind)


def _choices(kind: Kind) -> str:
    """The words that a kind too long for its place takes."""
    match kind:
        case Word(choices=choices) | ListOf(item=Word(choices=choices)):
            return f"The words: {_quoted(tuple(map(str, choices)), 'and')}."
        case Either(kinds=kinds):
            return " ".join(filter(None, map(_choices, kinds)))
        case _:
            return ""


def _quoted(names: tuple[str, ...], last: str = "or") -> str:
    quoted = [f"`{name}`" for name in names]
    return f" {last} ".join(filter(None, (", ".join(quoted[:-1]), quoted[-1])))
