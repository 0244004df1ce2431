"""What is fuzzed: each target takes bytes, and raises only what it should never raise."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from bpfkeeperd import kernel
from bpfkeeperd.btf import Btf, BtfBuilder, BtfError
from bpfkeeperd.elf import check_header, read_elf, slotted_maps
from bpfkeeperd.elfimage import ElfImage
from bpfkeeperd.errors import KeeperError, ObjectError
from bpfkeeperd.legacy import rewrite
from tests.legacy_objects import seeds

CORPUS = Path(__file__).parent / "corpus"

Target = Callable[[bytes], str]
"""Takes an input; returns in a few words what came of it, for telling inputs apart."""


def fuzz_btf(data: bytes) -> str:
    """The reader, the questions one can ask it, and the builder."""
    try:
        btf = Btf.parse(data)
    except BtfError as error:
        return _shape(error)
    outcomes = set()
    for type_id in range(len(btf.types) + 1):
        for ask in (btf.resolve, btf.size):
            try:
                ask(type_id)
            except BtfError as error:
                outcomes.add(_shape(error))
    builder = BtfBuilder(data)
    added = builder.add_array(builder.add_int("added", 4), 3)
    again = Btf.parse(builder.data())
    assert again.types[: len(btf.types)] == btf.types
    assert again.size(added) == 12
    return f"read: {sorted(outcomes)} {sorted({item.kind for item in btf.types})}"


def fuzz_elf(data: bytes) -> str:
    """The header, the sections, the rewriting of old maps, and libbpf on what comes of it."""
    try:
        check_header(data)
        read_elf(data)
        slotted_maps(data)
        rewritten = rewrite(data)
    except ObjectError as error:
        return _shape(error)
    if rewritten.data is data:
        return "not old"
    image = ElfImage(rewritten.data)
    names = [image.section_name(index) for index in range(len(image.sections))]
    btf = Btf.parse(image.content(names.index(".BTF")))
    assert rewrite(rewritten.data).data is rewritten.data
    try:
        with kernel.open_object(data, "fuzz") as opened:
            maps = {spec.name for spec in opened.spec.maps}
            assert set(rewritten.pins) <= maps, (rewritten.pins, maps)
    except ObjectError as error:
        return f"libbpf: {_shape(error)}"
    return f"opened: {len(maps)} maps, {len(btf.types) // 8}"


def _shape(error: KeeperError) -> str:
    assert str(error) and "\n" not in str(error)
    return re.sub(r"'.*'|[0-9a-fx]*\d[0-9a-fx]*", "#", str(error))[:80]


def btf_seeds() -> list[bytes]:
    found = []
    for _, data in seeds():
        image = ElfImage(rewrite(data).data)
        names = [image.section_name(index) for index in range(len(image.sections))]
        found.append(image.content(names.index(".BTF")))
    return found


def elf_seeds() -> list[bytes]:
    return [data for _, data in seeds()]


def kept(target: str) -> Sequence[tuple[str, bytes]]:
    """Inputs that once went wrong, or that no seed leads to: hexadecimal text."""
    return [
        (path.name, bytes.fromhex(path.read_text()))
        for path in sorted(CORPUS.glob(f"{target}-*.hex"))
    ]


TARGETS: dict[str, tuple[Target, Callable[[], list[bytes]]]] = {
    "btf": (fuzz_btf, btf_seeds),
    "elf": (fuzz_elf, elf_seeds),
}
