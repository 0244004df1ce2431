"""What `doctor` makes of what it finds."""

from dataclasses import replace
from pathlib import Path

import pytest

from bpfkeeperd.capabilities import (
    CAPABILITIES,
    effective_of,
    held_text,
    lacking,
    lacking_text,
    reference_table,
)
from bpfkeeperd.columns import Screen
from bpfkeeperd.doctortable import WIDTH, doctor_text
from bpfkeeperd.entries import (
    AttachEntry,
    Manifest,
    MapDefinition,
    MapEntry,
    MismatchPolicy,
    ObjectEntry,
    ProgramEntry,
)
from bpfkeeperd.findings import (
    DaemonFinding,
    Findings,
    HookFinding,
    ManifestFinding,
    Needs,
    PlaceFinding,
)
from bpfkeeperd.hooks import hook_of_section
from bpfkeeperd.judge import Row, Verdict, is_fit, rows
from bpfkeeperd.needs import needs
from bpfkeeperd.state import ObjectSpec, ProgramSpec
from bpfkeeperd.targets import BinaryTarget, CgroupTarget, InterfaceTarget, Target

README = Path(__file__).parents[2] / "README.md"
ALL = (1 << 41) - 1
THREE = 1 << 39 | 1 << 38 | 1 << 12

FINE = Findings(
    kernel="Linux 6.18.0 x86_64",
    user=0,
    python=(3, 11, 2),
    libbpf="1.1",
    capabilities=ALL,
    may_make_maps=True,
    may_open_by_id=True,
    perf_events=True,
    uprobes=True,
    hooks={"xdp": HookFinding(None, "only attaching tells"), "sockops": HookFinding(True)},
    map_types={"hash": True, "array": True},
    counting="in a scrape, hashes by a kfunc",
    counting_fault="",
    btf_fault="",
    lockdown="none",
    kernel_addresses=True,
    settings={
        "kernel.unprivileged_bpf_disabled": "2",
        "kernel.perf_event_paranoid": "2",
        "kernel.kptr_restrict": "0",
        "net.core.bpf_jit_enable": "1",
    },
    memory_to_cgroups=True,
    descriptors_max=524288,
    memlock_bytes=8 << 20,
    pin_root=PlaceFinding("/sys/fs/bpf", about="mode 0700, user 0"),
    cgroup2="/sys/fs/cgroup",
    tracefs="/sys/kernel/tracing",
    state_directory=PlaceFinding("/var/lib/bpfkeeperd", about="mode 0700"),
    run_directory=PlaceFinding("/run/bpfkeeperd", about="mode 0700"),
    systemd=True,
    daemon=None,
    manifest=ManifestFinding("/etc/bpfkeeperd/bpfkeeperd.yaml", there=True),
)


def row_of(found: Findings, name: str) -> Row:
    return next(row for row in rows(found) if row.name == name)


def needing(**wanted: object) -> ManifestFinding:
    return replace(FINE.manifest, needs=Needs(**wanted))  # type: ignore[arg-type]


def test_where_nothing_is_missing_all_is_fine() -> None:
    judged = rows(FINE)
    assert {row.verdict for row in judged} == {Verdict.OK}
    assert is_fit(judged)
    assert not [row for row in judged if row.without or row.remedy]
    assert doctor_text(judged, Screen()).endswith("\n\nthe daemon can do its work here")


def test_filters_of_tc_stand_for_tcx() -> None:
    hooks = {"tcx/ingress": HookFinding(False, "Linux has it since 6.6")}
    only = row_of(replace(FINE, hooks=hooks), "hooks")
    assert only.verdict is Verdict.LIMITED and "no programs at tcx/ingress" in only.without
    beside = row_of(replace(FINE, hooks={**hooks, "clsact/ingress": HookFinding(None)}), "hooks")
    assert beside.verdict is Verdict.OK
    assert "filters of tc stand for tcx/ingress" in beside.found


LIMITED = {
    "hooks": {"hooks": {**FINE.hooks, "lsm": HookFinding(False, "no BTF")}},
    "map types": {"map_types": {"hash": True, "arena": False}},
    "counting": {"counting": "", "counting_fault": "Linux 5.8 is needed"},
    "kernel BTF": {"btf_fault": "No such file or directory"},
    "lockdown": {"lockdown": "confidentiality"},
    "CAP_NET_ADMIN": {"capabilities": ALL & ~(1 << 12)},
    "CAP_PERFMON": {"capabilities": ALL & ~(1 << 38)},
    "CAP_SYS_ADMIN": {"capabilities": ALL & ~(1 << 21)},
    "CAP_CHOWN": {"capabilities": ALL & ~1},
    "CAP_SYSLOG": {"kernel_addresses": False},
    "perf events": {"perf_events": False},
    "JIT": {"settings": {**FINE.settings, "net.core.bpf_jit_enable": "0"}},
    "memory": {"memory_to_cgroups": False},
    "descriptors": {"descriptors_max": 1024},
    "pin root": {"pin_root": PlaceFinding("/sys/fs/bpf", warning="mounts are not seen")},
    "cgroup2": {"cgroup2": None},
    "tracefs": {"tracefs": None},
    "state directory": {"state_directory": PlaceFinding("/var/lib/x", "no")},
    "daemon": {"daemon": DaemonFinding(7, THREE)},
}


