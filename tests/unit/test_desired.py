"""A manifest and its object files put together: what comes of it, and every mistake at once."""

from dataclasses import replace

import pytest

from bpfkeeperd.compare import Machine
from bpfkeeperd.desired import Desired, ObjectSource, target_name
from bpfkeeperd.entries import MismatchPolicy
from bpfkeeperd.errors import ManifestError
from bpfkeeperd.hooks import HOOKS, PLACED_HOOKS, Hook, HookKind, hook_of_section
from bpfkeeperd.manifest import parse_manifest
from bpfkeeperd.resolve import resolve
from bpfkeeperd.state import MapSpec, ObjectSpec, ProgramSpec
from bpfkeeperd.targets import CgroupTarget, InterfaceTarget, Target, XdpMode

MACHINE = Machine(possible_cpus=4, page_size=4096)
FLOWS = MapSpec("flows", 1, 4, 8, 100, pinned=True)
COUNTS = MapSpec("counts", 1, 4, 8, 100)
CONSTANTS = MapSpec(".rodata", 2, 4, 64, 1, internal=True)


def program(name: str, section: str, autoload: bool = True) -> ProgramSpec:
    hook = hook_of_section(section)
    return ProgramSpec(name, section, 0 if hook else 2, 0, autoload, hook)


EGRESS = program("count", "cgroup_skb/egress")
DROP = program("drop", "xdp")
SHAPE = program("shape", "tc/ingress")
TRACE = program("trace", "kprobe/do_nanosleep")
OPTIONAL = program("optional", "?sockops", autoload=False)


def file(*parts: MapSpec | ProgramSpec, sha256: str = "a" * 64) -> ObjectSource:
    maps = tuple(part for part in parts if isinstance(part, MapSpec))
    programs = tuple(part for part in parts if isinstance(part, ProgramSpec))
    return ObjectSource(sha256=sha256, spec=ObjectSpec(maps, programs))


WEB = file(FLOWS, COUNTS, CONSTANTS, EGRESS, DROP, SHAPE, TRACE, OPTIONAL)


def desire(text: str, before: Desired | None = None, /, **sources: ObjectSource | str) -> Desired:
    """Line 1 is the version: what is given begins at line 2."""
    manifest = parse_manifest([("/etc/k.yaml", f"version: 1\n{text}".encode())])
    return resolve(manifest, sources, MACHINE, before.objects if before else None)


def problems(text: str, **sources: ObjectSource | str) -> str:
    with pytest.raises(ManifestError) as caught:
        desire(text, **sources)
    return str(caught.value)


def test_everything_together() -> None:
    desired = desire(
        "maps:\n"
        "  flows: {on_mismatch: recreate}\n"
        "  settings: {type: array, key_size: 4, value_size: 8, max_entries: 4}\n"
        "objects:\n"
        "  web:\n"
        "    file: /lib/web.bpf.o\n"
        "    pin_maps: {counts: web_counts}\n"
        "    programs:\n"
        "      count: {attach: [{cgroup: web.slice}, {cgroup: db.slice}]}\n"
        "      drop: {attach: [{interface: eth0, mode: native}]}\n"
        "      shape: {attach: [{interface: eth0.100, netns: blue}]}\n"
        "      optional: {}\n",
        web=WEB,
    )
    wanted = desired.objects["web"]
    assert wanted.maps == {"flows": "flows", "counts": "web_counts"}
    assert wanted.programs == ("count", "drop", "shape", "trace", "optional")
    assert [str(attachment) for attachment in wanted.attachments] == [
        "web/count at cgroup_skb/egress of cgroup:web.slice",
        "web/count at cgroup_skb/egress of cgroup:db.slice",
        "web/drop at xdp of interface:eth0+native",
        "web/shape at tcx/ingress of interface:eth0.100@blue",
    ]
    assert [attachment.key for attachment in wanted.attachments] == [
        ("web", "count", "cgroup:web\\x2eslice"),
        ("web", "count", "cgroup:db\\x2eslice"),
        ("web", "drop", "interface:eth0\\x2bnative"),
        ("web", "shape", "interface:eth0\\x2e100\\x40blue"),
    ]
    assert desired.link_keys() == {attachment.key for attachment in wanted.attachments}
    assert {name: (kept.users, kept.policy) for name, kept in desired.maps.items()} == {
        "settings": ((), MismatchPolicy.FAIL),
        "flows": (("web",), MismatchPolicy.RECREATE),
        "web_counts": (("web",), MismatchPolicy.FAIL),
    }
    assert desired.maps["settings"].definition and not desired.maps["flows"].definition
    assert desired.faults == {}


