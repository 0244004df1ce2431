"""Manifests that are good and what they mean, manifests that are not and what is said about them.

A bad manifest is a pair of files: NAME.yaml and, in NAME.txt, the exact text of its error. The
drop-ins of either kind are in NAME.conf.d/.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from bpfkeeperd import manifest as reader
from bpfkeeperd.accounts import with_accounts
from bpfkeeperd.decode import Value, decode
from bpfkeeperd.entries import (
    AttachEntry,
    CgroupRef,
    Content,
    CpuRef,
    InterfaceRef,
    Manifest,
    MapDefinition,
    MapRef,
    MismatchPolicy,
    ProgramRef,
    TlsEntry,
)
from bpfkeeperd.errors import KeeperError, ManifestError, Mark
from bpfkeeperd.fieldkinds import Boolean
from bpfkeeperd.manifest import parse_manifest, read_files, read_manifest
from bpfkeeperd.nodes import PROBLEMS_MAX, Faults, Place, ScalarNode, flow
from bpfkeeperd.pinrights import WantedRights
from bpfkeeperd.progtypes import PROGRAM_KINDS, ProgramKind
from bpfkeeperd.targets import (
    BinaryTarget,
    CgroupTarget,
    FunctionTarget,
    InterfaceTarget,
    MapTarget,
    PerfEventTarget,
    TracepointTarget,
    XdpMode,
)
from bpfkeeperd.yamlnodes import read_tree

MANIFESTS = Path(__file__).parents[1] / "manifests"
BAD = sorted((MANIFESTS / "bad").glob("*.yaml"))
GOOD = sorted((MANIFESTS / "good").glob("*.yaml"))


def sources(path: Path, name: str = "") -> list[tuple[str, bytes]]:
    drop_ins = sorted(path.with_suffix(".conf.d").glob("*.yaml"))
    return [
        (name or path.name, path.read_bytes()),
        *((f"conf.d/{drop_in.name}", drop_in.read_bytes()) for drop_in in drop_ins),
    ]


def parse(text: str, *drop_ins: str) -> Manifest:
    more = [(f"/etc/k/conf.d/{index}.yaml", part.encode()) for index, part in enumerate(drop_ins)]
    return parse_manifest([("/etc/k/main.yaml", text.encode()), *more])


def problems(text: str, *drop_ins: str) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        parse(text, *drop_ins)
    return [f"{problem.mark}: {problem.message}" for problem in caught.value.problems]


def load_good(name: str) -> Manifest:
    return parse_manifest(sources(MANIFESTS / "good" / name, f"/etc/bpfkeeperd/{name}"))


def test_every_bad_manifest_has_its_text() -> None:
    assert len(BAD) >= 30
    texts = {path.stem for path in (MANIFESTS / "bad").glob("*.txt")}
    assert {path.stem for path in BAD} == texts


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_bad(path: Path) -> None:
    with pytest.raises(ManifestError) as caught:
        with_accounts(parse_manifest(sources(path)))
    assert f"{caught.value}\n" == path.with_suffix(".txt").read_text()


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_bad_without_libyaml(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "read_tree", partial(read_tree, libyaml=False))
    test_bad(path)


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_good_with_either_parser(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = parse_manifest(sources(path))
    monkeypatch.setattr(reader, "read_tree", partial(read_tree, libyaml=False))
    assert parse_manifest(sources(path)) == manifest


def test_defaults() -> None:
    for name in ("minimal.yaml", "sections_empty.yaml"):
        assert load_good(name) == Manifest(
            file=f"/etc/bpfkeeperd/{name}",
            pin_root="/sys/fs/bpf",
            metrics_listen=("127.0.0.1", 9435),
            on_mismatch=MismatchPolicy.FAIL,
        )


def test_top_level() -> None:
    manifest = load_good("full.yaml")
    assert manifest.pin_root == "/sys/fs/bpf/kept"
    assert manifest.metrics_listen == ("::1", 0)
    assert manifest.on_mismatch is MismatchPolicy.RECREATE
    assert load_good("metrics_off.yaml").metrics_listen is None
    everything = load_good("metrics_all.yaml")
    assert (manifest.observe_most, manifest.program_statistics) == (None, False)
    assert (everything.observe_most, everything.program_statistics) == (50, True)


def test_tls() -> None:
    assert load_good("minimal.yaml").metrics_tls is None
    assert load_good("metrics_tls.yaml").metrics_tls == TlsEntry(
        "/etc/bpfkeeperd/tls/fullchain.pem",
        key="/etc/letsencrypt/live/host/privkey.pem",
        client_ca="/etc/ca.pem",
    )
    both = "/etc/bpfkeeperd/both.pem"
    assert load_good("metrics_tls_one_file.yaml").metrics_tls == TlsEntry(both, key=both)


def test_targets_of_tracing() -> None:
    programs = load_good("tracing.yaml").objects["tracing"].programs
    assert programs["by_section"].attach_auto and not programs["by_section"].attach
    assert programs["connects"].type == "fentry"
    targets = {name: tuple(one.target for one in found.attach) for name, found in programs.items()}
    del targets["by_section"]
    assert targets == {
        "switches": (TracepointTarget("sched/sched_switch"),),
        "raw": (TracepointTarget("sched_switch"),),
        "connects": (FunctionTarget("tcp_connect"),),
        "inside": (FunctionTarget("tcp_connect", 16),),
        "many": (FunctionTarget("tcp_*"),),
        "lines": (
            BinaryTarget("/usr/bin/bash", "readline", 0, 7),
            BinaryTarget("/bin/a", "", 64),
        ),
        "old": (BinaryTarget("/lib/libc.so.6", "memcpy@GLIBC_2.2.5"),),
        "samples": (
            PerfEventTarget("cpu-clock", 99),
            PerfEventTarget("page-faults", 0, 100, 0),
        ),
        "keys": (MapTarget("flows"),),
    }


def number(value: int, size: int) -> bytes:
    return value.to_bytes(size, sys.byteorder)


def test_maps() -> None:
    maps = load_good("full.yaml").maps
    assert list(maps) == ["declared_by_an_object", "keep_me", "settings", "seen", "events"]
    assert all(name == entry.name for name, entry in maps.items())
    assert maps["declared_by_an_object"].definition is None
    assert maps["declared_by_an_object"].on_mismatch is MismatchPolicy.RECREATE
    assert maps["keep_me"].definition is None
    assert maps["keep_me"].on_mismatch is MismatchPolicy.FAIL
    assert maps["settings"].definition == MapDefinition(
        type="array",
        key_size=4,
        value_size=8,
        max_entries=4,
        flags=1024 | 128,
        contents=(
            Content(number(0, 4), number(1500, 8)),
            Content(number(3, 4), number(2**64 - 1, 8)),
        ),
    )
    assert maps["seen"].definition == MapDefinition(
        type="bloom_filter",
        key_size=0,
        value_size=4,
        max_entries=1000,
        flags=0x40 | 4,
        map_extra=3,
        numa_node=1,
    )
    assert maps["events"].definition == MapDefinition("ringbuf", 0, 0, 4096)


def test_own_maps() -> None:
    maps = load_good("own_maps.yaml").maps
    assert (maps["flows"].enforce, maps["flows"].rename_from) == (True, "old_flows")
    assert (maps["routes"].enforce, maps["routes"].rename_from) == (False, None)
    counted = {name for name, entry in maps.items() if entry.count_nonzero}
    assert counted == {"hits", "counted"}

    def definition(name: str) -> MapDefinition:
        found = maps[name].definition
        assert found and maps[name].entries == ()
        return found

    def sizes(name: str) -> tuple[int, int, int]:
        found = definition(name)
        return found.key_size, found.value_size, found.max_entries

    def contents(name: str) -> tuple[object, ...]:
        return tuple(content.value for content in definition(name).contents)

    assert sizes("flows") == (8, 8, 1024)
    assert definition("flows").contents == (Content(b"\n\0\0\1\1\xbb\0\0", number(7, 8)),)
    assert definition("routes").contents == (Content(number(8, 4) + b"\n\0\0\0", number(1, 4)),)
    assert sizes("outer") == (4, 4, 4)
    inner = definition("outer").inner
    assert inner and (inner.key_size, inner.value_size, inner.max_entries) == (4, 8, 100)
    assert contents("outer") == (MapRef("table_a"),)
    assert definition("named").inner == replace(definition("flows"), contents=())
    assert contents("jumps") == (ProgramRef("parser", "parse_ipv4"),)
    assert contents("ports") == (
        InterfaceRef("eth0"),
        InterfaceRef("eth1", "blue", ProgramRef("fw", "egress")),
    )
    assert contents("cgroups") == (CgroupRef("system.slice"),)
    assert contents("cpus") == (CpuRef(192), CpuRef(64, ProgramRef("fw", "spread")))
    assert definition("queue").contents == (Content(None, number(1, 4)),)
    assert sizes("queue") == (0, 4, 8)
    assert sizes("sessions") == (4, 32, 0)
    assert sizes("tc/globals/acl") == (4, 1, 1)
    declared = maps["declared"]
    assert declared.definition is None and declared.enforce
    assert [flow(one.key) for one in declared.entries if one.key] == ["{a: [1, 0x2]}"]
    assert [flow(one.value) for one in declared.entries] == ["{hex: 00 01}"]


def test_rights_of_pins() -> None:
    """Field by field: a map's own, then the defaults, then nothing."""
    manifest = with_accounts(load_good("pins.yaml"))
    assert manifest.rights("a") == manifest.rights("of an object") == WantedRights(None, 0, 0o640)
    assert manifest.rights("b") == WantedRights(0, 0, 0o660, "root", "0")
    assert manifest.rights("c") == WantedRights(None, 4711, 0o600)
    assert manifest.rights("d") == manifest.rights("a")
    assert not with_accounts(load_good("own_maps.yaml")).rights("flows")


