"""The one table of what a manifest can hold: every field with its kind, default and meaning.

It drives the decoder, "did you mean", the JSON Schema and the reference in the docs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from bpfkeeperd.entries import DEFAULT_METRICS_LISTEN, DEFAULT_PIN_ROOT, MismatchPolicy, XdpMode
from bpfkeeperd.mapflags import MAP_FLAGS
from bpfkeeperd.maptypes import MAP_TYPES
from bpfkeeperd.values import (
    Fault,
    any_text,
    cgroup,
    elf_map_name,
    interface,
    listen,
    netns,
    pin_name,
    pin_root,
    program_kind,
    sha256,
)

VERSION = 1
U32_MAX = 2**32 - 1
U64_MAX = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Text:
    check: Callable[[str], "str | Fault"] = any_text
    """The normal form of a text, or what is wrong with it."""
    pattern: str = ""
    """For the schema only: what an editor can see without the check."""


@dataclass(frozen=True, slots=True)
class Integer:
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Boolean:
    pass


@dataclass(frozen=True, slots=True)
class Word:
    """One of a few words."""

    choices: tuple[str, ...]
    refused: Mapping[str, Fault] = field(default_factory=dict)
    """Words that one could expect here, and what to say about each."""


@dataclass(frozen=True, slots=True)
class ListOf:
    item: "Kind"
    example: str = ""


@dataclass(frozen=True, slots=True)
class MapOf:
    """A mapping whose keys are names of the operator's own."""

    key: Text
    value: "Kind"
    example: str = ""


@dataclass(frozen=True, slots=True)
class Struct:
    """A mapping whose keys are the names of its fields."""

    fields: tuple["Field", ...]
    example: str = ""
    one_of: tuple[str, ...] = ()
    """Exactly one of these has to be there."""
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    """Keys that one could look for here, and where they belong."""


@dataclass(frozen=True, slots=True)
class Either:
    """Kinds that can be told apart by their form: a scalar, a list, a mapping."""

    kinds: tuple["Kind", ...]


@dataclass(frozen=True, slots=True)
class Raw:
    """Whatever can be written, kept as it is: what it means depends on what stands beside it."""

    schema: Mapping[str, object] = field(default_factory=dict)
    """For the schema only: what an editor can see all the same."""


Kind = Text | Integer | Boolean | Word | ListOf | MapOf | Struct | Either | Raw


@dataclass(frozen=True, slots=True)
class Field:
    name: str
    kind: Kind
    doc: str
    required: bool = False
    default: str | int | None = None
    """A bool is an int."""
    needs: tuple[str, ...] = ()
    """Fields of the same struct that have to be there when this one is."""


_POLICY = Word(
    tuple(MismatchPolicy),
    refused={
        "migrate": Fault(
            "cannot be migrate yet: migration comes in a later version",
            "until then write fail to keep the map, or recreate to lose its contents",
        )
    },
)
_POLICY_DOC = (
    "What to do when the pinned map differs from the wanted one: `fail` touches nothing and"
    " holds back what uses the map, `recreate` makes a new map and loses the contents."
)

DEFAULTS = Struct(
    (Field("on_mismatch", _POLICY, _POLICY_DOC, default=MismatchPolicy.FAIL),),
    example="defaults: {on_mismatch: fail}",
)

METRICS = Struct(
    (
        Field(
            "listen",
            Text(listen),
            "Where Prometheus scrapes, as `HOST:PORT` or `[IPv6]:PORT`; `none` switches it off.",
            default=DEFAULT_METRICS_LISTEN,
        ),
    ),
    example=f'metrics: {{listen: "{DEFAULT_METRICS_LISTEN}"}}',
)

MAP_CONTENT = Struct(
    (
        Field(
            "key",
            Raw(),
            "The key, as its type has it: an integer, text, an address, `{MEMBER: …}`, `[…]`, or"
            " `{hex: 00 01}`. A queue, a stack and a bloom filter have none.",
        ),
        Field(
            "value",
            Raw(),
            "The value, likewise; in maps of maps, programs, interfaces, cgroups and CPUs what"
            " they hold.",
            required=True,
        ),
    ),
    example="{key: 0, value: 1500}",
)