def test_programs_that_are_not_asked_for_are_loaded_unless_libbpf_would_not() -> None:
    wanted = desire("objects: {web: {file: /lib/web.o}}", web=WEB).objects["web"]
    assert wanted.programs == ("count", "drop", "shape", "trace")
    assert wanted.attachments == ()


def test_specs_are_in_canonical_form() -> None:
    ring = MapSpec("events", 27, 0, 0, 5000, pinned=True)
    read_only = MapSpec("limits", 1, 4, 8, 100, flags=8, pinned=True)
    desired = desire(
        "maps: {own: {type: lru_hash, key_size: 4, value_size: 4, max_entries: 5, flags: 2}}\n"
        "objects: {web: {file: /lib/web.o}}",
        web=file(ring, read_only),
    )
    assert desired.maps["events"].spec == replace(ring, max_entries=8192)
    assert desired.maps["limits"].spec == replace(read_only, flags=0)
    assert desired.maps["own"].spec.max_entries == 8


def test_everything_that_does_not_exist_is_told_at_once() -> None:
    text = problems(
        "maps:\n"
        "  flow: {on_mismatch: recreate}\n"
        "objects:\n"
        "  web:\n"
        "    file: /lib/web.o\n"
        "    pin_maps:\n"
        "      count: counted\n"
        "    programs:\n"
        "      conut: {}\n"
        "      nothing_like_it: {attach: [{cgroup: web.slice}]}\n",
        web=WEB,
    )
    assert [line for line in text.splitlines() if line.startswith("/etc")] == [
        "/etc/k.yaml:3:3: no object keeps a map flow: did you mean flows?",
        "/etc/k.yaml:8:7: object web has no map count: did you mean counts?",
        "/etc/k.yaml:10:7: object web has no program conut: did you mean count?",
        "/etc/k.yaml:11:7: object web has no program nothing_like_it: there is count, drop,"
        " optional, shape, trace",
    ]
    assert "          conut: {}\n          ^" in text, "the line and a caret"


@pytest.mark.parametrize(
    ("name", "attach", "remedy"),
    [
        (
            "count",
            "{interface: eth0}",
            'its section "cgroup_skb/egress" belongs to a cgroup: write cgroup: PATH',
        ),
        (
            "drop",
            "{cgroup: web.slice}",
            'its section "xdp" belongs to an interface: write interface: NAME',
        ),
        (
            "shape",
            "{cgroup: web.slice}",
            'its section "tc/ingress" belongs to an interface: write interface: NAME',
        ),
        (
            "shape",
            "{interface: eth0, mode: generic}",
            "mode is for XDP programs only: leave it out",
        ),
        (
            "trace",
            "{cgroup: web.slice}",
            'its section "kprobe/do_nanosleep" belongs to a function: write function: NAME',
        ),
        (
            "optional",
            "{interface: eth0}",
            'its section "?sockops" belongs to a cgroup: write cgroup: PATH',
        ),
    ],
)
def test_a_target_that_does_not_fit_the_hook(name: str, attach: str, remedy: str) -> None:
    text = problems(
        "objects:\n"
        "  web:\n"
        "    file: /lib/web.o\n"
        "    programs:\n"
        f"      {name}:\n"
        "        attach:\n"
        f"          - {attach}\n",
        web=WEB,
    )
    first, *_ = text.splitlines()
    assert first == f"/etc/k.yaml:8:13: program {name} cannot be attached here: {remedy}"


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        (
            "{type: xdp, attach: [{cgroup: web.slice}]}",
            "its type xdp belongs to an interface: write interface: NAME",
        ),
        (
            "{type: cgroup_skb, attach: [{cgroup: web.slice}]}",
            "its type cgroup_skb names no hook that a program is attached to from here: leave"
            " out attach and it is loaded and pinned, or write the hook, as in type: tcx/ingress",
        ),
    ],
)
def test_a_target_that_does_not_fit_the_type(settings: str, remedy: str) -> None:
    text = problems(
        f"objects: {{web: {{file: /lib/web.o, programs: {{count: {settings}}}}}}}\n", web=WEB
    )
    assert text.splitlines()[0].endswith(f": program count cannot be attached here: {remedy}")