def test_entries_know_where_they_stand() -> None:
    found = load_good("own_maps.yaml").maps["routes"].definition
    assert found
    (content,) = found.contents
    assert content.text == "10.0.0.0/8"
    assert content.mark.source[content.mark.column - 1 :] == "{key: 10.0.0.0/8, value: 1}]"


def test_global_data_and_program_types() -> None:
    legacy = load_good("own_maps.yaml").objects["legacy"]
    assert legacy.pin_maps == {".bss": "fw_state", ".data.settings": "settings"}
    types = {name: program.type for name, program in legacy.programs.items()}
    assert types == {"bpf_prog1": "socket_filter", "ingress": "tcx/ingress"}
    assert PROGRAM_KINDS["socket_filter"] == ProgramKind(1, 0)
    assert PROGRAM_KINDS["tcx/ingress"] == ProgramKind(3, 0)
    assert PROGRAM_KINDS["cgroup/connect4"] == ProgramKind(18, 10)


def test_objects() -> None:
    objects = load_good("full.yaml").objects
    assert list(objects) == ["sockops", "firewall"]
    sockops, firewall = objects["sockops"], objects["firewall"]
    assert sockops.file == "/etc/bpf/sockops.bpf.o"
    assert sockops.sha256 == "9f2cb5d4a7e3c1f08b6d2e4a9c7f1b3d5e8a0c2f4b6d8e1a3c5f7b9d0e2a4c6f"
    assert sockops.pin_maps == {"sock_ops_map": "sock_ops_map", "flows": "flows"}
    assert list(sockops.programs) == ["add_to_sockhash", "only_loaded", "loaded_too"]
    assert sockops.programs["add_to_sockhash"].attach == (
        AttachEntry(CgroupTarget("web.slice")),
        AttachEntry(CgroupTarget("/sys/fs/cgroup/db.slice")),
    )
    assert sockops.programs["only_loaded"].attach == ()
    assert sockops.programs["loaded_too"].attach == ()
    assert firewall.file == "/usr/lib/bpf/firewall.bpf.o"
    assert firewall.sha256 is None
    assert firewall.pin_maps == {"rules": "firewall_rules", "limits": "firewall_limits"}
    assert firewall.programs["filter"].attach == (
        AttachEntry(InterfaceTarget("eth0.100", None, XdpMode.AUTO)),
        AttachEntry(InterfaceTarget("eth0.100", "blue", XdpMode.NATIVE)),
        AttachEntry(InterfaceTarget("veth1", "/run/netns/red", XdpMode.GENERIC)),
    )


