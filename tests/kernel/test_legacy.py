"""Objects with maps in SEC("maps"), of every form: opened, loaded, and run on this kernel."""

import hashlib
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bpfkeeperd import kernel
from bpfkeeperd._libbpf import ffi, lib
from bpfkeeperd.elfimage import ElfImage
from bpfkeeperd.errors import KernelError, ObjectError
from bpfkeeperd.legacy import rewrite
from bpfkeeperd.progtypes import ProgramKind
from bpfkeeperd.state import MapSpec
from tests.legacy_objects import FORMS, legacy_object

SOCKET_FILTER = 1
SO_ATTACH_BPF = 50
TYPES = {
    **dict.fromkeys(("socket1", "filter", "bpf_prog"), SOCKET_FILTER),
    **dict.fromkeys(("classifier", "classifier/in", "cls", "42/0"), 3),
    **dict.fromkeys(("action", "act/one"), 4),
    **dict.fromkeys(("prog", "xdp_prog1"), 6),
    "kprobe/do_nothing": 2,
    "cgroup/whatever": 8,
}
"""Sections that loaders of old took, and the type that was meant."""
DEBUG = pytest.mark.parametrize("debug", [False, True], ids=["plain", "btf"])


@contextmanager
def loaded(data: bytes, prog_type: int = SOCKET_FILTER) -> Iterator[kernel.OpenObject]:
    """The object, loaded with all its programs of one type; its BTF was to the kernel's taste."""
    with kernel.open_object(data, "legacy") as opened:
        for program in opened.spec.programs:
            opened.set_type(program.name, ProgramKind(prog_type, 0))
        opened.load()
        log = bytes(ffi.string(lib.keeper_log())).decode()
        assert "BTF" not in log, log
        yield opened


