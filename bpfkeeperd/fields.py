"""The one table of what a manifest can hold: every field with its kind, default and meaning.

It drives the decoder, "did you mean", the JSON Schema and the reference in the docs.
"""

from dataclasses import replace

from bpfkeeperd.entries import (
    DEFAULT_METRICS_LISTEN,
    DEFAULT_OBSERVE_MAX,
    DEFAULT_PIN_ROOT,
    MismatchPolicy,
)
from bpfkeeperd.fieldkinds import (
    U32_MAX,
    U64_MAX,
    Boolean,
    Either,
    Field,
    Integer,
    ListOf,
    MapOf,
    Raw,
    Struct,
    Text,
    Word,
)
from bpfkeeperd.fieldsattach import PROGRAM
from bpfkeeperd.mapflags import MAP_FLAGS
from bpfkeeperd.maptypes import MAP_TYPES
from bpfkeeperd.values import (
    Fault,
    account,
    elf_map_name,
    listen,
    pin_mode,
    pin_name,
    pin_root,
    sha256,
)

VERSION = 1

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

_ACCOUNT = Text(account, r"^[^\s:/]+$", digits=True)

PIN = Struct(
    (
        Field("owner", _ACCOUNT, "The user who owns the pin: a name, or a number."),
        Field("group", _ACCOUNT, "The group of the pin: a name, or a number."),
        Field(
            "mode",
            Text(pin_mode, "^0?[0246]{3}$", digits=True),
            "Who may read and write the map by the pin, as in `chmod`: three or four octal digits.",
        ),
    ),
    example='pin: {group: GROUP, mode: "0640"}',
)

DEFAULTS = Struct(
    (
        Field("on_mismatch", _POLICY, _POLICY_DOC, default=MismatchPolicy.FAIL),
        Field("pin", PIN, "Owner, group and mode of the pins of all maps, field by field."),
    ),
    example="defaults: {on_mismatch: fail}",
)

TLS = Struct(
    (
        Field(
            "certificate",
            Text(),
            "A PEM file with the certificate, and those between it and its authority; a relative"
            " path starts at the directory of the YAML file.",
            required=True,
        ),
        Field(
            "key",
            Text(),
            "A PEM file with its private key, not encrypted; left out: it is in the same file.",
        ),
        Field(
            "client_ca",
            Text(),
            "A PEM file with certificates of authorities: who scrapes has to show a certificate of"
            " one of them.",
        ),
    ),
    example="tls: {certificate: FILE, key: FILE}",
)

METRICS = Struct(
    (
        Field(
            "listen",
            Text(listen),
            "Where Prometheus scrapes, as `HOST:PORT` or `[IPv6]:PORT`; `none` switches it off.",
            default=DEFAULT_METRICS_LISTEN,
        ),
        Field(
            "observe",
            Word(("kept", "all")),
            "Whose maps are shown: `kept` those of the manifest, `all` also those of others, by"
            " name and pin.",
            default="kept",
        ),
        Field(
            "observe_max",
            Integer(1, 100_000),
            "How many series of each kind there can be for the maps of others; what is left out is"
            " counted.",
            default=DEFAULT_OBSERVE_MAX,
            needs=("observe",),
        ),
        Field(
            "program_statistics",
            Boolean(),
            "Has the kernel count runs of programs and their time while the daemon runs, which"
            " costs every run of a BPF program of the machine some nanoseconds.",
            default=False,
        ),
        Field("tls", TLS, "HTTPS instead of HTTP."),
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
        ("entries", "enforce", "count", "pin"),
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
            "count",
            Word(("nonzero",)),
            "Of an array, whose slots are all there from the start: `nonzero` has those counted in"
            " which a byte is not zero, now and then, for metrics.",
        ),
        Field(
            "rename_from",
            Text(pin_name),
            "The name under which the map is pinned now: it gets the new one, ID and contents"
            " stay.",
        ),
        Field(
            "pin",
            PIN,
            "Owner, group and mode of the pin. What is neither here nor in `defaults.pin` stays as"
            " it is; a new pin belongs to root alone.",
        ),
    ),
    example="{on_mismatch: fail}",
    elsewhere=dict.fromkeys(
        ("file", "programs", "pin_maps"), "it belongs to an object: write it under objects"
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
            "register",
            ListOf(Text(), "register: [NAME]"),
            "Maps of the object in `.struct_ops` or `.struct_ops.link` that are registered with the"
            " kernel: what it calls from then on.",
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
        Field(
            "heal",
            Boolean(),
            "What drifts from the manifest as it was last loaded is put right at once; `false`: it"
            " is reported only.",
            default=True,
        ),
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
        ("pin_root", "metrics", "heal", "defaults"),
        "write it in the main file, a drop-in has maps and objects only",
    ),
)
"""A file in conf.d/."""