def test_marks() -> None:
    """Every entry knows where its name, or its item of a list, stands."""
    manifest = load_good("full.yaml")
    text = (MANIFESTS / "good" / "full.yaml").read_text()

    def written(mark: Mark) -> str:
        assert mark.file == manifest.file
        line = text.splitlines()[mark.line - 1]
        assert line == mark.source
        return line[mark.column - 1 :]

    for name, entry in manifest.maps.items():
        assert written(entry.mark).startswith(f"{name}:")
    for name, found in manifest.objects.items():
        assert written(found.mark).startswith(f"{name}:")
        assert found.pin_marks.keys() == found.pin_maps.keys()
        for elf_name, mark in found.pin_marks.items():
            assert written(mark).startswith(elf_name)
        for program_name, program in found.programs.items():
            assert written(program.mark).startswith(f"{program_name}:")
    attach = manifest.objects["sockops"].programs["add_to_sockhash"].attach
    assert [written(entry.mark) for entry in attach] == [
        "cgroup: web.slice/",
        "{cgroup: /sys/fs/cgroup/db.slice}",
    ]


def test_columns_count_characters() -> None:
    text = "version: 1\nmaps: {é😀: {x: 1}}\n"
    assert problems(text) == ['/etc/k/main.yaml:2:13: maps.é😀 has no field "x"']


