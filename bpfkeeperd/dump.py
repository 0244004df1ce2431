"""The contents of a map, whoever made it, written out as they are read."""

import contextlib
import os
import sys

from bpfkeeperd import kernel
from bpfkeeperd.errors import KeeperError
from bpfkeeperd.format import KEY_HEAD, Format, Style, after, before
from bpfkeeperd.layout import Layout
from bpfkeeperd.maptypes import type_name
from bpfkeeperd.readable import reading, unreadable
from bpfkeeperd.suggest import did_you_mean
from bpfkeeperd.trust import NOBODY_ELSE, Trust

BY_ID = "id:"
MAP_ID_MAX = (1 << 31) - 1


class DumpError(KeeperError):
    """A map that is not there, or whose contents nobody can read."""


def open_map(name: str, config: str, trust: Trust = NOBODY_ELSE) -> int:
    """A descriptor to read a map with: a kept map's, a pin's by its path, or ``id:NUMBER``.

    Raises:
        DumpError: there is no such map.
        KernelError: it cannot be opened.
        ManifestError: the manifest, which says where kept maps are, is wrong.
    """
    if name.startswith(BY_ID):
        number = name.removeprefix(BY_ID)
        if not (number.isascii() and number.isdecimal() and int(number) <= MAP_ID_MAX):
            raise DumpError(f"cannot dump {name}: no map has such an ID: write id:NUMBER")
        fd = kernel.map_for_reading(int(number))
        if fd is None:
            raise DumpError(f"cannot dump {name}: there is no map with this ID")
        return fd
    if name.startswith("/"):
        if os.path.isdir(name):
            raise DumpError(f"cannot dump {name}: it is a directory")
        if os.path.exists(name) and not kernel.is_bpffs(name):
            raise DumpError(f"cannot dump {name}: it is not on a bpffs")
        fd = kernel.pinned_for_reading(name)
        if fd is None:
            raise DumpError(f"cannot dump {name}: nothing is pinned there")
        return fd
    return _open_kept(name, config, trust)


def _open_kept(name: str, config: str, trust: Trust) -> int:
    # Reading a manifest takes its time to import, which other ways to name a map need not spend.
    from bpfkeeperd.manifest import read_manifest
    from bpfkeeperd.unload import pinned_maps

    manifest = read_manifest(config, trust)
    layout = Layout(manifest.pin_root)
    # On bpffs no name has a dot, so that nothing leads out of the pin root either.
    path = layout.map(name)
    fd = None if "." in name or os.path.isdir(path) else kernel.pinned_for_reading(path)
    if fd is None:
        names = {*manifest.maps}
        for entry in manifest.objects.values():
            names.update(entry.pin_maps.values())
        with contextlib.suppress(OSError):
            names.update(pinned_maps(layout))
        hint = did_you_mean(name, names - {name})
        why = f"no map is pinned as {path}"
        raise DumpError(f"cannot dump map {name}: {why}" + (f": {hint}" if hint else ""))
    return fd


def dump(map_fd: int, name: str, output_fd: int, style: Style, limit: int | None) -> str:
    """Writes a map's entries, at most ``limit``; returns why less is shown than could be, or "".

    Raises:
        DumpError: maps of this type have no contents that can be read.
        KeeperError: the map cannot be read, or not to its end.
        BrokenPipeError: nobody reads the output any more.
    """
    info = kernel.map_info(map_fd)
    why = unreadable(info)
    if why:
        raise DumpError(f"cannot dump map {name} ({type_name(info.type)}): {why}")
    btf = kernel.btf_data(info.btf[0]) if any(info.btf[1:]) else None
    cpus = kernel.cpu_numbers()
    how = reading(info, btf, style, len(cpus))
    del btf
    reader = kernel.MapReader(map_fd, info, how.value_size, batch=how.batch)
    printer = kernel.Printer(how.format, info, how.value_size, cpus, output_fd)
    try:
        _show(printer, reader, how.format, limit)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise DumpError(f"cannot write the contents of map {name}: {error.strerror}") from None
    return how.note


def _show(
    printer: kernel.Printer, reader: kernel.MapReader, form: Format, limit: int | None
) -> None:
    left = sys.maxsize if limit is None else limit
    count = min(reader.read(), left)
    width = 0
    if form.style is Style.TABLE:
        width = printer.measure(reader, count, least=len(KEY_HEAD))
    printer.text(before(form, width))
    try:
        while count:
            printer.show(reader, count)
            left -= count
            count = min(reader.read(), left) if left else 0
    except KeeperError:  # what was read until then is worth seeing
        printer.flush()
        raise
    printer.text(after(form, printer.shown))
    printer.flush()