def test_global_data_without_btf_is_a_fault_of_the_object_alone() -> None:
    web = "web: {file: /lib/web.o}"
    one = "one: {file: /lib/one.o, pin_maps: {.bss: one_state}}"
    source = file(MapSpec(".bss", 2, 4, 8, 1, internal=True), EGRESS)
    desired = desire(f"objects: {{{one}, {web}}}\n", one=source, web=WEB)
    assert desired.faults == {
        "one": "/lib/one.o: cannot keep .bss: its BTF is missing, or describes more than can be"
        " compared, and nobody can tell which variable is where: compile with -g"
    }
    assert [*desired.objects] == ["web"]


WRITTEN = {
    HookKind.CGROUP: "cgroup: web.slice",
    HookKind.XDP: "interface: eth0",
    HookKind.TCX: "interface: eth0",
    HookKind.CLSACT: "interface: eth0, priority: 7",
    HookKind.NETKIT: "interface: eth0, netns: blue",
    HookKind.NETNS: "netns: blue",
    HookKind.NETFILTER: "netfilter: ipv6/forward, priority: -5, netns: blue, defrag: true",
    HookKind.SOCKMAP: "map: sockets",
    HookKind.TRACING: "function: tcp_connect",
    HookKind.RAW_TRACEPOINT: "tracepoint: sched_switch",
    HookKind.TRACEPOINT: "tracepoint: sched/sched_switch",
    HookKind.KPROBE: "function: tcp_connect",
    HookKind.KPROBE_MULTI: 'function: "tcp_*"',
    HookKind.UPROBE: "binary: /bin/sh, symbol: main, offset: 4, pid: 1",
    HookKind.UPROBE_MULTI: 'binary: /bin/sh, symbol: "*"',
    HookKind.PERF_EVENT: "perf_event: cpu-clock, frequency: 99, cpu: 0",
    HookKind.ITERATOR: "map: sockets",
}


@pytest.mark.parametrize("hook", (*HOOKS, *PLACED_HOOKS), ids=lambda hook: hook.name)
def test_every_hook_can_be_attached(hook: Hook) -> None:
    target = WRITTEN[hook.kind]
    desired = desire(
        f"objects: {{web: {{file: /lib/web.o, programs: {{p: {{attach: [{{{target}}}]}}}}}}}}",
        web=file(program("p", hook.name)),
    )
    (attachment,) = desired.objects["web"].attachments
    assert attachment.hook == hook
    assert isinstance(attachment.target, hook.rules.targets)


@pytest.mark.parametrize(
    ("section", "name"),
    [
        ("xdp", "xdp"),
        ("xdp.frags", "xdp"),
        ("xdp/anything", "xdp"),
        ("xdp.frags/anything", "xdp"),
        ("xdp/devmap", None),
        ("xdp/cpumap", None),
        ("xdp.frags/devmap", None),
        ("?tcx/egress", "tcx/egress"),
        ("tc/egress", "tcx/egress"),
        ("cgroup/sock", "cgroup/sock_create"),
        ("cgroup/connect4", "cgroup/connect4"),
        ("cgroup/connect", None),
        ("tc", None),
        ("kprobe/x", "kprobe"),
        ("?tp/sched/sched_switch", "tracepoint"),
        ("raw_tp/sched_switch", "raw_tracepoint"),
        ("fentry.s/x", "fentry.s"),
        ("uprobe.multi//bin/sh:x", "uprobe.multi"),
        ("lsm_cgroup/socket_bind", "lsm_cgroup"),
        ("kprobes/x", None),
        ("", None),
    ],
)
def test_hook_of_section(section: str, name: str | None) -> None:
    hook = hook_of_section(section)
    assert (hook.name if hook else None) == name