def test_a_byte_order_mark_is_no_text() -> None:
    assert parse("\ufeffversion: 1\n").maps == {}


@pytest.mark.parametrize("word", ["no", "on", "yes", "true", "~x", "0755", "1:30", "1_0", "1e3"])
def test_words_stay_what_they_are(word: str) -> None:
    manifest = parse(
        f"version: 1\nmaps: {{{word}: }}\nobjects:\n  {word}:\n    file: {word}\n"
        f"    pin_maps: [{word}]\n    programs: {{{word}: {{attach: [cgroup: {word}]}}}}\n"
    )
    assert list(manifest.maps) == [word]
    found = manifest.objects[word]
    assert found.file == f"/etc/k/{word}"
    assert found.pin_maps == {word: word}
    assert found.programs[word].attach == (AttachEntry(CgroupTarget(word)),)


@pytest.mark.parametrize(
    ("text", "number"), [("0", 0), ("7", 7), ("0x1F", 31), ("0X10", 16), ("4294967295", 2**32 - 1)]
)
def test_integers(text: str, number: int) -> None:
    manifest = parse(f"version: 1\nmaps: {{a: {{type: hash, max_entries: {text}}}}}")
    definition = manifest.maps["a"].definition
    assert definition and definition.max_entries == number


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (("true", True), True),
        (("false", True), False),
        (("true", False), 'm:1:1: x must be true or false, not "true": write true, without quotes'),
        (("yes", True), 'm:1:1: x must be true or false, not "yes": write true, without quotes'),
        (("OFF", True), 'm:1:1: x must be true or false, not "OFF": write false, without quotes'),
        (("2", True), 'm:1:1: x must be true or false, not "2"'),
        (("~", True), "m:1:1: x has no value: write one, or leave it out if it is optional"),
    ],
)
def test_booleans(node: tuple[str, bool], expected: bool | str) -> None:
    mark = Mark("m", 1, 1)
    faults = Faults(["m"])
    value = decode(Boolean(), ScalarNode(*node, mark), Place("x", mark), faults)
    if isinstance(expected, bool):
        assert value == Value(mark, expected)
        faults.raise_any()
    else:
        assert value is None
        with pytest.raises(ManifestError) as caught:
            faults.raise_any()
        assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:9435", ("127.0.0.1", 9435)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
        ("localhost:65535", ("localhost", 65535)),
        ('"[::1]:9435"', ("::1", 9435)),
        ('"[fe80::1%eth0]:1"', ("fe80::1%eth0", 1)),
        ("none", None),
        ('"none"', None),
    ],
)
def test_listen(text: str, expected: tuple[str, int] | None) -> None:
    assert parse(f"version: 1\nmetrics: {{listen: {text}}}").metrics_listen == expected


def test_digits_in_either_case_are_one_digest() -> None:
    digest = "ABCDEF0123456789" * 4
    manifest = parse(f"version: 1\nobjects: {{a: {{file: a, sha256: {digest}}}}}")
    assert manifest.objects["a"].sha256 == digest.lower()


def test_drop_ins_are_merged() -> None:
    manifest = load_good("with_drop_ins.yaml")
    assert list(manifest.maps) == ["settings", "flows"]
    assert manifest.maps["settings"].on_mismatch is MismatchPolicy.FAIL
    assert manifest.maps["flows"].on_mismatch is MismatchPolicy.RECREATE
    assert list(manifest.objects) == ["main", "more"]