@pytest.mark.parametrize("name", LIMITED)
def test_what_is_limited(name: str) -> None:
    """The daemon does its work all the same, and the row says what does not work."""
    found = replace(FINE, **LIMITED[name])  # type: ignore[arg-type]
    others = [row for row in rows(found) if row.name != name]
    assert row_of(found, name).verdict is Verdict.LIMITED
    assert row_of(found, name).without
    assert {row.verdict for row in others} == {Verdict.OK}
    assert is_fit(rows(found))


MISSING = {
    "manifest": {"manifest": replace(FINE.manifest, fault="line 1: no version")},
    "CAP_BPF": {"capabilities": ALL & ~(1 << 39)},
    "pin root": {"pin_root": PlaceFinding("/sys/fs/bpf", fault="mount -t bpf bpf /sys/fs/bpf")},
    "libbpf": {"libbpf": "0.8"},
    "Python": {"python": (3, 10, 1)},
    "run directory": {"run_directory": PlaceFinding("/run/x", "no")},
    "hooks": {
        "hooks": {**FINE.hooks, "lsm": HookFinding(False, "no BTF")},
        "manifest": needing(hooks={"lsm": "guard/check"}),
    },
    "map types": {
        "map_types": {"hash": True, "arena": False},
        "manifest": needing(map_types={"arena": "map pages"}),
    },
    "CAP_SYS_ADMIN": {"capabilities": THREE, "manifest": needing(other_netns="fw/drop")},
    "descriptors": {"descriptors_max": 8192, "manifest": needing(descriptors=9000)},
    "cgroup2": {"cgroup2": None, "manifest": needing(cgroups="fw/drop")},
    "perf events": {"perf_events": False, "manifest": needing(perf_events="trace/exec")},
    "tracefs": {"tracefs": None, "manifest": needing(hooks={"tracepoint": "trace/exec"})},
}


@pytest.mark.parametrize("name", MISSING)
def test_what_is_missing(name: str) -> None:
    found = replace(FINE, **MISSING[name])  # type: ignore[arg-type]
    row = row_of(found, name)
    assert row.verdict is Verdict.MISSING and row.without
    assert not is_fit(rows(found))
    text = doctor_text(rows(found), Screen())
    assert text.splitlines()[-1] == f"the daemon cannot do its work here: {name}"


def test_uprobes_can_be_missing_where_other_perf_events_are_not() -> None:
    row = row_of(replace(FINE, uprobes=False), "perf events")
    assert row.verdict is Verdict.LIMITED and "uprobe.multi" in row.without


def test_what_a_manifest_needs_names_who_needs_it() -> None:
    for need, said in (
        ({"other_netns": "fw/drop"}, "fw/drop is in another network namespace"),
        ({"uprobes": "fw/drop"}, "fw/drop is a uprobe"),
        ({"take_over": "fw/drop"}, "fw/drop cannot take over"),
    ):
        found = replace(FINE, capabilities=THREE, manifest=needing(**need))
        assert said in row_of(found, "CAP_SYS_ADMIN").without


def test_what_may_not_be_asked_may_not_be_attached_either() -> None:
    refused = HookFinding(None, "it takes CAP_NET_ADMIN", refused=True)
    found = replace(FINE, hooks={"sockops": refused}, manifest=needing(hooks={"sockops": "fw/o"}))
    assert row_of(found, "hooks").verdict is Verdict.MISSING
    assert "fw/o is not attached at sockops" in row_of(found, "hooks").without


def test_what_is_refused_is_not_told() -> None:
    """An ordinary user hears that it is unknown, not that the kernel has nothing."""
    refused = HookFinding(None, "asking is not allowed", refused=True)
    found = replace(
        FINE,
        capabilities=0,
        may_make_maps=False,
        hooks={"xdp": refused},
        map_types={},
        counting="",
        counting_fault="CAP_BPF is needed",
        memory_to_cgroups=None,
    )
    for name in ("hooks", "map types", "counting", "memory"):
        assert row_of(found, name).verdict is Verdict.UNKNOWN, name


def test_capabilities_that_the_kernel_does_not_heed() -> None:
    """As in a user namespace."""
    found = replace(FINE, may_make_maps=False, may_open_by_id=False)
    assert row_of(found, "CAP_BPF").verdict is Verdict.MISSING
    assert row_of(found, "CAP_SYS_ADMIN").verdict is Verdict.LIMITED
    assert "does not heed" in row_of(found, "CAP_BPF").found


def test_without_a_manifest_that_is_said() -> None:
    found = replace(FINE, manifest=ManifestFinding("/etc/x.yaml", there=False))
    assert row_of(found, "manifest").verdict is Verdict.UNKNOWN
    assert is_fit(rows(found))


