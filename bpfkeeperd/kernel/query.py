"""What is attached at a hook, whoever did it."""

from bpfkeeperd._libbpf import ffi, lib

_LINKS_MAX = 64


def hook_links(target: int, attach_type: int) -> list[int]:
    """The IDs of the links at an interface's hook (TCX, netkit), in this thread's network
    namespace; none where there is no such interface or the kernel cannot tell."""
    ids = ffi.new("uint32_t[]", _LINKS_MAX)
    count = lib.keeper_hook_links(target, attach_type, ids, _LINKS_MAX)
    return [ids[place] for place in range(max(0, count))]


def xdp_program(index: int) -> int:
    """The program that an interface of this thread's network namespace runs for XDP; 0: none."""
    found = ffi.new("uint32_t *")
    return found[0] if lib.keeper_xdp_program(index, found) >= 0 else 0
