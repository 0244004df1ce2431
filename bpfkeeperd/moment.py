"""What moves from scrape to scrape becomes samples. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bpfkeeperd.exposition import Blocks, block, labels, number
from bpfkeeperd.maptypes import type_name
from bpfkeeperd.series import KeptAttachment, KeptMap, KeptProgram
from bpfkeeperd.state import ProgramFigures

_CERTAIN = frozenset({"kfunc", "field"})
"""Ways that count every map of a type, whatever its size."""


@dataclass(frozen=True, slots=True)
class SlowFigures:
    """What is had of a map from time to time."""

    entries: int | None
    """None: not counted, for the ``error`` or because nobody asked for it."""
    way: str
    """As the label counted_by has it."""
    age_seconds: float
    memory_bytes: int | None
    error: str = ""


def missing(maps: Iterable[KeptMap], counts: Mapping[int, int]) -> bool:
    """Whether a map that is there, and can be counted whatever its size, was not."""
    return any(
        found.id not in counts for found in maps if found.id and found.counted_by in _CERTAIN
    )


def map_blocks(
    maps: Iterable[KeptMap], counts: Mapping[int, int] | None, slow: Mapping[int, SlowFigures]
) -> tuple[Blocks, list[str]]:
    """Of the kept maps, and the names of those that could not be counted.

    By map ID, ``counts`` are the entries counted in this scrape; None: none were.
    """
    now = counts or {}
    entries: list[str] = []
    ratios: list[str] = []
    inner: list[str] = []
    infos: list[str] = []
    ages: list[str] = []
    memory: list[str] = []
    faulty: list[str] = []
    for found in maps:
        try:
            count, way, other = now.get(found.id), found.counted_by, slow.get(found.id)
            if other and other.memory_bytes is not None:
                memory.append(f"{found.labels} {other.memory_bytes}")
            wrong = bool(other and other.error)
            if count is None and other and other.entries is not None:
                count, way = other.entries, other.way
                ages.append(f"{found.labels} {other.age_seconds:.3f}")
            elif counts is not None and count is None and found.id and way in _CERTAIN:
                wrong = True
            if count is None and way not in _CERTAIN:
                way = ""
            infos.append(f'{found.info}{way}"}} 1')
            if count is not None:
                used = max(count, 0)
                if found.capacity > 0:
                    ratios.append(f"{found.labels} {min(used / found.capacity, 1.0)!r}")
                entries.append(f"{found.labels} {used}")
            within = [one for one in (_entries(one, now, slow) for one in found.inner) if one >= 0]
            if within:
                inner.append(f"{found.labels} {sum(within)}")
            if wrong:
                faulty.append(found.name)
        except Exception:  # one bad figure must not cost the whole scrape
            faulty.append(found.name)
    samples = {
        "map_entries": entries,
        "map_fill_ratio": ratios,
        "map_inner_entries": inner,
        "map_info": infos,
        "map_count_age_seconds": ages,
        "map_memory_bytes": memory,
    }
    return {name: block(name, lines) for name, lines in samples.items()}, faulty


def _entries(map_id: int, now: Mapping[int, int], slow: Mapping[int, SlowFigures]) -> int:
    """What was counted last; -1: nothing was."""
    found = now.get(map_id)
    if found is None and map_id in slow:
        found = slow[map_id].entries
    return -1 if found is None else max(found, 0)


def program_blocks(
    programs: Iterable[KeptProgram],
    figures: Mapping[str, ProgramFigures],
    memory: Mapping[int, int],
    *,
    statistics: bool,
    boot: float,
) -> tuple[Blocks, int]:
    """Of the kept programs, by the path of their pins, and how many of them could not be read.

    ``memory`` is by program ID, ``boot`` the Unix time of it. Runs that the kernel does not count
    are no zeros: they are not there.
    """
    names = ("runs_total", "run_seconds_total", "misses_total", "verified_instructions")
    samples: dict[str, list[str]] = {f"program_{name}": [] for name in names}
    loaded: list[str] = []
    memories: list[str] = []
    faulty = 0
    for found in programs:
        own, runs = figures.get(found.path), figures.get(found.runs_path)
        if own is None or runs is None:
            faulty += 1
            continue
        if statistics or runs.run_count:
            samples["program_runs_total"].append(f"{found.labels} {runs.run_count}")
            seconds = number(runs.run_time_ns / 1e9)
            samples["program_run_seconds_total"].append(f"{found.labels} {seconds}")
        samples["program_misses_total"].append(f"{found.labels} {runs.misses}")
        if own.verified:
            verified = f"{found.labels} {own.verified}"
            samples["program_verified_instructions"].append(verified)
        loaded.append(f"{found.labels} {boot + own.load_time_ns / 1e9:.3f}")
        if found.id in memory:
            memories.append(f"{found.labels} {memory[found.id]}")
    samples["program_loaded_timestamp_seconds"] = loaded
    samples["program_memory_bytes"] = memories
    samples["program_statistics_enabled"] = [f" {statistics:d}"]
    return {name: block(name, lines) for name, lines in samples.items()}, faulty


def machine_blocks(
    maps: int, *, ids_allocated: int, exact: bool, id_limit: int, headroom: int
) -> Blocks:
    """``maps`` of the machine, and how far it is with their IDs."""
    figures = {
        "kernel_maps": maps,
        "kernel_map_ids_allocated_total": ids_allocated,
        "kernel_map_ids_exact": int(exact),
        "kernel_map_id_limit": id_limit,
        "kernel_map_id_headroom": headroom,
    }
    return {name: block(name, (f" {value}",)) for name, value in figures.items()}


@dataclass(frozen=True, slots=True)
class OtherMap:
    """A map that no manifest of this daemon names."""

    id: int
    name: str
    """At most 15 characters; not one of a kind."""
    type: int
    max_entries: int
    path: str = ""
    """Of one of its pins."""


def other_blocks(maps: Iterable[OtherMap], counts: Mapping[int, int], most: int) -> Blocks:
    """Of the maps of others. Those with the same name, type and path are shown together; of more
    than ``most`` such groups the first are, those that are pinned before all others."""
    groups: dict[tuple[bool, str, str, int], list[OtherMap]] = {}
    for found in maps:
        key = (not found.path, found.path, found.name, found.type)
        groups.setdefault(key, []).append(found)
    names = ("maps", "map_id", "map_entries", "map_max_entries", "map_fill_ratio")
    samples: dict[str, list[str]] = {f"observed_{name}": [] for name in names}
    shown = sorted(groups)[:most]
    for key in shown:
        group = groups[key]
        _, path, name, kind = key
        mine = labels(("name", "type", "path"), (name, type_name(kind), path))
        samples["observed_maps"].append(f"{mine} {len(group)}")
        samples["observed_map_id"].append(f"{mine} {max(found.id for found in group)}")
        capacity = sum(found.max_entries for found in group)
        if capacity:
            samples["observed_map_max_entries"].append(f"{mine} {capacity}")
        counted = [(counts[found.id], found.max_entries) for found in group if found.id in counts]
        if counted:
            samples["observed_map_entries"].append(f"{mine} {sum(used for used, _ in counted)}")
        fills = [min(used / room, 1.0) for used, room in counted if room]
        if fills:
            samples["observed_map_fill_ratio"].append(f"{mine} {max(fills)!r}")
    left_out = sum(map(len, groups.values())) - sum(len(groups[key]) for key in shown)
    samples["observed_maps_left_out"] = [f" {left_out}"]
    return {name: block(name, lines) for name, lines in samples.items()}


def since_block(
    attachments: Iterable[KeptAttachment],
    loaded: Mapping[int, float],
    pinned: Sequence[float | None],
) -> Blocks:
    """Since when each is served by its program: not before that was loaded (Unix time, by program
    ID), nor before the link was made."""
    lines = [
        f"{found.labels} {max(loaded[found.prog_id], at):.3f}"
        for found, at in zip(attachments, pinned, strict=True)
        if at is not None and found.prog_id in loaded
    ]
    name = "attachment_since_timestamp_seconds"
    return {name: block(name, lines)}
