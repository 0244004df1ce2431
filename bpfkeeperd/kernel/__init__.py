"""The edge: everything that talks to the kernel, and nothing that decides.

Only this package uses the extension. Descriptors are plain ints, close-on-exec, owned by whoever
called; `holding` closes one at the end of a block.
"""

from bpfkeeperd.kernel.bpf import (
    TRACE_ITER,
    btf_layouts,
    holding,
    iter_create,
    link_create,
    link_info,
    link_update,
    map_by_id,
    map_create,
    map_delete,
    map_info,
    map_keys,
    map_lookup,
    map_update,
    pin,
    pinned,
    pinned_map,
    program_by_id,
    program_info,
    release_memory,
)
from bpfkeeperd.kernel.objects import OpenObject, load_objects, open_object
from bpfkeeperd.kernel.places import (
    boot_id,
    cgroup2_mount,
    inside_netns,
    interface_index,
    interfaces,
    is_bpffs,
    netns_path,
    page_size,
    possible_cpus,
)
from bpfkeeperd.kernel.scan import Pin, PinKind, scan

__all__ = [
    "TRACE_ITER",
    "OpenObject",
    "Pin",
    "PinKind",
    "boot_id",
    "btf_layouts",
    "cgroup2_mount",
    "holding",
    "inside_netns",
    "interface_index",
    "interfaces",
    "is_bpffs",
    "iter_create",
    "link_create",
    "link_info",
    "link_update",
    "load_objects",
    "map_by_id",
    "map_create",
    "map_delete",
    "map_info",
    "map_keys",
    "map_lookup",
    "map_update",
    "netns_path",
    "open_object",
    "page_size",
    "pin",
    "pinned",
    "pinned_map",
    "possible_cpus",
    "program_by_id",
    "program_info",
    "release_memory",
    "scan",
]