def test_a_name_that_bpffs_refuses() -> None:
    dotted = MapSpec("my.map", 1, 4, 8, 100, pinned=True)
    text = problems("objects:\n  web: {file: /lib/web.o}\n", web=file(dotted))
    assert text.splitlines()[0] == (
        "/etc/k.yaml:3:3: object web declares a pinned map my.map: bpffs refuses a dot in a name:"
        " write pin_maps: {my.map: another_name}"
    )
    desired = desire(
        "objects: {web: {file: /lib/web.o, pin_maps: {my.map: my_map}}}", web=file(dotted)
    )
    assert list(desired.maps) == ["my_map"]
    assert desired.objects["web"].maps == {"my.map": "my_map"}


def test_the_name_of_the_keepers_own_directory() -> None:
    own = replace(FLOWS, name="bpfkeeperd")
    text = problems("objects: {web: {file: /lib/web.o}}", web=file(own))
    assert "this name is the keeper's own directory in the pin root" in text


def test_dots_in_other_names_are_escaped() -> None:
    desired = desire(
        "objects: {web.v2: {file: /lib/w.o, programs: {count: {attach: [{cgroup: a.slice/b}]}}}}",
        **{"web.v2": file(EGRESS)},
    )
    assert desired.link_keys() == {("web\\x2ev2", "count", "cgroup:a\\x2eslice-b")}


TWO = "objects:\n  web: {file: /lib/web.o}\n  db:\n    file: /lib/db.o\n    pin_maps: [flows]\n"


def test_two_objects_that_agree_share_a_map() -> None:
    other = replace(FLOWS, pinned=False)
    desired = desire(TWO, web=file(FLOWS), db=file(other))
    assert desired.maps["flows"].users == ("web", "db")


def test_two_objects_that_agree_in_canonical_form() -> None:
    """A flag of the descriptor is none of the map."""
    desired = desire(TWO, web=file(FLOWS), db=file(replace(FLOWS, flags=8)))
    assert desired.maps["flows"].users == ("web", "db")


def test_two_objects_that_disagree() -> None:
    text = problems(TWO, web=file(FLOWS), db=file(replace(FLOWS, max_entries=5, flags=1)))
    assert text.splitlines()[0] == (
        "/etc/k.yaml:6:16: object db declares map flows otherwise than object web: max_entries is"
        " 100, wanted is 5; flags is 0x0, wanted is 0x1: make the declarations equal, or pin one"
        " of them under another name"
    )


def test_two_objects_that_disagree_on_the_layout() -> None:
    one, other = (replace(FLOWS, value_layout=f"0:64:int:{name}") for name in ("packets", "bytes"))
    assert "value layout: packets (int, 8 bytes)" in problems(TWO, web=file(one), db=file(other))


def test_the_second_and_the_third_disagree_on_a_layout_that_the_first_does_not_know() -> None:
    one, other = (replace(FLOWS, value_layout=f"0:64:int:{name}") for name in ("packets", "bytes"))
    text = TWO + "  last: {file: /lib/last.o}\n"
    assert "object last declares map flows otherwise" in problems(
        text, web=file(FLOWS), db=file(one), last=file(other)
    )


def test_a_layout_is_known_when_any_user_knows_it() -> None:
    known = replace(FLOWS, key_layout="0:32:int:", value_layout="0:64:int:packets")
    definition = "maps: {flows: {type: hash, key_size: 4, value_size: 8, max_entries: 100}}\n"
    for text, sources in (
        (TWO, {"web": file(FLOWS), "db": file(known)}),
        (TWO, {"web": file(known), "db": file(FLOWS)}),
        (definition + TWO, {"web": file(known), "db": file(FLOWS)}),
    ):
        spec = desire(text, **sources).maps["flows"].spec
        assert (spec.key_layout, spec.value_layout) == (known.key_layout, known.value_layout)