TYPE_SCHEMA = {
    "anyOf": [
        {"type": "string", "pattern": r"^(u|s|be|char|bool|ipv)[0-9]*(\[[0-9]+\])?$"},
        {
            "type": "object",
            "minProperties": 1,
            "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
            "additionalProperties": {"$ref": "#/$defs/type"},
        },
    ]
}
"""Of the schema's ``$defs``: a scalar, an array or a struct, see shapes."""
_TYPE = Raw({"$ref": "#/$defs/type"})

_DEFINITION = (
    Field(
        "type",
        Word(tuple(map_type.name for map_type in MAP_TYPES)),
        "The map's type, as bpftool spells it. Given: the keeper creates the map.",
    ),
    Field(
        "key",
        _TYPE,
        "What a key is: `u8` to `u64`, `s8` to `s64`, `be16` to `be64` (network order), `bool`,"
        " `ipv4`, `ipv6`, `char[N]`, `TYPE[N]`, or a struct `{NAME: TYPE}`, placed as in C.",
        needs=("type",),
    ),
    Field("value", _TYPE, "What a value is, likewise.", needs=("type",)),
    Field(
        "key_size",
        Integer(0, U32_MAX),
        "Bytes of a key, instead of `key`. Default: the only size that the type can have, else 0.",
        needs=("type",),
    ),
    Field(
        "value_size",
        Integer(0, U32_MAX),
        "Bytes of a value, instead of `value`. Default: as of `key_size`.",
        needs=("type",),
    ),
    Field("max_entries", Integer(0, U32_MAX), "How many entries fit.", needs=("type",)),
    Field(
        "flags",
        Either((Integer(0, U32_MAX), ListOf(Word(tuple(MAP_FLAGS)), "flags: [no_prealloc]"))),
        "Flags of the map, as names or as the kernel's number.",
        default=0,
        needs=("type",),
    ),
    Field(
        "map_extra",
        Integer(0, U64_MAX),
        "The kernel's `map_extra`: the number of hashes of a bloom filter, for one.",
        default=0,
        needs=("type",),
    ),
    Field(
        "numa_node",
        Integer(0, U32_MAX),
        "The NUMA node that holds the map; sets the flag `numa_node`.",
        needs=("type",),
    ),
)

INNER_MAP = Struct(
    (replace(_DEFINITION[0], required=True), *_DEFINITION[1:]),
    example="inner: {type: hash, key: u32, value: u64, max_entries: 100}",
    elsewhere=dict.fromkeys(
        ("entries", "enforce"),
        "an inner map that is kept is a map of its own: write it under maps, and name it here",
    ),
)

MAP = Struct(
    (
        Field("on_mismatch", _POLICY, f"{_POLICY_DOC} Default: `defaults.on_mismatch`."),
        *_DEFINITION,
        Field(
            "inner",
            Either((Text(pin_name), INNER_MAP)),
            "Of a map of maps: what its inner maps are like, as the fields of a map, or as the"
            " name of a map of this manifest.",
            needs=("type",),
        ),
        Field(
            "entries",
            ListOf(MAP_CONTENT, "entries: [{key: 0, value: 1500}]"),
            "What the map holds when it is created; for a map that an object declares, too.",
        ),
        Field(
            "enforce",
            Boolean(),
            "The entries are put right again at each reload; others are not touched.",
            default=False,
            needs=("entries",),
        ),
        Field(
            "rename_from",
            Text(pin_name),
            "The name under which the map is pinned now: it gets the new one, ID and contents"
            " stay.",
        ),
    ),
    example="{on_mismatch: fail}",
    elsewhere=dict.fromkeys(
        ("file", "programs", "pin_maps"), "it belongs to an object: write it under objects"
    ),
)

