"""For each type of map: how it is declared, filled and read from the outside, and its count."""

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tests.system.outsider import (
    PAGE,
    TWO,
    Fill,
    Outsider,
    Read,
    by_attachment,
    by_program,
    connection,
    entries,
    inner_maps,
    maybe_contained,
    memory,
    of_a_cgroup,
    of_a_file,
    of_a_socket,
    of_this_process,
    push,
    put,
    put_cgroups,
    put_counter,
    put_descriptors,
    put_maps,
    put_programs,
    put_storage,
    records,
    reuseport_socket,
    says_program,
    storages,
    submit_record,
    taken_and_put_back,
    u32,
    u64,
    write_memory,
    xdp_socket,
)


@dataclass(frozen=True, slots=True)
class Row:
    """What the matrix knows of a type."""

    body: str
    """Of the definition in an object, in C."""
    sizes: str
    """Key and value in the manifest, as types."""
    rest: str
    """Of the definition in the manifest."""
    fill: Fill
    read: Read
    count: int | None
    """Entries once it is filled, bytes in ring buffers; None where nothing is counted."""
    hook: str = "xdp"
    """The section of the program that has the map."""
    use: str = "refer(&kept)"
    """What it does with the map, and returns, in C."""


_PLAIN = "__type(key, __u32); __type(value, __u64); __uint(max_entries, 8);"
_SLOTS = "__type(key, __u32); __type(value, __u32); __uint(max_entries, 8);"
_MAPS = "__type(key, __u32); __uint(max_entries, 8); __array(values, struct inner);"
_CGROUP = "__type(key, struct bpf_cgroup_storage_key); __type(value, __u64);"
_NO_KEY = "__type(value, __u32); __uint(max_entries, 8);"
_PAGE = f"__uint(max_entries, {PAGE});"
_NUMBERS, _WORDS, _FEW = "key: u32, value: u64", "key: u32, value: u32", "max_entries: 8"
_INNER = f"{_FEW}, inner: {{type: hash, key: u32, value: u64, max_entries: 4}}"
_CGROUP_KEY = "key: {cgroup_inode_id: u64, attach_type: u32}, value: u64"
_RAW_TP = "raw_tp/sys_enter"
_EGRESS = "cgroup_skb/egress"
_LOCAL = "bpf_get_local_storage(&kept, 0) == 0"
_UNDER = "16 * bpf_current_task_under_cgroup(&kept, 0) + bpf_current_task_under_cgroup(&kept, 1)"
_LOOPBACK = put(*((u32(slot), u32(socket.if_nametoindex("lo"))) for slot in (1, 3)))
_ROUTES = put((u32(8) + bytes((10, 0, 0, 0)), u64(1)), (u32(24) + bytes((10, 1, 2, 0)), u64(2)))
_ARENA_ADDRESS = 0x70000000
"""An object's program can refer to an arena only if its address is fixed."""


def _storage_of(make: Callable[[Outsider], int]) -> Row:
    return Row(
        "__type(key, int); __type(value, __u64); __uint(map_flags, BPF_F_NO_PREALLOC);",
        "key: s32, value: u64",
        "flags: [no_prealloc]",
        put_storage(make),
        storages,
        1,
    )


