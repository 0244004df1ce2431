"""The one table of what a manifest can hold: every field with its kind, default and meaning.

It drives the decoder, "did you mean", the JSON Schema and the reference in the docs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bpfkeeperd import values
from bpfkeeperd.entries import DEFAULT_METRICS_LISTEN, DEFAULT_PIN_ROOT, MismatchPolicy, XdpMode
from bpfkeeperd.mapflags import MAP_FLAGS
from bpfkeeperd.maptypes import MAP_TYPES

VERSION = 1
U32_MAX = 2**32 - 1
U64_MAX = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Text:
    check: Callable[[str], "str | values.Fault"] = values.any_text
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
    refused: Mapping[str, values.Fault] = field(default_factory=dict)
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


Kind = Text | Integer | Boolean | Word | ListOf | MapOf | Struct | Either


@dataclass(frozen=True, slots=True)
class Field:
    name: str
    kind: Kind
    doc: str
    required: bool = False
    default: str | int | None = None
    needs: tuple[str, ...] = ()
    """Fields of the same struct that have to be there when this one is."""


_POLICY = Word(
    tuple(MismatchPolicy),
    refused={
        "migrate": values.Fault(
            "cannot be migrate yet: migration comes in a later version",
            "until then write fail to keep the map, or recreate to lose its contents",
        )
    },
)
_POLICY_DOC = (
    "What to do when the pinned map differs from the wanted one: `fail` touches nothing and"
    " holds back what uses the map, `recreate` makes a new map and loses the contents."
)
_DEFINES = ("type", "max_entries")

DEFAULTS = Struct(
    (Field("on_mismatch", _POLICY, _POLICY_DOC, default=MismatchPolicy.FAIL),),
    example="defaults: {on_mismatch: fail}",
)

METRICS = Struct(
    (
        Field(
            "listen",
            Text(values.listen),
            "Where Prometheus scrapes, as `HOST:PORT` or `[IPv6]:PORT`; `none` switches it off.",
            default=DEFAULT_METRICS_LISTEN,
        ),
    ),
    example=f'metrics: {{listen: "{DEFAULT_METRICS_LISTEN}"}}',
)

MAP_CONTENT = Struct(
    (
        Field("key", Integer(0, U64_MAX), "The key, an unsigned integer.", required=True),
        Field("value", Integer(0, U64_MAX), "The value, an unsigned integer.", required=True),
    ),
    example="{key: 0, value: 1500}",
)

MAP = Struct(
    (
        Field("on_mismatch", _POLICY, f"{_POLICY_DOC} Default: `defaults.on_mismatch`."),
        Field(
            "type",
            Word(tuple(map_type.name for map_type in MAP_TYPES)),
            "The map's type, as bpftool spells it. Given: the keeper creates the map.",
            needs=("max_entries",),
        ),
        Field("key_size", Integer(0, U32_MAX), "Bytes of a key.", default=0, needs=_DEFINES),
        Field("value_size", Integer(0, U32_MAX), "Bytes of a value.", default=0, needs=_DEFINES),
        Field("max_entries", Integer(0, U32_MAX), "How many entries fit.", needs=("type",)),
        Field(
            "flags",
            Either((Integer(0, U32_MAX), ListOf(Word(tuple(MAP_FLAGS)), "flags: [no_prealloc]"))),
            "Flags of the map, as names or as the kernel's number.",
            default=0,
            needs=_DEFINES,
        ),
        Field(
            "map_extra",
            Integer(0, U64_MAX),
            "The kernel's `map_extra`: the number of hashes of a bloom filter, for one.",
            default=0,
            needs=_DEFINES,
        ),
        Field(
            "numa_node",
            Integer(0, U32_MAX),
            "The NUMA node that holds the map; sets the flag `numa_node`.",
            needs=_DEFINES,
        ),
        Field(
            "entries",
            ListOf(MAP_CONTENT, "entries: [{key: 0, value: 1500}]"),
            "What the map holds when it is created, in the machine's byte order.",
            needs=_DEFINES,
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
            Text(values.cgroup),
            "A cgroup v2 directory: absolute, or relative to the cgroup2 mount.",
        ),
        Field(
            "interface",
            Text(values.interface, r"^[^\s/:]{1,15}$"),
            "A network interface, by name.",
        ),
        Field(
            "netns",
            Text(values.netns),
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
            Text(values.sha256, r"^[0-9A-Fa-f]{64}$"),
            "The file's digest: any other file is refused.",
        ),
        Field(
            "pin_maps",
            Either(
                (
                    ListOf(Text(values.pin_name), "pin_maps: [NAME]"),
                    MapOf(Text(), Text(values.pin_name), "pin_maps: {NAME_IN_OBJECT: PIN_NAME}"),
                )
            ),
            "Maps of the object to keep besides those it declares LIBBPF_PIN_BY_NAME: a list of"
            " names, or a mapping of the name in the object to the name of the pin.",
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
    MapOf(Text(values.pin_name), MAP, "maps: {NAME: {on_mismatch: fail}}"),
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
            Text(values.pin_root, "^/"),
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