ATTACH = Struct(
    (
        Field(
            "cgroup",
            Text(cgroup),
            "A cgroup v2 directory: absolute, or relative to the cgroup2 mount; or a pattern"
            " (`system.slice/web-*.service`): then all that match, also later.",
        ),
        Field(
            "interface",
            Text(interface, r"^[^\s/:]{1,64}$"),
            "A network interface, by name or pattern (`veth*`): then all that match, also later.",
        ),
        Field(
            "netns",
            Text(netns),
            "The interface's network namespace: a name under /run/netns, or an absolute path."
            " Default: the daemon's own.",
            needs=("interface",),
        ),
        Field(
            "mode",
            Word(tuple(XdpMode)),
            "For XDP: `native` runs in the driver, `generic` behind it, `auto` takes the best"
            " there is.",
            default=XdpMode.AUTO,
            needs=("interface",),
        ),
    ),
    example="{cgroup: PATH} or {interface: NAME}",
    one_of=("cgroup", "interface"),
)

PROGRAM = Struct(
    (
        Field(
            "attach",
            ListOf(ATTACH, "attach: [{cgroup: PATH}] or attach: [{interface: NAME}]"),
            "The targets; the hook is in the program's section name. None: the program is loaded"
            " and pinned only.",
        ),
        Field(
            "type",
            Text(program_kind),
            "The program's type, as bpftool spells it, or its hook, such as `tcx/ingress`: where"
            " the section name does not say.",
        ),
    ),
    example="{attach: [{cgroup: PATH}]}",
    elsewhere=dict.fromkeys(
        ("cgroup", "interface", "netns", "mode"),
        "a target is an item of attach: write attach: [{cgroup: PATH}] or"
        " attach: [{interface: NAME}]",
    ),
)

OBJECT = Struct(
    (
        Field(
            "file",
            Text(),
            "The BPF object file; a relative path starts at the directory of the YAML file.",
            required=True,
        ),
        Field(
            "sha256",
            Text(sha256, r"^[0-9A-Fa-f]{64}$"),
            "The file's digest: any other file is refused.",
        ),
        Field(
            "pin_maps",
            Either(
                (
                    ListOf(Text(pin_name), "pin_maps: [NAME]"),
                    MapOf(
                        Text(elf_map_name),
                        Text(pin_name),
                        "pin_maps: {NAME_IN_OBJECT: PIN_NAME}",
                    ),
                )
            ),
            "Maps of the object to keep besides those it declares LIBBPF_PIN_BY_NAME: a list of"
            " names, or a mapping of the name in the object to the name of the pin. Global data"
            " (`.data`, `.bss`) is kept by such a mapping only.",
        ),
        Field(
            "programs",
            MapOf(Text(), PROGRAM, "programs: {NAME: {attach: [{cgroup: PATH}]}}"),
            "The programs of the object that are attached, by name.",
        ),
    ),
    example="{file: PATH}",
    elsewhere={"on_mismatch": "the policy belongs to the map: write it under maps"},
)

_VERSION = Integer(VERSION, VERSION)
_MAPS = Field(
    "maps",
    MapOf(Text(pin_name), MAP, "maps: {NAME: {on_mismatch: fail}}"),
    "Kept maps by the name of their pin: the policy, and what the keeper creates itself.",
)
_OBJECTS = Field(
    "objects",
    MapOf(Text(), OBJECT, "objects: {NAME: {file: PATH}}"),
    "BPF object files, by a name of your choice.",
)

MANIFEST = Struct(
    (
        Field("version", _VERSION, "The version of this grammar.", required=True),
        Field(
            "pin_root",
            Text(pin_root, "^/"),
            "The bpffs directory in which every map is pinned under its name.",
            default=DEFAULT_PIN_ROOT,
        ),
        Field("metrics", METRICS, "The Prometheus endpoint."),
        Field("defaults", DEFAULTS, "What holds where a map does not say otherwise."),
        _MAPS,
        _OBJECTS,
    ),
    example="version: 1",
)
"""The main file."""

DROP_IN = Struct(
    (Field("version", _VERSION, "The version of this grammar."), _MAPS, _OBJECTS),
    example="objects: {NAME: {file: PATH}}",
    elsewhere=dict.fromkeys(
        ("pin_root", "metrics", "defaults"),
        "write it in the main file, a drop-in has maps and objects only",
    ),
)
"""A file in conf.d/."""
