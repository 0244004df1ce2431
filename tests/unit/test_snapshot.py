"""What the status says of programs: which version is shown where several are loaded."""

import pytest

from bpfkeeperd.churn import Memory
from bpfkeeperd.desired import Desired, WantedObject, attachment
from bpfkeeperd.desired import ObjectSource as Source
from bpfkeeperd.hooks import hook_of_section
from bpfkeeperd.manifest import parse_manifest
from bpfkeeperd.observed import Observed, ObservedLink, ObservedStub
from bpfkeeperd.snapshot import status
from bpfkeeperd.state import HealStatus, LinkInfo, ObjectSpec, ProgramInfo, ReloadStatus, Status
from bpfkeeperd.targets import CgroupTarget

HOOK = hook_of_section("cgroup_skb/egress")
assert HOOK
TARGET = CgroupTarget("/web.slice")
AT = attachment("an.object", "count", HOOK, TARGET)
OWN = "/sys/fs/bpf/bpfkeeperd"
MANIFEST = parse_manifest(
    [("m.yaml", b"version: 1\npin_root: /sys/fs/bpf\nobjects: {an.object: {file: x.o}}\n")]
)


def seen(wanted: str, runs: int, *, stub: int = 0, faults: dict[str, str] | None = None) -> Status:
    """Versions ``old`` (program 7) and ``older`` (5) are loaded, and the link runs one."""
    source = Source("", ObjectSpec((), ()))
    entry = WantedObject("an.object", wanted, source, {}, (AT,), ("count",))
    desired = Desired(MANIFEST, {}, {} if faults else {"an.object": entry}, faults or {})
    programs = {
        "older": {"count": ProgramInfo(5, 8, (), "count", "55" * 8)},
        "old": {"count": ProgramInfo(7, 8, (), "count", "77" * 8)},
    }
    assert HOOK
    link = LinkInfo(3, runs, 3, 99, HOOK.attach_type, AT.detail)
    observed = Observed(
        programs={AT.key[0]: programs},
        links={AT.key: ObservedLink(link)},
        targets={TARGET: 99},
        stubs={AT.key[:2]: ObservedStub(20, 21, stub)} if stub else {},
    )
    return status(
        desired,
        observed,
        Memory(),
        reuses={},
        drifting=(),
        reloads=ReloadStatus(),
        heals=HealStatus(),
    )


@pytest.mark.parametrize(
    ("wanted", "runs", "shown"),
    [
        ("old", 7, "old"),
        ("old", 5, "old"),  # it is loaded, although not everything runs it yet
        ("new", 7, "old"),
        ("new", 5, "older"),
        ("new", 6, "older"),  # nothing of it runs: any
    ],
)
def test_which_version_is_shown(wanted: str, runs: int, shown: str) -> None:
    found = seen(wanted, runs)
    (program,) = found.programs
    assert (program.object, program.program, program.digest) == ("an.object", "count", shown)
    assert program.path == f"{OWN}/objects/an\\x2eobject/{shown}/count"
    (up,) = found.attachments
    serving = {5: ("older", "55" * 8), 7: ("old", "77" * 8)}.get(runs, ("", ""))
    assert (up.digest, up.tag) == serving and up.up is (runs != 6)


def test_an_object_that_cannot_be_read() -> None:
    (program,) = seen("", 7, faults={"an.object": "it is not there"}).programs
    assert (program.digest, program.id) == ("old", 7)


def test_a_stub_that_calls_another_program() -> None:
    (program,) = seen("old", 7, stub=7).programs
    assert program.runs_path == f"{OWN}/stubs/an\\x2eobject/count/stub"
    (program,) = seen("old", 7, stub=5).programs
    assert program.runs_path == ""