def run(opened: kernel.OpenObject, program: str) -> None:
    """Runs a socket filter once."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        theirs.setsockopt(socket.SOL_SOCKET, SO_ATTACH_BPF, opened.program_fd(program))
        ours.send(b"packet")


def number(opened: kernel.OpenObject, name: str, key: int) -> int | None:
    value = kernel.map_lookup(opened.map_fd(name), struct.pack("<I", key), 8)
    return None if value is None else int.from_bytes(value, "little")


def numbers(opened: kernel.OpenObject, name: str, count: int) -> list[int | None]:
    return [number(opened, name, key) for key in range(count)]


def slots(opened: kernel.OpenObject, name: str, count: int) -> dict[int, int]:
    """What a map of maps or of programs holds: slot to ID."""
    fd = opened.map_fd(name)
    found = {key: kernel.map_lookup(fd, struct.pack("<I", key), 4) for key in range(count)}
    return {key: int.from_bytes(value, "little") for key, value in found.items() if value}


def in_kernel(opened: kernel.OpenObject, name: str) -> tuple[int, ...]:
    """Type, sizes, entries and flags of a map as the kernel has it."""
    info = kernel.map_info(opened.map_fd(name))
    assert info.name == name[:15]
    return info.type, info.key_size, info.value_size, info.max_entries, info.flags


def named(opened: kernel.OpenObject, name: str) -> MapSpec:
    return next(spec for spec in opened.spec.maps if spec.name == name)


def check_plain(opened: kernel.OpenObject, form: str) -> None:
    assert [spec.name for spec in opened.spec.maps] == ["counts", "hidden", "deeper", "table"]
    assert in_kernel(opened, "counts") == (2, 4, 8, 3, 0)
    assert in_kernel(opened, "hidden") == (2, 4, 8, 5, 0)
    assert in_kernel(opened, "deeper") == (2, 4, 8, 7, 0)
    assert in_kernel(opened, "table") == (1, 4, 8, 11, 0 if form == "TC4" else 1)


@DEBUG
@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str, debug: bool) -> None:
    """Every map is what it was defined as, and every instruction takes the map it was to take."""
    with loaded(legacy_object("plain", debug=debug, FORM=form)) as opened:
        check_plain(opened, form)
        run(opened, "program")
        assert numbers(opened, "counts", 3) == [1, 0, 0]
        assert numbers(opened, "hidden", 5) == [0, 10, 0, 0, 20]
        assert numbers(opened, "deeper", 7) == [0, 0, 100, 0, 0, 0, 0]
        assert number(opened, "table", 3) == 1000
        run(opened, "another")
        assert number(opened, "deeper", 6) == 500


@DEBUG
@pytest.mark.parametrize("section", TYPES)
def test_sections_of_programs(section: str, debug: bool) -> None:
    """Their names stay; the type is given, as whoever knows the program would."""
    macros = {"FORM": "TC9" if debug else "DEF5", "PROGRAM_SECTION": f'"{section}"'}
    data = legacy_object("plain", debug=debug, **macros)
    with loaded(data, TYPES[section]) as opened:
        sections = {program.name: program.section for program in opened.spec.programs}
        assert sections == {"program": section, "another": "second_one"}
        check_plain(opened, "TC9")
        info = kernel.program_info(opened.program_fd("program"))
        assert info.type == TYPES[section]
        ids = {kernel.map_info(opened.map_fd(spec.name)).id for spec in opened.spec.maps}
        assert set(info.map_ids) == ids


@DEBUG
@pytest.mark.parametrize("form", ["DEF6", "DEF7"])
def test_maps_of_maps_of_the_samples(form: str, debug: bool) -> None:
    with loaded(legacy_object("nested", debug=debug, FORM=form)) as opened:
        assert in_kernel(opened, "outer") == (12, 4, 4, 5, 0)
        assert in_kernel(opened, "by_key") == (13, 8, 4, 5, 0)
        for name in ("outer", "by_key"):
            inner = named(opened, name).inner
            assert inner is not None
            assert (inner.type, inner.key_size, inner.value_size, inner.max_entries) == (1, 4, 8, 9)
        assert slots(opened, "outer", 5) == {}
        outer = opened.map_fd("outer")
        fit, unfit = opened.map_fd("pattern"), opened.map_fd("found")
        kernel.map_update(outer, struct.pack("<I", 3), struct.pack("<I", fit))
        with pytest.raises(KernelError, match="EINVAL"):
            kernel.map_update(outer, struct.pack("<I", 0), struct.pack("<I", unfit))
        kernel.map_update(fit, struct.pack("<I", 1), struct.pack("<Q", 30))
        run(opened, "program")
        assert number(opened, "pattern", 1) == 35


@DEBUG
def test_maps_of_maps_of_tc(debug: bool) -> None:
    with loaded(legacy_object("nested", debug=debug, FORM="TC9")) as opened:
        ids = {
            name: kernel.map_info(opened.map_fd(name)).id
            for name in ("inner_a", "inner_b", "spare")
        }
        assert in_kernel(opened, "outer") == (12, 4, 4, 5, 0)
        assert in_kernel(opened, "by_key") == (13, 4, 4, 5, 0)
        for name in ("outer", "by_key"):
            assert slots(opened, name, 5) == {1: ids["inner_b"], 3: ids["inner_a"]}
        run(opened, "program")
        assert numbers(opened, "inner_a", 2) == [0, 5]
        assert numbers(opened, "inner_b", 2) == [7, 0]
        assert numbers(opened, "spare", 2) == [0, 0]


@DEBUG
def test_tail_calls(debug: bool) -> None:
    with loaded(legacy_object("tail_calls", debug=debug)) as opened:
        ids = {
            program.name: kernel.program_info(opened.program_fd(program.name)).id
            for program in opened.spec.programs
        }
        sections = {program.name: program.section for program in opened.spec.programs}
        assert sections["first"] == "42/0" and sections["third"] == "0x2b/01"
        assert in_kernel(opened, "jumps") == (3, 4, 4, 6, 0)
        assert slots(opened, "jumps", 6) == {0: ids["first"], 5: ids["second"]}
        assert slots(opened, "more", 2) == {1: ids["third"]}
        assert slots(opened, "empty", 2) == {}
        run(opened, "program")
        assert numbers(opened, "steps", 4) == [1, 2, 4, 8]


@pytest.mark.parametrize("form", ["DEF5", "TC9"])
def test_types_beside_the_definition(form: str) -> None:
    with loaded(legacy_object("annotated", debug=True, FORM=form)) as opened:
        btf = kernel.map_info(opened.map_fd("known")).btf
        assert all(btf), "the kernel knows the types"
        key, value = kernel.btf_layouts(*btf)
        assert key is not None and ":host" in key and ":port" in key and value is not None
        assert named(opened, "known").key_layout == key
        assert kernel.map_info(opened.map_fd("other")).btf == (0, 0, 0)
        assert in_kernel(opened, "known") == (1, 8, 8, 6, 0)
        assert in_kernel(opened, "other") == (1, 4, 8, 6, 0)
        assert in_kernel(opened, "local") == (24, 4, 8, 0, 1)


@DEBUG
def test_numa_nodes(debug: bool) -> None:
    with loaded(legacy_object("node", debug=debug)) as opened:
        assert in_kernel(opened, "placed") == (1, 4, 8, 6, 4)
        assert in_kernel(opened, "anywhere") == (12, 4, 4, 6, 0)
        assert named(opened, "anywhere").numa_node == 0
    with (
        pytest.raises(ObjectError, match="placed"),
        loaded(legacy_object("node", debug=debug, NODE=1023)) as opened,
    ):
        assert named(opened, "placed").numa_node == 1023


@DEBUG
@pytest.mark.parametrize("form", ["TC7", "TC9"])
def test_pins_of_tc(form: str, debug: bool) -> None:
    data = legacy_object("pinned", debug=debug, FORM=form)
    own = f"tc/{hashlib.sha1(data).hexdigest()}/own"
    with loaded(data) as opened:
        assert opened.spec.pins == {"own": own, "shared": "tc/globals/shared"}
        pins = {spec.name: (spec.pinned, spec.pin_name) for spec in opened.spec.maps}
        assert pins == {
            "loose": (False, ""),
            "own": (True, own),
            "shared": (True, "tc/globals/shared"),
            "custom": (False, ""),
        }
        run(opened, "program")
        for name in pins:
            assert number(opened, name, 0) == 1


@DEBUG
@pytest.mark.parametrize("form", ["DEF5", "TC9"])
def test_many_maps(form: str, debug: bool) -> None:
    """Half of them static, half of the instructions in a function of its own."""
    with loaded(legacy_object("many", debug=debug, FORM=form)) as opened:
        assert len(opened.spec.maps) == 40
        run(opened, "program")
        for spec in opened.spec.maps:
            entries = int(spec.name[2:]) + (spec.name[0] == "g")
            assert in_kernel(opened, spec.name) == (2, 4, 8, entries, 0)
            key = 0 if spec.name[0] == "m" else entries - 1
            assert number(opened, spec.name, key) == entries


def test_symbols_without_types_and_sizes() -> None:
    """As LLVM wrote them before 7."""
    image = ElfImage(legacy_object("plain", FORM="TC9"))
    for symbol in image.symbols:
        if symbol.binding and symbol.size:
            symbol.info, symbol.size = symbol.binding << 4, 0
    with loaded(image.finished()) as opened:
        check_plain(opened, "TC9")
        run(opened, "program")
        assert numbers(opened, "hidden", 5) == [0, 10, 0, 0, 20]
        assert number(opened, "table", 3) == 1000


OPEN_DAMAGED = """
import sys
from bpfkeeperd import kernel
from bpfkeeperd.errors import ObjectError
from tests.legacy_objects import damaged, legacy_object

