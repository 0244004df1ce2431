"""The one table of metrics: name, type, labels and meaning of each. Pure.

The text of a scrape, its tests and the reference in README.md are made from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Family:
    name: str
    """As in a scrape; a counter's ends in ``_total``."""
    kind: Kind
    labels: tuple[str, ...]
    help: str


PREFIX = "bpfkeeper_"
_MAP = ("map",)
_PROGRAM = ("object", "program")
_ATTACHMENT = ("object", "program", "target")
_OTHER = ("name", "type", "path")


def _gauge(name: str, labels: tuple[str, ...], text: str) -> Family:
    return Family(PREFIX + name, Kind.GAUGE, labels, text)


def _counter(name: str, labels: tuple[str, ...], text: str) -> Family:
    return Family(PREFIX + name, Kind.COUNTER, labels, text)


_MAPS = (
    _gauge("map_id", _MAP, "Kernel ID of the map that is pinned under the name now."),
    _counter(
        "map_id_changes_total",
        ("map", "reason"),
        "Times that another map came under the name: recreated or renewed by a reload, replaced by"
        " somebody else, lost and made anew, reboot; migrated is always 0 in this version.",
    ),
    _gauge(
        "map_last_id_change_timestamp_seconds",
        _MAP,
        "Unix time at which the map of the last change was pinned there; absent where there was"
        " none.",
    ),
    _counter("map_reuses_total", _MAP, "Reloads that kept the map."),
    _gauge(
        "map_entries",
        _MAP,
        "Entries in use; of ring buffers (type ringbuf and user_ringbuf) bytes not yet consumed; of"
        " an array whose slots are counted (counted_by nonzero) those that are not all zero.",
    ),
    _gauge(
        "map_max_entries",
        _MAP,
        "Capacity in entries; of ring buffers (type ringbuf and user_ringbuf) in bytes.",
    ),
    _gauge(
        "map_fill_ratio",
        _MAP,
        "Share of the capacity in use, 0 to 1; LRU maps are near 1 by design.",
    ),
    _gauge(
        "map_inner_entries",
        _MAP,
        "Of a map of maps: entries in use of its inner maps together, of those that are counted, in"
        " its first 4096 slots.",
    ),
    _gauge(
        "map_memory_bytes",
        _MAP,
        "Memory that the kernel accounts to the map; before Linux 6.4 that of as many keys and"
        " values as it can hold, and often none of ring buffers.",
    ),
    _gauge(
        "map_info",
        ("map", "type", "key_size", "value_size", "policy", "counted_by"),
        "1; definition of the map, its policy, and how its entries are counted: kfunc, field, scan"
        " and estimate in the scrape; batch, next_key and nonzero from time to time; empty: not at"
        " all.",
    ),
    _gauge(
        "map_count_age_seconds",
        _MAP,
        "Since the entries were counted; only of maps that are counted from time to time.",
    ),
    _counter(
        "scrape_errors_total",
        _MAP,
        "Times that figures could not be had, by map; an empty map: what concerns all.",
    ),
)
_MACHINE = (
    _gauge("kernel_maps", (), "Maps of the machine, whoever made them."),
    _counter(
        "kernel_map_ids_allocated_total",
        (),
        "Map IDs that the kernel gave out since boot, to whomever; see kernel_map_ids_exact.",
    ),
    _gauge(
        "kernel_map_ids_exact",
        (),
        "1: read from the kernel's allocator; 0: the kernel hides it (no CONFIG_KALLSYMS_ALL), the"
        " highest ID seen stands for it.",
    ),
    _gauge("kernel_map_id_limit", (), "The highest map ID; after it the kernel begins again at 1."),
    _gauge(
        "kernel_map_id_headroom", (), "Map IDs that are left before the kernel begins again at 1."
    ),
    _gauge(
        "observed_maps",
        _OTHER,
        "Maps that no manifest of this daemon names, by name, type and one of their pins; with"
        " metrics.observe all.",
    ),
    _gauge("observed_map_id", _OTHER, "Of those under the labels, the highest kernel ID."),
    _gauge(
        "observed_map_entries", _OTHER, "Of those under the labels together, as of map_entries."
    ),
    _gauge("observed_map_max_entries", _OTHER, "Of those under the labels together."),
    _gauge("observed_map_fill_ratio", _OTHER, "Of those under the labels, the fullest, 0 to 1."),
    _gauge(
        "observed_maps_left_out",
        (),
        "Maps that are not shown because there are more series than metrics.observe_max.",
    ),
)
_PROGRAMS = (
    _gauge("program_id", _PROGRAM, "Kernel ID of the program."),
    _gauge(
        "program_info",
        ("object", "program", "type", "tag", "digest"),
        "1; type, tag of the instructions, and digest of the object it was loaded from: 24 digits"
        " of the file's SHA-256, and 8 for settings that change what is loaded.",
    ),
    _gauge("program_loaded_timestamp_seconds", _PROGRAM, "Unix time at which it was loaded."),
    _counter(
        "program_runs_total",
        _PROGRAM,
        "Runs since it was loaded, while the kernel counted; behind a stub those of the stub.",
    ),
    _counter("program_run_seconds_total", _PROGRAM, "Time in these runs, likewise."),
    _counter(
        "program_misses_total",
        _PROGRAM,
        "Runs left out because the program was running already (tracing).",
    ),
    _gauge(
        "program_verified_instructions",
        _PROGRAM,
        "Instructions that the verifier went through; the kernel allows a million.",
    ),
    _gauge("program_memory_bytes", _PROGRAM, "Memory that the kernel accounts to the program."),
    _gauge(
        "program_statistics_enabled",
        (),
        "1: the kernel counts runs of programs and their time, as far as can be told.",
    ),
    _gauge(
        "attachment_up",
        _ATTACHMENT,
        "1: the program that should serve the hook of the target serves it.",
    ),
    _gauge(
        "attachment_info",
        (*_ATTACHMENT, "hook", "digest", "tag"),
        "1; digest of the object, as of program_info, and tag of the program that serve the hook.",
    ),
    _gauge(
        "attachment_since_timestamp_seconds",
        _ATTACHMENT,
        "Unix time since when this program serves the hook.",
    ),
)
_KEEPING = (
    _gauge(
        "drift",
        ("kind",),
        "Differences between the manifest and the kernel now; bpfkeeperd status names them.",
    ),
    _counter(
        "heals_total",
        ("kind", "result"),
        "Differences that were put right without a reload (ok), or not (failed), by kind.",
    ),
    _gauge(
        "heal_given_up",
        (),
        "What was put right, or tried to be, ten times in an hour: left alone for now.",
    ),
    _counter(
        "reloads_total",
        ("result",),
        "Reloads, the start included: ok; failed, something was refused or undone; rejected, the"
        " manifest is wrong.",
    ),
    Family(
        PREFIX + "reload_duration_seconds",
        Kind.HISTOGRAM,
        (),
        "How long reloads took, whatever came of them.",
    ),
    _gauge(
        "last_reload_result",
        ("result",),
        "1: the last reload, or the start, came to this; 0: it did not.",
    ),
    _gauge(
        "last_reload_success_timestamp_seconds",
        (),
        "Unix time of the last reload that went well.",
    ),
    _gauge("build_info", ("version",), "1; version of bpfkeeperd."),
)

FAMILIES: Sequence[Family] = (*_MAPS, *_MACHINE, *_PROGRAMS, *_KEEPING)
"""In the order of a scrape."""


def reference_table() -> str:
    """The table of metrics in README.md, in Markdown."""
    head = [f"| metric, prefix `{PREFIX}` | type: labels | means |", "|---|---|---|"]
    rows = [
        f"| `{family.name.removeprefix(PREFIX)}` |"
        f" {family.kind}{': ' if family.labels else ''}{', '.join(family.labels)} |"
        f" {family.help.removeprefix('1; ').removesuffix('.')} |"
        for family in FAMILIES
    ]
    return "\n".join([*head, *rows])