def test_a_relative_file_is_beside_the_yaml_file_that_names_it() -> None:
    manifest = parse(
        "version: 1\nobjects: {a: {file: a.o}}",
        "objects: {b: {file: b.o}, c: {file: ../c.o}, d: {file: //x/../d.o}}",
    )
    files = [found.file for found in manifest.objects.values()]
    assert files == ["/etc/k/a.o", "/etc/k/conf.d/b.o", "/etc/k/c.o", "/d.o"]


def test_problems_come_in_the_order_of_the_files() -> None:
    found = problems(
        "version: 1\nmaps: {settings: {type: hash}}\nobject: {}",
        "objects: {}\nx: 1",
        "maps: {settings: }\ny: 1",
    )
    assert found == [
        "/etc/k/main.yaml:2:19: maps.settings has type but no max_entries",
        '/etc/k/main.yaml:3:1: the manifest has no field "object"',
        '/etc/k/conf.d/0.yaml:2:1: the manifest has no field "x"',
        '/etc/k/conf.d/1.yaml:1:8: map "settings" is in two files',
        '/etc/k/conf.d/1.yaml:2:1: the manifest has no field "y"',
    ]


def test_there_is_an_end_to_problems() -> None:
    text = "version: 1\n" + "".join(f"field{number}: 1\n" for number in range(PROBLEMS_MAX * 2))
    found = problems(text)
    assert len(found) == PROBLEMS_MAX + 1
    assert found[-1].endswith(f"{PROBLEMS_MAX} problems so far, the rest was not looked at")


def write(directory: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return str(directory / "main.yaml")


def test_read_from_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(
        tmp_path,
        {
            "main.yaml": "version: 1\nmaps: {main: }",
            "conf.d/20.yaml": "maps: {b: }",
            "conf.d/10.yaml": "maps: {a: }",
            "conf.d/.10.yaml": "not read",
            "conf.d/10.yaml.bak": "not read",
        },
    )
    manifest = read_manifest(path)
    assert manifest.file == path
    assert list(manifest.maps) == ["main", "a", "b"]
    assert manifest.maps["a"].mark.file == str(tmp_path / "conf.d/10.yaml")
    monkeypatch.chdir(tmp_path)
    assert read_manifest("main.yaml") == manifest


def test_files_are_read_as_they_are(tmp_path: Path) -> None:
    """They need not be good for that: whoever reads them can compare before parsing."""
    path = write(tmp_path, {"main.yaml": "not: [yaml", "conf.d/b.yaml": "", "conf.d/a.yaml": "a"})
    assert read_files(path) == [
        (path, b"not: [yaml"),
        (str(tmp_path / "conf.d/a.yaml"), b"a"),
        (str(tmp_path / "conf.d/b.yaml"), b""),
    ]


def no_file(path: Path) -> str:
    return f"cannot read manifest {path}/main.yaml: No such file or directory: -c names another"


def a_directory(path: Path) -> str:
    (path / "main.yaml").mkdir()
    return f"cannot read manifest {path}/main.yaml: it is a directory"


def a_dangling_drop_in(path: Path) -> str:
    write(path, {"main.yaml": "version: 1", "conf.d/b": ""})
    os.symlink("nowhere", path / "conf.d/a.yaml")
    return f"cannot read manifest {path}/conf.d/a.yaml: No such file or directory"


def a_file_for_drop_ins(path: Path) -> str:
    write(path, {"main.yaml": "version: 1", "conf.d": ""})
    return f"cannot read the manifest's drop-ins {path}/conf.d: Not a directory"


@pytest.mark.parametrize("broken", [no_file, a_directory, a_dangling_drop_in, a_file_for_drop_ins])
def test_unreadable(broken: Callable[[Path], str], tmp_path: Path) -> None:
    expected = broken(tmp_path)
    with pytest.raises(KeeperError) as caught:
        read_manifest(str(tmp_path / "main.yaml"))
    assert str(caught.value) == expected
    assert not isinstance(caught.value, ManifestError)


def test_an_endless_file_is_not_read() -> None:
    with pytest.raises(KeeperError, match="it is no regular file"):
        read_manifest("/dev/zero")
