"""Objects with old map definitions, compiled from tests/bpf/legacy, and ways to damage them."""

import functools
import platform
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

SOURCES = Path(__file__).parent / "bpf" / "legacy"

FORMS = ("DEF5", "DEF5_PADDED", "DEF6", "DEF7", "TC4", "TC7", "TC9", "GOBPF")


@functools.cache
def _compiled(source: str, debug: bool, macros: tuple[tuple[str, object], ...]) -> bytes:
    include = f"/usr/include/{platform.machine()}-linux-gnu"
    command = ["clang", "-O2", "-target", "bpf", "-Wall", "-Werror", "-I", include]
    command += ["-g"] * debug + [f"-D{name}={value}" for name, value in macros]
    command += ["-c", str(SOURCES / f"{source}.bpf.c"), "-o", "-"]
    return subprocess.run(command, check=True, capture_output=True).stdout


def legacy_object(source: str, *, debug: bool = False, **macros: object) -> bytes:
    """Compiles a source, once for each way; ``debug`` gives it BTF."""
    return _compiled(source, debug, tuple(sorted(macros.items())))


def seeds() -> Iterator[tuple[str, bytes]]:
    """Objects of every form, small ones first."""
    for debug in (False, True):
        yield f"tail_calls {debug}", legacy_object("tail_calls", debug=debug)
        yield f"nested TC9 {debug}", legacy_object("nested", debug=debug, FORM="TC9")
        yield f"nested DEF7 {debug}", legacy_object("nested", debug=debug, FORM="DEF7")
        yield f"pinned {debug}", legacy_object("pinned", debug=debug, FORM="TC9")
        yield f"gobpf {debug}", legacy_object("plain", debug=debug, FORM="GOBPF")
        yield f"annotated {debug}", legacy_object("annotated", debug=debug, FORM="DEF5")


@functools.cache
def compiled_text(text: str, *, debug: bool = False) -> bytes:
    """Compiles a few lines that follow forms.h."""
    include = f"/usr/include/{platform.machine()}-linux-gnu"
    command = ["clang", "-O2", "-target", "bpf", "-I", include, "-I", str(SOURCES), "-x", "c", "-"]
    command += ["-g"] * debug + ["-c", "-o", "-"]
    return subprocess.run(command, check=True, capture_output=True, input=text.encode()).stdout


def damaged(data: bytes, values: int = 2) -> Iterator[bytes]:
    """The object cut short at every 16 bytes, and with every byte that others depend on changed."""
    yield from (data[:length] for length in range(0, len(data), 16))
    for place in sorted(_places(data)):
        for value in (data[place] ^ 1, 0xFF, 0, data[place] ^ 0x80)[:values]:
            if value != data[place]:
                yield data[:place] + bytes((value,)) + data[place + 1 :]


def _places(data: bytes) -> set[int]:
    """The ELF header, the section headers, symbols, relocations, map definitions, BTF's header."""
    (table,) = struct.unpack_from("<Q", data, 40)
    count, names = struct.unpack_from("<HH", data, 60)
    headers = [struct.unpack_from("<IIQQQQIIQQ", data, table + 64 * i) for i in range(count)]
    found = {*range(64), *range(table, table + 64 * count)}
    for name_offset, kind, _, _, start, size, *_ in headers:
        name_start = headers[names][4] + name_offset
        name = data[name_start : data.index(b"\0", name_start)].decode()
        if name == ".BTF" or name == "maps" or name.startswith("maps/") or kind in (2, 9):
            found.update(range(start, start + min(size, 200)))
    return found