def test_a_daemon_of_the_service_manager() -> None:
    daemon = DaemonFinding(
        7, ALL, unit="bpfkeeperd.service", notifies=True, watchdog_seconds=180, stores=4096
    )
    row = row_of(replace(FINE, daemon=daemon), "daemon")
    assert row.verdict is Verdict.OK
    assert row.found.startswith(
        "process 7, in bpfkeeperd.service, notifies systemd, watchdog 180 s, descriptor store for"
        " 4096; holds CAP_BPF"
    )


@pytest.mark.parametrize("width", [40, 80, 200, None])
def test_no_line_is_wider_than_the_screen_and_nothing_is_cut(width: int | None) -> None:
    found = replace(FINE, **LIMITED["hooks"], capabilities=0)  # type: ignore[arg-type]
    judged = rows(found)
    text = doctor_text(judged, Screen(width))
    assert max(map(len, text.splitlines())) <= (width or WIDTH)
    whole = "".join(text.split())
    for row in judged:
        note = f"{row.without}: {row.remedy}" if row.remedy else row.without
        assert "".join(row.found.split()) in whole and "".join(note.split()) in whole


def test_states_have_their_colours() -> None:
    text = doctor_text(rows(replace(FINE, cgroup2=None)), Screen(80, colour=True))
    assert "\x1b[33mlimited\x1b[m" in text and "\x1b[32mok\x1b[m" in text


def test_capabilities_in_proc() -> None:
    assert effective_of("Name:\tx\nCapPrm:\t0\nCapEff:\t000000c000001000\n") == THREE
    assert effective_of("Name:\tx\n") is None
    assert held_text(THREE) == "CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON"
    assert held_text(0) == "none of these"


def test_what_is_lacking_is_one_line_that_names_each() -> None:
    assert lacking_text(ALL) == ""
    text = lacking_text(THREE)
    assert "\n" not in text
    assert [one.name for one in CAPABILITIES if f"{one.name} (" in text] == ["CAP_SYS_ADMIN"]


def test_what_only_special_cases_want_is_not_told_each_time() -> None:
    """The unit of the service leaves it to drop-ins."""
    special = {one.name for one in CAPABILITIES if one.special}
    left_to_drop_ins = ("SYSLOG", "DAC_OVERRIDE", "CHOWN", "FOWNER", "SYS_PTRACE")
    assert special == {f"CAP_{name}" for name in left_to_drop_ins}
    mask = sum(1 << one.number for one in CAPABILITIES if not one.special)
    assert lacking_text(mask) == ""
    assert {one.name for one in lacking(mask)} == special


def test_the_readme_has_the_table() -> None:
    assert reference_table() in README.read_text()


def wanting(target: Target, section: str, **more: bool) -> Needs:
    """Of a manifest with one program."""
    hook = hook_of_section(section)
    assert hook
    declared = ProgramSpec("count", section, hook.prog_type, hook.attach_type, hook=hook)
    spec = ObjectSpec((), (declared,))
    entry = ProgramEntry("count", attach=(AttachEntry(target, **more),))  # type: ignore[arg-type]
    manifest = Manifest(
        "x.yaml", objects={"one": ObjectEntry("one", "f", programs={"count": entry})}
    )
    return needs(manifest, {"one": spec})


def test_needs() -> None:
    assert wanting(CgroupTarget("."), "sockops").cgroups == "one/count"
    assert wanting(CgroupTarget("."), "sockops").hooks == {"sockops": "one/count"}
    assert wanting(CgroupTarget("."), "sockops", take_over=True).take_over == "one/count"
    assert wanting(CgroupTarget("."), "sockops").take_over == ""
    assert wanting(CgroupTarget("."), "sockops").other_netns == ""
    assert wanting(InterfaceTarget("lo", "blue"), "xdp").other_netns == "one/count"
    assert wanting(InterfaceTarget("lo", None), "xdp").other_netns == ""
    filters = wanting(InterfaceTarget("lo", None), "tcx/ingress").hooks
    assert filters == {"clsact/ingress": "one/count"}, "they stand for it"
    assert wanting(BinaryTarget("/bin/x", "main"), "uprobe").uprobes == "one/count"
    assert wanting(BinaryTarget("/bin/x", "main"), "uprobe").perf_events == "one/count"
    assert wanting(BinaryTarget("/bin/x", "main"), "uprobe.multi").uprobes == ""
    assert wanting(BinaryTarget("/bin/x", "main"), "uprobe.multi").perf_events == ""


def test_needs_of_maps() -> None:
    definition = MapDefinition("lru_hash", 4, 4, 1)
    entry = MapEntry("seen", MismatchPolicy.FAIL, definition)
    found = needs(Manifest("x.yaml", maps={"seen": entry}), {})
    assert found.map_types == {"lru_hash": "map seen"}
    assert found.descriptors == 1