source, form, debug, progress = sys.argv[1:]
opened = refused = 0
with open(progress, "w") as file:
    for number, data in enumerate(damaged(legacy_object(source, debug=bool(debug), FORM=form), 1)):
        print(number, file=file, flush=True)
        try:
            with kernel.open_object(data, "damaged"):
                opened += 1
        except ObjectError as error:
            assert str(error) and "\\n" not in str(error)
            refused += 1
print(opened, refused)
"""


@pytest.mark.parametrize(
    ("source", "form", "debug"), [("nested", "TC9", ""), ("pinned", "TC9", "debug")]
)
def test_damaged_objects(source: str, form: str, debug: str, tmp_path: Path) -> None:
    """libbpf reads what comes of them in a process of its own: a crash would be seen."""
    progress = tmp_path / "progress"
    child = subprocess.run(
        [sys.executable, "-c", OPEN_DAMAGED, source, form, debug, str(progress)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    last = progress.read_text().split()[-1]
    assert child.returncode == 0, f"damaged object {last}: {child.returncode} {child.stderr}"
    opened, refused = (int(number) for number in child.stdout.split())
    assert opened > 300 and refused > 200


def test_the_log_that_is_looked_at_would_tell() -> None:
    """BTF that the kernel refuses is no error for libbpf, but it says so."""
    image = ElfImage(rewrite(legacy_object("plain", FORM="TC9")).data)
    names = [image.section_name(index) for index in range(len(image.sections))]
    image.put_word(names.index(".BTF"), 24 + 12, 200)  # more bits than the first type's one byte
    with pytest.raises(AssertionError, match="BTF"), loaded(image.finished()):
        pass