def test_an_object_and_the_manifest_that_disagree() -> None:
    text = problems(
        "maps: {flows: {type: array, key_size: 4, value_size: 8, max_entries: 100}}\n"
        "objects:\n  web: {file: /lib/web.o}\n",
        web=file(FLOWS),
    )
    assert text.splitlines()[0].startswith(
        "/etc/k.yaml:4:3: object web declares map flows otherwise than the manifest: type is"
        " array, wanted is hash: make the declarations equal"
    )


def test_one_object_that_pins_two_maps_under_one_name() -> None:
    """They would be one map: that is never meant."""
    text = "objects: {web: {file: /lib/web.o, pin_maps: {flows: kept, counts: kept}}}"
    assert "kept" in problems(text, web=WEB)


BROKEN = "/lib/web.o: cannot read it: No such file or directory"
ATTACHED = (
    "objects:\n  web: {file: /lib/web.o, programs: {count: {attach: [{cgroup: web.slice}]}}}\n"
)


def test_a_faulty_object_keeps_its_former_place() -> None:
    before = desire(ATTACHED, web=WEB)
    now = desire(ATTACHED, before, web=BROKEN)
    former = before.objects["web"]
    assert now.objects == {"web": replace(former, fault=BROKEN)}
    assert now.faults == {} and now.maps == before.maps
    again = desire(ATTACHED, now, web=BROKEN)
    assert again == now, "and keeps it"
    assert desire(ATTACHED, again, web=WEB) == before


def test_a_faulty_object_is_attached_where_the_manifest_says_now() -> None:
    before = desire(ATTACHED, web=WEB)
    moved = (
        "objects:\n"
        "  web:\n"
        "    file: /lib/web.o\n"
        "    pin_maps: [counts]\n"
        "    programs: {count: {attach: [{cgroup: db.slice}]}, not_loaded: {}}\n"
    )
    wanted = desire(moved, before, web=BROKEN).objects["web"]
    assert [attachment.target_name for attachment in wanted.attachments] == ["cgroup:db.slice"]
    former = before.objects["web"]
    assert (wanted.digest, wanted.maps, wanted.programs) == (
        former.digest,
        former.maps,
        former.programs,
    )


def test_a_faulty_object_without_a_past() -> None:
    desired = desire(ATTACHED, web=BROKEN)
    assert desired.faults == {"web": BROKEN}
    assert desired.objects == {} and desired.maps == {}


def test_a_faulty_object_hides_no_mistake_of_the_others() -> None:
    text = problems(
        ATTACHED + "  db: {file: /lib/db.o, programs: {cuont: {}}}\n", web=BROKEN, db=file(EGRESS)
    )
    assert "object db has no program cuont: did you mean count?" in text


def test_the_policy_of_a_map_that_only_a_faulty_object_keeps_is_no_mistake() -> None:
    desired = desire("maps: {flows: {on_mismatch: recreate}}\n" + ATTACHED, web=BROKEN)
    assert desired.maps == {}


def test_a_faulty_object_does_not_say_any_more_how_a_shared_map_is() -> None:
    before = desire(TWO, web=file(FLOWS), db=file(FLOWS))
    larger = replace(FLOWS, max_entries=200)
    now = desire(TWO, before, web=BROKEN, db=file(larger))
    assert now.maps["flows"].spec.max_entries == 200
    assert set(now.maps["flows"].users) == {"web", "db"}


def digest(text: str, source: ObjectSource) -> str:
    return desire(text, web=source).objects["web"].digest