ROWS: Mapping[str, Row] = {
    "hash": Row(_PLAIN, _NUMBERS, _FEW, TWO, entries, 2),
    "array": Row(_PLAIN, _NUMBERS, _FEW, TWO, entries, None),
    "prog_array": Row(_SLOTS, _WORDS, _FEW, put_programs, entries, 1),
    "perf_event_array": Row(
        f"{_SLOTS} __uint(map_flags, BPF_F_PRESERVE_ELEMS);",
        _WORDS,
        f"{_FEW}, flags: [preserve_elems]",
        put_counter,
        says_program,
        1,
        _RAW_TP,
        "read_counter(ctx, &kept)",
    ),
    "percpu_hash": Row(_PLAIN, _NUMBERS, _FEW, TWO, entries, 2),
    "percpu_array": Row(_PLAIN, _NUMBERS, _FEW, TWO, entries, None),
    "stack_trace": Row(
        "__type(key, __u32); __type(value, frames); __uint(max_entries, 8);",
        "key: u32, value: 'u64[127]'",
        _FEW,
        by_program,
        entries,
        1,
        _RAW_TP,
        "bpf_get_stackid(ctx, &kept, 0)",
    ),
    "cgroup_array": Row(_SLOTS, _WORDS, _FEW, put_cgroups, says_program, 2, _RAW_TP, _UNDER),
    "lru_hash": Row(_PLAIN, _NUMBERS, _FEW, TWO, entries, 2),
    "lru_percpu_hash": Row(_PLAIN, _NUMBERS, _FEW, TWO, entries, 2),
    "lpm_trie": Row(
        "__type(key, struct prefix); __type(value, __u64); __uint(max_entries, 8);"
        " __uint(map_flags, BPF_F_NO_PREALLOC);",
        "key: {length: u32, address: be32}, value: u64",
        f"{_FEW}, flags: [no_prealloc]",
        _ROUTES,
        entries,
        2,
    ),
    "array_of_maps": Row(_MAPS, _WORDS, _INNER, put_maps, inner_maps, 2),
    "hash_of_maps": Row(_MAPS, _WORDS, _INNER, put_maps, inner_maps, 2),
    "devmap": Row(_SLOTS, _WORDS, _FEW, _LOOPBACK, entries, 2),
    "sockmap": Row(_PLAIN, _NUMBERS, _FEW, put_descriptors(connection), entries, 2),
    "cpumap": Row(_SLOTS, _WORDS, _FEW, put((u32(0), u32(192))), entries, 1),
    "xskmap": Row(
        _SLOTS,
        _WORDS,
        _FEW,
        put_descriptors(xdp_socket),
        says_program,
        1,
        use="is_there(&kept)",
    ),
    "sockhash": Row(_PLAIN, _NUMBERS, _FEW, put_descriptors(connection), entries, 2),
    "cgroup_storage": Row(
        _CGROUP, _CGROUP_KEY, "max_entries: 0", by_attachment, entries, None, _EGRESS, _LOCAL
    ),
    "reuseport_sockarray": Row(
        _PLAIN, _NUMBERS, _FEW, put_descriptors(reuseport_socket), entries, 1
    ),
    "percpu_cgroup_storage": Row(
        _CGROUP, _CGROUP_KEY, "max_entries: 0", by_attachment, entries, None, _EGRESS, _LOCAL
    ),
    "queue": Row(_NO_KEY, "value: u32", _FEW, push, taken_and_put_back, 3),
    "stack": Row(_NO_KEY, "value: u32", _FEW, push, taken_and_put_back, 3),
    "sk_storage": _storage_of(of_a_socket),
    "devmap_hash": Row(_SLOTS, _WORDS, _FEW, _LOOPBACK, entries, 2),
    "ringbuf": Row(
        _PAGE, "", f"max_entries: {PAGE}", by_program, records, 32, _RAW_TP, "write_record(&kept)"
    ),
    "inode_storage": _storage_of(of_a_file),
    "task_storage": _storage_of(of_this_process),
    "bloom_filter": Row(
        "__type(value, __u32); __uint(max_entries, 1000); __uint(map_flags, BPF_F_ZERO_SEED);",
        "value: u32",
        "max_entries: 1000, flags: [zero_seed]",
        push,
        maybe_contained,
        3,
    ),
    "user_ringbuf": Row(_PAGE, "", f"max_entries: {PAGE}", submit_record, records, 24),
    "cgrp_storage": _storage_of(of_a_cgroup),
    "arena": Row(
        f"__uint(max_entries, 2); __uint(map_flags, 0x400); __uint(map_extra, {_ARENA_ADDRESS});",
        "",
        "max_entries: 2, flags: [mmapable]",
        write_memory,
        memory,
        None,
    ),
    "insn_array": Row(
        "__type(key, __u32); __uint(value_size, 16); __uint(max_entries, 8);",
        "key: u32, value: 'u32[4]'",
        _FEW,
        put((u32(1), u64(1))),
        entries,
        None,
        use="0",
    ),
}
"""All but struct_ops, which has programs of its own and goes with them."""
