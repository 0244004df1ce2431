"""What is said of a load that failed. The logs are those of Linux 6.18 and libbpf 1.1."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpfkeeperd.verifier import btf_left_out, load_failure, refused_map

NULL_POINTER = """\
libbpf: prog 'count': BPF program load failed: Permission denied
libbpf: prog 'count': -- BEGIN PROG LOAD LOG --
0: R1=ctx() R10=fp0
; SEC(HOOK) int count(struct __sk_buff *ctx) @ refused.c:17
0: (b7) r1 = 0                        ; R1=0
; __u64 *value = bpf_map_lookup_elem(&counts, &key); @ refused.c:21
4: (18) r1 = 0xffff8881333f2400       ; R1=map_ptr(map=counts,ks=4,vs=8)
6: (85) call bpf_map_lookup_elem#1    ; R0=map_value_or_null(id=1,map=counts,ks=4,vs=8)
; return *value; @ refused.c:22
7: (79) r0 = *(u64 *)(r0 +0)
R0 invalid mem access 'map_value_or_null'
processed 7 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
-- END PROG LOAD LOG --
libbpf: prog 'count': failed to load: -13
libbpf: failed to load object 'one'
"""

ENDLESS_LOOP = """\
libbpf: prog 'count': BPF program load failed: Invalid argument
libbpf: prog 'count': -- BEGIN PROG LOAD LOG --
3: (07) r1 += 1                       ; R1=scalar(smin=umin=1,smax=umax=0x100000000)
5: (05) goto pc-4
infinite loop detected at insn 2
cur state: R1=scalar(smin=umin=1,smax=umax=0x100000000) R10=fp0 fp-8=mmmm????
old state: R1=scalar(smin=umin=1,smax=umax=0x100000000) R10=fp0 fp-8=mmmm????
processed 15 insns (limit 1000000) max_states_per_insn 0 total_states 1 peak_states 1 mark_read 0
-- END PROG LOAD LOG --
libbpf: prog 'count': failed to load: -22
libbpf: failed to load object 'one'
"""

RELOCATION = """\
libbpf: prog 'count': BPF program load failed: Invalid argument
libbpf: prog 'count': -- BEGIN PROG LOAD LOG --
; return t->no_such_field; @ refused.c:36
1: <invalid CO-RE relocation>
failed to resolve CO-RE relocation <byte_off> [27] struct task_struct.no_such_field (0:0 @ offset 0)
processed 2 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
-- END PROG LOAD LOG --
libbpf: prog 'count': failed to load: -22
libbpf: failed to load object 'one'
"""

RETURN_VALUE = """\
libbpf: prog 'count': BPF program load failed: Invalid argument
libbpf: prog 'count': -- BEGIN PROG LOAD LOG --
At program exit the register R0 has smin=7 smax=7 should have been in [0, 3]
processed 2 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
-- END PROG LOAD LOG --
libbpf: prog 'count': failed to load: -22
"""

NO_LOG = """\
libbpf: prog 'count': BPF program load failed: Operation not permitted
libbpf: prog 'count': failed to load: -1
libbpf: failed to load object 'one'
"""

EMPTY_LOG = """\
libbpf: prog 'count': BPF program load failed: Argument list too long
libbpf: prog 'count': -- BEGIN PROG LOAD LOG --
-- END PROG LOAD LOG --
libbpf: failed to load object 'one'
"""

MIXED = """\
libbpf: prog 'count': -- BEGIN PROG LOAD LOG --
R0 !read_ok
libbpf: prog 'count': a message of libbpf in between
-- END PROG LOAD LOG --
"""

SOURCE_ONLY = """\
libbpf: prog 'count': BPF program load failed: Invalid argument
libbpf: prog 'count': -- BEGIN PROG LOAD LOG --
; return 7; @ refused.c:45
-- END PROG LOAD LOG --
"""


@pytest.mark.parametrize(
    ("log", "start", "omitted"),
    [
        (
            NULL_POINTER,
            "the verifier refuses program count: R0 invalid mem access 'map_value_or_null'",
            9,
        ),
        (ENDLESS_LOOP, "the verifier refuses program count: infinite loop detected at insn 2", 5),
        (
            RELOCATION,
            "the verifier refuses program count: failed to resolve CO-RE relocation <byte_off>"
            " [27] struct task_struct.no_such_field (0:0 @ offset 0)",
            3,
        ),
        (
            RETURN_VALUE,
            "the verifier refuses program count: At program exit the register R0 has smin=7 smax=7"
            " should have been in [0, 3]",
            1,
        ),
        (SOURCE_ONLY, "the verifier refuses program count: ; return 7; @ refused.c:45", 0),
        (MIXED, "the verifier refuses program count: R0 !read_ok", 0),
        (NO_LOG, "the kernel refuses program count: Operation not permitted", 0),
        (EMPTY_LOG, "the kernel refuses program count: Argument list too long", 0),
    ],
    ids=[
        "null",
        "loop",
        "relocation",
        "return value",
        "source only",
        "mixed",
        "no log",
        "empty log",
    ],
)
def test_the_telling_line(log: str, start: str, omitted: int) -> None:
    line = load_failure(log, "unused")
    assert line.startswith(start)
    rest = line.removeprefix(start)
    assert rest.startswith(f" ({omitted} more lines of the verifier's log") if omitted else not rest


@pytest.mark.parametrize(
    ("log", "line"),
    [
        (
            "libbpf: extern (func ksym) 'no_such_kfunc': not found in kernel or module BTFs\n"
            "libbpf: failed to load object 'one'\n",
            "cannot load: extern (func ksym) 'no_such_kfunc': not found in kernel or module BTFs",
        ),
        (
            "libbpf: map 'trie': failed to create: Invalid argument(-22)\n"
            "libbpf: what follows from it\n"
            "libbpf: failed to load object 'one'\n",
            "cannot load: map 'trie': failed to create: Invalid argument(-22)",
        ),
        (
            "libbpf: Error in bpf_object__probe_loading():Operation not permitted(1). Couldn't load"
            " trivial BPF program. Make sure your kernel supports BPF (CONFIG_BPF_SYSCALL=y) and/or"
            " that RLIMIT_MEMLOCK is set to big enough value.\n",
            "cannot load: Operation not permitted (EPERM): it takes root",
        ),
        ("libbpf: failed to load object 'one'\n", "cannot load: Invalid argument (EINVAL)"),
        ("", "cannot load: Invalid argument (EINVAL)"),
        ("something else\n", "cannot load: Invalid argument (EINVAL)"),
    ],
    ids=["ksym", "map", "no right", "nothing told", "empty", "not of libbpf"],
)
def test_not_the_verifier(log: str, line: str) -> None:
    assert load_failure(log, "Invalid argument (EINVAL)") == line


def test_the_first_program_that_was_refused_is_named() -> None:
    other = RETURN_VALUE.replace("'count'", "'other'")
    assert "program count: At program exit" in load_failure(RETURN_VALUE + other, "")


def test_a_log_cut_short() -> None:
    """libbpf gives up on a log larger than its buffer: its end is missing."""
    line = load_failure(NULL_POINTER.split("processed")[0], "")
    assert "refuses program count: R0 invalid mem access 'map_value_or_null'" in line


def test_btf_is_left_out_only_where_the_kernel_does_not_take_it() -> None:
    object_lacks = "libbpf: Error loading .BTF into kernel: -{}. BTF is optional, ignoring.\n"
    map_lacks = "libbpf: Error in bpf_create_map_xattr(one):why(-{}). Retrying without BTF.\n"
    assert btf_left_out("") == btf_left_out(object_lacks.format(22) + map_lacks.format(524)) == ""
    why = "Cannot allocate memory (ENOMEM)"
    assert btf_left_out(object_lacks.format(12)) == f"cannot load its BTF into the kernel: {why}"
    assert (
        btf_left_out(map_lacks.format(22) + map_lacks.format(12)) == f"cannot create map one: {why}"
    )


def test_a_map_that_is_not_written_is_none_that_is_not_created() -> None:
    created = "libbpf: map 'one': failed to create: Cannot allocate memory(-12)\n"
    assert refused_map(created) == ("one", 12)
    for why in (
        "libbpf: Error setting initial map(one) contents: Cannot allocate memory\n",
        "libbpf: Error freezing map(one) as read-only: Cannot allocate memory\n",
    ):
        assert refused_map(why + created) is None
        assert (
            load_failure(why + created, "") == f"cannot load: {why.removeprefix('libbpf: ')[:-1]}"
        )
    slot = "libbpf: map 'one': failed to initialize slot [0] to prog 'two' fd=7: -12\n"
    assert load_failure(slot, "").endswith("fd=7: Cannot allocate memory (ENOMEM)")


PIECES = [*NULL_POINTER.splitlines(keepends=True), *NO_LOG.splitlines(keepends=True), "\n", "x\n"]


@given(st.lists(st.sampled_from(PIECES) | st.text(), max_size=20).map("".join))
def test_any_log_is_one_line(log: str) -> None:
    line = load_failure(log, "why")
    assert line and "\n" not in line
    assert line.startswith(("the verifier refuses", "the kernel refuses", "cannot load: "))
