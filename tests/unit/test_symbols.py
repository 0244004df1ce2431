"""Where functions are in binaries, held against what nm and readelf say."""

import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bpfkeeperd.errors import ObjectError
from bpfkeeperd.symbols import function_offsets, offsets_in

SOURCE = """
__attribute__((noinline)) int first(int n) { return n * 3; }
__attribute__((noinline)) int second(int n) { return first(n) + 1; }
static __attribute__((noinline, used)) int hidden(int n) { return n - 7; }
int main(int argc, char **argv) { return second(argc) + hidden(argc); }
"""
VERSIONED = """
__asm__(".symver old_way,way@ONE");
__asm__(".symver new_way,way@@TWO");
int old_way(int n) { return n + 1; }
int new_way(int n) { return n + 2; }
int other(int n) { return n + 3; }
"""
BUILDS = {
    "pie": ["-pie", "-fPIE"],
    "no_pie": ["-no-pie"],
    "shared": ["-shared", "-fPIC"],
    "stripped": ["-shared", "-fPIC", "-s"],
    "far": ["-no-pie", "-Wl,-Ttext-segment=0x7000000"],
}


def gcc(path: Path, source: str, *flags: str) -> Path:
    command = ["gcc", "-O1", "-x", "c", "-", "-o", str(path), *flags]
    subprocess.run(command, input=source, check=True, text=True)
    return path


def offsets(path: Path, symbol: str) -> tuple[int, ...]:
    return offsets_in(str(path), symbol, os.stat(path))


def expected(path: Path, names: Callable[[str], bool]) -> set[int]:
    """The file offsets of functions, by nm and readelf."""
    found = set()
    loads = []
    for line in run("readelf", "-lW", str(path)):
        fields = line.split()
        if fields and fields[0] == "LOAD":
            loads.append((int(fields[1], 16), int(fields[2], 16), int(fields[5], 16)))
    for options in ([], ["-D"]):
        for line in run("nm", "--defined-only", *options, str(path)):
            value, kind, name = line.split(maxsplit=2)
            if kind in "tTW" and names(name.partition("@")[0]):
                address = int(value, 16)
                found |= {
                    address - at + offset for offset, at, size in loads if at <= address < at + size
                }
    return found


def run(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize("build", BUILDS)
def test_offsets_of_a_build(tmp_path: Path, build: str) -> None:
    path = gcc(tmp_path / "binary", SOURCE, *BUILDS[build])
    for name in ("first", "second", *(() if build == "stripped" else ("hidden",))):
        assert set(offsets(path, name)) == expected(path, name.__eq__), name
    both = expected(path, lambda name: name in ("first", "second"))
    assert set(offsets(path, "[fs][ie][rc]*[td]")) == both


def test_versions_of_a_function(tmp_path: Path) -> None:
    script = tmp_path / "versions"
    script.write_text("ONE { global: way; other; local: *; }; TWO { global: way; } ONE;\n")
    flags = ("-shared", "-fPIC", f"-Wl,--version-script={script}")
    for strip in ((), ("-s",)):
        path = gcc(tmp_path / "library.so", VERSIONED, *flags, *strip)
        (new,), (old,) = offsets(path, "way@@TWO"), offsets(path, "way@ONE")
        assert {new, old} == expected(path, "way".__eq__) and new != old
        assert offsets(path, "way") == offsets(path, "way@TWO") == (new,)
        assert offsets(path, "way*") == tuple(sorted({new, old}))
        with pytest.raises(ObjectError, match="there is no function way@THREE"):
            offsets(path, "way@THREE")


def test_two_functions_of_one_name(tmp_path: Path) -> None:
    """As static ones of several files are; a global one is preferred."""
    parts = []
    for name, body in (
        ("one", "static __attribute__((noinline, used)) int same(int n) { return n + 1; }"),
        ("two", "static __attribute__((noinline, used)) int same(int n) { return n + 2; }"),
        ("three", "int same(int n) { return n + 3; }"),
    ):
        parts.append(str(gcc(tmp_path / f"{name}.o", body, "-c")))
    main = tmp_path / "main.o"
    gcc(main, "int main(void) { return 0; }", "-c")
    subprocess.run(["gcc", str(main), *parts[:2], "-o", tmp_path / "local"], check=True)
    with pytest.raises(ObjectError, match="there are 2 functions same: write offset: BYTES"):
        offsets(tmp_path / "local", "same")
    subprocess.run(["gcc", str(main), *parts, "-o", tmp_path / "global"], check=True)
    (found,) = offsets(tmp_path / "global", "same")
    (line,) = [line for line in run("nm", str(tmp_path / "global")) if line.endswith(" T same")]
    assert found in expected(tmp_path / "global", "same".__eq__)
    assert found % 4096 == int(line.split()[0], 16) % 4096


def test_a_function_that_is_chosen_at_run_time(tmp_path: Path) -> None:
    """What has its name is called once, and chooses."""
    source = (
        "static int fast(int n) { return n; }\n"
        "static int (*choose(void))(int) { return fast; }\n"
        'int chosen(int n) __attribute__((ifunc("choose")));\n'
    )
    path = gcc(tmp_path / "library.so", source, "-shared", "-fPIC")
    with pytest.raises(ObjectError, match="chosen stands for one of several functions"):
        offsets(path, "chosen")
    assert set(offsets(path, "*fast*")) == expected(path, "fast".__eq__)


def test_what_is_no_place_for_a_probe(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for data, text in (
        (b"", "no ELF file"),
        (b"#!/bin/sh\n", "no ELF file: a script has no functions to probe"),
        (b"\x7fELF\x01\x01" + bytes(58), "no 64-bit ELF file"),
        (b"\x7fELF\x02\x01" + bytes(58), "it names no functions"),
    ):
        path.write_bytes(data)
        with pytest.raises(ObjectError, match=text):
            offsets(path, "main")


def test_a_damaged_file_is_an_error_and_no_crash(tmp_path: Path) -> None:
    whole = gcc(tmp_path / "binary", SOURCE, "-shared", "-fPIC").read_bytes()
    chance = random.Random(7)
    refused = 0
    for _ in range(600):
        data = bytearray(whole[: chance.randrange(len(whole))] if chance.random() < 0.5 else whole)
        for _ in range(chance.randrange(8)):
            place = chance.choice((chance.randrange(64), chance.randrange(len(whole))))
            if place < len(data):
                data[place] = chance.randrange(256)
        for symbol in ("first", "f*"):
            try:
                function_offsets(lambda start, size: bytes(data[start : start + size]), symbol)  # noqa: B023
            except ObjectError:
                refused += 1
    assert refused > 200


def test_the_same_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = gcc(tmp_path / "binary", SOURCE)
    first = offsets(path, "first")
    reads = []
    pread = os.pread

    def counted(fd: int, size: int, start: int) -> bytes:
        reads.append(start)
        return pread(fd, size, start)

    monkeypatch.setattr(os, "pread", counted)
    assert offsets(path, "first") == first and not reads
    gcc(tmp_path / "new", SOURCE.replace("n * 3", "n * 5 + 1"))
    os.replace(tmp_path / "new", path)
    offsets(path, "first")
    assert reads
