"""Targets that are patterns: what an attachment at one stands for."""

import os
from pathlib import Path

import pytest

from bpfkeeperd.desired import Desired
from bpfkeeperd.matches import directories_of, matching_cgroups
from bpfkeeperd.patterns import expand, pattern_targets
from bpfkeeperd.targets import CgroupTarget, InterfaceTarget, Target, XdpMode
from tests.unit.test_plan import an_object, desire

MOUNT = "/sys/fs/cgroup"
VETHS = InterfaceTarget("veth*", "blue")
VETH1 = InterfaceTarget("veth1", "blue")
VETH2 = InterfaceTarget("veth2", "blue")
WEBS = CgroupTarget("system.slice/web-*.service")
WEB1 = CgroupTarget("system.slice/web-1.service")


def targets(desired: Desired) -> list[Target]:
    return [attachment.target for attachment in desired.objects["one"].attachments]


def test_each_match_gets_an_attachment_of_its_own() -> None:
    desired = desire(an_object("one", "flows", at=[VETHS], section="xdp"))
    expanded = expand(desired, {VETHS: (VETH1, VETH2)}, MOUNT)
    assert targets(expanded) == [VETH1, VETH2]
    named = desire(an_object("one", "flows", at=[VETH1, VETH2], section="xdp"))
    assert expanded.objects == named.objects, "as if they had been named"


def test_no_match_is_fine() -> None:
    desired = desire(an_object("one", "flows", at=[WEBS]))
    assert targets(expand(desired, {WEBS: ()}, MOUNT)) == []


def test_what_is_named_wins() -> None:
    generic = InterfaceTarget("veth1", "blue", XdpMode.GENERIC)
    desired = desire(an_object("one", "flows", at=[VETHS, generic], section="xdp"))
    assert targets(expand(desired, {VETHS: (VETH1, VETH2)}, MOUNT)) == [generic, VETH2]


def test_a_cgroup_has_two_spellings() -> None:
    absolute = CgroupTarget(f"{MOUNT}/system.slice/web-1.service")
    desired = desire(an_object("one", "flows", at=[WEBS, absolute]))
    assert targets(expand(desired, {WEBS: (WEB1,)}, MOUNT)) == [absolute]


def test_two_patterns_with_one_match() -> None:
    ends = InterfaceTarget("*1", "blue")
    desired = desire(an_object("one", "flows", at=[VETHS, ends], section="xdp"))
    assert targets(expand(desired, {VETHS: (VETH1, VETH2), ends: (VETH1,)}, MOUNT)) == [
        VETH1,
        VETH2,
    ]


def test_patterns_of_objects_that_cannot_be_read_are_looked_for_too() -> None:
    desired = desire(an_object("one", "flows", at=[WEBS], file="it is garbage"))
    assert list(pattern_targets(desired)) == [WEBS]
    expanded = expand(desired, {WEBS: (WEB1,)}, MOUNT)
    assert [target for _, _, target, _ in expanded.unread_attachments()] == [WEB1]


def test_names_are_no_patterns() -> None:
    desired = desire(an_object("one", "flows", at=[WEB1]))
    assert not pattern_targets(desired)
    assert expand(desired, {}, MOUNT) is desired


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("web-*", ["web-1", "web-2"]),
        ("web-[13-9]", ["web-1"]),
        ("web-?", ["web-1", "web-2"]),
        ("*/x", ["db/x", "web-1/x"]),
        ("*/*", ["db/x", "web-1/x", "web-1/y"]),
        ("web-1/*", ["web-1/x", "web-1/y"]),
        ("db", ["db"]),
        ("*", ["db", "other", "web-1", "web-2"]),
        ("*/none", []),
        ("none/*", []),
        ("file*", []),
    ],
)
def test_each_part_of_a_path_is_matched_alone(
    tmp_path: Path, pattern: str, found: list[str]
) -> None:
    for name in ("web-1/x", "web-1/y", "web-2", "db/x", "other"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("other")
    paths = matching_cgroups(f"{tmp_path}/{pattern}")
    assert [os.path.relpath(path, tmp_path) for path in paths] == found


def test_where_something_that_matches_can_appear(tmp_path: Path) -> None:
    for name in ("a/x", "b", "other"):
        (tmp_path / name).mkdir(parents=True)
    assert directories_of(f"{tmp_path}/[ab]/x/*") == {
        f"{tmp_path}": "[ab]",
        f"{tmp_path}/a": "x",
        f"{tmp_path}/b": "x",
        f"{tmp_path}/a/x": "*",
    }
    assert directories_of(f"{tmp_path}/none/name") == {f"{tmp_path}/none": "name"}
    assert directories_of("/*") == {"/": "*"}
