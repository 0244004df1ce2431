"""All that can be seen under a pin root, by itself and by what it means."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bpfkeeperd import kernel
from bpfkeeperd.maptypes import BY_NUMBER, PROG_ARRAY
from tests.scenario import World, contents

PASSING = ("staging", "leftover", "made")
"""Directories of the keeper's own for what does not stay."""


@dataclass(frozen=True, slots=True)
class Seen:
    """IDs as they are (``raw``), and what they stand for (``told``), by what they belong to: an
    object, or a map."""

    raw: dict[str, dict[str, object]] = field(default_factory=dict)
    told: dict[str, dict[str, object]] = field(default_factory=dict)
    passing: tuple[str, ...] = ()
    """What is in directories for what does not stay, and they themselves."""
    directories: frozenset[str] = frozenset()
    """All others."""


def look(world: World, elsewhere: Mapping[str, object] | None = None) -> Seen:
    """``elsewhere`` is more that can be seen, of which IDs are no part."""
    layout = world.layout
    passing, directories, map_pins = [], set(), dict[str, str]()
    raw = dict[str, dict[str, object]]()
    told = dict[str, dict[str, object]]()
    for directory, below, names in os.walk(world.pins):
        place = os.path.relpath(directory, layout.own)
        if place.split("/")[0] in PASSING:
            passing += [place, *(f"{place}/{name}" for name in names)]
            continue
        directories.add(directory)
        del below
        if place.startswith("..") or place.split("/")[0] == "arrays":
            for name in names:
                path = os.path.join(directory, name)
                map_pins[os.path.relpath(path, world.pins)] = path
    programs, empty = _programs(world, raw, told)
    passing += empty
    roles = {number: path for path, number in programs.items()}
    _stubs(world, raw, told, roles)
    passing += _links(world, raw, told, roles)
    for name, path in map_pins.items():
        status = os.lstat(path)
        raw[f"map {name}"] = {"id": world_map_id(path), "rights": _rights(status)}
        raw[f"map {name}"]["btf"] = _has_btf(path)
        raw[f"map {name}"]["contents"] = contents(Path(path))
        told[f"map {name}"] = {"id": "there", "rights": _rights(status), "btf": _has_btf(path)}
        told[f"map {name}"]["contents"] = _told(path, roles)
    for name, more in (elsewhere or {}).items():
        raw[name] = told[name] = {"elsewhere": more}
    return Seen(raw, told, tuple(passing), frozenset(directories))


def world_map_id(path: str) -> int:
    found = kernel.pinned_map(path)
    assert found, path
    os.close(found[0])
    return found[1].id


def _has_btf(path: str) -> bool:
    found = kernel.pinned_map(path)
    assert found, path
    os.close(found[0])
    return bool(found[1].btf[0])


def _rights(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_mode, status.st_uid, status.st_gid


def _programs(
    world: World, raw: dict[str, dict[str, object]], told: dict[str, dict[str, object]]
) -> tuple[dict[str, int], list[str]]:
    """Path to ID of each, and directories without any."""
    found, empty = dict[str, int](), list[str]()
    for pin in kernel.scan(world.layout.objects, 3, kernel.PinKind.PROGRAM):
        assert not pin.error, pin
        place = f"program {'/'.join(pin.path)}"
        if pin.kind == kernel.PinKind.DIRECTORY:
            empty.append(place)
            continue
        name = f"object {pin.path[0]}"
        raw.setdefault(name, {})[place] = pin.id
        told.setdefault(name, {})[place] = "there"
        found["/".join(pin.path)] = pin.id
    return found, empty


def _stubs(
    world: World,
    raw: dict[str, dict[str, object]],
    told: dict[str, dict[str, object]],
    roles: dict[int, str],
) -> None:
    """A stub stands for the program that it calls."""
    stubs = dict[int, str]()
    for pin in kernel.scan(world.layout.stubs, 3, kernel.PinKind.PROGRAM):
        if pin.path[-1] != "stub":
            continue
        place = "/".join(pin.path[:2])
        slot = Path(world.layout.stubs, place, "slot")
        (serves,) = contents(slot).values() if slot.exists() else (None,)
        number = int.from_bytes(serves or b"", sys.byteorder)
        name = f"object {pin.path[0]}"
        raw.setdefault(name, {})[f"stub {place}"] = (pin.id, number)
        told.setdefault(name, {})[f"stub {place}"] = roles.get(number, "none that is pinned")
        stubs[pin.id] = f"{roles.get(number)} by a stub"
    roles |= stubs


def _links(
    world: World,
    raw: dict[str, dict[str, object]],
    told: dict[str, dict[str, object]],
    roles: dict[int, str],
) -> list[str]:
    """Returns the directories without any."""
    layout, empty = world.layout, list[str]()
    for top, kind in (
        (layout.links, kernel.PinKind.LINK),
        (layout.attached, kernel.PinKind.PROGRAM),
    ):
        for pin in kernel.scan(top, 3, kind):
            assert not pin.error, pin
            place = f"{os.path.basename(top)} {'/'.join(pin.path)}"
            name = f"object {pin.path[0]}"
            if pin.kind == kernel.PinKind.DIRECTORY:
                empty.append(place)
                continue
            runs = pin.prog_id if kind is kernel.PinKind.LINK else pin.id
            raw.setdefault(name, {})[place] = (pin.id, runs, pin.target_id)
            told.setdefault(name, {})[place] = (
                roles.get(runs, "none that is pinned"),
                bool(pin.target_id) or kind is not kernel.PinKind.LINK,
                os.lstat(f"{top}/{'/'.join(pin.path)}").st_mtime > 1 << 32,
            )
    return empty


def _told(path: str, roles: Mapping[int, str]) -> object:
    """Contents without IDs."""
    found = kernel.pinned_map(path)
    assert found
    fd, info = found
    os.close(fd)
    known = BY_NUMBER.get(info.type)
    entries = {key: value for key, value in contents(Path(path)).items() if value is not None}
    shape = (info.type, info.key_size, info.value_size, info.max_entries, info.flags)
    if info.type == PROG_ARRAY:
        numbers = {key: int.from_bytes(value, sys.byteorder) for key, value in entries.items()}
        return shape, {key: roles.get(number, "no pin") for key, number in numbers.items()}
    if known and known.outer:
        return shape, sorted(entries)
    return shape, entries