def test_the_digest_changes_with_the_file_and_with_what_changes_what_is_loaded() -> None:
    plain = "objects: {web: {file: /lib/web.o}}"
    first = digest(plain, WEB)
    assert first == digest(plain, WEB) and len(first) == 32 and first.isalnum()
    others = {
        digest(plain, replace(WEB, sha256="b" * 64)),
        digest("objects: {web: {file: /lib/web.o, pin_maps: [counts]}}", WEB),
        digest("objects: {web: {file: /lib/web.o, pin_maps: {flows: my_flows}}}", WEB),
        digest("objects: {web: {file: /lib/web.o, programs: {optional: {}}}}", WEB),
    }
    assert len(others) == 4 and first not in others


def test_the_digest_does_not_change_with_anything_else() -> None:
    assert {
        digest("objects: {web: {file: /lib/web.o}}", WEB),
        digest("objects: {web: {file: /another/place.o}}", WEB),
        digest("objects: {web: {file: /lib/web.o, programs: {count: {}}}}", WEB),
        digest("maps: {flows: {on_mismatch: recreate}}\nobjects: {web: {file: /lib/web.o}}", WEB),
        digest("pin_root: /sys/fs/bpf/x\nobjects: {web: {file: /lib/web.o}}", WEB),
        digest(ATTACHED, WEB),
    } == {digest("objects: {web: {file: /lib/web.o}}", WEB)}


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (CgroupTarget("web.slice"), "cgroup:web.slice"),
        (CgroupTarget("/sys/fs/cgroup/web.slice"), "cgroup:/sys/fs/cgroup/web.slice"),
        (InterfaceTarget("eth0"), "interface:eth0"),
        (InterfaceTarget("eth0", "blue"), "interface:eth0@blue"),
        (InterfaceTarget("eth0", "/run/netns/red"), "interface:eth0@/run/netns/red"),
        (InterfaceTarget("eth0", mode=XdpMode.GENERIC), "interface:eth0+generic"),
        (InterfaceTarget("eth0", "blue", XdpMode.NATIVE), "interface:eth0@blue+native"),
    ],
)
def test_target_name(target: Target, name: str) -> None:
    assert target_name(target) == name


def test_problems_are_in_the_order_of_files_and_lines() -> None:
    main = "version: 1\nobjects: {web: {file: /lib/web.o, programs: {x: {}}}}\n"
    other = "objects:\n  db: {file: /lib/db.o, programs: {y: {}}}\nmaps: {z: {}}\n"
    manifest = parse_manifest(
        [("/etc/bpfkeeperd.yaml", main.encode()), ("/etc/conf.d/a.yaml", other.encode())]
    )
    with pytest.raises(ManifestError) as caught:
        resolve(manifest, {"web": WEB, "db": WEB}, MACHINE)
    assert [str(problem.mark) for problem in caught.value.problems] == [
        "/etc/bpfkeeperd.yaml:2:46",
        "/etc/conf.d/a.yaml:2:36",
        "/etc/conf.d/a.yaml:3:8",
    ]


def test_a_hook_that_the_kernel_lacks_is_a_fault_of_its_object() -> None:
    """Only where a program is to be attached there; the other objects go ahead."""
    text = (
        "objects:\n"
        "  bad: {file: bad.o, programs: {drop: {attach: [{interface: eth0}]}}}\n"
        "  good: {file: good.o, programs: {count: {attach: [{cgroup: a}]}, drop: {}}}\n"
        "  typed:\n"
        "    file: typed.o\n"
        "    programs: {trace: {type: xdp, attach: [{interface: eth0}]}}\n"
    )
    manifest = parse_manifest([("/etc/k.yaml", f"version: 1\n{text}".encode())])
    sources = {"bad": WEB, "good": WEB, "typed": WEB}
    lacking = {hook: "it has none" for hook in HOOKS if hook.kind is HookKind.XDP}
    desired = resolve(manifest, sources, MACHINE, lacking=lacking)
    said = "this kernel cannot attach xdp: it has none"
    assert desired.faults == {
        "bad": f"/etc/bad.o: program drop: {said}",
        "typed": f"/etc/typed.o: program trace: {said}",
    }
    assert list(desired.objects) == ["good"]
