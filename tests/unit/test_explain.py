"""Map types and errnos as they are explained, and the table of map types in README.md."""

import subprocess
import sys
from pathlib import Path

import pytest

from bpfkeeperd.__main__ import main
from bpfkeeperd.errors import KeeperError
from bpfkeeperd.explain import map_type_text, map_types_text, reference_table
from bpfkeeperd.explainerrno import MEANINGS, Place, errno_text_at
from bpfkeeperd.mapflags import FLAGS, flag_names
from bpfkeeperd.maptypes import MAP_TYPES, MapType

README = Path(__file__).parents[2] / "README.md"


def test_the_table_in_the_readme_is_the_one_of_the_code() -> None:
    text = README.read_text()
    _, _, rest = text.partition("<!-- map types: made by bpfkeeperd.explain.reference_table -->\n")
    table, end, _ = rest.partition("\n<!-- end of map types -->\n")
    assert end
    assert table == reference_table()


@pytest.mark.parametrize("known", MAP_TYPES, ids=lambda known: known.name)
def test_everything_of_a_type_is_told(known: MapType) -> None:
    text = map_type_text(known.name)
    assert text.startswith(f"{known.name} ({known.number}): {known.purpose}\n")
    for part in (f"Linux {known.since}", known.filled_by, str(known.share), *known.notes):
        assert part in text
    for flag in FLAGS:
        assert (f"    {flag.name} " in text) == bool(known.flags & flag.bit), flag.name
        assert (f"since {flag.since}, required)" in text) == bool(known.required & flag.bit)


def test_a_type_in_full() -> None:
    assert map_type_text("BPF_MAP_TYPE_LPM_TRIE") == "\n".join(
        [
            "lpm_trie (11): longest prefix match, as in a routing table",
            "  since        Linux 4.11",
            "  key          5 to 260 bytes: prefix length in 4 bytes, then the prefix",
            "  value        1 to 4 MiB - 280 bytes",
            "  max_entries  at least 1",
            "  BTF          taken; the key has to be a struct",
            "  counted      entries in use, of max_entries",
            "  shared by    any programs",
            "  filled by    programs and user space",
            "  copied       in batches",
            "  inner map    yes, max_entries may differ",
            "  flags",
            "    no_prealloc      memory is taken entry by entry (since 4.6, required)",
            "    numa_node        the memory is on the node numa_node (since 4.14)",
            "    rdonly           the creator's descriptor cannot write (since 4.15)",
            "    wronly           the creator's descriptor cannot read (since 4.15)",
            "    rdonly_prog      programs cannot write (since 5.2)",
            "    wronly_prog      programs cannot read (since 5.2)",
        ]
    )


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "hash",
            "  memory       at creation 48 bytes + key + value an entry, and 16 bytes a bucket",
        ),
        ("devmap_hash", "  memory       at creation 8 bytes a bucket"),
        ("array", "  inner map    yes, with equal max_entries, unless it has the flag inner_map"),
        ("xskmap", "  inner map    yes, with equal max_entries\n"),
        ("bloom_filter", "  map_extra    0 to 15: number of hash functions, 0 for 5"),
        ("ringbuf", "  key          none: key_size is 0"),
        ("percpu_array", "  value        1 to 32 KiB bytes, for each CPU"),
        ("insn_array", "  flags        none"),
        ("hash", "  max_entries  1 to 2^27"),
        ("array", "  value        1 to 2^31 - 1 bytes"),
    ],
)
def test_lines_of_a_type(name: str, line: str) -> None:
    assert line in map_type_text(name)


def test_all_types() -> None:
    lines = map_types_text().splitlines()
    assert [line.split()[0] for line in lines[1:]] == [known.name for known in MAP_TYPES]


def test_flag_names() -> None:
    assert flag_names(0) == "none"
    assert flag_names(1 << 30 | 5) == "no_prealloc, numa_node, 0x40000000"
    assert len({flag.bit for flag in FLAGS}) == len(FLAGS)


@pytest.mark.parametrize("name", ["EINVAL", "einval", "22", "-22"])
def test_an_errno_at_a_place(name: str) -> None:
    text = errno_text_at(name, "map-create")
    assert text.startswith("Invalid argument (EINVAL)\nmap-create: a size, max_entries, flag")
    assert text.count("\n") == 1


def test_an_errno_everywhere() -> None:
    text = errno_text_at("EINVAL")
    assert [line.split(":")[0] for line in text.splitlines()[1:]] == list(Place)
    assert "ENOTSUPP, 524" in errno_text_at("524")
    assert errno_text_at("524") == errno_text_at("ENOTSUPP")


def test_an_errno_of_which_nothing_is_known() -> None:
    assert errno_text_at("EXDEV", "map-create") == (
        "Invalid cross-device link (EXDEV)\n"
        "nothing particular is known of it at map-create; it is known at obj-pin"
    )
    assert "at any place" in errno_text_at("EDOM")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("map-type", "hsh"), "there is no map type hsh: did you mean hash?"),
        (("errno", "EINVL"), "there is no errno EINVL: did you mean EINVAL?"),
        (("errno", "0"), "there is no errno 0: "),
        (("errno", "99999999999999999999"), "there is no errno 99999999999999999999: "),
        (("errno", "EINVAL", "map-crate"), "there is no place map-crate: did you mean map-create?"),
    ],
)
def test_what_cannot_be_explained(
    arguments: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", *arguments]) == 1
    assert capsys.readouterr().err.startswith(f"bpfkeeperd: {text}")


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "map-type"]) == 0
    assert capsys.readouterr().out == f"{map_types_text()}\n"
    assert main(["explain", "map-type", "stack"]) == 0
    assert capsys.readouterr().out == f"{map_type_text('stack')}\n"
    assert main(["explain", "errno", "EPERM", "obj-get"]) == 0
    assert capsys.readouterr().out == f"{errno_text_at('EPERM', 'obj-get')}\n"


def test_every_place_tells_what_to_expect() -> None:
    assert set(MEANINGS) == set(Place)
    with pytest.raises(KeeperError):
        errno_text_at("EINVAL", "")


def test_an_output_without_room_is_told() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "bpfkeeperd", "explain", "map-type"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    said = "bpfkeeperd: cannot write to standard output: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, said)
